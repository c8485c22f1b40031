"""Read and validate a catalogue file; every fault is reported at once, each with file and line."""

from __future__ import annotations

import hashlib
import re
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from catalog import model
from catalog._exceptions import Fault, InvalidCatalog
from catalog._lines import Lines, read_yaml
from catalog.model import Destination, Family, LaneName, ValueType

DEFAULT_CATALOG = Path(__file__).with_name("ads.yaml")
_CURRENCY = re.compile(r"[A-Z]{3}")

Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _SourceSpec(_Strict):
    table: str
    key: str
    satellites: dict[str, str] = {}


class _ColumnSpec(_Strict):
    type: ValueType
    source: str = Field(alias="from", pattern=r"^(handler:[a-z_]\w*|signal:[a-z_]\w*|\w+\.\w+)$")
    family: Family | None = None
    dims: int = Field(0, ge=0, le=4096)
    values: tuple[str, ...] = ()
    max_bytes: int = Field(65_536, ge=1, le=1_000_000)  # a cell holds 1 MiB, encoding included


class _TableSpec(_Strict):
    owner: str
    lane: LaneName = LaneName.MEDIUM
    key: Literal["int", "string"] = "string"
    source: _SourceSpec | None = None
    root: str | None = None
    references: dict[Name, str] = {}
    freshness_s: float = Field(60.0, gt=0)
    columns: dict[Name, _ColumnSpec] = {}


class _FieldSpec(_Strict):
    source: str = Field(alias="from", pattern=r"^\w+\.\w+$")
    index: Destination = Destination.FORWARD
    critical: bool = False
    coverage: float = Field(0.0, ge=0, le=1)


class _DimensionSpec(_Strict):
    type: Literal["string", "int"] = "string"
    multi: bool = False
    values: tuple[str, ...] = ()


class _ServingSpec(_Strict):
    bid: str
    starts: str
    ends: str
    budget_key: str
    quality: str | None = None
    price: str | None = None
    currency: str | None = None
    text: str | None = None
    vector: str | None = None
    targeting: str | None = None
    diversity: str | None = None


Rate = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]


class _ExchangeRatesSpec(_Strict):
    account: str
    rates: dict[str, Rate]


class _CatalogSpec(_Strict):
    version: Literal[1]
    name: str
    dimensions: dict[Name, _DimensionSpec]
    tables: dict[Name, _TableSpec]
    fields: dict[Name, _FieldSpec]
    serving: _ServingSpec
    exchange_rates: _ExchangeRatesSpec | None = None


# What a destination in Manas can hold; anything else is a fault of the declaration, found at start.
_FITTING: dict[Destination, frozenset[ValueType]] = {
    Destination.TERM: frozenset(
        {ValueType.STRING, ValueType.INT, ValueType.BOOL, ValueType.STRING_LIST, ValueType.INT_LIST}
    ),
    Destination.TEXT: frozenset({ValueType.STRING_LIST}),
    Destination.NUMERIC: frozenset({ValueType.INT, ValueType.FLOAT, ValueType.TIME}),
    Destination.VECTOR: frozenset({ValueType.VECTOR}),
    Destination.TARGETING: frozenset({ValueType.STRING_LIST}),
}


def load_catalog(file: Path | str | None = None) -> model.Catalog:
    """Read, validate and return the catalogue in `file` (default: the built-in ads catalogue).

    Raises InvalidCatalog with every fault found, first of form (YAML; then unknown and missing keys, bad types), then
    of meaning (unknown tables and columns, reference cycles, what cannot be joined or does not fit its index).
    """
    path = Path(file) if file is not None else DEFAULT_CATALOG
    data, lines = read_yaml(path)
    try:
        spec = _CatalogSpec.model_validate(data)
    except ValidationError as error:
        raise InvalidCatalog([_fault_of(e, lines) for e in error.errors()]) from None
    faults: list[Fault] = []
    tables = {name: _table(name, table, lines, faults) for name, table in spec.tables.items()}
    _check_references(tables, lines, faults)
    sound = not faults
    roots = [t for t in tables.values() if t.root is not None]
    if len(roots) != 1:
        faults.append(lines.fault("exactly one table must be the document table (with `root:`)", "tables"))
    for table in roots:
        if table.root not in tables or tables[table.root].source is None:
            text = f"root {table.root!r} is not a table that comes from the ads DB"
            faults.append(lines.fault(text, "tables", table.name, "root"))
    fields = _fields(spec, tables, lines, faults)
    _check_serving(spec.serving, fields, lines, faults)
    rates = _exchange_rates(spec.exchange_rates, lines, faults)
    if not sound or len(roots) != 1 or (root := roots[0].root) not in tables or root is None:
        raise InvalidCatalog(faults)
    document = roots[0]
    catalog = model.Catalog(
        name=spec.name,
        file=str(path),
        tables=tables,
        document_table=document.name,
        root=root,
        fields=fields,
        dimensions={
            name: model.Dimension(name, ValueType(d.type), d.multi, d.values) for name, d in spec.dimensions.items()
        },
        serving=model.Serving(**spec.serving.model_dump()),
        fingerprint=hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest(),
        exchange_rates=rates,
    )
    _check_joins(catalog, lines, faults)
    if faults:
        raise InvalidCatalog(faults)
    return catalog


