"""From CSV rows to entities: decoding, line numbers, typed values, and what is wrong with a row."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from operator import itemgetter
from pathlib import Path
from typing import Any

from batch_workflows._ads_import_errors import InvalidExport
from batch_workflows._ads_import_mapping import PLACEHOLDER, ColumnSpec, Mapping, ValueSpec, text_length
from catalog._lines import Lines
from catalog.portable import Portable
from gateway.models import Base

Value = int | str | datetime | None

MAX_CELL = 64 << 20
"""Characters of one cell. Large texts are the Gateway's to judge; this only keeps an unclosed quote from eating RAM."""

_INT = re.compile(r"[+-]?\d{1,20}", re.ASCII)
_DECIMAL = re.compile(r"[+-]?(\d{1,30}(\.\d{0,30})?|\.\d{1,30})([eE][+-]?\d{1,2})?", re.ASCII)
_MICRO = Decimal(1_000_000)
_INT64 = (-(1 << 63), (1 << 63) - 1)
_NOT_UTF8 = re.compile("[\udc80-\udcff]")
_QUOTED = 120  # characters of a bad value that a report repeats


class BadRow(Portable):
    """Raised for a row that cannot go in: line in the file, CSV column, value, stable reason, and a sentence."""

    def __init__(self, line: int, column: str, value: str, reason: str, text: str) -> None:
        self.line, self.column, self.reason, self.text = line, column, reason, text
        self.value = value[:_QUOTED].encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        super().__init__(f"line {line}, column {column!r}, value {self.value!r}: {text}")

    def to_json(self) -> dict[str, Any]:
        """Return a form for JSON."""
        names = ("line", "column", "value", "reason", "text")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True)
class ImportedRow:
    """A good row: its entities in the mapping's order, and its performance figures if there are any."""

    line: int
    entities: list[tuple[str, dict[str, Value]]]
    performance: dict[str, int] | None


@dataclass(frozen=True, slots=True)
class _Target:
    """One column to fill: how, from which CSV column (for reports), and what it takes."""

    name: str
    place: str
    header: str
    limit: int | None
    is_key: bool
    value: Callable[[dict[str, Value]], Value]


class RowReader:
    """Reads one export, row by row, by its mapping."""

    def __init__(self, file: Path, mapping: Mapping, lines: Lines) -> None:
        """Check the header. Raises InvalidExport naming every missing column with the mapping's line."""
        self._file, self._mapping = file, mapping
        self._plans = [(name, entity.when, self._targets(name)) for name, entity in mapping.entities.items()]
        self._patterns = {n: re.compile(c.pattern) for n, c in mapping.columns.items() if c.pattern is not None}
        csv.field_size_limit(max(csv.field_size_limit(), MAX_CELL))
        try:
            with file.open("rb") as stream:
                head = stream.read(2)
            header = next((row for _, row in self._rows() if not isinstance(row, csv.Error)), None)
        except OSError as error:
            raise InvalidExport(f"{file}: cannot be read: {error}") from error
        if head in (b"\xff\xfe", b"\xfe\xff"):
            raise InvalidExport(f"{file}: this is UTF-16; save it as UTF-8")
        if header is None:
            raise InvalidExport(f"{file}: is empty; the first line must name the columns")
        twice = sorted({name for name in header if header.count(name) > 1})
        missing = [name for name in mapping.columns if mapping.header_of(name) not in header]
        if twice or missing:
            faults = [f"{file}:1: column {name!r} is there twice" for name in twice]
            for name in missing:
                text = f"column {mapping.header_of(name)!r} is not in {file.name}, which has: {', '.join(header)[:500]}"
                faults.append(str(lines.fault(text, "columns", name)))
            raise InvalidExport("\n".join(faults))
        self._header = header
        self._at = {name: header.index(mapping.header_of(name)) for name in mapping.columns}

    def __iter__(self) -> Iterator[ImportedRow | BadRow]:
        """Yield every row of the file after the header, good or bad."""
        rows = self._rows()
        next(rows)
        for line, row in rows:
            try:
                yield self._row(line, row)
            except BadRow as bad:
                yield bad

    def _rows(self) -> Iterator[tuple[int, list[str] | csv.Error]]:
        """Yield (line on which the row begins, its cells); lines are counted as editors count them."""
        with self._file.open("rb") as stream:
            count = 0

            def decoded() -> Iterator[str]:
                nonlocal count
                for raw in stream:
                    count += 1
                    data = raw.removeprefix(b"\xef\xbb\xbf") if count == 1 else raw
                    yield data.decode("utf-8", "surrogateescape")

            reader = csv.reader(decoded(), delimiter=self._mapping.delimiter)
            while True:
                first = count + 1
                try:
                    row = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    yield first, error
                    continue
                if row:
                    yield first, row

    def _row(self, line: int, cells: list[str] | csv.Error) -> ImportedRow:
        if isinstance(cells, csv.Error):
            raise BadRow(line, "", "", "bad_csv", f"not CSV: {cells}")
        for i, cell in enumerate(cells):
            if _NOT_UTF8.search(cell):
                name = self._header[i] if i < len(self._header) else f"#{i + 1}"
                raise BadRow(line, name, cell, "invalid_utf8", "has bytes that are not UTF-8; save the file as UTF-8")
        if len(cells) != len(self._header):
            text = f"has {len(cells)} cells, but the header names {len(self._header)}; check quotes and delimiters"
            raise BadRow(line, "", "", "wrong_cell_count", text)
        values: dict[str, Value] = {}
        for name, spec in self._mapping.columns.items():
            cell = cells[self._at[name]]
            try:
                values[name] = self._extract(name, spec, cell)
            except _Unfit as unfit:
                raise BadRow(line, self._mapping.header_of(name), cell, unfit.reason, str(unfit)) from None
        entities = [
            (table, self._entity(line, plan, values))
            for table, when, plan in self._plans
            if when is None or values[when] is not None
        ]
        figures = {field: values[name] for field, name in self._mapping.performance.items()}
        return ImportedRow(line, entities, {f: v for f, v in figures.items() if isinstance(v, int)} or None)

    def _entity(self, line: int, plan: list[_Target], values: dict[str, Value]) -> dict[str, Value]:
        entity: dict[str, Value] = {}
        for target in plan:
            value = entity[target.name] = target.value(values)
            if isinstance(value, str):
                if target.limit is not None and len(value) > target.limit:
                    text = f"{len(value)} characters, but {target.place} takes {target.limit}"
                    raise BadRow(line, target.header, value, "value_too_large", text)
                if target.is_key and (not value or any(c < " " for c in value)):
                    text = f"{target.place} is a key: it must not be empty or have control characters"
                    raise BadRow(line, target.header, value, "bad_key", text)
        return entity

    def _targets(self, table: str) -> list[_Target]:
        columns = Base.metadata.tables[table]
        targets: list[_Target] = []
        for name, spec in self._mapping.entities[table].values.items():
            first = next(iter(spec.uses()), None)
            header = self._mapping.header_of(first) if first is not None else ""
            limit, is_key = text_length(columns, name), bool(columns.columns[name].primary_key)
            targets.append(_Target(name, f"{table}.{name}", header, limit, is_key, _value_of(spec)))
        return targets

    def _extract(self, name: str, spec: ColumnSpec, cell: str) -> Value:
        text: str | None = cell if cell.strip() else None
        if text is not None and spec.item is not None:
            text = _item(text, spec.item)
        if text is not None and (pattern := self._patterns.get(name)):
            found = pattern.search(text)
            if found is None and not spec.optional:
                raise _Unfit("no_match", f"does not match {pattern.pattern!r}")
            text = found.group(1 if pattern.groups else 0) if found else None
        if text is not None and spec.split is not None and spec.join is not None:
            text = spec.join.join(part for part in map(str.strip, text.split(spec.split)) if part) or None
        if text is None:
            if not spec.optional:
                raise _Unfit("empty", "is empty, but must have a value")
            return spec.default
        return _typed(spec, text)


