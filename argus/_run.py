"""Run a root's handlers over one row, purely: rows in; changed cells, document and failures out."""

from __future__ import annotations

import json
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from msgspec import Raw

from argus._exceptions import InvalidInput, SourceBehind, SourceUnavailable, UndeclaredWrite
from argus._handler import HandlerContext, SourceUse, Value
from argus._registry import Plan, Registry, Step
from argus._rows import EntityRow, Inputs, Rows, single
from argus.sources import CachedSource
from catalog import Catalog
from catalog.documents import encode_document
from catalog.model import DOCUMENT_BLOCKED, DOCUMENT_BODY
from catalog.values import encode
from storage_repo import Limits

SERVABLE_COLUMN = "servable"
"""A document table that has this column (bool) serves only documents where it is true."""
BLOCKED_COLUMN = "blocked_by"
"""And this one (list<string>) says why not."""

HANDLER_FAILED = "handler_failed"
REFUSED_INPUT = "refused_input"
SOURCE_UNAVAILABLE = "source_unavailable"
SOURCE_BEHIND = "source_behind"
HANDLER_PAUSED = "handler_paused"
TOO_LARGE = "value_too_large"
MAX_VALUE_BYTES = Limits().max_value_bytes
"""Judged before the commit, so that one huge document is blocked instead of failing its batch."""

_MAX_SENTENCE = 500
_MAX_INPUTS = 4_096

Answers = Mapping[str, Mapping[Any, Any]]
"""Source -> key -> value, or SourceUnavailable."""
Paused = Mapping[str, str]
"""Handler that a switch pauses -> a sentence that says who did it and why."""
NONE_PAUSED: Paused = {}
_NO_ANSWERS: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Failure:
    """What one handler refused or failed at."""

    handler: str
    reason: str
    sentence: str
    detail: str
    is_new: bool
    """It differs from what the row already says."""


@dataclass(slots=True)
class RunResult:
    """What one run of a root row comes to."""

    key: str
    changes: dict[tuple[str, str], bytes | None] = field(default_factory=dict)
    """(table, cell) -> new value, None = tombstone; only what differs from the snapshot."""
    failures: list[Failure] = field(default_factory=list)
    joined_failures: list[Failure] = field(default_factory=list)
    """Of the handlers of joined rows, where those are run again as well (`compute_runs`)."""
    exists: bool = True
    body: bytes | None = None
    body_before: bytes | None = None
    blocked: list[str] = field(default_factory=list)
    lacking: list[str] = field(default_factory=list)
    """Critical fields without a value, where nothing else blocks the document."""


def look_up(
    plan: Plan,
    joined: Mapping[str, Rows],
    sources: Mapping[str, CachedSource[Any, Any]],
    catalog: Catalog,
    refresh: frozenset[str] = frozenset(),
    paused: Paused = NONE_PAUSED,
) -> Answers:
    """Ask every source that a handler not paused uses once for the whole batch; rows of `refresh` past the cache."""
    used = {use for step in plan.steps if step.handler.name not in paused for use in step.handler.sources}
    answers: dict[str, dict[Any, Any]] = {}
    for use in (use for use in plan.sources if use in used):
        cached: dict[Any, int] = {}
        fresh: dict[Any, int] = {}
        for key, rows in joined.items():
            wanted, version = _wanted(use, rows, catalog)
            if wanted is not None and version is not None:
                asked = fresh if key in refresh else cached
                asked[wanted] = max(version, asked.get(wanted, version))
        found = answers.setdefault(use.source, {})
        found.update(sources[use.source].lookup_many(cached) if cached else {})
        found.update(sources[use.source].lookup_many(fresh, fresh=True) if fresh else {})
    return answers


def execute(
    registry: Registry, plan: Plan, key: str, rows: Rows, answers: Answers, paused: Paused = NONE_PAUSED
) -> RunResult:
    """Run all handlers of the plan in dependency order; a document root also gets its document.

    A paused handler leaves its outputs as they are, and says so. A row that does not exist runs no handler, paused or
    not: what was derived for it goes. Never raises for what a handler does.
    """
    result = RunResult(key)
    output = single(rows, plan.output_table)
    result.exists = rows[plan.root].absence is None
    for step in plan.steps:
        error: bytes | None = None
        if not result.exists:
            _put(rows, step, dict.fromkeys(step.refs), result)
        else:
            error = _run_step(registry.catalog, step, key, rows, output, answers, result, paused)
        _change(output, step.error_cell, error, result)
    if plan.is_document:
        _build_document(registry, plan, rows, result)
    return result


def _run_step(
    catalog: Catalog,
    step: Step,
    key: str,
    rows: Rows,
    output: EntityRow,
    answers: Answers,
    result: RunResult,
    paused: Paused,
) -> bytes | None:
    """Run one handler, keep its outputs, and return what its error cell has to say."""
    if refused := _refused_inputs(step, rows):
        _put(rows, step, dict.fromkeys(step.refs), result)
        return encode([REFUSED_INPUT, refused[0][:_MAX_SENTENCE]])  # the dead letter was sent when it was refused
    if (why := paused.get(step.handler.name)) is not None:
        said = encode([HANDLER_PAUSED, why[:_MAX_SENTENCE]])
        is_new = output.stored.get(step.error_cell) != said
        result.failures.append(Failure(step.handler.name, HANDLER_PAUSED, why, "", is_new))
        return said
    inputs = Inputs(step.handler.name, step.allowed, step.tables, rows)
    context = HandlerContext(catalog, key, _answers_for(step, rows, answers, catalog))
    detail = ""
    try:
        _put(rows, step, checked_outputs(step, step.handler.function(inputs, context)), result)
        return None
    except InvalidInput as refusal:
        reason, sentence = refusal.reason, refusal.sentence
        _put(rows, step, dict.fromkeys(step.refs), result)
    except SourceUnavailable as error:
        reason, sentence = SOURCE_BEHIND if isinstance(error, SourceBehind) else SOURCE_UNAVAILABLE, str(error)
    except Exception as error:  # noqa: BLE001 - becomes a counted dead letter with the whole context
        reason, sentence = HANDLER_FAILED, f"{step.handler.declaration}: {type(error).__name__}: {error}"
        detail = traceback.format_exc()
    sentence = sentence[:_MAX_SENTENCE]
    said = encode([reason, sentence])
    is_new = output.stored.get(step.error_cell) != said
    if reason not in (SOURCE_UNAVAILABLE, SOURCE_BEHIND):
        shown = json.dumps(inputs.as_dict(), default=repr, ensure_ascii=False)[:_MAX_INPUTS]
        detail = f"inputs: {shown}\n{detail}"
    result.failures.append(Failure(step.handler.name, reason, sentence, detail, is_new))
    return said


