"""Bad input: each is a clear error or a counted dead letter that names what, where and why; the rest flows."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from argus.sources import PerformanceDb, PerformanceRow
from catalog import LaneName, load_catalog
from catalog.documents import decode_document
from catalog.values import encode
from cli.idle import deferred_rows
from cli.inprocess import InProcess
from messaging.api import OutRecord
from messaging.dead_letters import parse
from messaging.headers import new_header, now_us
from messaging.home import Home
from messaging.proto import adsindex_pb2 as pb
from messaging.topics import DEAD_LETTERS, DEFERRED, SIGNALS

HEALTHY = """
INSERT INTO advertisers (id, name, currency) VALUES (1, 'A', 'USD');
INSERT INTO campaigns (id, advertiser_id, name) VALUES (1, 1, 'C');
INSERT INTO budgets (campaign_id, daily_micros, currency) VALUES (1, 1000000000, 'USD');
INSERT INTO ad_groups (id, campaign_id, name, bid_micros) VALUES (1, 1, 'G', 500000), (2, 1, 'H', 500000);
INSERT INTO pins (id, title) VALUES ('p1', 'Green tea'), ('p2', 'Black tea');
INSERT INTO ads (id, ad_group_id, pin_id, name) VALUES (1, 1, 'p1', 'one'), (2, 2, 'p2', 'two');
"""


@pytest.fixture
def pipeline(tmp_path: Path) -> Iterator[InProcess]:
    """A running pipeline with two healthy ads in groups of their own."""
    with InProcess(Home.open(tmp_path / "home"), load_catalog()) as running:
        running.backends.ads_db.execute(HEALTHY)
        running.until_idle()
        assert serving(running) == {"1", "2"}
        yield running


def serving(pipeline: InProcess) -> set[str]:
    """Return the ids of all ads that an ordinary request gets."""
    return {str(hit["ad_id"]) for hit in pipeline.backends.serving.search({}, 0)["hits"]}


def letters(pipeline: InProcess) -> list[pb.DeadLetter]:
    """Return all dead letters."""
    return [parse(pb.DeadLetter, r) for r in pipeline.backends.log.read(DEAD_LETTERS, 0, 0, 1000)]


def test_a_targeting_spec_that_is_not_one_stops_its_ads_and_nobody_else(pipeline: InProcess) -> None:
    """A spec with an unknown dimension is a dead letter that names the ad group; its ad stops until mended."""
    sql = pipeline.backends.ads_db.execute
    sql("""INSERT INTO targeting_specs (ad_group_id, spec) VALUES (1, '{"shoe_size": [44]}')""")
    pipeline.until_idle()
    assert serving(pipeline) == {"2"}
    (letter,) = letters(pipeline)
    assert (letter.reason, letter.table, letter.row, letter.handler) == ("bad_targeting", "ad_group", "1", "targeting")
    assert "shoe_size" in letter.error
    sql("UPDATE targeting_specs SET spec = 'no json at all'")
    pipeline.until_idle()
    assert [x.reason for x in letters(pipeline)] == ["bad_targeting"] * 2
    sql("""UPDATE targeting_specs SET spec = '{"gender": ["F"]}'""")
    pipeline.until_idle()
    assert serving(pipeline) == {"2"}
    assert pipeline.backends.serving.search({"gender": "F"}, 0)["total"] == 2


def test_values_that_do_not_fit_their_columns_are_counted_and_the_rest_of_the_row_flows(pipeline: InProcess) -> None:
    """Invalid UTF-8, 10 MB of text, an unknown status and an impossible number: a letter each, other columns stored."""
    connection = sqlite3.connect(pipeline.home.ads_db)
    with connection:
        connection.execute("UPDATE pins SET brand = CAST(x'ff41' AS TEXT), link = 'https://shop/1' WHERE id = 'p1'")
        connection.execute("UPDATE pins SET description = ? WHERE id = 'p2'", ("x" * 10_000_000,))
        connection.execute("UPDATE ad_groups SET bid_micros = 'a lot' WHERE id = 2")
    connection.close()
    pipeline.until_idle()
    assert Counter(x.reason for x in letters(pipeline)) == {"invalid_utf8": 1, "value_too_large": 1, "bad_type": 1}
    by_reason = {x.reason: x for x in letters(pipeline)}
    assert "brand" in by_reason["invalid_utf8"].error and by_reason["invalid_utf8"].row == "p1"
    assert "10000000 bytes" in by_reason["value_too_large"].error
    assert "bid_micros" in by_reason["bad_type"].error
    assert serving(pipeline) == {"1"}, "an ad group without a bid cannot serve; the other goes on"
    document = decode_document(pipeline.backends.serving.get(["1"])[0].body)
    assert document["link"] == "https://shop/1"
    assert "brand" not in document


def test_a_control_value_left_out_for_its_entity_s_size_blocks_the_ad(
    pipeline: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A targeting spec that makes its ad group too large is refused, not taken for none, which would lift the
    targeting: its ad stops, the letter says why, and shortened it serves again."""
    monkeypatch.setattr("gateway.materialize.MAX_UPDATE_BYTES", 2_000)  # 4 MiB take many columns at their limits
    sql = pipeline.backends.ads_db.execute
    spec = '{"gender": ["F"]' + " " * 3_000 + "}"
    sql(f"INSERT INTO targeting_specs (ad_group_id, spec) VALUES (1, '{spec}')")
    pipeline.until_idle()
    assert serving(pipeline) == {"2"}
    assert pipeline.backends.serving.search({"gender": "F"}, 0)["total"] == 1
    (letter,) = letters(pipeline)
    assert (letter.reason, letter.table, letter.row) == ("entity_too_large", "ad_group", "1")
    sql("""UPDATE targeting_specs SET spec = '{"gender": ["F"]}'""")
    pipeline.until_idle()
    assert pipeline.backends.serving.search({"gender": "F"}, 0)["total"] == 2