class _Unfit(Portable):
    def __init__(self, reason: str, text: str) -> None:
        self.reason = reason
        super().__init__(text)


def _item(text: str, index: int) -> str | None:
    try:
        items = json.loads(text)
    except (ValueError, RecursionError):
        raise _Unfit("bad_json", "is not a JSON list") from None
    if not isinstance(items, list):
        raise _Unfit("bad_json", "is not a JSON list")
    if index >= len(items) or items[index] is None or items[index] == "":
        return None
    if not isinstance(items[index], str | int) or _surrogate(str(items[index])):
        raise _Unfit("bad_json", f"item {index} of the list is not text")
    return str(items[index])


def _surrogate(text: str) -> bool:
    return any("\ud800" <= c <= "\udfff" for c in text)


def _typed(spec: ColumnSpec, text: str) -> Value:
    if spec.type == "string":
        return text
    text = text.strip()
    if spec.type == "time":
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            raise _Unfit("bad_time", "is not a time like 2026-01-31 12:00:00") from None
        return moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment
    if spec.type == "int":
        if not _INT.fullmatch(text):
            raise _Unfit("bad_number", "is not a whole number")
        number = int(text)
    else:
        if not _DECIMAL.fullmatch(text):
            raise _Unfit("bad_number", "is not a decimal number like 1.43 (no thousands separators, no currency sign)")
        with localcontext(prec=200):
            number = int((Decimal(text) * _MICRO).to_integral_value(ROUND_HALF_EVEN))
    low, high = (
        _INT64[0] if spec.min is None else spec.min,
        _INT64[1] if spec.max is None else spec.max,
    )
    if not low <= number <= high:
        raise _Unfit("out_of_range", f"must be between {low} and {high}{' micros' if spec.type == 'micros' else ''}")
    return number


def _value_of(spec: ValueSpec) -> Callable[[dict[str, Value]], Value]:
    """Return the function that makes a value of a row's columns."""
    if spec.when is not None:
        when, inner = spec.when, _value_of(spec.model_copy(update={"when": None}))
        return lambda values: None if values[when] is None else inner(values)
    if spec.column is not None:
        return itemgetter(spec.column)
    if spec.template is not None:
        template = spec.template

        def fill(values: dict[str, Value]) -> str:
            return PLACEHOLDER.sub(lambda m: "" if (v := values[m[1]]) is None else str(v), template)

        return fill
    if spec.targeting is not None:
        dimensions = sorted(spec.targeting.items())

        def targeting(values: dict[str, Value]) -> str:
            wanted = {d: [v for n in names if (v := values[n]) is not None] for d, names in dimensions}
            return json.dumps({d: v for d, v in wanted.items() if v}, default=str)

        return targeting
    constant = spec.constant
    return lambda values: constant
