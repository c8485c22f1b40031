"""What has been over for long goes, what anything needs stays, and what comes back wins."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from batch_workflows._runs_model import RunRequest
from batch_workflows.execution import execute
from batch_workflows.gc import Collected, GarbageCollector
from batch_workflows.sync import SyncParameters, synchronize
from batch_workflows.sync_documents import Served
from catalog import InvalidCatalog, load_catalog
from catalog.model import COLLECTED, DELETED, SOURCE_VERSION
from messaging.headers import now_us
from storage_repo import Origin, Transaction
from tests.batch_workflows.sync_support import filled, state_of, sync_of, work
from tests.debug_ui.pipeline import Pipeline
from tests.gateway.test_gateway_capture import edited_catalog

DAY_US = 24 * 3600 * 1_000_000
LIMIT_US = 30 * DAY_US
LATER_US = now_us() + 40 * DAY_US


@pytest.fixture
def pipeline(tmp_path: Path) -> Iterator[Pipeline]:
    """An idle pipeline with three campaigns."""
    opened = filled(tmp_path / "home", 3)
    yield opened
    opened.close()


def collect(pipeline: Pipeline, *, dry_run: bool = False, at_us: int = LATER_US) -> Collected:
    """Collect garbage as if it were 40 days later."""
    backends = pipeline.backends
    found = GarbageCollector(
        backends.repo, backends.catalog, limit_us=LIMIT_US, dry_run=dry_run, at_us=at_us
    ).run()  # fmt: skip
    if not dry_run:
        work(pipeline)
    return found


def cells_of(pipeline: Pipeline, table: str, row: str) -> set[str]:
    """Return what cells a row has."""
    return set(pipeline.backends.repo.snapshot().get(table, row))


ARCHIVE_ONE = """
UPDATE campaigns SET status = 'ARCHIVED' WHERE id = 1; UPDATE ad_groups SET status = 'ARCHIVED' WHERE id = 10;
UPDATE ads SET status = 'ARCHIVED' WHERE id IN (100, 101)
"""


def test_a_dry_run_says_what_a_run_then_does(pipeline: Pipeline) -> None:
    """Rows by kind are the same, children before parents in one go; the dry run leaves everything as it was."""
    pipeline.sql(ARCHIVE_ONE + "; DELETE FROM ads WHERE id = 300")
    work(pipeline)
    before = state_of(pipeline)
    wanted = {"retired:ad": 2, "retired:ad_group": 1, "retired:campaign": 1, "deleted:ad": 1, "documents": 1}
    dry = collect(pipeline, dry_run=True)
    assert dry.rows == wanted
    assert state_of(pipeline) == before
    done = collect(pipeline)
    assert (done.rows, done.index_rows) == (wanted, dry.index_rows)
    assert done.index_rows == 2 + 2 + 1 + 1  # of two ads (ad group, pin), of the ad group, and of the campaign
    assert cells_of(pipeline, "ad", "300") == cells_of(pipeline, "ad_document", "300") == set()
    assert cells_of(pipeline, "campaign", "1") == {SOURCE_VERSION, DELETED, COLLECTED}
    assert not [row for row, _ in pipeline.backends.repo.snapshot().scan("ad_by_ad_group", prefix="10")]
    assert collect(pipeline).rows == {"documents": 2}, "of what was retired, once the pipeline has said so there"
    assert collect(pipeline).rows == {}


def test_what_is_young_or_ends_later_stays(pipeline: Pipeline) -> None:
    """Nothing goes before its limit, and an end counts from the end, not from when it was set."""
    pipeline.sql(ARCHIVE_ONE)
    pipeline.sql("UPDATE ad_groups SET ends_at = '2020-01-01' WHERE id = 20; DELETE FROM ads WHERE id IN (200, 201)")
    pipeline.sql("UPDATE ad_groups SET ends_at = '2999-01-01' WHERE id = 30; DELETE FROM ads WHERE ad_group_id = 30")
    work(pipeline)
    young = collect(pipeline, dry_run=True, at_us=now_us() + LIMIT_US - DAY_US)
    assert young.rows == {"retired:ad_group": 1}  # group 20, which ended years ago
    found = collect(pipeline, dry_run=True)
    assert found.rows["deleted:ad"] == 4
    assert found.examples["retired:ad_group"] == ["10", "20"]


def test_what_is_referred_to_while_it_is_taken_out_is_put_back(pipeline: Pipeline) -> None:
    """An ad that comes between the look at a removed pin and the commit writes nothing at the pin; the pin is as it was
    all the same, and so is what it refers to. Another pin goes."""
    pipeline.sql("DELETE FROM ads WHERE pin_id IN ('pin-300', 'pin-301')")
    pipeline.sql("UPDATE pins SET status = 'REMOVED' WHERE id IN ('pin-300', 'pin-301')")
    work(pipeline)
    backends, before = pipeline.backends, pipeline.backends.repo.snapshot()
    pin = before.get("pin", "pin-300")
    begun = 0

    def begin(ts: int | None) -> Transaction:
        nonlocal begun
        begun += 1
        if begun == 2:  # the first takes out the deleted ads, the second the pins
            pipeline.sql("UPDATE ads SET pin_id = 'pin-300' WHERE id = 100")
            work(pipeline)
        return backends.repo.begin(Origin("gc"), ts)

    collector = GarbageCollector(
        backends.repo, backends.catalog, limit_us=LIMIT_US, dry_run=False, at_us=LATER_US, begin=begin
    )
    found = collector.run()
    assert (found.rows["retired:pin"], found.put_back) == (1, 1)
    snapshot = backends.repo.snapshot()
    assert snapshot.get("pin", "pin-300") == pin
    assert COLLECTED in cells_of(pipeline, "pin", "pin-301")
    assert not run_index(pipeline)


def run_index(pipeline: Pipeline) -> Counter[str]:
    """Return what a look at the index tables finds."""
    found = synchronize(sync_of(pipeline), SyncParameters(parts=("index",), repair=False))
    return sum((part.unsynced for part in found.values()), Counter())


def test_what_a_living_row_needs_stays(pipeline: Pipeline) -> None:
    """An archived campaign with a living ad group, and a removed pin with a living ad, are needed."""
    pipeline.sql("UPDATE campaigns SET status = 'ARCHIVED' WHERE id = 2; UPDATE pins SET status = 'REMOVED' "
                 "WHERE id = 'pin-300'; UPDATE advertisers SET status = 'CLOSED' WHERE id = 1")  # fmt: skip
    work(pipeline)
    found = collect(pipeline)
    assert (found.rows, found.needed) == ({}, 3)


def test_a_sync_knows_what_was_collected_and_a_change_brings_it_back(pipeline: Pipeline) -> None:
    """What was collected is not unsynced; a lost change of it is, and any change of the row brings all of it back.

    Nothing of it is lost on the way: afterwards all is as before.
    """
    before = state_of(pipeline)
    pipeline.sql(ARCHIVE_ONE)
    work(pipeline)
    collect(pipeline)
    assert "100" not in Served(sync_of(pipeline)).documents()
    sources = {"performance": pipeline.source}
    found = synchronize(sync_of(pipeline), SyncParameters(), sources=sources)
    assert not any(part.unsynced or part.ranges_differing for part in found.values())
    db = pipeline.backends.ads_db
    at = db.last_change()
    pipeline.sql("UPDATE campaigns SET status = 'ACTIVE' WHERE id = 1")
    db.execute(f"UPDATE _adsindex_changes SET source_table = 'nobody' WHERE seq > {at}")  # the change is lost
    pipeline.sql("UPDATE ad_groups SET status = 'ACTIVE' WHERE id = 10; UPDATE ads SET status = 'ACTIVE' "
                 "WHERE id IN (100, 101)")  # fmt: skip
    work(pipeline)
    found = synchronize(sync_of(pipeline), SyncParameters(), sources=sources)
    assert dict(found["ads_db:campaign"].unsynced) == {"campaign:missing_in_repo": 1}
    work(pipeline)
    assert state_of(pipeline) == before
    assert COLLECTED not in cells_of(pipeline, "ad", "100")


def test_a_collected_row_that_the_ads_db_deletes_goes_for_good(pipeline: Pipeline) -> None:
    """The mark goes with the deletion, and the rest after the limit."""
    pipeline.sql(ARCHIVE_ONE)
    work(pipeline)
    collect(pipeline)
    pipeline.sql("DELETE FROM ads WHERE id = 100")
    work(pipeline)
    assert cells_of(pipeline, "ad", "100") == {SOURCE_VERSION, DELETED}
    assert collect(pipeline).rows["deleted:ad"] == 1
    assert cells_of(pipeline, "ad", "100") == set()


@pytest.mark.parametrize("was", ["retired", "deleted"])
def test_a_resurrection_in_between_wins(pipeline: Pipeline, was: str) -> None:
    """An update that is stored between the collector's look and its write makes the row stay, whole."""
    before = state_of(pipeline)
    gone = "UPDATE ads SET status = 'ARCHIVED' WHERE id = 100" if was == "retired" else "DELETE FROM ads WHERE id = 100"
    back = ("UPDATE ads SET status = 'ACTIVE' WHERE id = 100" if was == "retired" else
            "INSERT INTO ads (id, ad_group_id, pin_id, name) VALUES (100, 10, 'pin-100', 'Ad 100')")  # fmt: skip
    pipeline.sql(gone)
    work(pipeline)
    repo = pipeline.backends.repo
    commit_many = repo.commit_many
    raced: list[int] = []

    def race(transactions: list[object]) -> object:
        if not raced:
            raced.append(1)
            pipeline.sql(back)
            work(pipeline)
        return commit_many(transactions)  # type: ignore[arg-type]

    repo.commit_many = race  # type: ignore[method-assign,assignment]
    found = collect(pipeline)
    repo.commit_many = commit_many  # type: ignore[method-assign]
    assert raced
    assert found.changed_meanwhile >= 1
    assert not found.rows
    assert state_of(pipeline) == before


