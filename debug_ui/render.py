"""The views as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from debug_ui._values import duration, moment, shown
from debug_ui.diagnosis import Diagnosis
from debug_ui.health import PipelineStatus
from debug_ui.views import CellVersionView, ColumnView, EntityView, Relation

_MARK = {True: ("ok", "green"), False: ("FAULT", "bold red"), None: ("not judged", "yellow")}


def render_text(view: EntityView) -> RenderableType:
    """Return everything known of an entity as tables."""
    parts: list[RenderableType] = [
        Text(f"{view.kind.replace('_', ' ')} {view.id}  {view.name}", style="bold"),
        Text(_standing(view), style="dim"),
    ]
    for row in view.source:
        title = f"ads DB: {row.table}" + ("" if row.exists else " (no row)")
        parts.append(_table(title, ("column", "value"), ((k, shown(v, k)) for k, v in row.values.items())))
    for difference in view.differences:
        said = difference.invalid or f"the Repo has {shown(difference.repo_value)}"
        parts.append(
            Text(f"differs: {difference.source_column} is {shown(difference.source_value)}, {said}", style="red")
        )
    parts.append(_columns("Storage Repo", view.columns))
    if any(column.history for column in view.columns):
        parts.append(_history((*view.columns, *view.pipeline_cells)))
    parts.append(_columns("kept by the pipeline", view.pipeline_cells))
    for problem in view.problems:
        parts.append(Text(f"handler {problem.handler}: {problem.reason}: {problem.sentence}", style="red"))
    parts += [_relation("belongs to", r) for r in view.parents] + [_relation("has", r) for r in view.children]
    if view.document is not None:
        for sentence in view.document.blocked:
            parts.append(Text(f"not servable: {sentence}", style="red"))
        if view.document.present:
            title = f"servable document, version {view.document.version}, {view.document.size_bytes} bytes"
            parts.append(_table(title, ("field", "value"), ((k, shown(v, k)) for k, v in view.document.fields.items())))
    if view.serving is not None:
        parts.append(Text(f"serving ({view.serving.layer}): {view.serving.verdict}"))
    if view.timeline is not None:
        rows = ((label, duration(us)) for label, _, _, _, us in view.timeline.bars)
        total = f"last update: {duration(view.timeline.total_us)} in lane {view.timeline.lane}"
        parts.append(_table(f"{total}, trace {view.timeline.trace_id}", ("part", "took"), rows))
    for letter in view.dead_letters:
        parts.append(
            Text(f"dead letter {moment(letter.at_us)} {letter.stage} {letter.reason}: {letter.error}", style="red")
        )
    return Group(*parts)


def render_diagnosis(diagnosis: Diagnosis) -> RenderableType:
    """Return the chain, the cause with evidence and fix in full."""
    head = "healthy" if diagnosis.healthy else f"cause: {diagnosis.cause}"
    parts: list[RenderableType] = [
        Text(f"{diagnosis.kind} {diagnosis.id}  {diagnosis.name}", style="bold"),
        Text(f"{head}: {diagnosis.summary}", style="green" if diagnosis.healthy else "bold red"),
    ]
    for number, step in enumerate(diagnosis.steps, 1):
        mark, style = _MARK[step.ok]
        parts.append(Text.assemble(f"{number:>2}. {step.question} ", (mark, style), f"  {step.summary}"))
        if step.ok is False or (diagnosis.healthy and step is diagnosis.steps[-1]):
            rows = ((e.what, shown(e.value, e.what), e.where, moment(e.at_us)) for e in step.evidence)
            parts.append(Padding(_table("evidence", ("what", "value", "where", "when (UTC)"), rows), (0, 0, 0, 4)))
        if step.ok is False:
            parts.append(Padding(Text(f"means: {step.meaning}"), (0, 0, 0, 4)))
            parts += [Padding(Text(f"fix: {fix}", style="bold"), (0, 0, 0, 4)) for fix in step.fix]
    if diagnosis.not_reached:
        parts.append(Text(f"not reached: {', '.join(diagnosis.not_reached)}", style="dim"))
    parts += [Text(f"note: {note}", style="yellow") for note in diagnosis.notes]
    return Group(*parts)


def render_status(status: PipelineStatus) -> RenderableType:
    """Return the pipeline's state as tables."""
    running = "up" if status.up else "not up"
    parts: list[RenderableType] = [
        Text(f"{status.home}: {running}, {'idle' if status.idle else 'busy'}", style="bold"),
        *(Text(problem, style="red") for problem in status.problems),
    ]
    if status.stages:
        rows = (
            (
                s.process,
                s.state,
                str(s.pid),
                str(s.restarts),
                duration((s.uptime_s or 0) * 1e6),
                f"{s.cpu_seconds or 0:.1f} s",
            )
            for s in status.stages
        )
        parts.append(_table("stages", ("process", "state", "pid", "restarts", "up for", "cpu"), rows))
    parts.append(
        _table(
            "lag",
            ("place", "read by", "waiting", "end"),
            ((g.place, g.group, str(g.waiting), str(g.end)) for g in status.lags),
        )
    )
    if status.latency:
        latency = (
            (r.lane, r.part, str(r.count), *(f"{v:.1f}" for v in (r.p50_ms, r.p90_ms, r.p99_ms, r.max_ms)))
            for r in status.latency
        )
        parts.append(_table("latency, ms", ("lane", "part", "count", "p50", "p90", "p99", "max"), latency))
    parts.append(Text(f"documents served: {status.documents if status.documents is not None else 'unknown'}"))
    if status.base is not None:
        parts.append(
            Text(
                f"base index {status.base.version}: {status.base.documents} documents, "
                f"{duration((status.base.age_s or 0) * 1e6)} old"
            )
        )
    else:
        parts.append(Text("no base index is loaded: serving answers from deltas alone"))
    parts.append(Text(f"conflicts {status.conflicts}, retries {status.retries}"))
    parts.append(Text(f"dropped {status.dropped or 'nothing'}, dead-lettered {status.dead_lettered or 'nothing'}"))
    return Group(*parts)


