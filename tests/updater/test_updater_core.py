"""The Updater's core on the real embedded store: versions, differences, index rows, signals and conflicts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from catalog import Catalog
from catalog.model import DELETED, SOURCE_VERSION, signal_version_cell
from catalog.values import decode, encode
from messaging.proto import adsindex_pb2 as pb
from storage_repo import CommitOutcome, Repo, Transaction
from tests.updater.support import TEST_ORIGIN, changed_cells, index_rows, recounted_index_rows, stored, update
from updater import UpdaterCore

AD = {"id": 7, "ad_group_id": 3, "pin_id": "p1", "name": "seven", "status": "ACTIVE", "review_status": "APPROVED"}


def outcomes(core: UpdaterCore, *updates: pb.EntityUpdate) -> list[str]:
    """Apply one batch and return what became of each update."""
    return [result.outcome for result in core.apply(updates).results]


def test_a_first_update_is_stored_whole(core: UpdaterCore, repo: Repo, catalog: Catalog) -> None:
    """A new entity's columns, version and index rows are all there, and the result names the commit."""
    outcome = core.apply([update("ad", "7", 10, AD)])
    assert [r.outcome for r in outcome.results] == ["applied"]
    assert outcome.results[0].commit_ts == repo.last_commit_ts() > 0
    assert stored(repo, catalog, "ad", "7") == AD
    assert decode(repo.snapshot().get("ad", "7")[SOURCE_VERSION]) == 10
    assert index_rows(repo, catalog)["ad_by_pin"] == {"p1\x1f7"}
    assert index_rows(repo, catalog)["ad_by_ad_group"] == {"3\x1f7"}


def test_older_and_repeated_updates_change_nothing(core: UpdaterCore, repo: Repo, catalog: Catalog) -> None:
    """A version seen before is a duplicate, a lower one is stale, a new one with equal values is unchanged."""
    core.apply([update("ad", "7", 10, AD)])
    before = repo.last_commit_ts()
    assert outcomes(core, update("ad", "7", 10, AD)) == ["duplicate"]
    assert outcomes(core, update("ad", "7", 9, {**AD, "name": "old"})) == ["stale"]
    assert repo.last_commit_ts() == before
    assert outcomes(core, update("ad", "7", 11, AD)) == ["unchanged"]
    assert changed_cells(repo, before) == {("ad", "7"): {SOURCE_VERSION}}
    assert stored(repo, catalog, "ad", "7") == AD


def test_a_delete_leaves_a_tombstone_that_stops_late_updates(core: UpdaterCore, repo: Repo, catalog: Catalog) -> None:
    """After a delete an older update stays out, and only a newer one brings the entity back."""
    core.apply([update("ad", "7", 10, AD)])
    assert outcomes(core, update("ad", "7", 12)) == ["applied"]
    assert outcomes(core, update("ad", "7", 11, AD)) == ["stale"]
    assert stored(repo, catalog, "ad", "7") == {}
    assert decode(repo.snapshot().get("ad", "7")[DELETED]) is True
    assert not any(index_rows(repo, catalog).values())
    assert outcomes(core, update("ad", "7", 13, AD)) == ["applied"]
    assert stored(repo, catalog, "ad", "7") == AD
    assert DELETED not in repo.snapshot().get("ad", "7")


def test_a_delete_that_comes_first_wins_over_the_create(core: UpdaterCore, repo: Repo, catalog: Catalog) -> None:
    """The delete of an entity never seen is kept, so the late create does not resurrect it."""
    assert outcomes(core, update("ad", "7", 12)) == ["applied"]
    assert outcomes(core, update("ad", "7", 11, AD)) == ["stale"]
    assert stored(repo, catalog, "ad", "7") == {}


def test_only_cells_that_change_are_written(core: UpdaterCore, repo: Repo) -> None:
    """Of a whole entity only the differing column and the version are in the commit."""
    core.apply([update("ad", "7", 10, AD)])
    before = repo.last_commit_ts()
    core.apply([update("ad", "7", 11, {**AD, "status": "PAUSED"})])
    assert changed_cells(repo, before) == {("ad", "7"): {"control:status", SOURCE_VERSION}}


def test_a_column_that_an_entity_no_longer_has_becomes_null(core: UpdaterCore, repo: Repo, catalog: Catalog) -> None:
    """An entity is whole: what it leaves out or sends as null is null."""
    core.apply([update("ad", "7", 10, AD)])
    core.apply([update("ad", "7", 11, {"id": 7, "name": None, "status": "ACTIVE"})])
    assert stored(repo, catalog, "ad", "7") == {"id": 7, "status": "ACTIVE"}
    assert index_rows(repo, catalog)["ad_by_pin"] == set()


def test_index_rows_move_with_the_reference(core: UpdaterCore, repo: Repo, catalog: Catalog) -> None:
    """A changed reference moves exactly its own index row, in the commit of the entity."""
    core.apply([update("ad", str(n), 10, {**AD, "id": n}) for n in (7, 8)])
    before = repo.last_commit_ts()
    core.apply([update("ad", "7", 11, {**AD, "pin_id": "p2"})])
    assert index_rows(repo, catalog)["ad_by_pin"] == {"p1\x1f8", "p2\x1f7"}
    assert set(changed_cells(repo, before)) == {("ad", "7"), ("ad_by_pin", "p1\x1f7"), ("ad_by_pin", "p2\x1f7")}
    assert len(repo.changes(before, 10)) == 1
    assert index_rows(repo, catalog) == recounted_index_rows(repo, catalog)


