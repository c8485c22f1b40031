"""Batch workflows as people see them: what ran, runs and waits, and the form's way to start and cancel."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import JsonValue

from batch_workflows.control import WorkflowControl
from batch_workflows.rpc import parse_parameters, parse_policy
from batch_workflows.runner import find_workflow
from batch_workflows.runs import RunRecord, RunRequest
from batch_workflows.schedules import Schedule
from debug_ui._exceptions import BadInput
from debug_ui.backends import Backends
from debug_ui.views import View

RUNS_SHOWN = 50


class FailuresView(View):
    """Items of a run that failed for one reason."""

    kind: str
    reason: str
    count: int
    examples: tuple[str, ...]


class RunView(View):
    """One run."""

    id: str
    workflow: str
    outcome: str
    said: str
    running: bool
    waiting: bool
    started_us: int
    ended_us: int
    seconds: float
    share: float | None
    """Done of the total, 0..1; None where the total is not known."""
    progress: str
    rate: float | None
    eta_s: float | None
    parameters: dict[str, JsonValue]
    policy: str
    counts: dict[str, JsonValue]
    failed: int
    failures: tuple[FailuresView, ...]
    who: str
    why: str
    trigger: str
    attempts: int
    code_version: str
    cancel: str
    resumable: bool


class ScheduleView(View):
    """When a workflow runs by itself."""

    when: str
    every: str
    """As it is written in the form, for example 6h; "" with a cron expression."""
    cron: str
    parameters: dict[str, JsonValue]
    on_error: str
    """continue or stop; "": the workflow's own."""
    next_due_us: int
    """0 while it is paused."""
    paused: str
    """By whom and why; "": it is in force."""
    who: str
    why: str
    set_us: int


class WorkflowView(View):
    """One workflow: what it takes, when it runs by itself, and how its last run stands."""

    name: str
    summary: str
    parameters: dict[str, str]
    """Name -> what it is by default, as JSON."""
    startable: bool
    """Whether the running service can run it."""
    busy: bool
    schedule: ScheduleView | None
    last: RunView | None


def workflow_views(backends: Backends) -> list[WorkflowView]:
    """Return every workflow. Raises RepoError, BatchError."""
    return [
        WorkflowView(
            name=state.workflow.name,
            summary=state.workflow.summary,
            parameters={
                name: "" if field.is_required() else str(field.get_default(call_default_factory=True))
                for name, field in state.workflow.parameters.model_fields.items()
            },
            startable=not state.workflow.needs_rest,
            busy=state.last is not None and state.last.outcome.value in ("queued", "running"),
            schedule=None if state.schedule is None else _schedule_view(state.schedule, state.next_due_us),
            last=None if state.last is None else run_view(state.last),
        )
        for state in WorkflowControl(backends.repo).states()
    ]


def run_views(backends: Backends, workflow: str = "") -> list[RunView]:
    """Return runs, those that wait first, then the newest. Raises RepoError."""
    return [run_view(record) for record in WorkflowControl(backends.repo).runs.runs(workflow or None, RUNS_SHOWN)]


def find_run(backends: Backends, name: str) -> RunView:
    """Return a run by its id, or the last one of a workflow. Raises UnknownRun."""
    return run_view(WorkflowControl(backends.repo).find(name))


def find_workflow_view(backends: Backends, name: str) -> WorkflowView:
    """Return one workflow. Raises UnknownWorkflow, RepoError."""
    find_workflow(name)
    return next(view for view in workflow_views(backends) if view.name == name)


def start_run(backends: Backends, form: Mapping[str, str]) -> RunView:
    """Put a run in the queue as the form says. Raises BadInput, BatchError, RepoError."""
    who, why = _signed(form, "start it")
    resume = form.get("resume", "") == "on"
    request = RunRequest(
        workflow=form.get("workflow", ""),
        parameters={} if resume else parse_parameters(form.get("parameters", "")),
        policy=parse_policy(form.get("on_error", ""), None),
        who=who,
        why=why,
        trigger="ui",
        resume=0 if resume else None,
    )
    return run_view(WorkflowControl(backends.repo).request(request))


def cancel_run(backends: Backends, name: str, form: Mapping[str, str]) -> RunView:
    """Ask a run to end. Raises BadInput, BatchError, RepoError."""
    who, why = _signed(form, "cancel it")
    return run_view(WorkflowControl(backends.repo).cancel(name, who, why))


def change_schedule(backends: Backends, name: str, form: Mapping[str, str]) -> None:
    """Set, pause, enable or remove a workflow's schedule, as the form's `action` says.

    Raises BadInput, BatchError, RepoError, and then nothing has been changed.
    """
    who, why = _signed(form, "change the schedule")
    control = WorkflowControl(backends.repo)
    match form.get("action", ""):
        case "set":
            control.schedule(
                name, every=form.get("every", "").strip(), cron=form.get("cron", "").strip(),
                parameters=parse_parameters(form.get("parameters", "")),
                policy=parse_policy(form.get("on_error", ""), None), who=who, why=why,
            )  # fmt: skip
        case "pause":
            control.pause_schedule(name, who, why)
        case "enable":
            control.enable_schedule(name, who, why)
        case "remove":
            if not control.unschedule(name, who):
                raise BadInput(f"{name} has no schedule any more: somebody else has removed it")
        case other:
            raise BadInput(f"a schedule cannot be changed by {other[:40]!r}: set, pause, enable or remove it")


def _signed(form: Mapping[str, str], what: str) -> tuple[str, str]:
    """Return who fills the form in and why. Raises BadInput where one of them is missing."""
    who, why = form.get("who", "").strip(), form.get("why", "").strip()
    if not who or not why:
        raise BadInput(f"say who you are and why you {what}: whoever is on call next reads it")
    return who, why


def _schedule_view(schedule: Schedule, next_due_us: int) -> ScheduleView:
    return ScheduleView(
        when=str(schedule), every="" if schedule.cron else str(schedule).removeprefix("every "), cron=schedule.cron,
        parameters=schedule.parameters, on_error="" if schedule.policy is None else schedule.policy.on_error,
        next_due_us=next_due_us, paused=schedule.paused, who=schedule.who, why=schedule.why, set_us=schedule.set_us,
    )  # fmt: skip


def run_view(record: RunRecord) -> RunView:
    """Return a record for show."""
    progress = record.progress
    return RunView(
        id=record.id,
        workflow=record.workflow,
        outcome=record.outcome.value,
        said=record.said,
        running=record.outcome.value == "running",
        waiting=record.outcome.value == "queued",
        started_us=record.started_us,
        ended_us=record.ended_us,
        seconds=record.seconds,
        share=min(1.0, progress.done / progress.total) if progress is not None and progress.total else None,
        progress="" if progress is None else str(progress),
        rate=None if progress is None else progress.rate,
        eta_s=None if progress is None else progress.eta_s,
        parameters=record.request.parameters,
        policy=str(record.policy),
        counts=record.counts,
        failed=record.failed,
        failures=tuple(
            FailuresView(kind=f.kind, reason=f.reason, count=f.count, examples=f.examples) for f in record.failures
        ),
        who=record.request.who,
        why=record.request.why,
        trigger=record.request.trigger,
        attempts=len(record.attempts),
        code_version=record.code_version,
        cancel=record.cancel,
        resumable=record.resumable,
    )
