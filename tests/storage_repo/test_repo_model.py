"""The Repo against a dictionary of versions, driven by Hypothesis."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from repo_backends import BACKENDS, ORIGIN, Backend, FakeClock, install

from storage_repo import Conflict, Limits, Repo, RowChange, SnapshotTooOld, Transaction
from storage_repo.embedded import EmbeddedRepo

ROWS = ("a", "a\x1fb", "ab", "b", "é")
COLUMNS = ("control:x", "control:y")
ROW_IDS = [(table, row) for table in ("ad", "campaign") for row in ROWS]
LIMITS = Limits(max_transaction_age_s=10.0, versions_kept=2)

Cell = tuple[str, str, str]
Rows = dict[tuple[str, str], dict[str, bytes]]
cells = st.tuples(st.sampled_from(("ad", "ad", "campaign")), st.sampled_from(ROWS), st.sampled_from(COLUMNS))
bounds = st.sampled_from(("", "a", "a\x1f", "ab", "b", "z"))


class Open:
    """An open transaction and what it should write."""

    def __init__(self, transaction: Transaction, generation: int) -> None:
        self.transaction, self.generation = transaction, generation
        self.writes: dict[Cell, bytes | None] = {}
        self.promoted: set[Cell] = set()


class RepoMachine(RuleBasedStateMachine):
    """Random operations on a repo, and on a dictionary cell -> [(ts, value)] with the newest last."""

    install: Callable[[Path], Backend]
    transactions: Bundle[Open] = Bundle("transactions")

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.clock = FakeClock()
        self.versions: dict[Cell, list[tuple[int, bytes | None]]] = {}
        self.backend = type(self).install(self.root)
        self.commits: list[tuple[int, list[Cell]]] = []
        self.stamps: list[int] = []  # the empty store's timestamp, then those of all commits
        self.committed_at: list[int] = [0]  # in the order of the stamps
        self.low = self.trimmed = 0
        self.pins: dict[str, tuple[int, int]] = {}
        self.generation = 0
        self.repo: Repo

    @property
    def last(self) -> int:
        """Return the newest commit's timestamp."""
        return self.stamps[-1]

    @initialize()
    def open(self) -> None:
        """Open the repo."""
        self.repo = self.backend.open(LIMITS, self.clock)
        self.stamps = self.stamps or [self.repo.snapshot().ts]

    def teardown(self) -> None:
        """Remove the files."""
        self.repo.close()
        shutil.rmtree(self.root)

    def visible(self, ts: int, writes: dict[Cell, bytes | None]) -> Rows:
        """Return all rows as a snapshot with own writes must see them."""
        rows: Rows = {}
        for cell in self.versions.keys() | writes.keys():
            past = [value for at, value in self.versions.get(cell, ()) if at <= ts]
            value = writes[cell] if cell in writes else past[-1] if past else None
            if value is not None:
                rows.setdefault(cell[:2], {})[cell[2]] = value
        return rows

    def alive(self, opened: Open) -> Open:
        """Return the transaction, begun anew if the repo was reopened since: it died with its process."""
        if opened.generation != self.generation:
            opened.__init__(self.repo.begin(ORIGIN), self.generation)  # type: ignore[misc]
        return opened

    @rule(target=transactions, back=st.sampled_from((0, 0, 0, 1, 4)))
    def begin(self, back: int) -> Open:
        """Begin at the newest snapshot, or on an older one that is still readable."""
        return Open(self.repo.begin(ORIGIN, self.readable(back)) if back else self.repo.begin(ORIGIN), self.generation)

    def readable(self, back: int) -> int:
        """Return the timestamp of so many commits ago, or the oldest that is still readable."""
        return max(self.low, self.stamps[-1 - min(back, len(self.stamps) - 1)])

    @rule(opened=transactions, cell=cells, value=st.one_of(st.none(), st.binary(max_size=3)))
    def write(self, opened: Open, cell: Cell, value: bytes | None) -> None:
        """Put, or delete for None."""
        self.alive(opened)
        if value is None:
            opened.transaction.delete(*cell)
        else:
            opened.transaction.put(*cell, value)
        opened.writes[cell] = value

    @rule(opened=transactions, cell=cells)
    def promote(self, opened: Open, cell: Cell) -> None:
        """Promote a read."""
        self.alive(opened)
        opened.transaction.promote(*cell)
        opened.promoted.add(cell)

    @rule(opened=transactions, columns=st.one_of(st.none(), st.lists(st.sampled_from(COLUMNS), max_size=2)))
    def read(self, opened: Open, columns: list[str] | None) -> None:
        """Read all rows through a transaction."""
        self.alive(opened)
        view = opened.transaction
        if view.ts < self.low:
            with pytest.raises(SnapshotTooOld):
                view.get_many(ROW_IDS)
            return
        expected = self.visible(view.ts, opened.writes)
        found = view.get_many(ROW_IDS, None if columns is None else {"ad": columns})
        for row_id in ROW_IDS:
            wanted = COLUMNS if columns is None or row_id[0] != "ad" else columns
            row = {column: value for column, value in expected.get(row_id, {}).items() if column in wanted}
            assert found[row_id] == row
            assert view.get(*row_id, columns=wanted) == row

    @rule(opened=transactions, prefix=bounds, after=bounds, before=bounds, limit=st.sampled_from((None, 0, 1, 2)))
    def scan(self, opened: Open, prefix: str, after: str, before: str, limit: int | None) -> None:
        """Scan a range through a transaction."""
        self.alive(opened)
        view = opened.transaction
        if view.ts < self.low:
            with pytest.raises(SnapshotTooOld):
                list(view.scan("ad"))
            return
        rows = sorted((i[1], row) for i, row in self.visible(view.ts, opened.writes).items() if i[0] == "ad")
        expected = [
            (row, cells)
            for row, cells in rows
            if row.startswith(prefix) and row > after and (not before or row < before)
        ]
        assert list(view.scan("ad", prefix=prefix, after=after, before=before, limit=limit)) == expected[:limit]

    @rule(opened=consumes(transactions))
    def commit(self, opened: Open) -> None:
        """Commit one transaction."""
        self.alive(opened)
        try:
            outcome: int | Exception = opened.transaction.commit()
        except (Conflict, SnapshotTooOld) as error:
            outcome = error
        self.judge(opened, outcome)

    @rule(first=consumes(transactions), second=consumes(transactions), third=consumes(transactions))
    def commit_many(self, first: Open, second: Open, third: Open) -> None:
        """Commit several at once, in order."""
        batch = [self.alive(opened) for opened in (first, second, third)]
        for opened, outcome in zip(batch, self.repo.commit_many([o.transaction for o in batch]), strict=True):
            self.judge(opened, outcome)

    def judge(self, opened: Open, outcome: int | Exception) -> None:
        """Compare the outcome of a commit with what it must be, and take the writes over."""
        ts = opened.transaction.ts
        newest = {cell: self.versions[cell][-1][0] for cell in self.versions}
        newer = {c: newest[c] for c in opened.writes.keys() | opened.promoted if newest.get(c, 0) > ts}
        if not opened.writes:
            assert outcome == ts
        elif ts < self.low:
            assert isinstance(outcome, SnapshotTooOld)
        elif newer:
            assert isinstance(outcome, Conflict)
            assert newer[outcome.table, outcome.row, outcome.column] == outcome.newer_ts
        else:
            assert isinstance(outcome, int) and outcome > max(ts, self.last)
            self.stamps.append(outcome)
            self.committed_at.append(self.clock.steady)
            self.commits.append((self.last, list(opened.writes)))
            for cell, value in opened.writes.items():
                self.versions.setdefault(cell, []).append((self.last, value))

    @rule(opened=consumes(transactions))
    def abort(self, opened: Open) -> None:
        """Abort; nothing must come of it."""
        opened.transaction.abort()

    @rule(seconds=st.sampled_from((1.0, 6.0, 11.0)), jump=st.sampled_from((0, 0, -3600, 3600)))
    def let_time_pass(self, seconds: float, jump: int) -> None:
        """Let time go by; sometimes somebody sets the wall clock."""
        self.clock.advance(seconds)
        self.clock.wall += jump * 1_000_000

    @rule(name=st.sampled_from("pq"), ttl_s=st.sampled_from((5.0, 50.0)), back=st.integers(0, 3))
    def pin(self, name: str, ttl_s: float, back: int) -> None:
        """Pin a readable snapshot."""
        ts = self.readable(back)
        self.repo.pin(name, ts, ttl_s)
        self.pins[name] = (ts, self.clock.steady + round(ttl_s * 1e6))

    @rule(name=st.sampled_from("pq"))
    def unpin(self, name: str) -> None:
        """Release a pin."""
        self.repo.unpin(name)
        self.pins.pop(name, None)

    @rule(max_cells=st.sampled_from((None, None, 1)))
    def collect_garbage(self, max_cells: int | None) -> None:
        """Collect; the watermark goes as far as ages and pins allow."""
        self.repo.collect_garbage(max_cells)
        now = self.clock.steady
        commits = list(zip(self.stamps, self.committed_at, strict=True))[1:]
        old = [ts for ts, at in commits if now - at > LIMITS.max_transaction_age_s * 1e6]
        pinned = [ts for ts, until in self.pins.values() if now < until]
        low = self.repo.statistics()["low_watermark"]
        assert low >= max(self.low, min([max(old, default=0), *pinned])), "it could go further"
        assert low == self.low or low <= min(pinned, default=low), "it has passed a pin"
        young = [ts for ts, _ in commits if ts not in old]
        assert low < min(young, default=low + 1), "what a young snapshot needs may have gone"
        self.low = low

    @rule()
    def trim(self) -> None:
        """Forget the older half of the change records."""
        if isinstance(self.repo, EmbeddedRepo):
            upto = (self.trimmed + self.last) // 2
            assert self.repo.trim_changes(upto) == upto - self.trimmed
            self.trimmed = upto

    @rule()
    def reopen(self) -> None:
        """Close and open again, like a new process."""
        self.repo.close()
        self.open()
        self.generation += 1

    @invariant()
    def newest_snapshot_is_the_model(self) -> None:
        """Everybody sees the newest state."""
        assert self.repo.snapshot().get_many(ROW_IDS) == {i: self.visible(self.last, {}).get(i, {}) for i in ROW_IDS}

    @invariant()
    def history_keeps_versions(self) -> None:
        """History has the newest versions at least, nothing but true ones, and knows when."""
        rows = {cell[:2] for cell in self.versions}
        histories = {row: self.repo.history(*row) for row in rows}
        for cell, versions in self.versions.items():
            found = histories[cell[:2]].get(cell[2], [])
            pairs = [(version.commit_ts, version.value) for version in found]
            newest_first = versions[::-1]
            assert all(version.origin == ORIGIN for version in found)
            if not pairs:  # all of it was tombstones out of anybody's reach
                assert len(versions) == 1 and versions[0][1] is None and versions[0][0] <= self.low, cell
                continue
            assert pairs == newest_first[: len(pairs)] or not set(pairs) - set(newest_first)
            needed = [
                v
                for at, v in enumerate(newest_first)
                if at < LIMITS.versions_kept or newest_first[at - 1][0] > self.low
            ]
            missing = [v for v in needed if v not in pairs]
            assert all(self.was_lone_tombstone(versions, v) for v in missing), (cell, missing)

    def was_lone_tombstone(
        self, versions: Sequence[tuple[int, bytes | None]], version: tuple[int, bytes | None]
    ) -> bool:
        """Tell whether a version was removed with its cell: a tombstone without older versions, at or before low."""
        return version == versions[0] and version[1] is None and version[0] <= self.low

    @invariant()
    def changes_are_the_commits(self) -> None:
        """The feed, if the engine has one, has exactly the commits that were not trimmed; they are counted."""
        if not isinstance(self.repo, EmbeddedRepo):
            return
        assert self.repo.last_commit_ts() == self.last == len(self.stamps) - 1
        found = self.repo.changes(self.trimmed, 10_000)
        expected = []
        for ts, written in self.commits[self.trimmed :]:
            rows: dict[tuple[str, str], list[str]] = {}
            for table, row, column in written:
                rows.setdefault((table, row), []).append(column)
            expected.append((ts, tuple(RowChange(*row_id, tuple(columns)) for row_id, columns in rows.items())))
        assert [(change.commit_ts, change.rows) for change in found] == expected
        times = [change.committed_at_us for change in found]
        assert times == sorted(times)


EXAMPLES, STEPS = 40, 40


@pytest.mark.parametrize("name", sorted(BACKENDS))
def test_repo_behaves_like_a_dictionary_of_versions(name: str, request: pytest.FixtureRequest) -> None:
    """Any sequence of operations gives what the model gives."""
    machine = type("Machine", (RepoMachine,), {"install": lambda root: install(name, root, request)})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
