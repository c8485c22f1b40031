"""Read and validate a catalogue file; every fault is reported at once, each with file and line."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from catalog import _derive, _streams, model
from catalog._exceptions import Fault, InvalidCatalog, InvalidValue
from catalog._lines import Lines, read_yaml
from catalog._spec import CatalogSpec, ColumnSpec, ExchangeRatesSpec, Key, ServingSpec, SourceSpec, TableSpec
from catalog.keys import SEPARATOR
from catalog.kinds import ELEMENT_OF, Destination, Family, LaneName, Message, Scalar, ValueType
from catalog.values import check

DEFAULT_CATALOG = Path(__file__).with_name("ads.yaml")
_CURRENCY = re.compile(r"[A-Z]{3}")

# What a destination in Manas can hold; anything else is a fault of the declaration, found at start.
_FITTING: dict[Destination, frozenset[ValueType]] = {
    Destination.TERM: frozenset(
        {ValueType.STRING, ValueType.INT, ValueType.BOOL, ValueType.STRING_LIST, ValueType.INT_LIST}
    ),
    Destination.TEXT: frozenset({ValueType.STRING_LIST}),
    Destination.NUMERIC: frozenset({ValueType.INT, ValueType.FLOAT, ValueType.TIME}),
    Destination.VECTOR: frozenset({ValueType.VECTOR}),
    Destination.TARGETING: frozenset({ValueType.STRING_LIST}),
    Destination.PREDICATE: frozenset({ValueType.PREDICATE}),
    Destination.CIRCLES: frozenset({ValueType.CIRCLES}),
    Destination.POINT: frozenset({ValueType.POINT}),
    Destination.HOURS: frozenset({ValueType.HOURS}),
}
_LIMITING = frozenset({Destination.PREDICATE, Destination.CIRCLES, Destination.HOURS})
"""Indexes of conditions that null lifts."""


def load_catalog(file: Path | str | None = None) -> model.Catalog:
    """Read, validate and return the catalogue in `file` (default: the built-in ads catalogue).

    Raises InvalidCatalog with every fault found, first of form (YAML; then unknown and missing keys, bad types), then
    of meaning (unknown tables and columns, reference cycles, what cannot be joined or does not fit its index).
    """
    path = Path(file) if file is not None else DEFAULT_CATALOG
    data, lines = read_yaml(path)
    try:
        spec = CatalogSpec.model_validate(data)
    except ValidationError as error:
        raise InvalidCatalog([_fault_of(e, lines) for e in error.errors()]) from None
    faults: list[Fault] = []
    dimensions = {
        name: model.Dimension(name, ValueType(d.type), d.multi, d.values, d.flat) for name, d in spec.dimensions.items()
    }
    known = tuple(dimensions.values())
    tables = {name: _table(name, table, known, lines, faults) for name, table in spec.tables.items()}
    _check_references(tables, lines, faults)
    sound = not faults
    roots = [t for t in tables.values() if t.root is not None]
    if len(roots) != 1:
        faults.append(lines.fault("exactly one table must be the document table (with `root:`)", "tables"))
    for table in roots:
        if table.root not in tables or tables[table.root].source is None:
            text = f"root {table.root!r} is not a table that comes from the ads DB"
            faults.append(lines.fault(text, "tables", table.name, "root"))
    rates = _exchange_rates(spec.exchange_rates, lines, faults)
    if not sound or len(roots) != 1 or (root := roots[0].root) not in tables or root is None:
        _check_serving(spec.serving, _fields(spec, tables, frozenset(), lines, faults), lines, faults)
        raise InvalidCatalog(faults)
    document = roots[0]
    joined = model.gathered_tables(tables, root)
    fields = _fields(spec, tables, joined, lines, faults)
    _check_serving(spec.serving, fields, lines, faults)
    catalog = model.Catalog(
        name=spec.name,
        file=str(path),
        tables=tables,
        document_table=document.name,
        root=root,
        fields=fields,
        dimensions=dimensions,
        serving=model.Serving(**spec.serving.model_dump()),
        fingerprint=hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest(),
        handlers=spec.handlers,
        streams=_streams.streams(spec.streams, tables, lines, faults),
        exchange_rates=rates,
    )
    _check_joins(catalog, lines, faults)
    _derive.check(catalog, lines, faults)
    if catalog.serving.budget_key is None:
        budgets = [s.name for s in catalog.streams.values() if s.message is Message.BUDGET]
        if budgets:
            text = f"'budget_key' is missing, so nothing would obey what stream {budgets[0]!r} publishes"
            faults.append(lines.fault(text, "serving"))
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


def _table(
    name: str, spec: TableSpec, dimensions: tuple[model.Dimension, ...], lines: Lines, faults: list[Fault]
) -> model.Table:
    at = ("tables", name)
    source = None if spec.source is None else _source(spec.source, (*at, "source"), spec.key, lines, faults)
    default_family = Family.CONTROL if spec.lane is LaneName.HIGH else Family.CONTENT
    columns = {
        column_name: _column(name, column_name, column, source, default_family, dimensions, lines, faults)
        for column_name, column in spec.columns.items()
    }
    lists = {c.name for c in columns.values() if c.type in ELEMENT_OF}
    return model.Table(
        name=name,
        owner=spec.owner,
        lane=spec.lane,
        key_type=ValueType(spec.key),
        columns=columns,
        references=tuple(
            model.Reference(name, target, column, column in lists) for target, column in spec.references.items()
        ),
        source=source,
        line=lines.of(*at),
        root=spec.root,
        freshness_s=spec.freshness_s,
        layout=model.Layout(**spec.layout.model_dump()),
        index_layout=model.Layout(**spec.index_layout.model_dump()),
        retired=_retired(spec, columns, at, lines, faults),
        ends=spec.ends,
    )


def _retired(
    spec: TableSpec, columns: dict[str, model.Column], at: tuple[str, ...], lines: Lines, faults: list[Fault]
) -> dict[str, tuple[Scalar, ...]]:
    """Check when rows of a table count as over: by values and by a time, which the ads DB must know itself."""
    for where, name in (*(("retired", name) for name in spec.retired), *((("ends", spec.ends),) if spec.ends else ())):
        if name not in columns or columns[name].source_table is None:
            faults.append(lines.fault(f"{name!r} is no column of this table that comes from the ads DB", *at, where))
        elif where == "ends" and columns[name].type is not ValueType.TIME:
            faults.append(lines.fault(f"{name!r} is {columns[name].type.value}, but must be a time", *at, where))
    for name, values in spec.retired.items():
        allowed = columns[name].values if name in columns else ()
        if allowed and (unknown := [value for value in values if value not in allowed]):
            faults.append(lines.fault(f"{unknown} cannot be a value of {name!r}", *at, "retired"))
    return dict(spec.retired)


def _source(spec: SourceSpec, at: tuple[str, ...], key_type: str, lines: Lines, faults: list[Fault]) -> model.Source:
    def joined(key: Key, *where: str) -> str:
        columns = (key,) if isinstance(key, str) else key
        if len(columns) != main:
            faults.append(lines.fault(f"the entity's key has {main} columns, this one {len(columns)}", *at, *where))
        if any(not column or SEPARATOR in column for column in columns) or len(set(columns)) < len(columns):
            faults.append(lines.fault(f"{key!r} is not a key: name one column, or a list of several", *at, *where))
        return SEPARATOR.join(columns)

    main = 1 if isinstance(spec.key, str) else len(spec.key)
    if main > 1 and key_type != ValueType.STRING:
        faults.append(lines.fault("a key of several columns makes row keys of text; give the table `key: string`", *at))
    return model.Source(
        spec.table,
        joined(spec.key, "key"),
        {table: joined(key, "satellites", table) for table, key in spec.satellites.items()},
        {table: joined(key, "collections", table) for table, key in spec.collections.items()},
    )


def _column(
    table: str,
    name: str,
    spec: ColumnSpec,
    source: model.Source | None,
    default_family: Family,
    dimensions: tuple[model.Dimension, ...],
    lines: Lines,
    faults: list[Fault],
) -> model.Column:
    here = ("tables", table, "columns", name)
    if (spec.source is None) == (spec.derive is None):
        text = "'from' is missing, or `derive`" if spec.source is None else "has both `from` and `derive`; keep one"
        faults.append(lines.fault(text, *here))
    came_from = spec.source or f"{model.HANDLER_PREFIX}{table}.{name}"
    derived = came_from.startswith((model.HANDLER_PREFIX, model.SIGNAL_PREFIX))
    known = {} if source is None else source.tables()
    if not derived and came_from.split(".")[0] not in known:
        faults.append(lines.fault(f"comes from {came_from!r}, but this table's source has only {sorted(known)}", *here))
    collected = source is not None and not derived and came_from.split(".")[0] in source.collections
    if collected and spec.type not in ELEMENT_OF:
        lists = [kind.value for kind in ELEMENT_OF]
        faults.append(lines.fault(f"comes from a collection, so its type is one of {lists}", *here))
    if (spec.type is ValueType.VECTOR) != (spec.dims > 0):
        faults.append(lines.fault("a vector needs `dims`, and only a vector has them", *here))
    if spec.values and spec.type is not ValueType.STRING:
        faults.append(lines.fault("only a string column can have `values`", *here))
    if spec.scale != 1 and spec.type is not ValueType.INT:
        faults.append(lines.fault("only an int column can have a `scale`", *here, "scale"))
    if spec.split is not None and (spec.type is not ValueType.STRING_LIST or collected):
        faults.append(lines.fault("only a list<string> of a single row can be `split`", *here, "split"))
    if derived and spec.derive is None and (spec.default is not None or spec.scale != 1 or spec.split):
        text = "`default`, `scale` and `split` are for columns of the ads DB; a handler or signal sends final values"
        faults.append(lines.fault(text, *here))
    family = spec.family or (Family.DERIVED if derived else default_family)
    if family in (Family.META, Family.SERVABLE):
        faults.append(lines.fault(f"family {family.value!r} is the pipeline's own", *here))
    column = model.Column(
        table=table,
        name=name,
        type=spec.type,
        family=family,
        source=came_from,
        line=lines.of(*here),
        dims=spec.dims,
        values=spec.values,
        max_bytes=spec.max_bytes,
        scale=spec.scale,
        split=spec.split,
        derivation=None if spec.derive is None else _derive.parse(table, spec.derive, here, lines, faults),
        dimensions=dimensions if spec.type is ValueType.PREDICATE else (),
    )
    if spec.default is None:
        return column
    try:
        return replace(column, default=check(replace(column, scale=1), spec.default))
    except InvalidValue as error:
        faults.append(lines.fault(f"`default` does not fit: {error}", *here, "default"))
        return column


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
            elif reference.target in tables and column.element().type is not tables[reference.target].key_type:
                key_type = tables[reference.target].key_type.value
                faults.append(
                    lines.fault(f"refers by {column.ref} ({column.type.value}), but the key is {key_type}", *here)
                )
        if table.source is not None:
            for kind in ("satellites", "collections"):
                of_kind = getattr(table.source, kind)
                if table.source.table in of_kind:
                    text = f"{table.source.table!r} is the main table and among the {kind} of it"
                    faults.append(lines.fault(text, "tables", table.name, "source", kind))
            for both in sorted(table.source.satellites.keys() & table.source.collections.keys()):
                text = f"{both!r} is a satellite and a collection; keep one"
                faults.append(lines.fault(text, "tables", table.name, "source", "collections", both))
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
    spec: CatalogSpec, tables: dict[str, model.Table], gathered: frozenset[str], lines: Lines, faults: list[Fault]
) -> dict[str, model.Field]:
    fields: dict[str, model.Field] = {}
    for name, declared in spec.fields.items():
        here = ("fields", name)
        table, _, column = declared.source.partition(".")
        if table not in tables or column not in tables[table].columns:
            faults.append(lines.fault(f"comes from unknown column {declared.source!r}", *here, "from"))
            continue
        made = model.Field(
            name,
            tables[table].columns[column],
            declared.index,
            lines.of(*here),
            declared.critical,
            declared.coverage,
            table in gathered,
            declared.payload,
            declared.family,
        )
        if made.gathered and made.type not in ELEMENT_OF:
            text = f"a document joins many rows of {table!r}, and values of type {made.type.value} cannot be in a list"
            faults.append(lines.fault(text, *here, "from"))
        fitting = _FITTING.get(made.index)
        if fitting is not None and made.type not in fitting:
            faults.append(
                lines.fault(
                    f"index {made.index.value!r} takes {sorted(t.value for t in fitting)}, "
                    f"but {declared.source} is {made.type.value}",
                    *here,
                    "index",
                )
            )
        if made.index in _LIMITING and not made.critical and not _judged_on_arrival(made.column):
            text = (
                f"{declared.source} may be null because it was refused, and null lifts the condition: take it from the "
                "ads DB in family control, or make the field critical"
            )
            faults.append(lines.fault(text, *here, "from"))
        fields[name] = made
    for field in fields.values():
        if field.payload is not None:
            problem = _payload_problem(field, fields.get(field.payload))
            if problem:
                faults.append(lines.fault(f"payload {field.payload!r}: {problem}", "fields", field.name, "payload"))
    return fields


def _payload_problem(field: model.Field, payload: model.Field | None) -> str:
    if field.index not in (Destination.TERM, Destination.TEXT, Destination.TARGETING):
        return f"postings of terms carry payloads, and {field.name!r} has index {field.index.value!r}"
    if payload is None:
        return "no field of this name"
    fitting = [ValueType.INT, ValueType.FLOAT] + ([ValueType.INT_LIST] if field.type in ELEMENT_OF else [])
    if payload.type not in fitting:
        return f"must be {' or '.join(t.value for t in fitting)}, but it is {payload.type.value}"
    return ""


def _judged_on_arrival(column: model.Column) -> bool:
    """Tell whether a value that is refused blocks the document by itself."""
    return column.source_table is not None and column.family is Family.CONTROL


def _check_serving(spec: ServingSpec, fields: dict[str, model.Field], lines: Lines, faults: list[Fault]) -> None:
    if spec.bid is not None and spec.score is not None:
        faults.append(lines.fault("has both `bid` and `score`; documents are ranked by one", "serving", "score"))
    wanted = {"bid": Destination.NUMERIC, "starts": Destination.NUMERIC, "ends": Destination.NUMERIC,
              "score": Destination.NUMERIC,
              "price": Destination.NUMERIC, "quality": Destination.NUMERIC, "text": Destination.TEXT,
              "vector": Destination.VECTOR, "targeting": Destination.TARGETING, "budget_key": Destination.TERM,
              "currency": Destination.TERM, "predicate": Destination.PREDICATE, "area": Destination.CIRCLES,
              "location": Destination.POINT, "hours": Destination.HOURS}  # fmt: skip
    for role, name in spec.model_dump().items():
        if name is None:
            continue
        if name not in fields:
            faults.append(lines.fault(f"{role}: no field named {name!r}", "serving", role))
        elif role in wanted and fields[name].index is not wanted[role]:
            text = f"{role}: field {name!r} must have index {wanted[role].value!r}"
            faults.append(lines.fault(text, "serving", role))


def _exchange_rates(spec: ExchangeRatesSpec | None, lines: Lines, faults: list[Fault]) -> model.ExchangeRates | None:
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
    path = catalog.join_path(catalog.root)
    for reference in catalog.references():
        taken = path.get(reference.target)
        if taken is not None and taken != reference and reference.table in {catalog.root, *path}:
            text = (
                f"{reference.target!r} is joined over {taken.table!r} already, and a document has one way to a table; "
                "leave out the reference that is not meant"
            )
            faults.append(lines.fault(text, "tables", reference.table, "references", reference.target))
    reachable = {catalog.root, catalog.document_table, *path}
    faults += [
        lines.fault(
            f"{field.column.ref} cannot be joined: {catalog.root!r} leads only to {sorted(reachable)}",
            "fields", field.name,
        )
        for field in catalog.fields.values()
        if field.column.table not in reachable
    ]  # fmt: skip