def _fault_of(error: Any, lines: Lines) -> Fault:
    where = tuple(error["loc"])
    text = error["msg"]
    if error["type"] == "extra_forbidden":
        text = f"unknown key {where[-1]!r}"
    elif error["type"] == "missing":
        text = f"{where[-1]!r} is missing"
    elif error["type"] != "value_error":
        text = f"{'.'.join(map(str, where))}: {text} (got {str(error.get('input'))[:60]!r})"
    return lines.fault(text, *where)


def _table(name: str, spec: _TableSpec, lines: Lines, faults: list[Fault]) -> model.Table:
    at = ("tables", name)
    columns: dict[str, model.Column] = {}
    known = set() if spec.source is None else {spec.source.table, *spec.source.satellites}
    default_family = Family.CONTROL if spec.lane is LaneName.HIGH else Family.CONTENT
    for column_name, column in spec.columns.items():
        here = (*at, "columns", column_name)
        derived = column.source.startswith((model.HANDLER_PREFIX, model.SIGNAL_PREFIX))
        if not derived and column.source.split(".")[0] not in known:
            faults.append(
                lines.fault(f"comes from {column.source!r}, but this table's source has only {sorted(known)}", *here)
            )
        if (column.type is ValueType.VECTOR) != (column.dims > 0):
            faults.append(lines.fault("a vector needs `dims`, and only a vector has them", *here))
        if column.values and column.type is not ValueType.STRING:
            faults.append(lines.fault("only a string column can have `values`", *here))
        family = column.family or (Family.DERIVED if derived else default_family)
        if family in (Family.META, Family.SERVABLE):
            faults.append(lines.fault(f"family {family.value!r} is the pipeline's own", *here))
        columns[column_name] = model.Column(
            table=name,
            name=column_name,
            type=column.type,
            family=family,
            source=column.source,
            line=lines.of(*here),
            dims=column.dims,
            values=column.values,
            max_bytes=column.max_bytes,
        )
    return model.Table(
        name=name,
        owner=spec.owner,
        lane=spec.lane,
        key_type=ValueType(spec.key),
        columns=columns,
        references=tuple(model.Reference(name, target, column) for target, column in spec.references.items()),
        source=None
        if spec.source is None
        else model.Source(spec.source.table, spec.source.key, dict(spec.source.satellites)),
        line=lines.of(*at),
        root=spec.root,
        freshness_s=spec.freshness_s,
    )


def _check_references(tables: dict[str, model.Table], lines: Lines, faults: list[Fault]) -> None:
    owners: dict[str, str] = {}
    for table in tables.values():
        for reference in table.references:
            here = ("tables", table.name, "references", reference.target)
            if reference.target not in tables:
                faults.append(lines.fault(f"refers to unknown table {reference.target!r}", *here))
            if reference.index_table in tables:
                faults.append(lines.fault(f"its index table would be {reference.index_table!r}, a table's name", *here))
            column = table.columns.get(reference.column)
            if column is None:
                faults.append(lines.fault(f"refers by unknown column {reference.column!r}", *here))
            elif column.source_table is None:
                faults.append(lines.fault(f"refers by {column.ref}, which does not come from the ads DB", *here))
            elif reference.target in tables and column.type is not tables[reference.target].key_type:
                key_type = tables[reference.target].key_type.value
                faults.append(
                    lines.fault(f"refers by {column.ref} ({column.type.value}), but the key is {key_type}", *here)
                )
        if table.source is not None and table.source.table in table.source.satellites:
            text = f"{table.source.table!r} is the main table and a satellite of it"
            faults.append(lines.fault(text, "tables", table.name, "source", "satellites"))
        for source_table in table.source.tables() if table.source else ():
            if source_table in owners:
                faults.append(
                    lines.fault(
                        f"ads DB table {source_table!r} belongs to table {owners[source_table]!r} already",
                        "tables",
                        table.name,
                        "source",
                    )
                )
            owners[source_table] = table.name
    if not faults:
        for table in tables.values():
            _check_cycle(table.name, tables, lines, faults)