def test_a_status_nobody_knows_never_counts_as_active(pipeline: InProcess) -> None:
    """An unknown status stops the campaign: what cannot be understood must not serve."""
    pipeline.backends.ads_db.execute("UPDATE campaigns SET status = 'on'")
    pipeline.until_idle()
    assert serving(pipeline) == set()
    assert [x.reason for x in letters(pipeline)] == ["value_not_allowed"]


def test_orphans_are_joined_when_their_parents_arrive_in_any_order(pipeline: InProcess) -> None:
    """An ad whose group, campaign, advertiser, pin and image do not exist yet serves once the last of them has come."""
    sql = pipeline.backends.ads_db.execute
    parents = [
        "INSERT INTO ads (id, ad_group_id, pin_id, name) VALUES (9, 90, 'p9', 'late')",
        "INSERT INTO images (id, url) VALUES ('i9', 'https://img/9')",
        "INSERT INTO ad_groups (id, campaign_id, name, bid_micros) VALUES (90, 91, 'G', 1)",
        "INSERT INTO advertisers (id, name, currency) VALUES (92, 'B', 'EUR')",
        "INSERT INTO pins (id, title, image_id) VALUES ('p9', 'Late tea', 'i9')",
        "INSERT INTO budgets (campaign_id, daily_micros, currency) VALUES (91, 1000000, 'EUR')",
        "INSERT INTO campaigns (id, advertiser_id, name) VALUES (91, 92, 'C')",
    ]
    for statement in parents[:-1]:
        sql(statement)
        pipeline.until_idle()
        assert "9" not in serving(pipeline)
    sql(parents[-1])
    pipeline.until_idle()
    assert "9" in serving(pipeline)
    document = decode_document(pipeline.backends.serving.get(["9"])[0].body)
    assert document["image_url"] == "https://img/9"
    assert letters(pipeline) == []


def test_schedules_begin_and_end_by_the_clock_without_any_update(pipeline: InProcess) -> None:
    """An ad group that begins tomorrow and ends the day after serves then and only then; no message is needed."""
    pipeline.backends.ads_db.execute(
        "UPDATE ad_groups SET starts_at = '2031-05-02 00:00:00', ends_at = '2031-05-03 00:00:00' WHERE id = 1"
    )
    pipeline.until_idle()
    deltas = pipeline.backends.log.end_offsets("serving.deltas")

    def at(moment: str) -> set[str]:
        return {str(h["ad_id"]) for h in pipeline.backends.serving.search({"at": moment}, 0)["hits"]}

    assert at("2031-05-01T23:59:59Z") == {"2"}
    assert at("2031-05-02T00:00:00Z") == {"1", "2"}
    assert at("2031-05-03T00:00:00Z") == {"2"}
    assert pipeline.backends.log.end_offsets("serving.deltas") == deltas