def test_several_updates_of_one_row_in_one_batch(core: UpdaterCore, repo: Repo, catalog: Catalog) -> None:
    """The newest wins in one transaction; the older are stale, an equal version is a duplicate."""
    result = core.apply(
        [
            update("ad", "7", 10, AD),
            update("ad", "7", 12, {**AD, "name": "newest"}),
            update("ad", "7", 12, {**AD, "name": "newest"}),
            update("ad", "7", 11, {**AD, "name": "middle"}),
        ]
    )
    assert [r.outcome for r in result.results] == ["stale", "applied", "duplicate", "stale"]
    assert result.transactions == 1
    assert stored(repo, catalog, "ad", "7")["name"] == "newest"
    assert len(repo.history("ad", "7", "control:name")["control:name"]) == 1


def test_signals_have_versions_of_their_own(core: UpdaterCore, repo: Repo, catalog: Catalog) -> None:
    """Signal and entity neither outdate nor erase each other, whichever version is higher."""
    signal = update("ad", "7", 900, {"performance_version": 5}, source="performance")
    assert outcomes(core, signal, update("ad", "7", 10, AD)) == ["applied", "applied"]
    assert outcomes(core, update("ad", "7", 899, {"performance_version": 4}, source="performance")) == ["stale"]
    assert outcomes(core, signal) == ["duplicate"]
    core.apply([update("ad", "7", 11, {**AD, "name": "eleven"})])
    assert stored(repo, catalog, "ad", "7") == {**AD, "name": "eleven", "performance_version": 5}
    cells = repo.snapshot().get("ad", "7")
    assert (decode(cells[SOURCE_VERSION]), decode(cells[signal_version_cell("performance")])) == (11, 900)


def test_a_deleted_signal_takes_back_its_columns_only(core: UpdaterCore, repo: Repo, catalog: Catalog) -> None:
    """Deleting a signal leaves the entity alone."""
    core.apply([update("ad", "7", 10, AD), update("ad", "7", 1, {"performance_version": 5}, source="performance")])
    assert outcomes(core, update("ad", "7", 2, None, source="performance")) == ["applied"]
    assert stored(repo, catalog, "ad", "7") == AD


def test_the_commit_carries_who_caused_it(core: UpdaterCore, repo: Repo) -> None:
    """The origin has the oldest cause that becomes visible, the highest lane, and the header with a hop more."""
    core.apply([update("ad", "7", 10, AD, origin_us=50)])
    core.apply(
        [
            update("ad", "7", 9, AD, origin_us=1),  # stale: causes nothing
            update("ad", "7", 11, {**AD, "name": "a"}, origin_us=300, lane=pb.LANE_HIGH),
            update("ad", "7", 12, {**AD, "name": "b"}, origin_us=400, lane=pb.LANE_LOW),
        ]
    )
    origin = repo.changes(0, 10)[-1].origin
    assert (origin.stage, origin.code_version, origin.trace_id) == ("updater", "v1", "ad-7-11")
    assert (origin.lane, origin.origin_us) == (pb.LANE_HIGH, 300)
    assert [hop.stage for hop in pb.Header.FromString(origin.hops).hops] == ["updater"]


def test_rows_of_one_batch_share_one_durable_write(core: UpdaterCore, repo: Repo) -> None:
    """Independent rows are transactions of their own but one group."""
    before = repo.statistics()["groups"]
    result = core.apply([update("ad", str(n), 10, {**AD, "id": n}) for n in range(50)])
    assert result.transactions == 50
    assert repo.statistics()["groups"] == before + 1


class Rival:
    """A repo on which somebody else commits first, just before each of the first `times` group commits."""

    def __init__(self, repo: Repo, times: int) -> None:
        self._repo, self.left = repo, times

    def __getattr__(self, name: str) -> Any:
        return getattr(self._repo, name)

    def commit_many(self, transactions: Sequence[Transaction]) -> list[CommitOutcome]:
        """Write version cells of the same row in between, then commit."""
        if transactions and self.left > 0:
            self.left -= 1
            rival = self._repo.begin(TEST_ORIGIN)
            rival.put("ad", "7", SOURCE_VERSION, encode(100 - self.left))
            rival.commit()
        return self._repo.commit_many(transactions)


@pytest.mark.parametrize("version, expected", [(200, "applied"), (50, "stale"), (100, "duplicate")])
def test_a_row_that_conflicts_is_judged_again(repo: Repo, catalog: Catalog, version: int, expected: str) -> None:
    """After a lost race the row alone runs again, against what the other one stored."""
    core = UpdaterCore(Rival(repo, 1), catalog)
    result = core.apply([update("ad", "7", version, AD), update("ad", "8", 1, {**AD, "id": 8})])
    assert [r.outcome for r in result.results] == [expected, "applied"]
    assert result.conflicts == 1
    assert not result.dead_letters
    assert stored(repo, catalog, "ad", "8")["id"] == 8


def test_a_row_that_conflicts_for_ever_becomes_a_dead_letter(repo: Repo, catalog: Catalog) -> None:
    """Twenty lost races end in a letter with the whole update, and the other rows are stored."""
    core = UpdaterCore(Rival(repo, 1_000), catalog)
    result = core.apply([update("ad", "7", 5_000, AD), update("ad", "8", 1, {**AD, "id": 8})])
    assert [r.outcome for r in result.results] == ["dead_letter", "applied"]
    assert [letter.reason for letter in result.dead_letters] == ["conflict_limit"]
    assert pb.EntityUpdate.FromString(result.dead_letters[0].payload) == update("ad", "7", 5_000, AD)
