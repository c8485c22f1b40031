"""Streams: what the Gateway publishes of an entity, declared in the catalogue or made in Python; the core untouched."""

from __future__ import annotations

import json
import sqlite3
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from catalog import DEFAULT_CATALOG, Catalog, InvalidCatalog, load_catalog
from compose import ServerInfo
from gateway import Change, Materializer, MissingTopic, stage
from gateway.streams import Entity, Published, streams_of
from messaging import open_embedded_log
from messaging.home import Home
from messaging.kafka import KafkaLog, open_kafka_log
from messaging.proto import adsindex_pb2 as pb
from messaging.topics import BUDGETS, UPDATES
from tests.end_to_end.command import adsindex, as_json
from tests.gateway.gateway_support import Captured, context_of, values_of, wait_published

PAUSED = """
  paused_campaigns:
    table: campaign
    topic: campaigns.paused
    where: {status: PAUSED}
    columns: {campaign_name: name, advertiser: advertiser_id}
    required: [advertiser]
    lane: low
    partitions: 2
"""
CAMPAIGNS = "INSERT INTO campaigns (id, advertiser_id, name, status) VALUES"


def with_streams(folder: Path, text: str = PAUSED) -> Path:
    """Write the built-in catalogue with more streams."""
    built_in = DEFAULT_CATALOG.read_text()
    assert built_in.count("\nstreams:\n") == 1
    file = folder / "streams.yaml"
    file.write_text(built_in.replace("\nstreams:\n", f"\nstreams:\n{text.strip(chr(10))}\n"))
    return file


@pytest.fixture
def paused(tmp_path: Path) -> Catalog:
    """The built-in catalogue with a stream of paused campaigns."""
    return load_catalog(with_streams(tmp_path))


def of_stream(catalog: Catalog, rows: Iterable[str], name: str, folder: Path) -> list[Published]:
    """Materialize what some statements change, and return what one stream publishes of it."""
    captured = Captured(folder / "ads.db", catalog)
    try:
        for row in rows:
            captured.app.execute(row)
        return [p for p in captured.materialize().published if p.stream == name]
    finally:
        captured.close()


def test_the_updates_and_the_budgets_are_streams() -> None:
    """The Gateway has no output of its own: the Repo's updates and serving's budgets are its two built-in streams."""
    updates, budgets = streams_of(load_catalog())
    assert (updates.name, set(updates.topics)) == ("updates", set(UPDATES.values()))
    assert (budgets.name, set(budgets.topics)) == ("budgets", {BUDGETS})


def test_without_the_budget_stream_nothing_goes_to_serving_directly(tmp_path: Path) -> None:
    """The short cut is there because the catalogue declares it, and for no other reason."""
    catalog = load_catalog()
    without = replace(catalog, streams={})
    rows = (f"{CAMPAIGNS} (1, 1, 'C', 'ACTIVE')", "INSERT INTO budgets (campaign_id, daily_micros) VALUES (1, 5)")
    captured = Captured(tmp_path / "ads.db", catalog)
    try:
        for row in rows:
            captured.app.execute(row)
        assert [b.daily_micros for b in captured.materialize().budgets] == [5]
        found = Materializer(without).materialize(captured.changes(), captured.rows)
        assert (len(found.updates), found.budgets) == (1, [])
    finally:
        captured.close()


def test_a_declared_stream_has_its_columns_lane_and_names(paused: Catalog, tmp_path: Path) -> None:
    """A matching entity goes out with the stream's columns under the stream's names; others as deleted."""
    rows = (f"{CAMPAIGNS} (1, 7, 'One', 'PAUSED'), (2, 7, 'Two', 'ACTIVE')",)
    one, two = (p.message for p in of_stream(paused, rows, "paused_campaigns", tmp_path))
    assert isinstance(one, pb.EntityUpdate) and isinstance(two, pb.EntityUpdate)
    assert (one.row, one.deleted, values_of(one)) == ("1", False, {"campaign_name": "One", "advertiser": 7})
    assert (two.row, two.deleted, values_of(two)) == ("2", True, {})
    assert one.header.lane == pb.LANE_LOW