def test_rows_that_wait_for_a_source_keep_nobody_from_being_idle(pipeline: InProcess) -> None:
    """The performance database is away: the pipeline is idle without the rows that wait for it, trying them again
    commits nothing, and once it is back they are done."""
    update = pb.EntityUpdate(
        header=new_header(LaneName.MEDIUM, now_us()), table="ad", row="1", source="performance", source_version=1
    )
    update.columns.add(name="performance_version", value=encode(1))
    log, repo = pipeline.backends.log, pipeline.backends.repo
    log.publish([OutRecord(SIGNALS, "ad/1", update.SerializeToString())])
    pipeline.until_idle(60)
    assert deferred_rows(log) == 1
    rounds, commits = sum(log.end_offsets(DEFERRED).values()), repo.last_commit_ts()
    assert log.wait([DEFERRED], {(DEFERRED, p): end for p, end in log.end_offsets(DEFERRED).items()}, 30)
    assert repo.last_commit_ts() == commits
    assert rounds < 20, "it goes round at a slow pace"
    assert serving(pipeline) == {"1", "2"}
    with closing(PerformanceDb(pipeline.home.performance_db)) as database:
        database.upsert([PerformanceRow(1, 2_000, 2, 0, 0, 9)])
    pipeline.until_idle(60)
    assert deferred_rows(log) == 0
    assert decode_document(pipeline.backends.serving.get(["1"])[0].body)["impressions"] == 2_000


def test_bids_in_different_currencies_compete_by_what_they_are_worth(pipeline: InProcess) -> None:
    """Two rupees are less than half a dollar; a currency that nobody declared stops its advertiser, and says so."""
    sql = pipeline.backends.ads_db.execute
    sql("""
        INSERT INTO advertisers (id, name, currency) VALUES (2, 'B', 'INR');
        INSERT INTO campaigns (id, advertiser_id, name) VALUES (2, 2, 'C');
        INSERT INTO budgets (campaign_id, daily_micros, currency) VALUES (2, 1000000000, 'INR');
        UPDATE ad_groups SET campaign_id = 2, bid_micros = 2000000 WHERE id = 2;
    """)
    pipeline.until_idle()
    hits = pipeline.backends.serving.search({}, 0)["hits"]
    assert [str(hit["ad_id"]) for hit in hits] == ["1", "2"]
    assert hits[1]["score"] == pytest.approx(hits[0]["score"] / 20)
    sql("UPDATE advertisers SET currency = 'XXX' WHERE id = 2")
    pipeline.until_idle()
    assert serving(pipeline) == {"1"}
    (letter,) = letters(pipeline)
    assert (letter.reason, letter.row) == ("unknown_currency", "2")


def test_spending_the_budget_stops_the_campaign_without_rewriting_a_document(pipeline: InProcess) -> None:
    """Budget state takes the short cut: ads stop and start with it, and no document is published for that."""
    deltas = pipeline.backends.log.end_offsets("serving.deltas")
    pipeline.backends.ads_db.execute("UPDATE budgets SET spent_today_micros = daily_micros")
    pipeline.until_idle()
    assert serving(pipeline) == set()
    pipeline.backends.ads_db.execute("UPDATE budgets SET spent_today_micros = 0")
    pipeline.until_idle()
    assert serving(pipeline) == {"1", "2"}
    assert pipeline.backends.log.end_offsets("serving.deltas") == deltas


NULL_MEANS_ANYTHING = [
    ("INSERT INTO targeting_specs (ad_group_id, spec) VALUES (1, CAST(x'fffe' AS TEXT))", "targeting_specs"),
    (f"INSERT INTO targeting_specs (ad_group_id, spec) VALUES (1, '{'[' * 100_000}')", "targeting_specs"),
    ("UPDATE ad_groups SET ends_at = '01/02/2020' WHERE id = 1", "ad_groups"),
    ("UPDATE ad_groups SET starts_at = 'tomorrow' WHERE id = 1", "ad_groups"),
]


@pytest.mark.parametrize(("statement", "table"), NULL_MEANS_ANYTHING)
def test_what_cannot_be_understood_is_not_taken_for_no_condition(
    pipeline: InProcess, statement: str, table: str
) -> None:
    """A spec or date that is refused stops the ad; a spec or date that was never set puts no condition."""
    sql = pipeline.backends.ads_db.execute
    sql(statement)
    pipeline.until_idle()
    assert serving(pipeline) == {"2"}
    assert len(letters(pipeline)) == 1
    sql(
        "DELETE FROM targeting_specs"
        if table == "targeting_specs"
        else "UPDATE ad_groups SET starts_at = NULL, ends_at = NULL"
    )
    pipeline.until_idle()
    assert serving(pipeline) == {"1", "2"}
