"""Rows of the Repo as Parquet columns and back, byte for byte.

A cell of a catalogue column becomes a typed value in a column of that name if the value is exactly what the cell holds;
everything else (cells that the pipeline keeps for itself, values refused, bytes that are no value) goes as it is into
the map `_cells`. So an analyst reads plain columns, and an import gives every cell back as it was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
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
_pack = msgspec.msgpack.Encoder().encode


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


def _texts(value: Any) -> bool:
    return type(value) is list and all(type(one) is str for one in value)


def _whole(value: Any) -> bool:
    return type(value) is int and value in _INT64


def _wholes(value: Any) -> bool:
    return type(value) is list and all(map(_whole, value))


_EXACT: dict[ValueType, Callable[[Any], bool]] = {
    ValueType.STRING: lambda value: type(value) is str,
    ValueType.JSON: lambda value: type(value) is str,
    ValueType.INT: _whole,
    ValueType.TIME: _whole,
    ValueType.FLOAT: lambda value: type(value) is float,
    ValueType.BOOL: lambda value: type(value) is bool,
    ValueType.BYTES: lambda value: type(value) is bytes,
    ValueType.STRING_LIST: _texts,
    ValueType.INT_LIST: _wholes,
    ValueType.VECTOR: lambda value: type(value) is bytes and len(value) % 4 == 0,
}
"""Whether Arrow's type gives back exactly this value."""


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
    _takers: list[tuple[str, str, Callable[[Any], bool], bool, Callable[[Any], None]]] = field(default_factory=list)
    """Of each column: where its value is, how to look at it, and where it goes."""

    def __post_init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self.keys, self.cells = [], []
        self.values = {column.name: [] for column in self.columns}
        self._takers = [
            (c.cell, c.type.value, _EXACT[c.type], c.type is ValueType.VECTOR, self.values[c.name].append)
            for c in self.columns
        ]

    def add(self, row: str, cells: Row) -> None:
        """Take a row of the Repo."""
        self.keys.append(row)
        rest = dict(cells)
        for cell, kind, exact, is_vector, take in self._takers:
            value = None
            if (data := rest.get(cell)) is not None:
                try:
                    decoded = decode(data)
                    if decoded is None or encode(decoded) != data:
                        if refusal(data) is None and data:
                            self.faults.append((row, cell, "not in the canonical encoding"))
                    elif exact(decoded):
                        value = np.frombuffer(decoded, dtype="<f4") if is_vector else decoded
                        del rest[cell]
                    else:
                        self.faults.append((row, cell, f"no {kind}"))
                except msgspec.DecodeError as error:
                    self.faults.append((row, cell, str(error)))
            take(value)
        self.cells.append(sorted(rest.items()))

    def add_document(self, row: str, fields: Mapping[str, Any]) -> None:
        """Take a servable document's fields."""
        self.keys.append(row)
        for cell, kind, exact, is_vector, take in self._takers:
            value = fields.get(cell)
            if value is not None and not exact(value):
                self.faults.append((row, cell, f"no {kind}"))
                value = None
            take(np.frombuffer(value, dtype="<f4") if is_vector and value is not None else value)

    def take(self, schema: pa.Schema) -> pa.Table:
        """Return the rows as an Arrow table and begin anew."""
        arrays = [pa.array(self.keys, pa.string())]
        arrays += [pa.array(self.values[c.name], schema.field(c.name).type) for c in self.columns]
        if CELLS in schema.names:
            arrays.append(pa.array(self.cells, schema.field(CELLS).type))
        self._begin()
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
        digest = hashlib.blake2b(_pack([row, sorted(cells.items())]), digest_size=_DIGEST_BYTES)
        self._sum = (self._sum + int.from_bytes(digest.digest(), "big")) % (1 << 8 * _DIGEST_BYTES)

    def merge(self, other: str) -> None:
        """Add the rows of another digest."""
        self._sum = (self._sum + int(other or "0", 16)) % (1 << 8 * _DIGEST_BYTES)

    def __str__(self) -> str:
        return f"{self._sum:0{2 * _DIGEST_BYTES}x}"
