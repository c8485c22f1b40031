"""Is this update newer than what we have, and is it stored? The Updater's core, without log or process.

Updates may come repeated, late and in any order. An ads DB update carries the whole entity and the change feed's
position as its version; a row keeps the newest version it has seen, also after a delete, so that nothing older comes
back. Each content signal has a version of its own. Only cells that really change are written, so notifications name
only what changed. Index rows move in the same transaction as the reference that they turn round.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from catalog import Catalog, Column, InvalidValue, LaneName, Table
from catalog.model import COLLECTED, DELETED, INDEX_CELL, SOURCE_VERSION, signal_version_cell
from catalog.values import check, decode, encode, refusal, refused
from messaging.dead_letters import MAX_HEADER, dead_letter
from messaging.headers import leave, now_us
from messaging.proto import adsindex_pb2 as pb
from messaging.topics import LANE_NUMBER
from storage_repo import (
    INDEX_SEPARATOR,
    Conflict,
    LimitExceeded,
    Origin,
    Repo,
    Row,
    RowId,
    SnapshotTooOld,
    Transaction,
)
from updater._exceptions import RefusedUpdate

STAGE = "updater"
ADS_DB = "ads_db"
MAX_ATTEMPTS = 20
"""Only rows that somebody else writes at this very moment conflict; twenty lost races in a row mean a bug."""

MAX_KEY_BYTES = 400
"""Of a row key, and of the index row that joins two of them: the Repo's limit (storage_repo.api)."""
_SHOWN = 80
"""Characters of a sender's text that an error quotes."""
_CONTROL = re.compile("[\x00-\x1f]")

APPLIED, UNCHANGED, STALE, DUPLICATE, DEAD = "applied", "unchanged", "stale", "duplicate", "dead_letter"


@dataclass(slots=True)
class ApplyOutcome:
    """What became of a batch; `results` is in the order of the updates."""

    results: list[pb.UpdateResult] = field(default_factory=list)
    dead_letters: list[pb.DeadLetter] = field(default_factory=list)
    letter_of: list[int] = field(default_factory=list)
    """For each dead letter, the place of its update in the batch."""
    conflicts: int = 0
    transactions: int = 0


@dataclass(slots=True)
class _Pending:
    """One update of the batch, and what this attempt found wrong with its columns as (reason, sentence)."""

    index: int
    update: pb.EntityUpdate
    faults: list[tuple[str, str]] = field(default_factory=list)


