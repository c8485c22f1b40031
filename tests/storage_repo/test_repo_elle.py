"""Snapshot isolation of random list-append histories, by a checker that is itself calibrated and shown to bite."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
from repo_backends import Backend, data_directory
from repo_elle import Observed, check, read_edn
from repo_fleet import Fleet
from repo_workloads import execute, interleave, observed

from storage_repo import Origin, Repo, Row, RowId, Transaction


def ok(*ops: tuple[str, Any, Any], began: int = 0, ended: int = 1) -> Observed:
    """Return a committed transaction; all overlap unless told otherwise."""
    return Observed(list(ops), "ok", began, ended)


def test_elle_si_without_g_single_is_legal_under_snapshot_isolation_only() -> None:
    """Elle's own fixture has write skew and nothing worse."""
    verdict = check(read_edn(data_directory("elle_histories") / "si-without-g-single.edn"))
    assert verdict.snapshot_isolated
    assert set(verdict.anomalies) == {"G2-item"}


def test_elle_paper_example_is_g_single() -> None:
    """By hand: T3 read 255 before T1 appended 8 (rw), T2 read that 8 (wr), T3 appended 3 to 256 after T2's 4 (ww)."""
    verdict = check(read_edn(data_directory("elle_histories") / "paper-example.edn"))
    assert set(verdict.anomalies) == {"G-single"}
    assert verdict.anomalies["G-single"][0].startswith("3 transactions: T1 ")


def test_elle_huge_scc_breaks_strong_snapshot_isolation_only() -> None:
    """As elle finds: only with realtime order is there a cycle that snapshot isolation forbids; in linear time."""
    history = read_edn(data_directory("elle_histories") / "huge-scc.edn")
    outcomes = [txn.outcome for txn in history]
    assert (len(history), outcomes.count("ok"), outcomes.count("fail")) == (10_254, 3_036, 7_070)
    assert check(history).snapshot_isolated
    strong = check(history, realtime=True)
    assert not strong.snapshot_isolated
    assert all(anomaly.endswith("-realtime") or anomaly == "G2-item" for anomaly in strong.anomalies)


PLANTED = {
    "G0": [
        ok(("append", 1, 1), ("append", 2, 1)),
        ok(("append", 1, 2), ("append", 2, 2)),
        ok(("r", 1, [1, 2]), ("r", 2, [2, 1])),
    ],
    "G1a": [Observed([("append", 1, 1)], "fail", 0, 1), ok(("r", 1, [1]))],
    "G1b": [ok(("append", 1, 1), ("append", 1, 2)), ok(("r", 1, [1])), ok(("r", 1, [1, 2]))],
    "G1c": [ok(("append", 1, 1), ("r", 2, [1])), ok(("append", 2, 1), ("r", 1, [1]))],
    "G-single": [ok(("append", 1, 1), ("append", 2, 1)), ok(("r", 1, [1]), ("r", 2, []))],
    "G-nonadjacent": [  # each of two readers misses what the other saw: a "long fork"
        ok(("append", 1, 1)),
        ok(("append", 2, 1)),
        ok(("r", 1, [1]), ("r", 2, [])),
        ok(("r", 1, []), ("r", 2, [1])),
    ],
    "lost-update": [ok(("r", 1, []), ("append", 1, 1)), ok(("r", 1, []), ("append", 1, 2))],
    "internal": [ok(("append", 1, 1), ("r", 1, []))],
    "incompatible-order": [ok(("append", 1, 1)), ok(("append", 1, 2)), ok(("r", 1, [1])), ok(("r", 1, [2]))],
    "duplicate": [ok(("append", 1, 1)), ok(("r", 1, [1, 1]))],
    "garbage": [ok(("r", 1, [7]))],
}


@pytest.mark.parametrize("anomaly", sorted(PLANTED))
def test_checker_finds_each_planted_anomaly(anomaly: str) -> None:
    """A small history with one planted anomaly is rejected under that name."""
    verdict = check(PLANTED[anomaly])
    assert anomaly in verdict.anomalies, verdict.anomalies
    assert not verdict.snapshot_isolated


