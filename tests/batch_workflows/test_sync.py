"""Whatever was lost, polluted or forgotten is found and put right by one sync; nothing in flight counts as that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from argus import HandlerContext, Inputs, Value, load_registry
from batch_workflows import UnknownSelection
from batch_workflows._exceptions import RunStopped
from batch_workflows._runs_model import RunRequest
from batch_workflows._sync_common import Part
from batch_workflows.execution import execute
from batch_workflows.refresh import resync
from batch_workflows.sync import SyncParameters, synchronize
from batch_workflows.sync_ads import AdsSync
from batch_workflows.sync_documents import DocumentSync, ServedSync
from batch_workflows.sync_lag import Lag
from catalog import LaneName
from catalog.documents import encode_document
from messaging import OutRecord, Position, Record
from messaging.headers import new_header
from messaging.proto import adsindex_pb2 as pb
from messaging.topics import DELTAS
from tests.batch_workflows.sync_support import Chaos, filled, rebuilt, state_of, sync_of, work
from tests.debug_ui.pipeline import Pipeline


@pytest.fixture
def pipeline(tmp_path: Path) -> Iterator[Pipeline]:
    """An idle pipeline with twelve campaigns."""
    opened = filled(tmp_path / "home")
    yield opened
    opened.close()


def run(pipeline: Pipeline, **parameters: object) -> dict[str, Part]:
    """Sync with the pipeline at work meanwhile."""
    found = synchronize(
        sync_of(pipeline), SyncParameters.model_validate(parameters), sources={"performance": pipeline.source}
    )
    work(pipeline)
    return found


def unsynced(found: dict[str, Part]) -> Counter[str]:
    """Return all kinds of differences."""
    total: Counter[str] = Counter()
    for part in found.values():
        total.update(part.unsynced)
    return total


@pytest.mark.parametrize("seed", range(6))
def test_after_one_sync_all_equals_a_clean_rebuild(pipeline: Pipeline, tmp_path: Path, seed: int) -> None:
    """Rows deleted, corrupted and resurrected in Repo, indexes and ads DB, and lost messages: one sync mends it all."""
    chaos = Chaos(pipeline, seed)
    chaos.all()
    found = run(pipeline)
    clean = rebuilt(pipeline, tmp_path / "clean")
    try:
        rows, served = state_of(pipeline)
        wanted, wanted_served = state_of(clean)
        for table in wanted:
            assert rows[table] == wanted[table], (table, chaos.done)
        assert served == wanted_served
    finally:
        clean.close()
    assert len(unsynced(found)) >= 6, found
    again = run(pipeline)
    assert not unsynced(again)
    assert not any(part.ranges_differing or part.repaired or part.in_flight for part in again.values())


def test_what_is_in_flight_does_not_count(pipeline: Pipeline) -> None:
    """Changes that wait anywhere in the pipeline while a sync looks are neither reported nor repaired."""
    pipeline.sql("UPDATE ads SET name = 'in flight' WHERE id < 600; DELETE FROM ads WHERE id = 900")
    pipeline.sql("INSERT INTO ads (id, ad_group_id, pin_id, name) VALUES (77, 10, 'pin-100', 'new')")
    pipeline.run("gateway")
    pipeline.sql("UPDATE campaigns SET objective = 'AWARENESS' WHERE id = 3")
    table = pipeline.backends.catalog.tables["ad"]
    part = AdsSync(sync_of(pipeline)).run(table)
    assert (part.in_flight, part.repaired, dict(part.unsynced)) == (12, 0, {})
    found = run(pipeline)
    assert not unsynced(found)
    assert not any(part.repaired for part in found.values())
    pipeline.sql("UPDATE campaigns SET objective = 'TRAFFIC' WHERE id = 3")
    pipeline.run("gateway", "updater", "wal_proxy")
    part = DocumentSync(sync_of(pipeline), {"performance": pipeline.source}).run("ad")
    assert (part.in_flight, part.repaired, dict(part.unsynced)) == (2, 0, {})


def test_a_lost_update_of_a_row_that_changes_again_is_left_to_the_change(pipeline: Pipeline) -> None:
    """A row that differs at every look, each time otherwise, is at work: it is counted apart, and not repaired."""
    names = iter(f"name {n}" for n in range(100))

    def pause(_: float) -> None:
        work(pipeline)

    sync = sync_of(pipeline, pause=pause)
    lag = sync.lag.pass_by

    class Busy:
        """A lag after which the row has changed once more, unseen."""

        def pass_by(self) -> bool:
            passed = lag()
            unseen(pipeline, f"UPDATE ads SET name = '{next(names)}' WHERE id = 100")
            return passed

    sync.lag = Busy()  # type: ignore[assignment]
    unseen(pipeline, f"UPDATE ads SET name = '{next(names)}' WHERE id = 100")
    part = AdsSync(sync).run(pipeline.backends.catalog.tables["ad"])
    assert (part.in_flight, part.repaired, dict(part.unsynced)) == (1, 0, {})


def test_a_pipeline_that_is_down_settles_nothing(pipeline: Pipeline) -> None:
    """While something waits and nobody takes it, differences are said to be unsettled, and nothing is repaired."""
    pipeline.sql("UPDATE ads SET name = 'waits' WHERE id = 100")
    sync = sync_of(pipeline, pause=lambda _: None)
    sync.lag = replace(sync.lag, patience_s=0.05)
    part = AdsSync(sync).run(pipeline.backends.catalog.tables["ad"])
    assert (part.unsettled, part.repaired, dict(part.unsynced)) == (1, 0, {})


def test_a_report_changes_nothing(pipeline: Pipeline) -> None:
    """With repair=false a sync counts the same and leaves everything as it is."""
    Chaos(pipeline, 5).all(1)
    before = state_of(pipeline)
    sync = sync_of(pipeline, repair=False)
    found = synchronize(sync, SyncParameters(repair=False), sources={"performance": pipeline.source})
    assert unsynced(found)
    assert state_of(pipeline) == before
    assert not any(part.repaired for part in found.values())


def test_only_ranges_that_differ_are_read_again(tmp_path: Path) -> None:
    """One row of a table that differs costs its own range, not the table; nothing differs: each row is read once."""
    pipeline = filled(tmp_path / "home", 60)
    try:
        table = pipeline.backends.catalog.tables["ad"]
        part = AdsSync(sync_of(pipeline), range_rows=10).run(table)
        assert (part.rows, part.rows_read, part.ranges_differing) == (120, 240, 0)
        assert part.ranges >= 10
        assert part.bytes_read > 240 * 20
        unseen(pipeline, "UPDATE ads SET name = 'other' WHERE id = 3000")
        part = AdsSync(sync_of(pipeline), range_rows=10).run(table)
        assert (part.ranges_differing, dict(part.unsynced)) == (1, {"ad:different": 1})
        assert part.rows_read <= 240 + 2 * 10 + 2
        work(pipeline)
        unseen(pipeline, "DELETE FROM ads WHERE id = 2000")
        part = AdsSync(sync_of(pipeline), range_rows=10).run(table)
        assert (part.ranges_differing, dict(part.unsynced)) == (1, {"ad:extra_in_repo": 1})
        assert part.rows_read <= 240 + 4 * 10 + 2
    finally:
        pipeline.close()


def test_a_handler_that_fails_is_counted_and_the_rest_compared(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One document at which a handler raises is named with its reason; all others are compared."""
    (bid,) = (
        h
        for h in load_registry(pipeline.backends.catalog).handlers.values()
        if "ad_document.bid_micros" in h.declaration.writes
    )

    def broken(inputs: Inputs, context: HandlerContext) -> Mapping[str, Value]:
        if context.row == "100":
            raise ValueError("no")
        return bid.function(inputs, context)

    changed = replace(bid, function=broken)
    registry = load_registry(pipeline.backends.catalog, {**pipeline.registry.handlers, bid.name: changed}.values())
    monkeypatch.setattr("batch_workflows.sync_documents.load_registry", lambda _: registry)
    failed: list[tuple[str, ...]] = []
    sync = sync_of(pipeline, repair=False)
    sync.failed = lambda *of: failed.append(of)
    part = DocumentSync(sync, {"performance": pipeline.source}).run("ad")
    assert (part.rows, part.failing, dict(part.unsynced)) == (24, 1, {"ad_document:derived_different": 1})
    assert [of[:3] for of in failed] == [("document", "ad/100", "handler_failed")]


