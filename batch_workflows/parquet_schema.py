"""Rows of the Repo as Parquet columns and back, byte for byte.

A cell of a catalogue column becomes a typed value in a column of that name if the value is exactly what the cell holds;
everything else (cells that the pipeline keeps for itself, values refused, bytes that are no value) goes as it is into
the map `_cells`. So an analyst reads plain columns, and an import gives every cell back as it was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from batch_workflows._runs_model import Stored
from catalog import Catalog, ValueType
from catalog.values import decode, encode, refusal
from storage_repo import Row

KEY, CELLS = "_key", "_cells"
_INT64 = range(-(1 << 63), 1 << 63)
_ARROW: dict[ValueType, pa.DataType] = {
    ValueType.STRING: pa.string(),
    ValueType.INT: pa.int64(),
    ValueType.FLOAT: pa.float64(),
    ValueType.BOOL: pa.bool_(),
    ValueType.BYTES: pa.binary(),
    ValueType.TIME: pa.timestamp("us", tz="UTC"),
    ValueType.JSON: pa.string(),
    ValueType.STRING_LIST: pa.list_(pa.string()),
    ValueType.INT_LIST: pa.list_(pa.int64()),
    ValueType.VECTOR: pa.list_(pa.float32()),
}
_DIGEST_BYTES = 16


class ColumnSpec(Stored):
    """A column of a table in one snapshot."""

    name: str
    cell: str
    type: ValueType


def columns_of(catalog: Catalog, table: str, known: Mapping[str, ValueType]) -> list[ColumnSpec]:
    """Return the columns of a Repo table (none but the key for an index table).

    `known` are the types that earlier days gave to names: a column whose type has changed since is written as
    NAME__TYPE, because readers of all days together need one type per name.
    """
    declared = catalog.tables.get(table)
    if declared is None:
        return []
    return [ColumnSpec(name=_name(c.name, c.type, known), cell=c.cell, type=c.type) for c in declared.columns.values()]


def document_columns(catalog: Catalog, known: Mapping[str, ValueType]) -> list[ColumnSpec]:
    """Return the fields of servable documents as columns; `cell` is the field's name."""
    return [ColumnSpec(name=_name(f.name, f.type, known), cell=f.name, type=f.type) for f in catalog.fields.values()]


def _name(name: str, kind: ValueType, known: Mapping[str, ValueType]) -> str:
    if known.get(name, kind) is kind or _ARROW[known[name]] == _ARROW[kind]:
        return name
    return f"{name}__{kind.value.replace('<', '_').replace('>', '')}"


def arrow_schema(columns: list[ColumnSpec], *, with_cells: bool) -> pa.Schema:
    """Return the Parquet schema of a table's file."""
    fields = [pa.field(KEY, pa.string(), nullable=False), *(pa.field(c.name, _ARROW[c.type]) for c in columns)]
    if with_cells:
        fields.append(pa.field(CELLS, pa.map_(pa.string(), pa.binary())))
    return pa.schema(fields)


def typed(kind: ValueType, value: Any) -> Any:
    """Return a decoded value as Arrow takes it; raises ValueError if that would not be exactly this value."""
    match kind:
        case ValueType.STRING | ValueType.JSON:
            exact = type(value) is str
        case ValueType.INT | ValueType.TIME:
            exact = type(value) is int and value in _INT64
        case ValueType.FLOAT:
            exact = type(value) is float
        case ValueType.BOOL:
            exact = type(value) is bool
        case ValueType.BYTES:
            exact = type(value) is bytes
        case ValueType.STRING_LIST:
            exact = type(value) is list and all(type(one) is str for one in value)
        case ValueType.INT_LIST:
            exact = type(value) is list and all(type(one) is int and one in _INT64 for one in value)
        case ValueType.VECTOR:
            exact = type(value) is bytes and len(value) % 4 == 0
            if exact:
                return np.frombuffer(value, dtype="<f4")
    if not exact:
        raise ValueError(f"no {kind.value}")
    return value


