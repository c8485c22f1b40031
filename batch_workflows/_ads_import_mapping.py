"""Mapping files: from the columns of a CSV export to entities of the ads DB, validated with file and line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator
from sqlalchemy import DateTime, Integer, String, Table

from batch_workflows._ads_import_errors import InvalidMapping
from catalog import Fault, InvalidCatalog
from catalog._lines import Lines, read_yaml
from gateway.models import Base

MAPPINGS = Path(__file__).resolve().parent.parent / "mappings"
PLACEHOLDER = re.compile(r"\{([^{}]*)\}")

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_]\w*$", max_length=64)]
PerformanceField = Literal["ad_id", "impressions", "clicks", "conversions", "approved_conversions", "spend_micros"]
_PERFORMANCE = ("ad_id", "impressions", "clicks", "conversions", "approved_conversions", "spend_micros")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class ColumnSpec(_Strict):
    """How one value is taken out of a cell: JSON list item, then pattern, then split and join, then the type."""

    source: str | None = Field(None, alias="from")
    type: Literal["string", "int", "micros", "time"] = "string"
    optional: bool = False
    default: int | str | None = None
    min: int | None = None
    max: int | None = None
    item: int | None = Field(None, ge=0)
    pattern: str | None = None
    split: str | None = None
    join: str | None = None

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return pattern


class ValueSpec(_Strict):
    """Where a value comes from: exactly one of the four. `when` names a column without which the value is null."""

    column: Name | None = None
    constant: int | str | None = None
    template: str | None = None
    targeting: dict[Name, tuple[Name, ...]] | None = None
    when: Name | None = None

    @property
    def kinds(self) -> list[str]:
        """Which of the four are given."""
        return [k for k in ("column", "constant", "template", "targeting") if getattr(self, k) is not None]

    def uses(self) -> Iterator[str]:
        """Yield the columns that it needs."""
        yield from filter(None, (self.column, self.when))
        yield from PLACEHOLDER.findall(self.template or "")
        for names in (self.targeting or {}).values():
            yield from names


class EntitySpec(_Strict):
    """One row of an ads DB table per row of the export; left out where the column `when` is empty."""

    values: dict[Name, ValueSpec]
    when: Name | None = None


class PairingSpec(_Strict):
    """The i-th ad of source `ads` takes the pin at position i modulo the number of pins of source `pins`."""

    ads: Name
    pins: Name


class Mapping(_Strict):
    """A validated mapping file."""

    version: Literal[1]
    source: Name
    delimiter: Annotated[str, StringConstraints(min_length=1, max_length=1)] = ","
    columns: dict[Name, ColumnSpec]
    entities: dict[Name, EntitySpec]
    performance: dict[PerformanceField, Name] = {}
    pairings: tuple[PairingSpec, ...] = ()

    def header_of(self, column: str) -> str:
        """Return the CSV column that a mapping column is taken from."""
        return self.columns[column].source or column


def resolve_mapping(mapping: Path | str) -> Path:
    """Return the file of a mapping given as a path or as the short name of one in mappings/."""
    path = Path(mapping)
    if path.is_file():
        return path
    short = MAPPINGS / f"{mapping}.yaml"
    if path.name == str(mapping) and short.is_file():
        return short
    known = ", ".join(sorted(file.stem for file in MAPPINGS.glob("*.yaml")))
    raise InvalidMapping([Fault(str(mapping), 1, f"no such mapping file; give a path, or one of: {known}")])


def load_mapping(mapping: Path | str) -> tuple[Mapping, Lines]:
    """Read and validate a mapping. Raises InvalidMapping with every fault found."""
    path = resolve_mapping(mapping)
    try:
        data, lines = read_yaml(path)
    except InvalidCatalog as error:
        raise InvalidMapping(error.faults) from None
    try:
        spec = Mapping.model_validate(data)
    except ValidationError as error:
        raise InvalidMapping([_fault_of(e, lines) for e in error.errors()]) from None
    if faults := list(_faults(spec, lines)):
        raise InvalidMapping(faults)
    return spec, lines


def _fault_of(error: Any, lines: Lines) -> Fault:
    where = tuple(error["loc"])
    text = f"{'.'.join(map(str, where))}: {error['msg']} (got {str(error.get('input'))[:60]!r})"
    if error["type"] == "extra_forbidden":
        text = f"unknown key {where[-1]!r}"
    elif error["type"] == "missing":
        text = f"{where[-1]!r} is missing"
    return lines.fault(text, *where)


def _faults(spec: Mapping, lines: Lines) -> Iterator[Fault]:
    for name, column in spec.columns.items():
        if column.default is not None and not column.optional:
            yield lines.fault("a default needs `optional: true`", "columns", name)
        if column.default is not None and isinstance(column.default, str) != (column.type in ("string", "time")):
            yield lines.fault(f"the default must be of type {column.type}", "columns", name, "default")
        if (column.split is None) != (column.join is None):
            yield lines.fault("`split` and `join` go together", "columns", name)
        if column.type in ("string", "time") and not (column.min is None and column.max is None):
            yield lines.fault("`min` and `max` are for int and micros", "columns", name)
    for table_name, entity in spec.entities.items():
        here = ("entities", table_name)
        table = Base.metadata.tables.get(table_name)
        if table is None:
            known = ", ".join(sorted(Base.metadata.tables))
            yield lines.fault(f"the ads DB has no table {table_name!r}, only {known}", *here)
            continue
        yield from _entity_faults(spec, table, entity, lines)
        if entity.when is not None and entity.when not in spec.columns:
            yield lines.fault(f"{entity.when!r} is not one of `columns`", *here, "when")
    for field, name in spec.performance.items():
        if name not in spec.columns:
            yield lines.fault(f"{name!r} is not one of `columns`", "performance", field)
        elif spec.columns[name].type not in ("int", "micros") or spec.columns[name].optional:
            yield lines.fault(f"{name!r} must be int or micros, and not optional", "performance", field)
    if spec.performance and (missing := [f for f in _PERFORMANCE if f not in spec.performance]):
        yield lines.fault(f"{', '.join(missing)} missing", "performance")


def _entity_faults(spec: Mapping, table: Table, entity: EntitySpec, lines: Lines) -> Iterator[Fault]:
    here = ("entities", table.name)
    for name, value in entity.values.items():
        at = (*here, "values", name)
        if name not in table.columns:
            yield lines.fault(f"{table.name!r} has no column {name!r}, only {', '.join(table.columns.keys())}", *at)
            continue
        if len(value.kinds) != 1:
            yield lines.fault("give exactly one of column, constant, template, targeting", *at)
            continue
        unknown = [c for c in value.uses() if c not in spec.columns]
        if unknown:
            yield lines.fault(f"{', '.join(map(repr, unknown))} not one of `columns`", *at)
            continue
        got, wanted = _type_of(spec, value), _wanted(table, name)
        if got != wanted:
            hint = ' (a template makes text of it: "{...}")' if wanted == "string" else ""
            yield lines.fault(f"{table.name}.{name} takes {wanted}, but gets {got}{hint}", *at)
        optional = any(c != entity.when and _may_be_null(spec.columns[c]) for c in (value.column, value.when) if c)
        if optional and _required(table, name):
            yield lines.fault(f"{table.name}.{name} must not be null; give a default", *at)
    for column in table.columns:
        if column.name not in entity.values and _required(table, column.name) and column.server_default is None:
            yield lines.fault(f"{table.name}.{column.name} is missing", *here, "values")


def _may_be_null(column: ColumnSpec) -> bool:
    return column.optional and column.default is None


def _required(table: Table, name: str) -> bool:
    return not table.columns[name].nullable


def _wanted(table: Table, name: str) -> str:
    kind = table.columns[name].type
    return "time" if isinstance(kind, DateTime) else "int" if isinstance(kind, Integer) else "string"


def _type_of(spec: Mapping, value: ValueSpec) -> str:
    if value.column is not None:
        kind = spec.columns[value.column].type
        return "int" if kind == "micros" else kind
    return "int" if isinstance(value.constant, int) else "string"


def text_length(table: Table, name: str) -> int | None:
    """Return how many characters a column takes; None for no limit, and for what is not text."""
    kind = table.columns[name].type
    return kind.length if isinstance(kind, String) else None
