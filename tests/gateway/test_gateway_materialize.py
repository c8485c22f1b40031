"""Materialization: whole entities with growing versions; what is wrong is a dead letter, and the rest flows."""

from __future__ import annotations

import pytest

from catalog.values import refusal
from gateway import Change, Materializer
from messaging.proto import adsindex_pb2 as pb
from messaging.topics import CHANGE_FEED
from tests.gateway.gateway_support import Captured, values_of
from tests.gateway.test_gateway_capture import ONE_OF_EACH


def by_row(updates: list[pb.EntityUpdate]) -> dict[tuple[str, str], pb.EntityUpdate]:
    """Index updates by entity; each entity is there once."""
    found = {(u.table, u.row): u for u in updates}
    assert len(found) == len(updates)
    return found


def test_whole_entities(ads: Captured) -> None:
    """Every entity comes whole, its satellite's columns included, in its table's lane."""
    ads.db.execute(ONE_OF_EACH)
    result = ads.materialize()
    updates = by_row(result.updates)
    assert set(updates) == {
        ("advertiser", "1"), ("campaign", "2"), ("ad_group", "3"), ("ad", "4"), ("pin", "p"), ("image", "i"),
    }  # fmt: skip
    campaign = values_of(updates["campaign", "2"])
    assert (campaign["advertiser_id"], campaign["status"], campaign["budget_daily_micros"]) == (1, "ACTIVE", 5_000_000)
    assert values_of(updates["ad_group", "3"])["targeting_spec"] == "{}"
    assert updates["ad", "4"].header.lane == pb.LANE_HIGH
    assert updates["pin", "p"].header.lane == pb.LANE_MEDIUM
    assert all(u.source == "ads_db" and not u.deleted and u.header.trace_id for u in result.updates)
    assert not result.dead_letters


def test_changes_of_one_entity_become_one_update(ads: Captured) -> None:
    """Several changes of an entity and of its satellites are one update: highest version, earliest origin."""
    ads.db.execute(ONE_OF_EACH)
    before = ads.feed.end()
    ads.app.execute("UPDATE budgets SET spent_today_micros = 7")
    ads.app.execute("UPDATE campaigns SET status = 'PAUSED'")
    ads.app.execute("UPDATE budgets SET spent_today_micros = 8")
    (update,) = ads.materialize(before).updates
    assert update.source_version == before + 3
    assert update.header.origin_us == ads.changes(before)[0].changed_at_us
    assert (values_of(update)["status"], values_of(update)["spent_today_micros"]) == ("PAUSED", 8)


def test_delete_and_key_change(ads: Captured) -> None:
    """A row that is gone is sent as deleted; a changed key deletes the old entity and brings the new one."""
    ads.db.execute(ONE_OF_EACH)
    before = ads.feed.end()
    ads.app.execute("DELETE FROM pins")
    ads.app.execute("UPDATE ads SET id = 40 WHERE id = 4")
    updates = by_row(ads.materialize(before).updates)
    assert {row: u.deleted for row, u in updates.items()} == {
        ("pin", "p"): True, ("ad", "4"): True, ("ad", "40"): False,
    }  # fmt: skip
    assert not updates["pin", "p"].columns


def test_missing_satellite_and_orphan(ads: Captured) -> None:
    """Without its satellite an entity has nulls there; a satellite without its entity is a deleted entity."""
    ads.db.execute(ONE_OF_EACH)
    before = ads.feed.end()
    ads.app.execute("DELETE FROM targeting_specs")
    ads.app.execute("INSERT INTO budgets (campaign_id, daily_micros) VALUES (99, 1)")
    updates = by_row(ads.materialize(before).updates)
    assert values_of(updates["ad_group", "3"])["targeting_spec"] is None
    assert values_of(updates["ad_group", "3"])["campaign_id"] == 2
    assert updates["campaign", "99"].deleted


def test_budget_short_cut(ads: Captured) -> None:
    """A campaign's budget goes out with the campaign's version; missing, invalid or orphaned it counts as none."""
    ads.db.execute(ONE_OF_EACH)
    (budget,) = ads.materialize().budgets
    assert (budget.campaign_id, budget.version, budget.daily_micros, budget.currency) == ("2", 3, 5_000_000, "USD")
    assert not budget.deleted
    for sql in (
        "UPDATE budgets SET lifetime_micros = 'plenty'",
        "UPDATE budgets SET daily_micros = 10.5, lifetime_micros = 0",
        "DELETE FROM budgets",
        "INSERT INTO budgets (campaign_id, daily_micros) VALUES (2, 1); DELETE FROM campaigns",
    ):
        before = ads.feed.end()
        ads.db.execute(sql)
        (budget,) = ads.materialize(before).budgets
        assert budget.deleted, sql
        assert budget.version == ads.feed.end()