def untyped(kind: ValueType, value: Any) -> Any:
    """Return what `typed` was given."""
    if kind is ValueType.VECTOR:
        return np.asarray(value, dtype="<f4").tobytes()
    return value


@dataclass(slots=True)
class RowBuffer:
    """Rows on their way into one row group."""

    columns: list[ColumnSpec]
    keys: list[str] = field(default_factory=list)
    values: dict[str, list[Any]] = field(default_factory=dict)
    cells: list[list[tuple[str, bytes]]] = field(default_factory=list)
    faults: list[tuple[str, str, str]] = field(default_factory=list)
    """(row, cell, why) of bytes that are no value; they are kept as they are."""

    def __post_init__(self) -> None:
        self.values = {column.name: [] for column in self.columns}

    def add(self, row: str, cells: Row) -> None:
        """Take a row of the Repo."""
        self.keys.append(row)
        rest = dict(cells)
        for column in self.columns:
            value = None
            if (data := rest.get(column.cell)) is not None:
                try:
                    decoded = decode(data)
                    if decoded is not None and encode(decoded) == data:
                        value = typed(column.type, decoded)
                        del rest[column.cell]
                    elif refusal(data) is None and data:
                        self.faults.append((row, column.cell, "not in the canonical encoding"))
                except ValueError:
                    self.faults.append((row, column.cell, f"no {column.type.value}"))
                except msgspec.DecodeError as error:
                    self.faults.append((row, column.cell, str(error)))
            self.values[column.name].append(value)
        self.cells.append(sorted(rest.items()))

    def add_document(self, row: str, fields: Mapping[str, Any]) -> None:
        """Take a servable document's fields."""
        self.keys.append(row)
        for column in self.columns:
            value = fields.get(column.cell)
            try:
                self.values[column.name].append(None if value is None else typed(column.type, value))
            except ValueError:
                self.values[column.name].append(None)
                self.faults.append((row, column.cell, f"no {column.type.value}"))

    def take(self, schema: pa.Schema) -> pa.Table:
        """Return the rows as an Arrow table and begin anew."""
        arrays = [pa.array(self.keys, pa.string())]
        arrays += [pa.array(self.values[c.name], schema.field(c.name).type) for c in self.columns]
        if CELLS in schema.names:
            arrays.append(pa.array(self.cells, schema.field(CELLS).type))
        self.keys, self.cells = [], []
        self.values = {column.name: [] for column in self.columns}
        return pa.Table.from_arrays(arrays, schema=schema)


def rows_of(batch: pa.RecordBatch, columns: list[ColumnSpec]) -> Iterator[tuple[str, Row]]:
    """Yield the rows of a batch with their cells as they were."""
    there = set(batch.schema.names)
    present = [c for c in columns if c.name in there]
    values = [_plain(batch.column(c.name), c.type) for c in present]
    raw = batch.column(CELLS).to_pylist() if CELLS in there else [[]] * batch.num_rows
    for number, key in enumerate(batch.column(KEY).to_pylist()):
        cells = dict(raw[number] or ())
        for column, of_column in zip(present, values, strict=True):
            if of_column[number] is not None:
                cells[column.cell] = encode(untyped(column.type, of_column[number]))
        yield key, cells


def _plain(array: Any, kind: ValueType) -> list[Any]:
    if kind is ValueType.TIME:  # Python's datetimes are slow, and end with the year 9999
        array = array.cast(pa.int64())
    values: list[Any] = array.to_pylist()
    return values


class Digest:
    """The sum of the digests of a table's rows: equal for equal rows, in whatever order they come."""

    def __init__(self, value: str = "") -> None:
        self._sum = int(value or "0", 16)

    def add(self, row: str, cells: Row) -> None:
        """Add one row."""
        digest = hashlib.blake2b(msgspec.msgpack.encode([row, sorted(cells.items())]), digest_size=_DIGEST_BYTES)
        self._sum = (self._sum + int.from_bytes(digest.digest(), "big")) % (1 << 8 * _DIGEST_BYTES)

    def __str__(self) -> str:
        return f"{self._sum:0{2 * _DIGEST_BYTES}x}"
