"""What a handler sees of rows: typed values by declared column name, decoded once per row and batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from argus._exceptions import UndeclaredRead
from catalog.kinds import Family
from catalog.model import DELETED, SOURCE_VERSION
from catalog.values import REFUSED_MARK, decode, encode, refusal, refused

_CONTROL = f"{Family.CONTROL.value}:"
DAMAGED = "does_not_parse"
_NIL = b"\xc0"  # MessagePack nil; never written by the pipeline, but a null all the same


class EntityRow:
    """One row at one snapshot. A deleted or missing row has no values, whatever cells are left of it."""

    __slots__ = ("_refused", "_values", "absence", "cells", "key", "stored", "table")

    def __init__(self, table: str, key: str | None, cells: Mapping[str, bytes], *, entity: bool = True) -> None:
        """Wrap fetched cells. `key` None: the reference that leads here is null. `entity`: comes from the ads DB."""
        self.table, self.key = table, key
        self.stored = cells
        """Cells as in the Repo, also those of a deleted row."""
        self.absence: str | None = None
        """Why the row does not exist, as a sentence; None if it does."""
        if entity:
            if key is None:
                self.absence = f"no {label(table)} is set"
            elif DELETED in cells:
                self.absence = f"{label(table)} {key} has been deleted"
            elif SOURCE_VERSION not in cells:
                self.absence = f"{label(table)} {key} has not arrived"
        self.cells: dict[str, bytes] = {} if self.absence else dict(cells)
        """Cells that handlers and the document see: the stored ones, with this run's outputs over them."""
        self._values: dict[str, Any] = {}
        self._refused: bool | None = None

    @property
    def has_refused(self) -> bool:
        """Whether any cell's value was refused on the way in, or is damaged: rows are asked often, and it is rare."""
        if self._refused is None:
            self._refused = False
            for data in self.cells.values():
                if data.startswith(REFUSED_MARK):
                    self._refused = True
        return self._refused

    def value(self, cell: str) -> Any:
        """Return the typed value of a cell; None where there is none."""
        try:
            return self._values[cell]
        except KeyError:
            try:
                value = decode(self.cells.get(cell))
            except msgspec.DecodeError:  # damaged in the store: as good as refused, until a sync puts it right
                self.cells[cell], value, self._refused = refused(DAMAGED), None, True
            self._values[cell] = value
            return value

    def raw(self, cell: str) -> bytes | None:
        """Return the encoded value of a cell; None where there is none or it was refused."""
        data = self.cells.get(cell)
        return None if not data or data == _NIL or data.startswith(REFUSED_MARK) else data

    def refused_control(self, cells: Iterable[str]) -> list[str]:
        """Return a sentence for each of the control cells whose value was refused on the way in.

        Null often lifts a condition there (targeting, dates), so a refused value must not pass for one.
        """
        if not self.has_refused:
            return []
        return [
            f"{label(self.table)} {self.key}: {cell.removeprefix(_CONTROL)} is not valid ({reason}); "
            "mend it in the ads DB, a dead letter has the value"
            for cell in cells
            if cell.startswith(_CONTROL) and (reason := refusal(self.cells.get(cell))) is not None
        ]

    def set(self, cell: str, data: bytes | None) -> None:
        """Lay an output of a handler over the row; none is a refused value."""
        self._values.pop(cell, None)
        if data is None:
            self.cells.pop(cell, None)
        else:
            self.cells[cell] = data


class GatheredRows:
    """All rows of one table that a run joins over a reference that is a list. It reads like one row of lists.

    Rows that have not arrived or are deleted contribute nothing and block nothing: when they come, the run comes again.
    """

    __slots__ = ("_values", "key", "rows", "table")

    absence = None
    """Many rows, none among them, are never missing."""

    def __init__(self, table: str, rows: Iterable[EntityRow]) -> None:
        """`rows` are in the order of the lists that lead to them, each once."""
        self.table, self.rows = table, tuple(rows)
        self.key: str | None = None
        self._values: dict[str, list[Any]] = {}

    @property
    def has_refused(self) -> bool:
        """Whether any of the rows has a cell whose value was refused."""
        return any(row.has_refused for row in self.rows)

    def value(self, cell: str) -> list[Any] | None:
        """Return the values of a cell in all rows that have one, lists joined; None where no row has one."""
        try:
            found = self._values[cell]
        except KeyError:
            found = self._values[cell] = []
            for row in self.rows:
                value = row.value(cell)
                if value is not None:
                    found += value if isinstance(value, list) else [value]
        return list(found) or None

    def raw(self, cell: str) -> bytes | None:
        """Return the encoded list of `value`."""
        found = self.value(cell)
        return None if found is None else encode(found)

    def refused_control(self, cells: Iterable[str]) -> list[str]:
        """Return a sentence for each control cell of each row whose value was refused on the way in."""
        wanted = tuple(cells)
        return [sentence for row in self.rows for sentence in row.refused_control(wanted)]


AnyRow = EntityRow | GatheredRows


def members(row: AnyRow) -> tuple[EntityRow, ...]:
    """Return the single rows of what a run joins of one table."""
    return row.rows if isinstance(row, GatheredRows) else (row,)


def label(table: str) -> str:
    """Return a table's name as people write it."""
    return table.replace("_", " ")


Rows = Mapping[str, AnyRow]
"""Table -> the one row of it that this run joins, or all of them."""


def single(rows: Rows, table: str) -> EntityRow:
    """Return the row of a table of which there is one: the root, or where its runs write."""
    row = rows[table]
    if isinstance(row, GatheredRows):
        raise TypeError(f"{table} is joined as many rows; nothing is written to it")
    return row


class Inputs:
    """The declared columns of one root row and the rows that it joins with, by "table.column"."""

    __slots__ = ("_allowed", "_handler", "_rows", "_tables")

    def __init__(
        self, handler: str, allowed: Mapping[str, tuple[str, str]], tables: frozenset[str], rows: Rows
    ) -> None:
        self._handler, self._allowed, self._tables, self._rows = handler, allowed, tables, rows

    def __getitem__(self, ref: str) -> Any:
        """Return the typed value of a declared column, or None. Raises UndeclaredRead."""
        try:
            table, cell = self._allowed[ref]
        except KeyError:
            raise UndeclaredRead(
                f"handler {self._handler!r} reads {ref!r} without declaring it; add it to `watches` (run again when it "
                f"changes) or `reads`; declared: {', '.join(self._allowed)}"
            ) from None
        return self._rows[table].value(cell)

    def exists(self, table: str) -> bool:
        """Say whether the joined row of `table` has arrived and is not deleted. Raises UndeclaredRead."""
        return self._row(table).absence is None

    def absence(self, table: str) -> str | None:
        """Return why the joined row does not exist ("campaign 12 has not arrived"), None if it does."""
        return self._row(table).absence

    def name(self, table: str) -> str:
        """Return what to call the joined row in a sentence ("campaign 12")."""
        key = self._row(table).key
        return f"{label(table)} {key}" if key is not None else f"the {label(table)}"

    def as_dict(self) -> dict[str, Any]:
        """Return all declared inputs; for dead letters and tests."""
        return {ref: self._rows[table].value(cell) for ref, (table, cell) in self._allowed.items()}

    def _row(self, table: str) -> AnyRow:
        if table not in self._tables:
            raise UndeclaredRead(
                f"handler {self._handler!r} asks for the row of {table!r}, but declares no column of it; "
                "declare the column whose change should run it again"
            )
        return self._rows[table]