@pytest.mark.parametrize(
    "row",
    ["(1, 7, x'FF', 'PAUSED')", "(1, NULL, 'One', 'PAUSED')", "(1, 7, 'One', 'SLEEPING')"],
    ids=["an invalid column", "a required column is null", "an invalid filter column"],
)
def test_what_is_not_what_it_must_be_is_not_in_the_stream(paused: Catalog, tmp_path: Path, row: str) -> None:
    """A sink never acts on a guess: an entity whose values do not fit is published as deleted."""
    captured = Captured(tmp_path / "ads.db", paused)
    try:
        captured.app.execute("DROP TABLE campaigns")
        captured.app.execute(
            "CREATE TABLE campaigns "
            "(id INTEGER PRIMARY KEY, advertiser_id, name, objective, status, starts_at, ends_at)"
        )
        captured.app.execute(f"{CAMPAIGNS} {row}")
        changes = [Change(1, "campaigns", 1, 0)]
        result = Materializer(paused).materialize(changes, captured.rows)
        (message,) = (p.message for p in result.published if p.stream == "paused_campaigns")
        assert isinstance(message, pb.EntityUpdate)
        assert message.deleted
        assert not result.updates[0].deleted, "the Repo gets the entity all the same, the bad value as null"
    finally:
        captured.close()


def test_the_topic_read_by_key_has_exactly_the_matching_entities(paused: Catalog, tmp_path: Path) -> None:
    """The running stage makes the topic, follows pauses, resumes and deletes, and other streams do not notice."""
    home = Home.open(tmp_path / "home")
    with open_embedded_log(home.log, home.wake) as log:
        ready = threading.Event()
        context = context_of(home, log, lambda _: ready.set())
        context.catalog = paused
        thread = threading.Thread(target=stage.run, args=(context,), daemon=True)
        thread.start()
        try:
            assert ready.wait(120)
            with closing(sqlite3.connect(home.ads_db, isolation_level=None)) as app:
                app.execute(f"{CAMPAIGNS} (1, 7, 'One', 'PAUSED'), (2, 7, 'Two', 'PAUSED'), (3, 7, 'Three', 'ACTIVE')")
                wait_published(home, log)
                assert members(log, "campaigns.paused") == {"1": "One", "2": "Two"}
                app.execute("UPDATE campaigns SET status = 'ACTIVE' WHERE id = 1")
                app.execute("UPDATE campaigns SET status = 'PAUSED', name = 'Drei' WHERE id = 3")
                app.execute("DELETE FROM campaigns WHERE id = 2")
                wait_published(home, log)
                assert members(log, "campaigns.paused") == {"3": "Drei"}
            assert log.topics()["campaigns.paused"] == 2
            assert sum(log.end_offsets(UPDATES[paused.tables["campaign"].lane]).values()) >= 6
        finally:
            context.stop.set()
            thread.join(120)
        assert not thread.is_alive()


def test_on_kafka_a_stream_s_topic_is_made_by_topics_apply_only(kafka_server: ServerInfo, tmp_path: Path) -> None:
    """`check` names the missing topic, `up` and the Gateway refuse to start with the command, `apply` creates it,
    compacted, and then the stage starts."""
    home, file = Home.open(tmp_path / "home"), with_streams(tmp_path)
    url = f"{kafka_server.url}/s{uuid.uuid4().hex[:8]}-"
    as_json("topics", "apply", "--log", url, home=home.root)  # of the home's catalogue: the built-in one
    refused = adsindex("up", "--catalog", file, "--sample", "0", home=home.root, check=False)
    assert refused.returncode == 1
    assert "campaigns.paused" in refused.stderr and "./adsindex topics apply" in refused.stderr
    missing = json.loads(adsindex("topics", "check", "--catalog", file, "--json", home=home.root, check=False).stdout)
    assert [(f["topic"], f["found"]) for f in missing["findings"]] == [("campaigns.paused", "missing")]
    with closing(open_kafka_log(url, create_topics=False)) as log:
        context = context_of(home, log, lambda _: context.stop.set())
        context.catalog = load_catalog(file)
        with pytest.raises(MissingTopic, match=r"paused_campaigns.*topics apply"):
            stage.run(context)
        assert "campaigns.paused" not in log.topics()
        assert as_json("topics", "apply", "--catalog", file, home=home.root)["ok"]
        stage.run(context)  # its ready call stops it
        assert context.stop.is_set()
        assert log.topics()["campaigns.paused"] == 2
        assert isinstance(log, KafkaLog)
        assert log.admin.settings_of(["campaigns.paused"], ["cleanup.policy"]) == {
            "campaigns.paused": {"cleanup.policy": "compact"}
        }