def test_the_workflow_is_dry_by_default_and_refuses_a_short_limit(pipeline: Pipeline) -> None:
    """A run says what would go; less than the log's retention would let old updates come back."""
    record = execute(pipeline.backends, RunRequest(workflow="gc"))
    assert record.counts["dry_run"] is True
    assert record.counts["rows"] == {}
    with pytest.raises(Exception, match="at least 8d"):
        execute(pipeline.backends, RunRequest(workflow="gc", parameters={"older_than": "7d"}))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("retired: {colour: [RED]}", "'colour' is no column"),
        ("retired: {status: [GONE]}", "cannot be a value of 'status'"),
        ("ends: name", "must be a time"),
        ("retired: {performance_version: [1]}", "comes from the ads DB"),
    ],
)
def test_declarations_are_checked(tmp_path: Path, line: str, says: str) -> None:
    """What the catalogue says is over must be columns and values that the ads DB knows, with file and line."""
    table = "    source: {table: ads, key: id}\n    references: {ad_group: ad_group_id, pin: pin_id}\n"
    declared = table + "    retired: {status: [ARCHIVED]}\n"
    edited = edited_catalog(tmp_path, (declared, table + f"    {line}\n"))
    with pytest.raises(InvalidCatalog, match=says):
        load_catalog(edited)


def test_a_change_that_leaves_a_row_retired_wins_as_well(pipeline: Pipeline) -> None:
    """An update in between that writes none of the cells that go is stored and stays; the row is for the next run."""
    pipeline.sql("INSERT INTO images (id, url, status) VALUES ('lonely', 'https://img', 'REMOVED')")
    work(pipeline)
    repo = pipeline.backends.repo
    commit_many = repo.commit_many

    def race(transactions: list[object]) -> object:
        if not transactions:  # of a page in which nothing goes
            return commit_many([])
        repo.commit_many = commit_many  # type: ignore[method-assign]
        pipeline.sql("UPDATE images SET height = 5 WHERE id = 'lonely'")
        work(pipeline)
        return commit_many(transactions)  # type: ignore[arg-type]

    repo.commit_many = race  # type: ignore[method-assign,assignment]
    found = collect(pipeline)
    assert (found.rows, found.changed_meanwhile) == ({}, 1)
    assert {"content:url", "content:height"} <= cells_of(pipeline, "image", "lonely")
    assert collect(pipeline).rows == {"retired:image": 1}
