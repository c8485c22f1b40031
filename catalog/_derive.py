"""Columns that the catalogue derives by itself: their declarations, read and checked."""

from __future__ import annotations

import string
from collections.abc import Iterable

from catalog import model
from catalog._exceptions import Fault, InvalidValue
from catalog._lines import KeyPath, Lines
from catalog._spec import DeriveSpec
from catalog.kinds import ELEMENT_OF, Operation, ValueType
from catalog.model import Derivation
from catalog.values import check as check_value

_TEXT = {ValueType.STRING, ValueType.INT, ValueType.FLOAT, ValueType.BOOL}
_ANALYZED = {ValueType.STRING, ValueType.STRING_LIST}


def parse(table: str, spec: DeriveSpec, here: KeyPath, lines: Lines, faults: list[Fault]) -> Derivation | None:
    """Return the derivation; a bare column name means one of `table`."""
    given = spec.given()
    at = (*here, "derive")
    if len(given) != 1:
        known = ", ".join(operation.value for operation in Operation)
        faults.append(lines.fault(f"`derive` takes exactly one of {known}", *at))
        return None
    ((operation, value),) = given.items()
    if operation is Operation.CONSTANT:
        return Derivation(operation, (), constant=value if not isinstance(value, tuple) else None)
    if operation is Operation.FORMAT:
        return _format(table, str(value), (*at, "format"), lines, faults)
    names = value if isinstance(value, tuple) else (str(value),)
    return Derivation(operation, tuple(_ref(table, name) for name in names))


def _ref(table: str, name: str) -> str:
    return name if "." in name else f"{table}.{name}"


def _format(table: str, text: str, at: KeyPath, lines: Lines, faults: list[Fault]) -> Derivation | None:
    parts, refs = [""], []
    try:
        for before, name, spec, conversion in string.Formatter().parse(text):
            parts[-1] += before
            if name is None:
                continue
            if spec or conversion or not name:
                raise ValueError("only {column} or {table.column} can stand in braces")
            refs.append(_ref(table, name))
            parts.append("")
    except ValueError as error:
        faults.append(lines.fault(f"is not a format: {error}", *at))
        return None
    if not refs:
        faults.append(lines.fault("names no {column}; for a text that is always the same use `constant`", *at))
    return Derivation(Operation.FORMAT, tuple(refs), tuple(parts))


def check(catalog: model.Catalog, lines: Lines, faults: list[Fault]) -> None:
    """Check every derived column's inputs and types against the catalogue's tables."""
    for table in catalog.tables.values():
        root = catalog.root if table.name == catalog.document_table else table.name
        readable = {table.name, root, *catalog.join_path(root)}
        for column in table.columns.values():
            if column.derivation is not None:
                here = ("tables", table.name, "columns", column.name, "derive")
                if column.derivation.operation is Operation.CONSTANT and table.root is None:
                    text = "a constant belongs to the document table: an entity's row would never be run for it"
                    faults.append(lines.fault(text, *here))
                faults += [lines.fault(text, *here) for text in _faults_of(catalog, root, readable, column)]


def _faults_of(catalog: model.Catalog, root: str, readable: set[str], column: model.Column) -> Iterable[str]:
    derivation = column.derivation
    if derivation is None:
        return
    types: list[ValueType] = []
    for ref in derivation.refs:
        table, _, name = ref.partition(".")
        if table not in catalog.tables or name not in catalog.tables[table].columns:
            yield f"names unknown column {ref!r}"
        elif table not in readable:
            yield f"{ref!r} cannot be joined: {root!r} leads only to {sorted(readable)}"
        else:
            types.append(model.joined_type(catalog, root, ref))
    if len(types) == len(derivation.refs):
        yield from _type_faults(column, derivation, types)


def _type_faults(column: model.Column, derivation: Derivation, types: list[ValueType]) -> Iterable[str]:
    made: ValueType | None = None
    wanted: set[ValueType] | None = None
    match derivation.operation:
        case Operation.FORMAT:
            made, wanted = ValueType.STRING, _TEXT
        case Operation.ANALYZE:
            made, wanted = ValueType.STRING_LIST, _ANALYZED
        case Operation.FIRST:
            made = types[0]
            wanted = {types[0]}
        case Operation.UNIQUE:
            made, wanted = types[0], set(ELEMENT_OF)
        case Operation.COUNT:
            made, wanted = ValueType.INT, set(ELEMENT_OF)
        case Operation.TALLY:
            made, wanted = ValueType.STRING_LIST, set(ELEMENT_OF)
        case Operation.CONSTANT:
            try:
                check_value(column, derivation.constant)
            except InvalidValue as error:
                yield f"`constant` does not fit: {error}"
            return
    for ref, kind in zip(derivation.refs, types, strict=True):
        if kind not in wanted:
            yield (
                f"{derivation.operation.value} takes {sorted(t.value for t in wanted)}, but {ref} is {kind.value} here"
            )
    if column.type is not made:
        yield f"{derivation.operation.value} makes {made.value}, but the column is {column.type.value}"
