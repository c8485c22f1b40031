"""What the debug UI answers with: plain immutable values, the same for pages, JSON and the command line.

All times are microseconds since the Unix epoch, UTC; durations say their unit in the name.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, JsonValue


class View(BaseModel):
    """Base of all answers: frozen, and without unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def to_json(self) -> dict[str, Any]:
        """Return plain values that `json.dumps` takes."""
        return self.model_dump(mode="json")


class Writer(View):
    """Who committed a version of a cell."""

    stage: str
    handler: str = ""
    code_version: str = ""
    trace_id: str = ""

    @property
    def label(self) -> str:
        """Stage, and handler where there is one."""
        return f"{self.stage}/{self.handler}" if self.handler else self.stage


class CellVersionView(View):
    """One version of a cell. `value` is None for a tombstone."""

    value: JsonValue
    deleted: bool
    commit_ts: int
    committed_at_us: int
    writer: Writer | None
    """None once the transaction's record has been collected."""


class ColumnView(View):
    """A column of the Repo: the newest version, and the older ones when history was asked for."""

    name: str
    cell: str
    type: str
    source: str
    """Where the catalogue says it comes from; "pipeline" for cells that the pipeline keeps for itself."""
    current: CellVersionView | None
    """None if the cell was never written."""
    versions: int = 0
    history: tuple[CellVersionView, ...] = ()


class SourceRow(View):
    """One row of the ads DB that belongs to the entity."""

    table: str
    key_column: str
    satellite: bool
    exists: bool
    values: dict[str, JsonValue] = {}
    read_at_us: int


class Difference(View):
    """A column whose value in the Repo is not the ads DB's."""

    column: str
    source_column: str
    source_value: JsonValue
    repo_value: JsonValue
    invalid: str = ""
    """Why the source's value cannot become a column's value, if it cannot."""


class Link(View):
    """Another entity."""

    kind: str
    id: str
    name: str = ""
    exists: bool = True


class Relation(View):
    """Entities that this one points to or that point to it, by one reference."""

    kind: str
    via: str
    count: int
    count_is_exact: bool = True
    links: tuple[Link, ...] = ()


class HandlerProblem(View):
    """What a handler refused or failed at on this row."""

    handler: str
    reason: str
    sentence: str
    commit_ts: int
    committed_at_us: int


class HopView(View):
    """One stage's part in the last update."""

    stage: str
    entered_us: int
    left_us: int
    waited_us: int
    """Since the previous stage left it."""
    worked_us: int


class Timeline(View):
    """How the last update came to be: from the commit at the source through every stage."""

    trace_id: str
    lane: str
    origin_us: int
    hops: tuple[HopView, ...]
    answerable_us: int | None = None
    """When search could first return it, if serving says so."""
    total_us: int

    @property
    def bars(self) -> list[tuple[str, str, float, float, int]]:
        """(label, kind, start %, width %, microseconds) of every wait and every work, in order."""
        scale = 100.0 / max(1, self.total_us)
        bars: list[tuple[str, str, float, float, int]] = []
        for hop in self.hops:
            begin = hop.entered_us - hop.waited_us - self.origin_us
            bars.append((f"waits for {hop.stage}", "wait", begin * scale, hop.waited_us * scale, hop.waited_us))
            bars.append((hop.stage, "work", (begin + hop.waited_us) * scale, hop.worked_us * scale, hop.worked_us))
        if self.answerable_us is not None:
            last = self.hops[-1].left_us if self.hops else self.origin_us
            wait = max(0, self.answerable_us - last)
            bars.append(("waits for serving", "wait", (last - self.origin_us) * scale, wait * scale, wait))
        return bars


class DocumentView(View):
    """The servable document as the Repo holds it."""

    document_id: str
    present: bool
    version: int | None = None
    committed_at_us: int | None = None
    size_bytes: int = 0
    fields: dict[str, JsonValue] = {}
    blocked: tuple[str, ...] = ()


class ServingView(View):
    """What serving has of the document."""

    layer: Literal["base", "delta", "deleted", "none", "unreachable"]
    version: int | None = None
    same_bytes: bool | None = None
    """Whether serving's bytes are the Repo's; None where there is nothing to compare."""
    verdict: str
    trace_id: str = ""
    origin_us: int | None = None
    answerable_us: int | None = None
    fields: dict[str, JsonValue] = {}


class DeadLetterView(View):
    """A dead letter, addressed by its place in the dead letter topic."""

    partition: int
    offset: int
    at_us: int
    stage: str
    handler: str
    reason: str
    error: str
    detail: str
    table: str
    row: str
    lane: str
    trace_id: str
    topic: str
    source_partition: int
    source_offset: int
    payload_type: str
    payload_bytes: int
    payload: str = ""
    """Readable form of the payload, only when one dead letter is asked for."""
    replayable: bool
    replay_hint: str = ""


class EntityView(View):
    """Everything known of one entity."""

    kind: str
    id: str
    name: str
    at_us: int
    repo_ts: int
    """Timestamp of the newest commit when it was read."""
    source: tuple[SourceRow, ...]
    source_version: int | None
    deleted_at_source: bool
    differences: tuple[Difference, ...]
    columns: tuple[ColumnView, ...]
    pipeline_cells: tuple[ColumnView, ...]
    parents: tuple[Relation, ...]
    children: tuple[Relation, ...]
    problems: tuple[HandlerProblem, ...]
    document: DocumentView | None = None
    serving: ServingView | None = None
    timeline: Timeline | None = None
    dead_letters: tuple[DeadLetterView, ...] = ()

    @property
    def status(self) -> str:
        """The entity's status at the source, if it has one."""
        for row in self.source:
            if not row.satellite and row.exists and "status" in row.values:
                return str(row.values["status"])
        return "not in the ads DB" if self.source and not self.source[0].exists else ""

    def value(self, column: str) -> Any:
        """Return the current value of a column in the Repo, None if there is none."""
        for view in self.columns:
            if view.name == column and view.current is not None:
                return view.current.value
        return None
