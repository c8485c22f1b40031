"""Rows of a Parquet or CSV file as updates of one signal, each with its line, or with the reason why it is none."""

from __future__ import annotations

import base64
import csv
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from batch_workflows._exceptions import BadParameters
from catalog import Column, InvalidValue, Table, ValueType
from catalog.values import check, encode
from messaging.proto import adsindex_pb2 as pb

_CSV, _PARQUET = ".csv", ".parquet"
_BATCH = 1_000
_FIELD_BYTES = 1 << 20
"""Longest field of a CSV: the Repo takes no longer value."""
_TRUE, _FALSE = {"true", "1", "yes"}, {"false", "0", "no"}


@dataclass(frozen=True, slots=True)
class Line:
    """One row of the file: what it says of which row, or why it cannot be used."""

    number: int
    """Of a CSV: the line on which the row ends, the header being line 1; of a Parquet: the row, from 1."""
    key: str = ""
    columns: tuple[pb.Column, ...] = ()
    reason: str = ""
    detail: str = ""


class BackfillFile:
    """A file of one signal's values. Opening it checks its columns against the catalogue."""

    def __init__(self, file: Path, table: Table, signal: str, key: str, names: Mapping[str, str]) -> None:
        """`names` maps columns of the file to columns of the table. Raises BadParameters."""
        if not file.is_file():
            raise BadParameters(f"there is no file {file}")
        if file.suffix not in (_CSV, _PARQUET):
            raise BadParameters(f"{file.name}: a backfill reads {_CSV} and {_PARQUET}")
        self.file, self._key = file, key
        header = self._header()
        self._columns = _columns_of(file, table, signal, key, names, header)

    @property
    def columns(self) -> list[str]:
        """Columns of the table that the file has values of."""
        return [column.name for column in self._columns.values()]

    def fingerprint(self) -> str:
        """Return what changes when the file does."""
        info = self.file.stat()
        return f"{info.st_size} bytes of {info.st_mtime_ns}"

    def total(self) -> int:
        """Return how many rows there are, of a CSV at most."""
        if self.file.suffix == _PARQUET:
            import pyarrow.parquet as pq

            return int(pq.read_metadata(self.file).num_rows)
        with self.file.open("rb") as handle:
            return max(0, sum(chunk.count(b"\n") for chunk in iter(lambda: handle.read(1 << 20), b"")) - 1)

    def lines(self, skip: int = 0) -> Iterator[Line]:
        """Yield every row after the first `skip`."""
        rows = self._parquet(skip) if self.file.suffix == _PARQUET else self._csv(skip)
        for number, values in rows:
            yield values if isinstance(values, Line) else self._line(number, values)

    def _header(self) -> list[str]:
        if self.file.suffix == _PARQUET:
            import pyarrow as pa
            import pyarrow.parquet as pq

            try:
                return list(pq.read_schema(self.file).names)
            except (OSError, pa.ArrowInvalid) as error:
                raise BadParameters(f"{self.file}: no Parquet file ({error})") from error
        with self.file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as handle:
            return next(csv.reader(handle), [])

    def _csv(self, skip: int) -> Iterator[tuple[int, dict[str, Any] | Line]]:
        csv.field_size_limit(_FIELD_BYTES)
        with self.file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as handle:
            reader = csv.reader(handle, strict=True)
            header = next(reader, [])
            seen = 0
            while True:
                try:
                    row = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    seen += 1
                    if seen > skip:
                        yield reader.line_num, Line(reader.line_num, reason="malformed_csv", detail=str(error))
                    continue
                if not row:
                    continue
                seen += 1
                if seen <= skip:
                    continue
                if len(row) != len(header):
                    detail = f"{len(row)} fields instead of {len(header)}"
                    yield reader.line_num, Line(reader.line_num, reason="wrong_number_of_fields", detail=detail)
                else:
                    yield reader.line_num, dict(zip(header, row, strict=True))

    def _parquet(self, skip: int) -> Iterator[tuple[int, dict[str, Any] | Line]]:
        import pyarrow.parquet as pq

        wanted, number = [self._key, *self._columns], 0
        with pq.ParquetFile(self.file) as parquet:
            for batch in parquet.iter_batches(_BATCH, columns=wanted):
                if number + batch.num_rows <= skip:
                    number += batch.num_rows
                    continue
                for values in batch.to_pylist():
                    number += 1
                    if number > skip:
                        yield number, values

    def _line(self, number: int, values: Mapping[str, Any]) -> Line:
        key = values[self._key]
        if key is None or key == "":
            return Line(number, reason="no_key", detail=f"column {self._key!r} is empty")
        columns = []
        for name, column in self._columns.items():
            try:
                value = check(column, _value(column, values[name]))
            except InvalidValue as error:
                return Line(number, str(key), reason=error.reason, detail=str(error))
            columns.append(pb.Column(name=column.name, value=b"" if value is None else encode(value)))
        return Line(number, str(key), tuple(columns))