@pytest.mark.parametrize(
    ("sql", "column", "reason"),
    [
        ("UPDATE pins SET title = CAST(x'C3284F' AS TEXT)", "title", "invalid_utf8"),
        ("UPDATE pins SET description = replace(hex(zeroblob(5242880)), '0', 'x')", "description", "value_too_large"),
        ("UPDATE pins SET status = 'MAYBE'", "status", "value_not_allowed"),
        ("UPDATE pins SET price_micros = 'cheap'", "price_micros", "bad_type"),
        ("UPDATE pins SET price_micros = 9e30", "price_micros", "out_of_range"),
        ("UPDATE pins SET price_micros = 1.5", "price_micros", "bad_type"),
    ],
)
def test_bad_value_is_marked_and_a_dead_letter(ads: Captured, sql: str, column: str, reason: str) -> None:
    """A value that its column does not allow is sent as refused, with a dead letter; the rest of the entity flows."""
    ads.db.execute(ONE_OF_EACH + "UPDATE pins SET title = 'good', link = 'l', description = 'd', price_micros = 5;")
    before = ads.feed.end()
    ads.app.execute(sql)
    result = ads.materialize(before)
    (update,), (letter,) = result.updates, result.dead_letters
    values = values_of(update)
    assert values[column] is None
    assert {c.name: refusal(c.value) for c in update.columns}[column] == reason
    assert values["link"] == "l"
    assert values["title"] == (None if column == "title" else "good")
    assert (letter.stage, letter.reason, letter.table, letter.row) == ("gateway", reason, "pin", "p")
    assert f"pins.{column} of row p" in letter.error
    assert "correct the value" in letter.error
    assert (letter.topic, letter.offset) == (CHANGE_FEED, ads.feed.end())
    assert letter.ByteSize() < 4_000
    replay = pb.Change.FromString(letter.payload)
    assert (replay.source_table, replay.key, letter.payload_type) == ("pins", "p", "Change")


def test_bad_time_of_a_schedule(ads: Captured) -> None:
    """A schedule that is no time is a dead letter; times in the usual forms are microseconds in UTC."""
    ads.db.execute(ONE_OF_EACH)
    before = ads.feed.end()
    ads.app.execute("UPDATE campaigns SET starts_at = '2026-01-31 12:00:00', ends_at = 'soon'")
    result = ads.materialize(before)
    assert values_of(result.updates[0])["starts_at"] == 1_769_860_800_000_000
    assert values_of(result.updates[0])["ends_at"] is None
    assert [letter.reason for letter in result.dead_letters] == ["bad_type"]


@pytest.mark.parametrize(
    ("key", "says"),
    [("''", "empty"), ("'a' || char(10) || 'b'", "control characters"), ("hex(zeroblob(100))", "more than"),
     ("CAST(x'FF' AS TEXT)", "not text"), ("x'6162'", "not text")],
)  # fmt: skip
def test_bad_keys(ads: Captured, key: str, says: str) -> None:
    """Keys that are no row keys are dead letters, and their neighbours flow."""
    ads.app.execute(f"INSERT INTO pins (id) VALUES ({key}), ('good')")
    result = ads.materialize()
    assert [u.row for u in result.updates] == ["good"]
    (letter,) = result.dead_letters
    assert letter.reason == "bad_key"
    assert says in letter.error


def test_bad_keys_of_numbers(ads: Captured) -> None:
    """A table whose key is a number takes nothing else."""
    odd = [Change(i, "budgets", key, 1) for i, key in enumerate((None, "x", "007", "1e3", "9" * 30, 1.5), 1)]
    result = Materializer(ads.catalog).materialize(odd, ads.rows)
    assert [letter.reason for letter in result.dead_letters] == ["bad_key"] * 6
    assert not result.updates


def test_unknown_table_and_schema_change(ads: Captured) -> None:
    """Changes of unknown tables, and of tables that lost a column, are dead letters; other entities flow."""
    ads.db.execute(ONE_OF_EACH)
    ads.app.execute("ALTER TABLE pins DROP COLUMN brand")
    ads.app.execute("INSERT INTO _adsindex_changes (source_table, key, changed_at_us) VALUES ('orders', 1, 1)")
    result = ads.materialize()
    assert {u.table for u in result.updates} == {"advertiser", "campaign", "ad_group", "ad", "image"}
    assert {letter.reason: letter.row for letter in result.dead_letters} == {
        "unknown_table": "1",
        "schema_mismatch": "p",
    }
    assert "pin.brand" in next(x for x in result.dead_letters if x.reason == "schema_mismatch").error


def test_backfill_takes_the_low_lane_unless_changed_too(ads: Captured) -> None:
    """Enqueued rows take the low lane; one that was also changed takes its table's."""
    ads.db.execute("INSERT INTO ads (id, ad_group_id) VALUES (1, 1), (2, 1)")
    before = ads.feed.end()
    assert ads.feed.resync(before + 1) == 2
    ads.app.execute("UPDATE ads SET status = 'PAUSED' WHERE id = 2")
    lanes = {u.row: u.header.lane for u in ads.materialize(before).updates}
    assert lanes == {"1": pb.LANE_LOW, "2": pb.LANE_HIGH}


def test_one_snapshot_for_all_tables(ads: Captured) -> None:
    """All tables of a batch are read at one state: what commits in between is not half seen."""
    ads.db.execute(ONE_OF_EACH)

    class Interrupted:
        def rows(self, queries):  # type: ignore[no-untyped-def]
            for i, found in enumerate(ads.rows.rows(queries)):
                if i == 0:
                    ads.app.execute("UPDATE advertisers SET name = 'new'")
                    ads.app.execute("UPDATE images SET url = 'new'")
                yield found

    result = Materializer(ads.catalog).materialize(ads.changes(), Interrupted())
    assert values_of(by_row(result.updates)["image", "i"])["url"] == "https://x.example/i.jpg"
