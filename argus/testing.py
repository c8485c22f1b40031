"""For authors of handlers: run one handler on values, with everything checked that the pipeline checks."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache
from typing import Any

from argus._exceptions import DeclarationError
from argus._handler import Handler, HandlerContext, Value
from argus._registry import step_of
from argus._rows import AnyRow, EntityRow, GatheredRows, Inputs
from argus._run import checked_outputs
from catalog import DEFAULT_CATALOG, Catalog, load_catalog
from catalog.model import SOURCE_VERSION
from catalog.values import check, decode, encode


def run_handler(
    handler: Handler,
    values: Mapping[str, Value] | None = None,
    *,
    absent: Collection[str] = (),
    sources: Mapping[str, Any] | None = None,
    catalog: Catalog | None = None,
    row: str = "1",
) -> dict[str, Value]:
    """Run a handler on "table.column" -> value and return all its outputs, null ones included.

    Columns not given are null. Every row exists but those of `absent` tables; a row's key is what the reference to it
    says, else `row`. A column of a table that is joined as many rows takes the list of its values. `sources` are the
    answers of its sources; an exception as an answer is raised. Raises what the handler raises, UndeclaredRead,
    UndeclaredWrite, catalog.InvalidValue for values of a wrong type, and DeclarationError for columns that the handler
    does not declare or the catalogue does not have.
    """
    catalog = catalog or _default_catalog()
    step = step_of(catalog, handler)
    given = dict(values or {})
    if unknown := set(given) - set(step.allowed):
        raise DeclarationError(
            f"{handler.declaration} does not declare {', '.join(sorted(unknown))}, so the pipeline would not give it; "
            "add it to watches or reads"
        )
    keys = {
        reference.target: str(given[f"{table}.{reference.column}"])
        for table in step.tables
        for reference in catalog.tables[table].references
        if given.get(f"{table}.{reference.column}") is not None
    }
    cells: dict[str, dict[str, bytes]] = {
        table: {} if table in absent else {SOURCE_VERSION: encode(1)} for table in step.tables
    }
    many: dict[str, dict[int, dict[str, bytes]]] = {
        t: {} for t in step.tables & catalog.gathered(handler.declaration.root)
    }
    for ref, value in given.items():
        column = catalog.column(ref)
        for place, one in enumerate(value) if column.table in many else ((-1, value),):
            if (checked := check(column, one)) is not None:
                into = many[column.table].setdefault(place, {}) if column.table in many else cells[column.table]
                into[column.cell] = encode(checked)
    rows: dict[str, AnyRow] = {
        table: EntityRow(table, keys.get(table, row), cells[table], entity=table != catalog.document_table)
        for table in step.tables
    }
    for table, found in many.items():
        there = [EntityRow(table, str(place), {SOURCE_VERSION: encode(1), **found[place]}) for place in sorted(found)]
        rows[table] = GatheredRows(table, there)
    answers = {use.source: (sources or {}).get(use.source) for use in handler.sources}
    inputs = Inputs(handler.name, step.allowed, step.tables, rows)
    outputs = checked_outputs(step, handler(inputs, HandlerContext(catalog, row, answers)))
    return {ref: decode(data) for ref, data in outputs.items()}


@cache
def _default_catalog() -> Catalog:
    return load_catalog(DEFAULT_CATALOG)
