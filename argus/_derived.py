"""The built-in handlers: columns that the catalogue derives by itself, without a line of Python of its author's.

Each derived column is a handler like any other, so order, fan-out, dead letters and history are as for the rest. Its
declaration points to the catalogue's line.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from argus._handler import Handler, HandlerContext, Value
from argus._rows import Inputs
from catalog import Catalog, Column, Derivation, HandlerDeclaration, Operation
from catalog.text import unique_terms


def derived_handlers(catalog: Catalog) -> list[Handler]:
    """Return one handler for each column that has a derivation."""
    return [
        _handler(catalog, column, column.derivation)
        for table in catalog.tables.values()
        for column in table.columns.values()
        if column.derivation is not None
    ]


def _handler(catalog: Catalog, column: Column, derivation: Derivation) -> Handler:
    root = catalog.root if column.table == catalog.document_table else column.table
    operation, default = OPERATIONS[derivation.operation], column.default

    def derive(row: Inputs, context: HandlerContext) -> Mapping[str, Value]:
        value = operation(derivation, [row[ref] for ref in derivation.refs])
        return {column.ref: default if value is None else value}

    declaration = HandlerDeclaration(
        name=f"{column.table}.{column.name}",
        root=root,
        watches=derivation.refs,
        reads=(),
        writes=(column.ref,),
        file=catalog.file,
        line=column.line,
    )
    return Handler(declaration, derive)


def _format(derivation: Derivation, values: list[Any]) -> str | None:
    """Fill the values in; null ones as nothing, and with no value at all the text is null."""
    if all(value is None for value in values):
        return None
    text = derivation.parts[0]
    for value, after in zip(values, derivation.parts[1:], strict=True):
        text += ("" if value is None else str(value)) + after
    return text


def _analyze(_: Derivation, values: list[Any]) -> list[str] | None:
    texts = [text for value in values for text in (value if isinstance(value, list) else [value])]
    return unique_terms(*texts) or None


def _first(_: Derivation, values: list[Any]) -> Any:
    return next((value for value in values if value is not None), None)


def _unique(_: Derivation, values: list[Any]) -> list[Any] | None:
    return sorted(set(values[0] or ())) or None


def _count(_: Derivation, values: list[Any]) -> int:
    return len(values[0] or ())


def _tally(_: Derivation, values: list[Any]) -> list[str] | None:
    return [f"{value}={count}" for value, count in sorted(Counter(values[0] or ()).items())] or None


def _constant(derivation: Derivation, _: list[Any]) -> Any:
    return derivation.constant


OPERATIONS: Mapping[Operation, Callable[[Derivation, list[Any]], Any]] = {
    Operation.FORMAT: _format,
    Operation.ANALYZE: _analyze,
    Operation.FIRST: _first,
    Operation.UNIQUE: _unique,
    Operation.COUNT: _count,
    Operation.TALLY: _tally,
    Operation.CONSTANT: _constant,
}
"""What each operation makes of its inputs' values."""