def test_checker_uses_realtime_order_only_when_asked() -> None:
    """A read that misses what was acknowledged before it began breaks strong snapshot isolation alone."""
    stale = [ok(("append", 1, 1), began=0, ended=1), ok(("r", 1, []), began=2, ended=3), ok(("r", 1, [1]))]
    assert check(stale).serializable
    assert set(check(stale, realtime=True).anomalies) == {"G-single-realtime"}


def test_checker_takes_unknown_outcomes_as_committed_only_when_read() -> None:
    """A transaction of unknown outcome counts from the moment that somebody reads it."""
    unknown = Observed([("append", 1, 1), ("append", 2, 1)], "info", 0)
    assert check([unknown, ok(("r", 1, [])), ok(("r", 2, []))]).serializable
    assert not check([unknown, ok(("r", 1, [1]), ("r", 2, []))]).snapshot_isolated


def test_checker_accepts_serial_histories() -> None:
    """Transactions one after the other have no anomaly in the strictest sense."""
    lists: dict[int, list[int]] = {0: [], 1: [], 2: []}
    history = []
    for n in range(300):
        key = n % 3
        history.append(
            ok(("r", key, list(lists[key])), ("append", key, n), ("r", (n + 1) % 3, list(lists[(n + 1) % 3])),
               began=2 * n, ended=2 * n + 1)
        )  # fmt: skip
        lists[key].append(n)
    assert check(history, realtime=True).serializable


class Faulty:
    """A transaction with one defect over a real one; `_real` is the transaction, `_repo` the real repo."""

    def __init__(self, repo: Repo, origin: Origin) -> None:
        self._repo, self._real = repo, repo.begin(origin)
        self._puts: list[tuple[str, str, str, bytes]] = []

    @property
    def ts(self) -> int:
        """Return the start timestamp."""
        return self._real.ts

    @property
    def origin(self) -> Origin:
        """Return who writes."""
        return self._real.origin

    def get(self, table: str, row: str, columns: Sequence[str] | None = None) -> Row:
        """Read one row."""
        return self.get_many([(table, row)])[table, row]

    def get_many(self, rows: Sequence[RowId], columns: Mapping[str, Sequence[str]] | None = None) -> dict[RowId, Row]:
        """Read rows."""
        return self._real.get_many(rows)

    def scan(self, table: str, *, prefix: str = "", **_: Any) -> Iterator[tuple[str, Row]]:
        """Read a range."""
        return self._real.scan(table, prefix=prefix)

    def put(self, table: str, row: str, column: str, value: bytes) -> None:
        """Buffer a write."""
        self._puts.append((table, row, column, value))
        self._real.put(table, row, column, value)

    def delete(self, table: str, row: str, column: str) -> None:
        """Never used here."""
        raise NotImplementedError

    def promote(self, table: str, row: str, column: str) -> None:
        """Never used here."""
        raise NotImplementedError

    def commit(self) -> int:
        """Commit."""
        return self._real.commit()

    def abort(self) -> None:
        """Abort."""
        self._real.abort()


class NoConflictCheck(Faulty):
    """Commits over whatever was committed since it began."""

    def commit(self) -> int:
        """Write everything in a transaction that begins now."""
        self._real.abort()
        blind = self._repo.begin(self.origin)
        for put in self._puts:
            blind.put(*put)
        return blind.commit()


class MovingSnapshot(Faulty):
    """Reads the newest state at every read (read committed), with the conflict check intact."""

    def get_many(self, rows: Sequence[RowId], columns: Mapping[str, Sequence[str]] | None = None) -> dict[RowId, Row]:
        """Read at now, with the own writes."""
        found = self._repo.snapshot().get_many(rows)
        for table, row, column, value in self._puts:
            if (table, row) in found:
                found[table, row][column] = value
        return found

    def scan(self, table: str, *, prefix: str = "", **_: Any) -> Iterator[tuple[str, Row]]:
        """Read at now, with the own writes."""
        rows = dict(self._repo.snapshot().scan(table, prefix=prefix))
        for put in self._puts:
            if put[0] == table:
                rows.setdefault(put[1], {})[put[2]] = put[3]
        return iter(rows.items())


