"""Garbage collection: rows that nothing can need any more, what is left of their documents, and old cell versions.

What goes, once it has been so for longer than a limit, and never while a row that stays refers to it:

==========  ==========================================================================================================
retired     rows with a value, or past an end, with which the catalogue says that nothing serves any more (`retired`,
            `ends`). The ads DB still has them: a mark with their checksum stays, which a sync knows for the same, and
            any later change of the row in the ads DB brings all of it back.
deleted     what stays of rows that the ads DB deleted: the mark that keeps older updates out, and signals. The limit
            must be longer than the log keeps updates.
documents   what stays in the documents' table of documents whose root row is gone: why they do not serve, and when.
versions    cell versions beyond the history kept, of all rows.
==========  ==========================================================================================================

A row that the ads DB still has and that serves (an image of no pin, say) stays: the Repo follows the ads DB, a pin may
refer to it tomorrow, and the next sync would bring it back. Once the ads DB has removed or deleted it, it goes.

Rows go in transactions that have their versions in the conflict set: an update that comes in between wins, and its row
stays. Such a transaction is tried again in halves, so the rows beside it go. (Not a transaction per row: those of a run
all have its lease in their conflict sets, and of a group of those Omid's TSO grants only the first.) Rows that refer to
others are looked at first, so what only they needed goes in the same run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import msgspec
from pydantic import JsonValue, field_validator

from batch_workflows.runner import Counts, Parameters, RunContext, workflow
from batch_workflows.sync_ads import Layout
from batch_workflows.sync_index import targets_of
from catalog import Catalog, Table
from catalog.model import COLLECTED, DELETED, DOCUMENT_BODY, INDEX_CELL, SOURCE_VERSION
from catalog.values import decode, encode, refusal
from messaging.headers import now_us
from messaging.switches import BadSwitch, parse_age_us
from storage_repo import INDEX_SEPARATOR, Conflict, Origin, Repo, Row, RowId, Snapshot, SnapshotTooOld, Transaction

STAGE = "gc"
DEFAULT_LIMIT = "30d"
MIN_LIMIT_US = 8 * 24 * 3600 * 1_000_000
"""A day more than brokers keep updates: a row of which nothing is left would take an older one for news."""
_CHUNK = 200
_CELLS = 5_000
"""Of a transaction: a quarter of what the Repo takes, and a row with a long list of references goes alone."""
_EXAMPLES = 10


@dataclass(slots=True)
class Collected:
    """What goes, or would go, by kind."""

    rows: Counter[str] = field(default_factory=Counter)
    """Kind, as "retired:ad" -> rows."""
    index_rows: int = 0
    looked_at: int = 0
    needed: int = 0
    """Rows that would go, but that a row that stays refers to."""
    changed_meanwhile: int = 0
    """Rows that changed between looking and writing: they stay."""
    put_back: int = 0
    """Rows that something came to refer to while they were taken out: they are as they were."""
    versions: int = 0
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, row: str) -> None:
        """Count a row."""
        self.rows[kind] += 1
        if len(examples := self.examples.setdefault(kind, [])) < _EXAMPLES:
            examples.append(row)


@dataclass(slots=True)
class _Doomed:
    """A row that is to go."""

    kind: str
    table: str
    row: str
    cells: Row
    root: str
    """Table whose row of the same key must not have been updated meanwhile."""
    index_rows: list[RowId] = field(default_factory=list)

    @property
    def weight(self) -> int:
        """Cells of a transaction that takes it out, at most."""
        return len(self.cells) + len(self.index_rows) + 3


class GarbageCollector:
    """Finds and takes out what nothing needs."""

    def __init__(
        self,
        repo: Repo,
        catalog: Catalog,
        *,
        limit_us: int,
        dry_run: bool = True,
        at_us: int = 0,
        begin: Callable[[int | None], Transaction] | None = None,
        check: Callable[[], None] = lambda: None,
        progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        """`at_us` stands for the present time; `begin` and `check` are those of a run, `progress` takes rows done."""
        self._repo, self._catalog, self._limit_us, self._dry_run = repo, catalog, limit_us, dry_run
        self._now_us = at_us or now_us()
        self._begin = begin or (lambda ts: repo.begin(Origin(STAGE), ts))
        self._check, self._progress = check, progress
        self.result = Collected()
        self._taken: list[_Doomed] = []
        """Retired a moment ago, to be looked at again."""
        self._gone: set[RowId] = set()
        """What a dry run would have taken out."""
        self._retired_now: set[str] = set()
        """Root rows that this run retires: the pipeline has yet to say so at their documents."""

    def run(self) -> Collected:
        """Collect everything; of a dry run say what would go. Raises RepoError."""
        for table in _referring_first(self._catalog):
            self._table(table)
        self._documents()
        self._look_again([])
        if not self._dry_run:
            self.result.versions = self._repo.collect_garbage()
        return self.result

    def _table(self, table: Table) -> None:
        after = ""
        while True:
            snapshot = self._repo.snapshot()  # a new one for each page: its rows must not change until they are gone
            if not (page := list(snapshot.scan(table.name, after=after, limit=_CHUNK))):
                return
            self._check()
            after = page[-1][0]
            rows = [(row, cells) for row, cells in page if SOURCE_VERSION in cells]
            self.result.looked_at += len(rows)
            doomed = [d for row, cells in rows if (d := self._judge(snapshot, table, row, cells))]
            self._collect(snapshot, doomed)
            self._progress(self.result.looked_at)

    def _judge(self, snapshot: Snapshot, table: Table, row: str, cells: Row) -> _Doomed | None:
        """Return what is to be done with a row, None if it stays."""
        if DELETED in cells:
            if COLLECTED in cells or not self._older(table.name, row, DELETED):
                return None
            kind = f"deleted:{table.name}"
        elif SOURCE_VERSION in cells and self._retired(table, row, cells):
            kind = f"retired:{table.name}"
        else:
            return None
        if self._needed(snapshot, table, row):
            self.result.needed += 1
            return None
        doomed = _Doomed(kind, table.name, row, cells, root=table.name)
        for reference in table.references:
            targets = targets_of(cells.get(table.columns[reference.column].cell))
            doomed.index_rows += [(reference.index_table, f"{t}{INDEX_SEPARATOR}{row}") for t in sorted(targets)]
        return doomed

    def _retired(self, table: Table, row: str, cells: Row) -> bool:
        """Return whether a row has been over for longer than the limit, by what the catalogue declares."""
        if table.ends is not None:
            ends = _value(cells.get(table.columns[table.ends].cell))
            if isinstance(ends, int) and ends + self._limit_us < self._now_us:
                return True
        for name, values in table.retired.items():
            cell = table.columns[name].cell
            if _value(cells.get(cell)) in values and self._older(table.name, row, cell):
                return True
        return False

    def _older(self, table: str, row: str, cell: str) -> bool:
        """Return whether a cell has been what it is for longer than the limit."""
        versions = self._repo.history(table, row, cell).get(cell, [])
        return bool(versions) and versions[0].committed_at_us + self._limit_us < self._now_us

    def _needed(self, snapshot: Snapshot, table: Table, row: str) -> bool:
        """Return whether a row that stays refers to this one."""
        for reference in self._catalog.references():
            if reference.target != table.name:
                continue
            for key, _ in snapshot.scan(reference.index_table, prefix=row + INDEX_SEPARATOR, columns=[INDEX_CELL]):
                if (reference.table, key.split(INDEX_SEPARATOR, 1)[1]) not in self._gone:
                    return True
        return False

    def _collect(self, snapshot: Snapshot, doomed: Sequence[_Doomed]) -> None:
        """Take rows out as they were at the snapshot; those that were updated since stay."""
        if self._dry_run:
            for one in doomed:
                self._gone.add((one.table, one.row))
                self._add(one)
            return
        waiting, taken = [*_packed(doomed)][::-1], list[_Doomed]()
        while waiting:
            batch = waiting.pop()
            transaction = self._begin(snapshot.ts)
            for one in batch:
                self._take_out(transaction, one)
            [outcome] = self._repo.commit_many([transaction])
            if isinstance(outcome, int):
                for one in batch:
                    self._add(one)
                taken += [one for one in batch if one.kind.startswith("retired")]
            elif not isinstance(outcome, Conflict | SnapshotTooOld):
                raise outcome
            elif len(batch) == 1:
                self.result.changed_meanwhile += 1
            else:
                self._check()
                half = len(batch) // 2
                waiting += [batch[half:], batch[:half]]
        self._look_again(taken)

    def _look_again(self, taken: list[_Doomed]) -> None:
        """Put back what was retired before `taken`, where something has come to refer to it since it was looked at.

        A reference writes nothing at its target, so it makes no conflict. By now it is committed, or its transaction
        began so long ago that it is refused.
        """
        before, self._taken = self._taken, taken
        snapshot = self._repo.snapshot()
        for one in before:
            if self._needed(snapshot, self._catalog.tables[one.table], one.row):
                transaction = self._begin(snapshot.ts)
                transaction.promote(one.root, one.row, SOURCE_VERSION)
                for cell in (DELETED, COLLECTED):
                    transaction.delete(one.table, one.row, cell)
                for cell, value in one.cells.items():
                    transaction.put(one.table, one.row, cell, value)
                for table, key in one.index_rows:
                    transaction.put(table, key, INDEX_CELL, b"")
                [outcome] = self._repo.commit_many([transaction])
                if isinstance(outcome, int):
                    self.result.put_back += 1
                    self.result.rows[one.kind] -= 1
                elif not isinstance(outcome, Conflict | SnapshotTooOld):  # an update has brought it back by itself
                    raise outcome

    def _take_out(self, transaction: Transaction, one: _Doomed) -> None:
        # Every update writes the version, so one that comes in between makes this conflict; of a document's row it is
        # the root row's: one that comes back is run again, and writes these cells.
        transaction.promote(one.root, one.row, SOURCE_VERSION)
        if one.kind.startswith("retired"):
            self._retire(transaction, one)
        else:
            for cell in one.cells:
                transaction.delete(one.table, one.row, cell)
        for table, key in one.index_rows:
            transaction.delete(table, key, INDEX_CELL)

    def _add(self, one: _Doomed) -> None:
        self.result.add(one.kind, one.row)
        self.result.index_rows += len(one.index_rows)
        if one.kind == f"retired:{self._catalog.root}":
            self._retired_now.add(one.row)

    def _retire(self, transaction: Transaction, one: _Doomed) -> None:
        """Take out what the ads DB and handlers gave; signals stay, for nobody would send them again."""
        table = self._catalog.tables[one.table]
        for column in table.columns.values():
            if column.signal is None and column.cell in one.cells:
                transaction.delete(one.table, one.row, column.cell)
        transaction.put(one.table, one.row, DELETED, encode(True))
        transaction.put(one.table, one.row, COLLECTED, encode(Layout(table).of_cells(one.row, one.cells)[0]))

    def _documents(self) -> None:
        """Take out what is left of documents whose root row is gone and that nobody serves."""
        catalog, after = self._catalog, ""
        table = catalog.document_table
        while True:
            snapshot = self._repo.snapshot()
            if not (page := list(snapshot.scan(table, after=after, limit=_CHUNK))):
                return
            self._check()
            after = page[-1][0]
            rows = {row: cells for row, cells in page if DOCUMENT_BODY not in cells}
            roots = snapshot.get_many([(catalog.root, row) for row in rows], {catalog.root: [SOURCE_VERSION, DELETED]})
            left = [
                row
                for row, cells in rows.items()
                if not _is_there(roots[catalog.root, row])
                and row not in self._retired_now
                and all(self._older(table, row, cell) for cell in cells)
            ]
            self._collect(snapshot, [_Doomed("documents", table, row, rows[row], root=catalog.root) for row in left])


def _packed(doomed: Sequence[_Doomed]) -> Iterator[Sequence[_Doomed]]:
    """Yield rows that go in one transaction."""
    batch: list[_Doomed] = []
    for one in doomed:
        if batch and sum(other.weight for other in batch) + one.weight > _CELLS:
            yield batch
            batch = []
        batch.append(one)
    if batch:
        yield batch


def _referring_first(catalog: Catalog) -> list[Table]:
    """Return the entity tables, each after all that refer to it."""
    left, ordered = {table.name: table for table in catalog.entity_tables()}, list[Table]()

    def visit(name: str) -> None:
        table = left.pop(name, None)
        if table is None:
            return
        for reference in catalog.references():
            if reference.target == name:
                visit(reference.table)
        ordered.append(table)

    for name in list(left):
        visit(name)
    return ordered


def _is_there(cells: Row) -> bool:
    return SOURCE_VERSION in cells and DELETED not in cells


def _value(data: bytes | None) -> object:
    """Return the value of a cell, None for one that does not parse or was refused: such a row stays."""
    try:
        return None if refusal(data) is not None else decode(data)
    except msgspec.DecodeError:
        return None


class GcParameters(Parameters):
    """What goes, and whether it really does."""

    older_than: str = DEFAULT_LIMIT
    """How long a row must have been over or deleted."""
    dry_run: bool = True
    """True: only say what would go, by kind."""

    @field_validator("older_than")
    @classmethod
    def _age(cls, value: str) -> str:
        try:
            age = parse_age_us(value)
        except BadSwitch as error:
            raise ValueError(str(error)) from error
        if age is None or age < MIN_LIMIT_US:
            raise ValueError("at least 8d: brokers keep updates for a week, and an older one must not count as news")
        return value


@workflow("gc", "take out rows that have been over or deleted for long; a dry run unless dry_run=false", GcParameters)
def run_gc(context: RunContext[GcParameters]) -> Counts:
    """Collect, or say what would go."""
    chosen = context.parameters
    collector = GarbageCollector(
        context.repo,
        context.catalog,
        limit_us=parse_age_us(chosen.older_than) or MIN_LIMIT_US,
        dry_run=chosen.dry_run,
        begin=context.begin,
        check=context.check,
        progress=lambda done: context.progress(done, unit="rows"),
    )
    return counts_of(collector.run(), chosen.dry_run)


def counts_of(found: Collected, dry_run: bool) -> dict[str, JsonValue]:
    """Return what a run's record keeps."""
    return {
        "dry_run": dry_run,
        "rows": dict[str, JsonValue](found.rows),
        "index_rows": found.index_rows,
        "looked_at": found.looked_at,
        "needed": found.needed,
        "changed_meanwhile": found.changed_meanwhile,
        "put_back": found.put_back,
        "versions_collected": found.versions,
        "examples": {kind: list[JsonValue](rows) for kind, rows in found.examples.items()},
    }