def _columns_of(
    file: Path, table: Table, signal: str, key: str, names: Mapping[str, str], header: list[str]
) -> dict[str, Column]:
    """Return column of the file -> column of the table. Raises BadParameters naming what does not fit."""
    mine = {c.name: c for c in table.columns.values() if c.signal == signal}
    if not mine:
        known = sorted({c.signal for c in table.columns.values() if c.signal})
        raise BadParameters(f"table {table.name!r} has no signal {signal!r}; it has {', '.join(known) or 'none'}")
    if len(set(header)) != len(header):
        raise BadParameters(f"{file}: a column comes twice in {', '.join(header)}")
    if key not in header:
        raise BadParameters(f"{file} has no column {key!r} with the key; it has {', '.join(header)}")
    wanted = dict(names) or {name: name for name in header if name in mine}
    if not wanted:
        raise BadParameters(f"{file} has none of the columns of signal {signal!r}: {', '.join(mine)}")
    for name, target in wanted.items():
        if name not in header:
            raise BadParameters(f"{file} has no column {name!r}; it has {', '.join(header)}")
        if target not in mine:
            raise BadParameters(f"{table.name}.{target} is no column of signal {signal!r}: {', '.join(mine)}")
    return {name: mine[target] for name, target in wanted.items()}


def _value(column: Column, value: Any) -> Any:
    """Return what a file holds as `check` takes it: text of a CSV by the column's type. Raises InvalidValue."""
    if isinstance(value, str) and column.type not in (ValueType.STRING, ValueType.JSON):
        if not value.strip():
            return None
        try:
            value = _parsed(column.type, value.strip())
        except (ValueError, RecursionError) as error:
            text = f"expected {column.type.value}, got {value[:60]!r} ({error})"
            raise InvalidValue(column.ref, "bad_type", text) from None
    if column.type is ValueType.VECTOR and isinstance(value, list):
        try:
            return np.asarray(value, dtype="<f4").tobytes()
        except (ValueError, TypeError) as error:
            raise InvalidValue(column.ref, "bad_type", f"no vector of numbers: {error}") from None
    if isinstance(value, str) and value == "" and column.type is ValueType.JSON:
        return None
    return value


def _parsed(kind: ValueType, text: str) -> Any:
    match kind:
        case ValueType.FLOAT:
            number = float(text)
            if not math.isfinite(number):
                raise ValueError("not finite")
            return number
        case ValueType.BOOL:
            if text.lower() not in _TRUE | _FALSE:
                raise ValueError("write true or false")
            return text.lower() in _TRUE
        case ValueType.STRING_LIST | ValueType.INT_LIST | ValueType.VECTOR:
            found = json.loads(text)
            if not isinstance(found, list):
                raise ValueError("write a JSON list")
            return found
        case ValueType.BYTES:
            return base64.b64decode(text, validate=True)
        case _:
            return text