class WritesBeforeCommit(Faulty):
    """Makes each write visible at once (dirty), and calls the transaction committed or failed afterwards."""

    def put(self, table: str, row: str, column: str, value: bytes) -> None:
        """Commit this one write."""
        dirty = self._repo.begin(self.origin)
        dirty.put(table, row, column, value)
        dirty.commit()
        super().put(table, row, column, value)


class FaultyRepo:
    """Begins faulty transactions; for the rest it is the real repo."""

    def __init__(self, repo: Repo, fault: type[Faulty]) -> None:
        self._repo, self._fault = repo, fault

    def begin(self, origin: Origin) -> Transaction:
        """Begin a faulty transaction."""
        return self._fault(self._repo, origin)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._repo, name)


class PrefetchingRepo(FaultyRepo):
    """Begins transactions ahead of time: each is sound, but its snapshot is older than its client's begin."""

    def __init__(self, repo: Repo) -> None:
        super().__init__(repo, Faulty)
        self._ahead = deque(repo.begin(Origin("test")) for _ in range(3))

    def begin(self, origin: Origin) -> Transaction:
        """Hand out the transaction begun three calls ago."""
        self._ahead.append(self._repo.begin(origin))
        return self._ahead.popleft()


@pytest.mark.parametrize("seed", range(3))
def test_interleaved_history_is_strongly_snapshot_isolated(repo: Repo, seed: int) -> None:
    """Any interleaving of clients in one process gives a legal history, with conflicts and with write skew."""
    history = interleave(repo, seed, 300)
    outcomes = [txn.outcome for txn in history]
    assert outcomes.count("fail") > 10 < outcomes.count("ok")
    verdict = check(history, realtime=True)
    assert verdict.snapshot_isolated, verdict.anomalies
    assert "G2-item" in verdict.anomalies, "the workload is too tame to tell snapshot isolation from serializability"


@pytest.mark.parametrize("fault", [NoConflictCheck, MovingSnapshot, WritesBeforeCommit])
def test_checker_bites_on_broken_repos(repo: Repo, fault: type[Faulty]) -> None:
    """The same workload over a repo with one defect is rejected."""
    broken: Any = FaultyRepo(repo, fault)
    assert not check(interleave(broken, 1, 300), realtime=True).snapshot_isolated


def test_checker_tells_stale_snapshots_by_realtime_order(repo: Repo) -> None:
    """Snapshots from before the client's begin are legal, but not in the strong sense that the repo gives."""
    stale: Any = PrefetchingRepo(repo)
    history = interleave(stale, 1, 300)
    assert check(history).snapshot_isolated
    assert not check(history, realtime=True).snapshot_isolated


@pytest.mark.stress
def test_history_of_killed_processes_is_strongly_snapshot_isolated(fleet: Fleet, backend: Backend) -> None:
    """Several processes, kill -9, and garbage collection in between: the history is legal with realtime order."""
    limits = {"max_transaction_age_s": 0.05, "versions_kept": 2}
    fleet.run_with_kills("append", workers=3, kills=4, lines=(20, 160), count=100, keys=8, limits=limits)
    history = [txn for worker in fleet.workers for txn in observed(worker.lines)]
    final = backend.open().begin(Origin("test"))
    last = 1 << 62
    history.append(ok(*execute(final, [("r", key, None) for key in range(8)]), began=last, ended=last + 1))
    outcomes = [txn.outcome for txn in history]
    assert outcomes.count("ok") > 250
    assert outcomes.count("info") > 0
    verdict = check(history, realtime=True)
    assert verdict.snapshot_isolated, verdict.anomalies