class _Layout:
    """What the Updater asks of a table for every row, worked out once: names, cells and who may write them."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.signals = frozenset(c.signal for c in table.columns.values() if c.signal)
        self.entity_cells = tuple(c.cell for c in table.columns.values() if c.source_table is not None)
        self.of_source: dict[str, dict[str, tuple[Column, str]]] = {
            source: {
                name: (column, column.cell)
                for name, column in table.columns.items()
                if (column.source_table is not None if source == ADS_DB else column.signal == source)
            }
            for source in (ADS_DB, *self.signals)
        }
        """Source -> column name -> column and cell."""
        self.reference_columns = frozenset(r.column for r in table.references)
        self.references = tuple((table.columns[r.column].cell, r.index_table) for r in table.references)
        self.read_cells = [
            *(c.cell for c in table.columns.values() if c.handler is None),
            SOURCE_VERSION,
            DELETED,
            COLLECTED,
            *(signal_version_cell(s) for s in sorted(self.signals)),
        ]


class UpdaterCore:
    """Applies batches of updates to the Repo. One instance per thread."""

    def __init__(self, repo: Repo, catalog: Catalog, code_version: str = "") -> None:
        self._repo = repo
        self._catalog = catalog
        self._code_version = code_version
        self._layouts = {table.name: _Layout(table) for table in catalog.tables.values()}

    def apply(self, updates: Sequence[pb.EntityUpdate], *, dry_run: bool = False) -> ApplyOutcome:
        """Store a batch: one transaction per row, all made durable together; rows that conflict run again.

        When this returns, everything is either durable, or known to be old, or in `dead_letters`. After a crash the
        batch may be given again: what was stored then counts as duplicate. Raises RepoError if the store is away.
        """
        outcome = ApplyOutcome(results=[pb.UpdateResult(table=u.table, row=u.row) for u in updates])
        entered_us = now_us()
        by_row: dict[RowId, list[_Pending]] = {}
        for index, update in enumerate(updates):
            pending = _Pending(index, update)
            try:
                self._admit(update)
            except RefusedUpdate as refusal:
                self._refuse(outcome, pending, refusal.reason, str(refusal))
            else:
                by_row.setdefault((update.table, update.row), []).append(pending)
        for _ in range(MAX_ATTEMPTS):
            if not by_row:
                return outcome
            by_row = self._attempt(by_row, outcome, entered_us, dry_run)
        for row_id, rest in by_row.items():
            for pending in rest:
                text = f"{row_id[0]}/{row_id[1]}: still conflicting after {MAX_ATTEMPTS} attempts; replay this letter"
                self._refuse(outcome, pending, "conflict_limit", text)
        return outcome

    def cells_of(self, update: pb.EntityUpdate) -> dict[str, bytes]:
        """Return the cells that a whole entity's update leaves in its row."""
        return {} if update.deleted else self._checked(self._layouts[update.table], _Pending(0, update))

    def _admit(self, update: pb.EntityUpdate) -> None:
        where = f"{update.table[:_SHOWN]}/{update.row[:_SHOWN]!r}"
        table = self._catalog.tables.get(update.table)
        if table is None or table.root is not None:
            raise RefusedUpdate(
                "unknown_table",
                f"{where}: {update.table[:_SHOWN]!r} is not an entity table of {self._catalog.file}; "
                "declare it there or correct the sender",
            )
        if update.source not in self._layouts[update.table].of_source:
            known = ", ".join(sorted(self._layouts[update.table].of_source))
            raise RefusedUpdate(
                "unknown_source",
                f"{where}: source {update.source[:_SHOWN]!r} is not one of {known}; "
                f"declare a column from it in {self._catalog.file} or correct the sender",
            )
        if update.source_version <= 0:
            raise RefusedUpdate(
                "bad_version",
                f"{where}: source_version {update.source_version} from {update.source!r} is not positive; "
                "send the position of the change",
            )
        if fault := _key_fault(update.row):
            raise RefusedUpdate("bad_row_key", f"{where}: the row key {fault}; correct it at the source")
        if update.header.ByteSize() > MAX_HEADER:
            raise RefusedUpdate(
                "bad_header", f"{where}: a header of {update.header.ByteSize()} bytes, at most {MAX_HEADER} are allowed"
            )

    def _attempt(
        self, by_row: Mapping[RowId, list[_Pending]], outcome: ApplyOutcome, entered_us: int, dry_run: bool
    ) -> dict[RowId, list[_Pending]]:
        snapshot = self._repo.snapshot(transactions=len(by_row))
        stored = snapshot.get_many(list(by_row), {table: self._layouts[table].read_cells for table, _ in by_row})
        transactions: list[Transaction] = []
        owners: list[tuple[RowId, list[_Pending]]] = []
        for row_id, pending in by_row.items():
            new = self._judge(row_id, stored[row_id], pending, outcome)
            if not new:
                self._report(outcome, pending)
                continue
            transaction = self._repo.begin(self._origin(new, entered_us), snapshot.ts)
            try:
                self._write_row(transaction, row_id, stored[row_id], new, outcome)
            except LimitExceeded as error:
                transaction.abort()
                for item in new:
                    self._refuse(outcome, item, "limit_exceeded", str(error))
                self._report(outcome, [item for item in pending if item not in new])
                continue
            if not dry_run:
                transactions.append(transaction)
                owners.append((row_id, pending))
            else:
                transaction.abort()
                self._report(outcome, pending)
        again: dict[RowId, list[_Pending]] = {}
        for (row_id, pending), result in zip(owners, self._repo.commit_many(transactions), strict=True):
            if isinstance(result, int):
                outcome.transactions += 1
                self._report(outcome, pending)
                for item in pending:
                    if outcome.results[item.index].outcome == APPLIED:
                        outcome.results[item.index].commit_ts = result
            elif isinstance(result, Conflict | SnapshotTooOld):
                outcome.conflicts += 1
                again[row_id] = pending
            else:
                raise result
        return again

    def _origin(self, pending: Sequence[_Pending], entered_us: int) -> Origin:
        """Return who causes the write: the oldest of the updates that it makes visible, in the highest lane of them."""
        header = pending[0].update.header
        if len(pending) > 1:
            header = min((p.update.header for p in pending), key=lambda h: h.origin_us)
        lanes = [p.update.header.lane for p in pending if p.update.header.lane]
        sent_on = leave(header, STAGE, entered_us)
        sent_on.lane = min(lanes, default=LANE_NUMBER[LaneName.LOW])
        return Origin(
            stage=STAGE,
            handler=pending[0].update.source,
            code_version=self._code_version,
            trace_id=header.trace_id,
            lane=sent_on.lane,
            origin_us=header.origin_us,
            hops=sent_on.SerializeToString(),
        )

    def _judge(self, row_id: RowId, stored: Row, pending: Sequence[_Pending], outcome: ApplyOutcome) -> list[_Pending]:
        """Return the updates that are newer than what is stored; the others get their result, stale or duplicate."""
        layout = self._layouts[row_id[0]]
        new: list[_Pending] = []
        for item in pending:
            known = decode(stored.get(_version_cell(item.update.source))) or 0
            if item.update.source_version > known:
                new.append(item)
                continue
            same = item.update.source_version == known
            outcome.results[item.index].outcome = DUPLICATE if same else STALE
            item.faults.clear()
            if same:  # an earlier owner may have died between storing the row and sending its dead letters
                self._checked(layout, item)
        return new

    def _write_row(
        self,
        transaction: Transaction,
        row_id: RowId,
        stored: Row,
        new: Sequence[_Pending],
        outcome: ApplyOutcome,
    ) -> None:
        layout = self._layouts[row_id[0]]
        newest: dict[str, _Pending] = {}
        for item in new:
            best = newest.get(item.update.source)
            if best is None or item.update.source_version > best.update.source_version:
                newest[item.update.source] = item
        for item in new:
            update, result = item.update, outcome.results[item.index]
            best = newest[update.source]
            if best is not item:
                result.outcome = DUPLICATE if update.source_version == best.update.source_version else STALE
                continue
            write = self._write_entity if update.source == ADS_DB else self._write_signal
            changed = write(transaction, layout, row_id, stored, item)
            transaction.put(*row_id, _version_cell(update.source), encode(update.source_version))
            result.outcome = APPLIED if changed else UNCHANGED

    def _write_entity(
        self,
        transaction: Transaction,
        layout: _Layout,
        row_id: RowId,
        stored: Row,
        item: _Pending,
    ) -> bool:
        update = item.update
        cells: dict[str, bytes] = {} if update.deleted else self._checked(layout, item)
        changed = False
        for cell in layout.entity_cells:
            new, old = cells.get(cell), stored.get(cell)
            if new == old:
                continue
            changed = True
            if new is None:
                transaction.delete(*row_id, cell)
            else:
                transaction.put(*row_id, cell, new)
        if update.deleted and DELETED not in stored:
            transaction.put(*row_id, DELETED, encode(True))
            changed = True
        elif not update.deleted and DELETED in stored:
            transaction.delete(*row_id, DELETED)
            changed = True
        if COLLECTED in stored:
            transaction.delete(*row_id, COLLECTED)
        for cell, index_table in layout.references:
            new, old = cells.get(cell), stored.get(cell)
            if new == old:
                continue
            before, after = _targets(old), _targets(new)
            for target in before - after:
                transaction.delete(index_table, f"{target}{INDEX_SEPARATOR}{row_id[1]}", INDEX_CELL)
            for target in after - before:
                transaction.put(index_table, f"{target}{INDEX_SEPARATOR}{row_id[1]}", INDEX_CELL, b"")
        return changed

    def _write_signal(
        self,
        transaction: Transaction,
        layout: _Layout,
        row_id: RowId,
        stored: Row,
        item: _Pending,
    ) -> bool:
        """Write the columns that the signal sent; a deleted one takes back all of its columns."""
        update, changed = item.update, False
        cells = {} if update.deleted else self._checked(layout, item)
        sent = {column.name for column in update.columns}
        for name, (_, cell) in layout.of_source[update.source].items():
            if not (update.deleted or name in sent):
                continue
            new, old = cells.get(cell), stored.get(cell)
            if new == old:
                continue
            changed = True
            if new is None:
                transaction.delete(*row_id, cell)
            else:
                transaction.put(*row_id, cell, new)
        return changed

    def _checked(self, layout: _Layout, item: _Pending) -> dict[str, bytes]:
        """Return the cells of the update's valid columns; what is wrong with the others goes to `item.faults`."""
        cells: dict[str, bytes] = {}
        source, row = item.update.source, item.update.row
        item.faults.clear()
        columns = layout.of_source[source]
        for sent in item.update.columns:
            found = columns.get(sent.name)
            if found is None:
                text = (
                    f"{layout.table.name}/{row}: column {sent.name[:_SHOWN]!r} of source {source!r} is not declared in "
                    f"{self._catalog.file}; the other columns were stored"
                )
                item.faults.append(("unknown_column", text))
                continue
            if not sent.value:
                continue
            column, cell = found
            if (reason := refusal(sent.value)) is not None:  # the Gateway has sent the dead letter
                cells[cell] = refused(reason[:_SHOWN])
                continue
            try:
                value = check(column, decode(sent.value))
                if value is None:
                    continue
                if column.name in layout.reference_columns:
                    for target in value if isinstance(value, list) else (value,):
                        if fault := _key_fault(f"{target}", row):
                            raise InvalidValue(column.ref, "bad_reference", f"{str(target)[:_SHOWN]!r} {fault}")
                cells[cell] = encode(value)
            except InvalidValue as error:
                cells[cell] = refused(error.reason)
                item.faults.append((error.reason, f"row {row!r}: {error}; kept as not valid"))
            except msgspec.DecodeError as error:
                cells[cell] = refused("bad_encoding")
                text = f"{column.ref} of row {row!r}: the value does not decode ({error}); kept as not valid"
                item.faults.append(("bad_encoding", text))
        return cells

    def _report(self, outcome: ApplyOutcome, pending: Sequence[_Pending]) -> None:
        for item in pending:
            outcome.results[item.index].error = "; ".join(text for _, text in item.faults)
            outcome.dead_letters += [self._letter(item.update, reason, text) for reason, text in item.faults]
            outcome.letter_of += [item.index] * len(item.faults)

    def _refuse(self, outcome: ApplyOutcome, pending: _Pending, reason: str, text: str) -> None:
        outcome.results[pending.index].outcome = DEAD
        outcome.results[pending.index].error = text
        outcome.dead_letters.append(self._letter(pending.update, reason, text))
        outcome.letter_of.append(pending.index)

    def _letter(self, update: pb.EntityUpdate, reason: str, text: str) -> pb.DeadLetter:
        return dead_letter(
            STAGE,
            reason,
            text,
            header=update.header,
            table=update.table,
            row=update.row,
            payload=update.SerializeToString(),
            payload_type="EntityUpdate",
        )


def _version_cell(source: str) -> str:
    return SOURCE_VERSION if source == ADS_DB else signal_version_cell(source)


def _key_fault(key: str, row: str | None = None) -> str:
    """Return what keeps `key` from being a row key, alone or in an index row with `row`; "" if nothing does."""
    size = len(key.encode()) + (0 if row is None else len(f"{INDEX_SEPARATOR}{row}".encode()))
    if not key:
        return "is empty"
    if found := _CONTROL.search(key):
        return f"has the control character {found.group()!r}"
    if size > MAX_KEY_BYTES:
        part = "has" if row is None else "makes an index row of"
        return f"{part} {size} bytes, at most {MAX_KEY_BYTES} are allowed"
    return ""


def _targets(cell: bytes | None) -> set[str]:
    """Return the row keys that a reference's cell points to: none (null, refused), one, or those of a list."""
    try:
        value = decode(cell)
    except msgspec.DecodeError:  # damaged in the store: it points nowhere, and the update puts it right
        return set()
    return set() if value is None else {str(one) for one in (value if isinstance(value, list) else [value])}