def _check_cycle(start: str, tables: dict[str, model.Table], lines: Lines, faults: list[Fault]) -> None:
    stack: list[tuple[str, tuple[str, ...]]] = [(start, (start,))]
    while stack:
        name, path = stack.pop()
        for reference in tables[name].references:
            if reference.target == start:
                if start == min(path):  # report each cycle once, at its first table by name
                    text = f"references go in a cycle: {' -> '.join((*path, start))}"
                    faults.append(lines.fault(text, "tables", start, "references"))
            elif reference.target not in path:
                stack.append((reference.target, (*path, reference.target)))


def _fields(
    spec: _CatalogSpec, tables: dict[str, model.Table], lines: Lines, faults: list[Fault]
) -> dict[str, model.Field]:
    fields: dict[str, model.Field] = {}
    for name, declared in spec.fields.items():
        here = ("fields", name)
        table, _, column = declared.source.partition(".")
        if table not in tables or column not in tables[table].columns:
            faults.append(lines.fault(f"comes from unknown column {declared.source!r}", *here, "from"))
            continue
        source = tables[table].columns[column]
        fitting = _FITTING.get(declared.index)
        if fitting is not None and source.type not in fitting:
            faults.append(
                lines.fault(
                    f"index {declared.index.value!r} takes {sorted(t.value for t in fitting)}, "
                    f"but {declared.source} is {source.type.value}",
                    *here,
                    "index",
                )
            )
        fields[name] = model.Field(name, source, declared.index, lines.of(*here), declared.critical, declared.coverage)
    return fields


def _check_serving(spec: _ServingSpec, fields: dict[str, model.Field], lines: Lines, faults: list[Fault]) -> None:
    wanted = {"bid": Destination.NUMERIC, "starts": Destination.NUMERIC, "ends": Destination.NUMERIC,
              "price": Destination.NUMERIC, "quality": Destination.NUMERIC, "text": Destination.TEXT,
              "vector": Destination.VECTOR, "targeting": Destination.TARGETING, "budget_key": Destination.TERM,
              "currency": Destination.TERM}  # fmt: skip
    for role, name in spec.model_dump().items():
        if name is None:
            continue
        if name not in fields:
            faults.append(lines.fault(f"{role}: no field named {name!r}", "serving", role))
        elif role in wanted and fields[name].index is not wanted[role]:
            text = f"{role}: field {name!r} must have index {wanted[role].value!r}"
            faults.append(lines.fault(text, "serving", role))


def _exchange_rates(spec: _ExchangeRatesSpec | None, lines: Lines, faults: list[Fault]) -> model.ExchangeRates | None:
    if spec is None:
        return None
    for currency in spec.rates:
        if not _CURRENCY.fullmatch(currency):
            text = f"{currency!r} is not an ISO 4217 code of three capitals"
            faults.append(lines.fault(text, "exchange_rates", "rates", currency))
    if spec.rates.get(spec.account) != 1:
        text = f"the account currency {spec.account!r} must be among the rates, with rate 1"
        faults.append(lines.fault(text, "exchange_rates", "account"))
    return model.ExchangeRates(spec.account, {c: Fraction(str(rate)) for c, rate in spec.rates.items()})


def _check_joins(catalog: model.Catalog, lines: Lines, faults: list[Fault]) -> None:
    reachable = {catalog.root, catalog.document_table, *catalog.join_path(catalog.root)}
    faults += [
        lines.fault(
            f"{field.column.ref} cannot be joined: {catalog.root!r} leads only to {sorted(reachable)}",
            "fields", field.name,
        )
        for field in catalog.fields.values()
        if field.column.table not in reachable
    ]  # fmt: skip