def members(log: Any, topic: str) -> dict[str, Any]:
    """Return row -> name of the newest record of each key that is not deleted."""
    newest: dict[str, pb.EntityUpdate] = {}
    for partition in log.end_offsets(topic):
        for record in log.read(topic, partition, 0, 10_000):
            update = pb.EntityUpdate.FromString(record.value)
            assert record.key == update.row
            if update.row not in newest or newest[update.row].source_version < update.source_version:
                newest[update.row] = update
    return {row: values_of(update)["campaign_name"] for row, update in newest.items() if not update.deleted}


class NewAdvertisers:
    """A stream in Python: the country of each advertiser, keyed by it."""

    name = "new_advertisers"
    topics: Mapping[str, int] = {"advertisers.by_country": 1}

    def publish(self, entity: Entity) -> Iterable[Published]:
        """Publish advertisers that have a country."""
        if entity.table.name == "advertiser" and entity.values.get("country"):
            message = pb.EntityUpdate(header=entity.header, table="advertiser", row=entity.row)
            yield Published(self.name, "advertisers.by_country", "country", message)


def test_a_stream_in_python_stands_beside_the_declared_ones(tmp_path: Path) -> None:
    """Whoever needs more than the declaration gives the Materializer an object with a name, topics and publish."""
    captured = Captured(tmp_path / "ads.db")
    try:
        captured.app.execute("INSERT INTO advertisers (id, name, currency, country) VALUES (5, 'A', 'USD', 'FR')")
        materializer = Materializer(captured.catalog, [*streams_of(captured.catalog), NewAdvertisers()])
        result = materializer.materialize(captured.changes(), captured.rows)
        assert result.counts() == {"updates": 1, "new_advertisers": 1}
        topics = [(record.topic, record.key) for record in result.records(1)]
        assert topics == [(UPDATES[captured.catalog.tables["advertiser"].lane], "advertiser/5"),
                          ("advertisers.by_country", "country")]  # fmt: skip
    finally:
        captured.close()


FAULTS: list[tuple[str, Callable[[str], str], str, str]] = [
    (
        "unknown table",
        lambda t: t.replace("table: campaign", "table: ad_document"),
        "table: ad_document",
        "not a table",
    ),
    ("unknown column", lambda t: t.replace("name: name", "name: nmae"), "columns: {", "campaign.nmae is not a column"),
    ("unknown filter", lambda t: t.replace("{status:", "{state:"), "where:", "campaign.state is not a column"),
    ("impossible filter", lambda t: t.replace(": PAUSED", ": ASLEEP"), "where:", "can never match"),
    ("unknown requirement", lambda t: t.replace("[advertiser]", "[adviser]"), "required:", "requires 'adviser'"),
    ("shared topic", lambda t: t.replace("campaigns.paused", BUDGETS), "topic: serving", "belongs to stream"),
    ("not a budget", lambda t: t + "    message: budget\n", "columns: {", "a budget has"),
    ("unknown key", lambda t: t + "    sink: x\n", "sink: x", "unknown key 'sink'"),
]


@pytest.mark.parametrize(("edit", "line", "text"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_a_fault_of_a_stream_is_reported_with_its_line(
    tmp_path: Path, edit: Callable[[str], str], line: str, text: str
) -> None:
    """Start-up says which line of the catalogue is wrong and why."""
    file = with_streams(tmp_path, edit(PAUSED.strip("\n") + "\n"))
    with pytest.raises(InvalidCatalog) as caught:
        load_catalog(file)
    (fault,) = caught.value.faults
    assert text in fault.text
    assert line in file.read_text().splitlines()[fault.line - 1]


def test_budgets_that_nothing_would_obey_are_a_fault(tmp_path: Path) -> None:
    """A catalogue that publishes budgets must say by which field serving finds them."""
    file = tmp_path / "ads.yaml"
    file.write_text(DEFAULT_CATALOG.read_text().replace("  budget_key: campaign_id\n", ""))
    with pytest.raises(InvalidCatalog, match="'budget_key' is missing"):
        load_catalog(file)
