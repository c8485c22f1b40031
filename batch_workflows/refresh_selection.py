"""Which rows a refresh is of: by table, keys, advertiser, handler, field, a condition on columns, or when they changed.

A selection names one table, or several in order, and a test for their rows. A row of a table that has handlers is run
itself; one of a table that documents only join is given to the documents that join it, by their own fan-out.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from argus import Registry
from batch_workflows._exceptions import UnknownSelection
from catalog import Catalog, Column, InvalidValue
from catalog.model import DELETED, SOURCE_VERSION, signal_version_cell
from catalog.values import check, decode, micros_of
from messaging.headers import now_us
from messaging.switches import BadSwitch, parse_age_us
from storage_repo import INDEX_SEPARATOR, Repo, Row, Snapshot

PAGE = 500
"""Rows looked at per snapshot: a slow refresh reads each page at a snapshot of its own, none of which gets old."""
_CONDITION = re.compile(r"\s*((?:\w+\.)?\w+)\s*(!=|<=|>=|=|<|>)\s*(.*?)\s*", re.S)
_COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_NULL = "null"


@dataclass(frozen=True, slots=True)
class Condition:
    """A column compared with a value. Of a list, `=` asks whether the value is in it. A null is less than nothing."""

    column: Column
    operation: str
    value: Any

    def holds(self, cells: Row) -> bool:
        """Return whether it holds for a row; never for a value that does not parse, but `!=`."""
        found = decode(cells.get(self.column.cell))
        if self.operation in ("=", "!="):
            same = found == self.value or (isinstance(found, list) and self.value in found)
            return same == (self.operation == "=")
        return found is not None and self.value is not None and _COMPARE[self.operation](found, self.value)


@dataclass(frozen=True, slots=True)
class Selection:
    """What is to be refreshed."""

    tables: tuple[str, ...]
    """In this order: those that others join first."""
    ids: tuple[str, ...] = ()
    below: tuple[str, str] | None = None
    """(table, row): only rows that lead to it by their references."""
    conditions: tuple[Condition, ...] = ()
    changed_since_us: int = 0

    def rows(self, repo: Repo, catalog: Catalog, table: str, after: str = "") -> Iterator[tuple[str, bool]]:
        """Yield (row, whether it is selected) in key order, after one; so that who reads can remember the place.

        Raises UnknownSelection for ids and rows that there are not.
        """
        for page in self._pages(repo, catalog, table, after):
            chosen = set(self._chosen(repo, catalog, table, page)) if self.conditions or self.changed_since_us else page
            for row in page:
                yield row, row in chosen

    def _pages(self, repo: Repo, catalog: Catalog, table: str, after: str) -> Iterator[list[str]]:
        snapshot = repo.snapshot()
        if self.ids:
            found = snapshot.get_many([(table, i) for i in self.ids], {table: [SOURCE_VERSION]})
            if missing := [i for i in self.ids if not found[table, i]]:
                raise UnknownSelection(f"no {table} with id {', '.join(missing)} in the Storage Repo")
            yield sorted({i for i in self.ids if i > after})
            return
        if self.below is not None:
            if not snapshot.get(*self.below, [SOURCE_VERSION]):
                raise UnknownSelection(f"no {self.below[0]} {self.below[1]!r} in the Storage Repo")
            rows = sorted({row for row in rows_below(snapshot, catalog, *self.below, table) if row > after})
            for start in range(0, len(rows), PAGE):
                yield rows[start : start + PAGE]
            return
        while page := [
            row for row, _ in repo.snapshot().scan(table, after=after, columns=[SOURCE_VERSION], limit=PAGE)
        ]:
            yield page
            after = page[-1]

    def _chosen(self, repo: Repo, catalog: Catalog, table: str, page: Sequence[str]) -> list[str]:
        tables = {table, *(condition.column.table for condition in self.conditions)}
        columns = {name: [c.column.cell for c in self.conditions if c.column.table == name] for name in tables}
        columns[table] += [SOURCE_VERSION, DELETED]
        found = repo.snapshot().get_many([(name, row) for row in page for name in tables], columns)
        chosen = [
            row
            for row in page
            if DELETED not in found[table, row]
            and all(condition.holds(found[condition.column.table, row]) for condition in self.conditions)
        ]
        return _changed(repo, catalog, table, chosen, self.changed_since_us) if self.changed_since_us else chosen


def selection_of(
    catalog: Catalog,
    registry: Registry,
    *,
    table: str = "",
    ids: Sequence[str] = (),
    advertiser: str = "",
    below: str = "",
    handler: str = "",
    field: str = "",
    where: Sequence[str] = (),
    changed_since: str = "",
) -> Selection:
    """Check what a person asks for. Raises UnknownSelection with a sentence that says what there is."""
    roots = [name for name in registry.plans if name != catalog.root] + [catalog.root]
    tables = _tables(catalog, registry, roots, table, handler, field)
    if advertiser:
        if "advertiser" not in catalog.tables or below:
            raise UnknownSelection(
                "`advertiser` is short for `below=advertiser/ID`, where the catalogue has that table"
            )
        below = f"advertiser/{advertiser}"
    if ids and len(tables) > 1:
        tables = (catalog.root,)
    if below and not (table or handler or field):
        tables = (catalog.root,)
    if len(tables) > 1 and where:
        raise UnknownSelection(f"a condition is on the columns of one table: say which of {', '.join(tables)}")
    place: tuple[str, str] | None = None
    if below:
        name, _, row = below.partition("/")
        if name not in catalog.tables or not row:
            raise UnknownSelection(f"`below` is TABLE/ROW with a table of the catalogue, not {below!r}")
        place = name, row
    conditions = tuple(_condition(catalog, tables[0], text) for text in where)
    return Selection(tables, tuple(ids), place, conditions, _since_us(changed_since))


def _tables(
    catalog: Catalog, registry: Registry, roots: Sequence[str], table: str, handler: str, field: str
) -> tuple[str, ...]:
    if sum(map(bool, (table, handler, field))) > 1:
        raise UnknownSelection("give one of table, handler and field: the others follow from it")
    if handler:
        if handler not in registry.handlers:
            raise UnknownSelection(f"there is no handler {handler!r}; there are {', '.join(sorted(registry.handlers))}")
        written = {ref.partition(".")[0] for ref in registry.handlers[handler].declaration.writes}
        return tuple(root for root in roots if registry.plans[root].output_table in written)
    if field:
        if field not in catalog.fields:
            raise UnknownSelection(f"there is no field {field!r}; there are {', '.join(catalog.fields)}")
        of = catalog.fields[field].column
        return tuple(r for r in roots if r == catalog.root or (of.handler is not None and of.table == r))
    if not table:
        return tuple(roots)
    joined = [name for name in registry.document.routes if name not in roots]
    if table not in (*roots, *joined):
        raise UnknownSelection(
            f"handlers run for {', '.join(roots)}, and documents join {', '.join(joined)}; nothing runs for {table!r}"
        )
    return (table,)


def _condition(catalog: Catalog, table: str, text: str) -> Condition:
    found = _CONDITION.fullmatch(text)
    if found is None:
        raise UnknownSelection(f"{text!r} is no condition; write COLUMN=VALUE, or with !=, <, <=, >, >=")
    named, operation, value = found.groups()
    own = {table, *([catalog.document_table] if table == catalog.root else [])}
    of, _, name = named.rpartition(".")
    columns = [c for t in sorted(own) for c in catalog.tables[t].columns.values() if c.name == name and of in ("", t)]
    if not columns:
        raise UnknownSelection(f"{text!r}: {' and '.join(sorted(own))} has no column {named!r}")
    column = next((c for c in columns if c.table == table), columns[0])
    try:
        element = column.element()
        return Condition(column, operation, None if value == _NULL else check(element, _typed(element, value)))
    except InvalidValue as error:
        raise UnknownSelection(f"{text!r}: {error}") from error


def _typed(column: Column, value: str) -> object:
    match column.type.value:
        case "bool":
            return {"true": True, "false": False}.get(value.lower(), value)
        case "float":
            try:
                return float(value)
            except ValueError:
                return value
    return value


def _since_us(text: str) -> int:
    if not text:
        return 0
    try:
        return now_us() - (parse_age_us(text) or 0)
    except BadSwitch:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            raise UnknownSelection(
                f"changed_since {text!r} is neither an age (30s, 10m, 2h, 1d) nor a time (2026-01-31T12:00)"
            ) from None
        return micros_of(moment if moment.tzinfo else moment.replace(tzinfo=UTC))


def _changed(repo: Repo, catalog: Catalog, table: str, rows: Sequence[str], since_us: int) -> list[str]:
    """Return those rows of which an update or signal was stored since a time, in microseconds since the epoch."""
    signals = {c.signal for c in catalog.tables[table].columns.values() if c.signal}
    cells = [SOURCE_VERSION, *(signal_version_cell(signal) for signal in sorted(signals))]
    changed = repo.changed_since([(table, row) for row in rows], {table: cells}, since_us)
    return [row for row in rows if (table, row) in changed]


def rows_below(snapshot: Snapshot, catalog: Catalog, table: str, row: str, wanted: str) -> Iterator[str]:
    """Yield the rows of a table that lead to a row of another by their references; some perhaps twice."""
    if table == wanted:
        yield row
        return
    for reference in catalog.references():
        if reference.target != table:
            continue
        for key, _ in snapshot.scan(reference.index_table, prefix=row + INDEX_SEPARATOR):
            yield from rows_below(snapshot, catalog, reference.table, key.split(INDEX_SEPARATOR, 1)[1], wanted)
