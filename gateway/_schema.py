"""What the catalogue needs of the ads DB, whichever database it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping

from catalog import Catalog, Fault
from catalog.keys import key_columns
from gateway._exceptions import SchemaMismatch


def check_catalog(
    catalog: Catalog,
    kinds: Mapping[str, str],
    columns_of: Callable[[str], Collection[str]],
    unfit_key: Callable[[str, str], str] = lambda source_table, column: "",
) -> None:
    """Raise SchemaMismatch, every fault with file and line, when the ads DB lacks what the catalogue reads.

    `kinds` maps names in lower case to "table" or another kind; `columns_of` gives a table's columns in lower case;
    `unfit_key` the type of a column that cannot be of a key, "" for one that can.
    """
    faults: list[Fault] = []
    tables: set[str] = set()
    for source_table, (table, key) in catalog.source_tables().items():
        if kinds.get(source_table.lower()) != "table":
            what = "is a view, which cannot be captured" if source_table.lower() in kinds else "does not exist"
            text = f"the ads DB table {source_table!r} of {table.name!r} {what}; create it, or correct `source`"
            faults.append(Fault(catalog.file, table.line, text))
            tables.add(source_table)
            continue
        present = columns_of(source_table)
        for part in key_columns(key):
            if part.lower() not in present:
                text = f"the ads DB table {source_table!r} has no key column {part!r}; correct `source`"
                faults.append(Fault(catalog.file, table.line, text))
                tables.add(source_table)
            elif unfit := unfit_key(source_table, part):
                text = (
                    f"the key column {part!r} of the ads DB table {source_table!r} is of type {unfit}, but keys are "
                    "whole numbers or text; alter it, or correct `source`"
                )
                faults.append(Fault(catalog.file, table.line, text))
                tables.add(source_table)
        for column in table.columns.values():
            if column.source_table == source_table and str(column.source_column).lower() not in present:
                text = f"{column.ref}: the ads DB has no column {column.source}; add it, or correct `from`"
                faults.append(Fault(catalog.file, column.line, text))
                tables.add(source_table)
    if faults:
        raise SchemaMismatch(faults, tables)


def declarations(catalog: Catalog) -> dict[str, str]:
    """Entity table -> what decides its materialized content; its rows are enqueued again when that changes."""
    return {
        table.name: json.dumps(
            [
                sorted(table.source.tables().items()) if table.source else [],
                sorted(
                    (c.cell, c.type.value, c.source, sorted(c.values), c.max_bytes, c.default, c.scale, c.split)
                    for c in table.columns.values()
                    if c.source_table is not None
                ),
            ]
        )
        for table in catalog.entity_tables()
    }