def _refused_inputs(step: Step, rows: Rows) -> list[str]:
    for table in step.tables:
        if rows[table].has_refused:
            return [s for of_table, cell in step.allowed.values() for s in rows[of_table].refused_control((cell,))]
    return []


def checked_outputs(step: Step, returned: Mapping[str, Value]) -> dict[str, bytes | None]:
    """Return ref -> encoded value of what a handler returned; what it left out is null.

    Raises UndeclaredWrite, catalog.InvalidValue.
    """
    if not returned.keys() <= step.refs:
        undeclared = ", ".join(sorted(returned.keys() - step.refs))
        raise UndeclaredWrite(
            f"handler {step.handler.name!r} returns {undeclared} without declaring it; add it to `writes` "
            f"and to the catalogue (handler:{step.handler.name}); declared: {', '.join(sorted(step.refs))}"
        )
    outputs: dict[str, bytes | None] = {}
    for _, ref, _, _, encoder in step.writes:
        value = returned.get(ref)
        outputs[ref] = encoded = None if value is None else encoder(value)
        if encoded is not None and len(encoded) > MAX_VALUE_BYTES:
            raise InvalidInput(TOO_LARGE, f"{ref} would have {len(encoded)} bytes, more than {MAX_VALUE_BYTES}")
    return outputs


def _put(rows: Rows, step: Step, outputs: Mapping[str, bytes | None], result: RunResult) -> None:
    last, row = "", None
    for _, ref, table, cell, _ in step.writes:
        if row is None or table != last:
            last, row = table, single(rows, table)
        data = outputs[ref]
        if row.stored.get(cell) != data:
            result.changes[table, cell] = data
        row.set(cell, data)


def _change(row: EntityRow, cell: str, data: bytes | None, result: RunResult) -> None:
    if row.stored.get(cell) != data:
        result.changes[row.table, cell] = data


def _build_document(registry: Registry, plan: Plan, rows: Rows, result: RunResult) -> None:
    output = single(rows, plan.output_table)
    blocked = _why_blocked(registry, plan, rows, result.lacking)
    body: bytes | None = None
    if not blocked:
        fields: dict[str, Raw] = {}
        for name, table, cell, _ in plan.fields:
            if (data := rows[table].raw(cell)) is not None:
                fields[name] = Raw(data)  # cells hold the canonical encoding already
        body = encode_document(fields)
        if len(body) > MAX_VALUE_BYTES:
            blocked = [f"the document has {len(body)} bytes, more than {MAX_VALUE_BYTES}; shorten its texts"]
            body = None
    result.body, result.body_before, result.blocked = body, output.stored.get(DOCUMENT_BODY), blocked
    _change(output, DOCUMENT_BODY, body, result)
    _change(output, DOCUMENT_BLOCKED, encode(blocked) if blocked else None, result)


def _why_blocked(registry: Registry, plan: Plan, rows: Rows, lacking: list[str]) -> list[str]:
    """Return every cause that keeps the document from being served, the first cause first; fills `lacking`."""
    if absence := rows[plan.root].absence:
        return [absence]
    causes = [s for table, cells in plan.columns.items() for s in rows[table].refused_control(cells)]
    output, columns = rows[plan.output_table], registry.catalog.tables[plan.output_table].columns
    if SERVABLE_COLUMN in columns and output.value(columns[SERVABLE_COLUMN].cell) is not True:
        said = output.value(columns[BLOCKED_COLUMN].cell) if BLOCKED_COLUMN in columns else None
        causes += said or [f"{columns[SERVABLE_COLUMN].ref} is not true"]
    for level in plan.levels:
        for reference in level:
            joined = rows[reference.target]
            if joined.absence and joined.key is not None and joined.absence not in causes:
                causes.append(joined.absence)
    if not causes:
        for name, table, cell, critical in plan.fields:
            if critical and rows[table].raw(cell) is None:
                column = registry.catalog.fields[name].column
                lacking.append(name)
                causes.append(f"critical field {name} has no value ({column.ref} from {column.source})")
    return causes


def _answers_for(step: Step, rows: Rows, answers: Answers, catalog: Catalog) -> Mapping[str, Any]:
    if not step.handler.sources:
        return _NO_ANSWERS
    given: dict[str, Any] = {}
    for use in step.handler.sources:
        key, version = _wanted(use, rows, catalog)
        given[use.source] = None if key is None or version is None else answers[use.source][key]
    return given


def _wanted(use: SourceUse, rows: Rows, catalog: Catalog) -> tuple[Any, Any]:
    key, version = catalog.column(use.key), catalog.column(use.version)
    return rows[key.table].value(key.cell), rows[version.table].value(version.cell)