def test_a_document_that_is_published_all_the_time_is_not_unsynced(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is served differs at each look, but otherwise; once it rests, it is put right. No record is read twice."""
    log, repo = pipeline.log, pipeline.backends.repo
    read, looked = log.read, list[tuple[int, int]]()
    count = 0

    def reading(topic: str, partition: int, offset: int, limit: int) -> Sequence[Record]:
        records = read(topic, partition, offset, limit)
        looked.extend((partition, record.offset) for record in records if topic == DELTAS)
        return records

    def publish(_: float = 0.0) -> bool:
        nonlocal count
        count += 1
        body, version = encode_document({"ad_id": 100, "title": f"version {count}"}), repo.snapshot().ts + count
        delta = pb.DocumentDelta(header=new_header(LaneName.LOW, 1), document_id="100", version=version, body=body)
        log.publish([OutRecord(DELTAS, "100", delta.SerializeToString())])
        return True

    publish()
    monkeypatch.setattr(log, "read", reading)
    monkeypatch.setattr(Lag, "pass_by", publish)
    part = ServedSync(sync_of(pipeline)).run()
    assert (dict(part.unsynced), part.repaired, part.in_flight, count) == ({}, 0, 1, 3)
    assert len(looked) == len({*looked}) > 0
    monkeypatch.setattr(Lag, "pass_by", lambda _: True)
    part = ServedSync(sync_of(pipeline)).run()
    assert (dict(part.unsynced), part.repaired, part.in_flight) == ({"served:different": 1}, 1, 0)


def test_waiting_keeps_the_snapshot_that_is_compared(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a sync waits for what is in flight, its pin is renewed as it is between rows."""
    repo, pinned = pipeline.backends.repo, list[str]()
    pin, waits = repo.pin, list[int]()

    def pinning(name: str, ts: int, seconds: float) -> None:
        pinned.append(name)
        pin(name, ts, 3_600)

    def sleep(_: float) -> None:
        waits.append(len(pinned))
        if len(waits) > 3:
            work(pipeline)

    pipeline.sql("UPDATE pins SET title = 'Another' WHERE id = 'pin-100'")
    pipeline.run("gateway", "updater", "wal_proxy")
    monkeypatch.setattr(repo, "pin", pinning)
    monkeypatch.setattr("batch_workflows._sync_common.PIN_SECONDS", 0.0)
    monkeypatch.setattr("batch_workflows.sync._sleep", sleep)
    execute(pipeline.backends, RunRequest(workflow="sync", parameters={"parts": ["documents"]}))
    assert waits[0] < waits[1] < waits[2] < waits[3]


def test_reading_everything_again_can_be_cancelled_between_pages(pipeline: Pipeline) -> None:
    """And says how many rows of the Repo it has looked at."""
    backends, looked = pipeline.backends, list[int]()

    def cancelled() -> None:
        raise RunStopped("by a person")

    with pytest.raises(RunStopped):
        resync(backends.ads_db, backends.catalog, backends.log, backends.repo, check=cancelled)
    resync(backends.ads_db, backends.catalog, backends.log, backends.repo, progress=looked.append)
    snapshot = backends.repo.snapshot()
    rows = [row for table in backends.catalog.entity_tables() for row, _ in snapshot.scan(table.name)]
    assert looked[-1] == len(rows) > 0


@pytest.mark.parametrize("step", ["ads_db", "index", "documents", "served"])
def test_tables_and_parts_can_be_chosen(pipeline: Pipeline, step: str) -> None:
    """Only what is named is compared."""
    found = run(pipeline, parts=[step], tables=["ad"])
    assert {name.partition(":")[0] for name in found} == {step}
    if step in ("ads_db", "index"):
        assert all(":ad" in name for name in found)
    with pytest.raises(UnknownSelection, match="there is no table planet"):
        run(pipeline, tables=["planet"])


def unseen(pipeline: Pipeline, statement: str) -> None:
    """Change the ads DB without a trace in the change feed."""
    db = pipeline.backends.ads_db
    before = db.last_change()
    db.execute(statement)
    db.execute(f"DELETE FROM _adsindex_changes WHERE seq > {before}")
    pipeline.log.set_committed([Position("gateway", "ads_db.changes", 0, db.last_change() + 1)])