def _standing(view: EntityView) -> str:
    parts = [f"read at {moment(view.at_us)} UTC", f"Repo at {view.repo_ts}"]
    if view.source_version is not None:
        parts.append(f"source version {view.source_version}")
    if view.deleted_at_source:
        parts.append("deleted at the source")
    return ", ".join(parts)


def _table(title: str, columns: Iterable[str], rows: Iterable[tuple[str, ...]]) -> Table:
    table = Table(*columns, title=title, title_justify="left", title_style="bold")
    for row in rows:
        table.add_row(*(escape(value) for value in row))
    return table


def _columns(title: str, columns: Iterable[ColumnView]) -> Table:
    rows = (_version_row(c.name, c.current) for c in columns if c.current is not None)
    return _table(title, ("column", "value", "version", "committed (UTC)", "writer"), rows)


def _history(columns: Iterable[ColumnView]) -> Table:
    rows = (_version_row(c.name, version) for c in columns for version in c.history)
    return _table("history, newest first", ("column", "value", "version", "committed (UTC)", "writer"), rows)


def _version_row(name: str, version: CellVersionView) -> tuple[str, ...]:
    value = "deleted" if version.deleted else shown(version.value, name)
    writer = version.writer.label if version.writer is not None else "?"
    return name, value[:160], str(version.commit_ts), moment(version.committed_at_us), writer


def _relation(word: str, relation: Relation) -> Text:
    count = f"{relation.count}{'' if relation.count_is_exact else ' or more'}"
    links = ", ".join(f"{link.id}{f' ({link.name})' if link.name else ''}" for link in relation.links[:8])
    more = ", …" if relation.count > 8 else ""
    return Text(f"{word} {count} {relation.kind.replace('_', ' ')} by {relation.via}: {links}{more}")
