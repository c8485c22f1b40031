"""Streams of the Gateway: their declarations, read and checked."""

from __future__ import annotations

from collections.abc import Mapping

from catalog import model
from catalog._exceptions import Fault, InvalidValue
from catalog._lines import Lines
from catalog._spec import StreamSpec
from catalog.kinds import Message, Scalar
from catalog.model import Stream
from catalog.values import check

BUDGET_FIELDS = (
    "daily_micros",
    "lifetime_micros",
    "spent_today_micros",
    "spent_total_micros",
    "currency",
    "frequency_cap_day",
    "frequency_cap_week",
    "frequency_cap_total",
)
"""What a budget's message has (adsindex.BudgetState), besides what every message has."""


def streams(
    specs: Mapping[str, StreamSpec], tables: Mapping[str, model.Table], lines: Lines, faults: list[Fault]
) -> dict[str, Stream]:
    """Return the declared streams; two of them may not share a topic, for the topic is read by key."""
    made: dict[str, Stream] = {}
    topics: dict[str, str] = {}
    for name, spec in specs.items():
        if spec.topic in topics:
            text = f"topic {spec.topic!r} belongs to stream {topics[spec.topic]!r} already"
            faults.append(lines.fault(text, "streams", name, "topic"))
        topics[spec.topic] = name
        if (stream := _stream(name, spec, tables, lines, faults)) is not None:
            made[name] = stream
    return made


def _stream(
    name: str, spec: StreamSpec, tables: Mapping[str, model.Table], lines: Lines, faults: list[Fault]
) -> Stream | None:
    at = ("streams", name)
    table = tables.get(spec.table)
    if table is None or table.source is None:
        faults.append(lines.fault(f"{spec.table!r} is not a table that comes from the ads DB", *at, "table"))
        return None
    columns = spec.columns if isinstance(spec.columns, dict) else {column: column for column in spec.columns}
    for part, names in (("columns", columns.values()), ("where", spec.where)):
        for column in names:
            declared = table.columns.get(column)
            if declared is None or declared.source_table is None:
                text = f"{table.name}.{column} is not a column that comes from the ads DB"
                faults.append(lines.fault(text, *at, part, column))
    for column in spec.required:
        if column not in columns:
            faults.append(lines.fault(f"requires {column!r}, which is not among its columns", *at, "required"))
    if spec.message is Message.BUDGET and (unknown := columns.keys() - set(BUDGET_FIELDS)):
        text = f"a budget has {', '.join(BUDGET_FIELDS)}, but not {', '.join(sorted(unknown))}"
        faults.append(lines.fault(text, *at, "columns"))
    where: dict[str, tuple[Scalar, ...]] = {}
    for column, given in spec.where.items():
        values = given if isinstance(given, tuple) else (given,)
        if (declared := table.columns.get(column)) is None:
            continue
        try:
            where[column] = tuple(check(declared, value) for value in values)
        except InvalidValue as error:
            faults.append(lines.fault(f"can never match: {error}", *at, "where", column))
    return Stream(
        name, table.name, spec.topic, columns, where, spec.required, spec.message, spec.lane, spec.partitions,
        lines.of(*at),
    )  # fmt: skip
