"""Fetch root rows and all they join with at one snapshot: a round trip per level of the join, whatever the batch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from argus._registry import Plan
from argus._rows import AnyRow, EntityRow, GatheredRows, Rows, members
from catalog import Catalog, Reference
from catalog.model import INDEX_CELL
from storage_repo import INDEX_SEPARATOR, RowId, Snapshot

_NO_KEY = re.compile("[\x00-\x1f]")
_MAX_KEY_BYTES = 400

Overlay = Mapping[RowId, Mapping[str, bytes | None]]
"""Cells to lay over fetched rows, None = take away."""


def is_key(text: str) -> bool:
    """Say whether the Repo can have an entity row of this key."""
    return bool(text) and len(text.encode("utf-8", "surrogatepass")) <= _MAX_KEY_BYTES and not _NO_KEY.search(text)


def fetch(
    snapshot: Snapshot,
    catalog: Catalog,
    plan: Plan,
    keys: Sequence[str],
    overlay: Overlay | None = None,
    keep: Callable[[str, Rows], bool] = lambda _key, _rows: True,
    columns: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Rows]:
    """Return root key -> table -> row, or all rows where the way to the table leads over a list.

    Joined rows are shared between the roots that join them. `keep` sees a root's own rows and decides whether to go on
    with it. `columns` are read instead of the plan's, of which they leave out none.
    """
    over, reads = overlay or {}, columns or plan.columns
    own = list(dict.fromkeys((plan.root, plan.output_table)))
    found = snapshot.get_many([(table, key) for key in keys for table in own], reads)
    joined: dict[str, dict[str, AnyRow]] = {
        key: {table: EntityRow(table, key, found[table, key], entity=table == plan.root) for table in own}
        for key in keys
    }
    joined = {key: rows for key, rows in joined.items() if keep(key, rows)}
    for level in plan.levels:
        wanted: dict[RowId, None] = {}
        links: list[tuple[str, Reference, list[str | None]]] = []
        for key, rows in joined.items():
            for reference in level:
                targets = _targets(catalog, reference, rows[reference.table])
                links.append((key, reference, targets))
                for target in targets:
                    if target is not None and is_key(target):
                        wanted[reference.target, target] = None
        cells = snapshot.get_many(list(wanted), reads) if wanted else {}
        shared: dict[tuple[str, str | None], EntityRow] = {}
        for key, reference, targets in links:
            for target in targets:
                if (reference.target, target) not in shared:
                    row = EntityRow(reference.target, target, cells.get((reference.target, target or ""), {}))
                    for cell, data in over.get((reference.target, target or ""), {}).items():
                        if row.absence is None:
                            row.set(cell, data)
                    shared[reference.target, target] = row
            reached = [shared[reference.target, target] for target in targets]
            gathered = reference.target in plan.gathered
            joined[key][reference.target] = GatheredRows(reference.target, reached) if gathered else reached[0]
    return dict(joined)


def _targets(catalog: Catalog, reference: Reference, row: AnyRow) -> list[str | None]:
    """Return the keys that a reference leads to: one (None if it is null), or each once where there can be many."""
    cell = catalog.tables[reference.table].columns[reference.column].cell
    if not reference.many and isinstance(row, EntityRow):
        value = row.value(cell)
        return [None if value is None else str(value)]
    found: dict[str | None, None] = {}
    for single in members(row):
        value = single.value(cell)
        for one in value if isinstance(value, list) else [value]:
            if one is not None:
                found[str(one)] = None
    return list(found)


def roots_of(snapshot: Snapshot, route: Sequence[Reference], row: str, cursor: str = "") -> Iterator[tuple[str, str]]:
    """Yield (root row, cursor) for every root row that joins `row`, in the order of the index, after `cursor`.

    A cursor is the path of row keys from the first index to the root row, so that it also finds its place when rows
    on the way have gone.
    """
    for path in _descend(snapshot, route, row, tuple(cursor.split(INDEX_SEPARATOR)) if cursor else ()):
        yield path[-1], INDEX_SEPARATOR.join(path)


def _descend(
    snapshot: Snapshot, route: Sequence[Reference], row: str, after: Sequence[str]
) -> Iterator[tuple[str, ...]]:
    first, rest = route[0], route[1:]
    if rest and after:
        yield from ((after[0], *path) for path in _descend(snapshot, rest, after[0], after[1:]))
    for child in _children(snapshot, first, row, after[0] if after else ""):
        if rest:
            yield from ((child, *path) for path in _descend(snapshot, rest, child, ()))
        else:
            yield (child,)


def _children(snapshot: Snapshot, reference: Reference, row: str, after: str) -> Iterable[str]:
    prefix = row + INDEX_SEPARATOR
    scan = snapshot.scan(
        reference.index_table, prefix=prefix, after=prefix + after if after else "", columns=(INDEX_CELL,)
    )
    for index_row, _ in scan:
        yield index_row[len(prefix) :]
