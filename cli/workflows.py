"""`adsindex workflow`: run batch work here or in the service, see what ran, cancel it, have it run by itself."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.runtime import CommandError
from cli.show import table_of
from cli.workflow_runs import detach_workflow, flags, parse_sets, run_workflow, whoami
from messaging.home import Home

if TYPE_CHECKING:
    from batch_workflows.runs import RunRecord

workflow_app = typer.Typer(no_args_is_help=True, help="Batch work: base index, refresh, sync, snapshots, backfill.")
_HomeOption = Annotated[
    Path | None, typer.Option("--home", help="Where this installation keeps its state.", envvar="ADSINDEX_HOME")
]
_JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
_SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A parameter; VALUE is JSON or text. Repeatable.")
]
_OnErrorOption = Annotated[str, typer.Option("--on-error", help="continue or stop; default: the workflow's own.")]
_MaxFailuresOption = Annotated[
    int | None, typer.Option("--max-failures", min=0, help="With continue: stop after more failed items than this.")
]
_WhyOption = Annotated[str, typer.Option("--why", help="For whoever reads the record.")]


@workflow_app.command("run")
def workflow_run(
    name: Annotated[str, typer.Argument(help="One of `workflow list`.")],
    home: _HomeOption = None,
    as_json: _JsonOption = False,
    sets: _SetOption = None,
    table: Annotated[str, typer.Option(help="As --set table=…: only rows of this table.")] = "",
    ids: Annotated[str, typer.Option(help="As --set ids=…: only these ids, separated by commas.")] = "",
    advertiser: Annotated[str, typer.Option(help="As --set advertiser=…: only this advertiser's ads.")] = "",
    stored: Annotated[bool, typer.Option("--stored", help="As --set stored=true: do not run the handlers.")] = False,
    force: Annotated[bool, typer.Option("--force", help="As --set force=true: although a gate refuses.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="As --set dry_run=true: only say what would be.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the last run, from its checkpoint.")] = False,
    on_error: _OnErrorOption = "",
    max_failures: _MaxFailuresOption = None,
    why: _WhyOption = "",
    detach: Annotated[bool, typer.Option("--detach", help="Let the running service do it; return at once.")] = False,
    queued: Annotated[bool, typer.Option("--queued", hidden=True)] = False,
) -> None:
    """Run a batch workflow to its end, or have the service run it. One run of a kind at a time.

    Killed, a run goes on from its checkpoint with --resume; runs that the service began it resumes by itself.
    """
    opened = Home.open(home)
    parameters = parse_sets(sets or ()) | flags(
        table=table, ids=ids, advertiser=advertiser, stored=stored, force=force, dry_run=dry_run
    )
    if resume and parameters:
        raise CommandError("--resume goes on with the run's own parameters; leave the others out")
    asked: dict[str, Any] = {"on_error": on_error, "max_failures": max_failures, "why": why, "resume": resume}
    if detach:
        result = detach_workflow(opened, name, parameters, **asked)
    else:
        result = run_workflow(opened, name, parameters=parameters, queued=queued, **asked)
    if as_json:
        _print_json(result)
    else:
        typer.echo("\n".join(f"{key.replace('_', ' ')}: {_short(value)}" for key, value in result.items()))


@workflow_app.command("list")
def workflow_list(
    name: Annotated[str, typer.Argument(help="Runs of this workflow only.")] = "",
    home: _HomeOption = None,
    as_json: _JsonOption = False,
    runs: Annotated[bool, typer.Option("--runs", help="Runs instead of workflows, the newest first.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many runs.")] = 20,
) -> None:
    """List the workflows with their schedules and last runs; with --runs or a NAME, the runs."""
    from batch_workflows.control import WorkflowControl
    from batch_workflows.runner import find_workflow

    if name:
        find_workflow(name)
    from cli.backends import backends

    with backends(Home.open(home)) as opened:
        control = WorkflowControl(opened.repo)
        if name or runs:
            found = control.runs.runs(name or None, limit)
            if as_json:
                _print_json({"runs": [record.to_json() for record in found]})
            else:
                table_of(["run", "started (UTC)", "outcome", "progress", "seconds", "failed", "who"], map_rows(found))
            return
        states = control.states()
    if as_json:
        shown = [
            {
                "name": s.workflow.name,
                "summary": s.workflow.summary,
                "parameters": s.workflow.parameters.model_json_schema().get("properties", {}),
                "schedule": None if s.schedule is None else s.schedule.to_json(),
                "next_due_us": s.next_due_us,
                "last": None if s.last is None else s.last.to_json(),
            }
            for s in states
        ]
        _print_json({"workflows": shown})
        return
    for s in states:
        typer.echo(f"{s.workflow.name:20} {s.workflow.summary}")
        if s.schedule is not None:
            typer.echo(
                f"{'':20}   runs by itself: {s.schedule}, "
                + (f"paused {s.schedule.paused}" if s.schedule.paused else f"next {_time(s.next_due_us)}")
            )
        if s.last is not None:
            typer.echo(f"{'':20}   last: {s.last.id} {s.last.outcome.value}, {_time(s.last.started_us)}")


@workflow_app.command("show")
def workflow_show(
    run: Annotated[str, typer.Argument(help="A run's id, or a workflow for its last run.")],
    home: _HomeOption = None,
    as_json: _JsonOption = False,
) -> None:
    """Show a run: parameters, progress, counts, failures by reason with examples, who started it."""
    from batch_workflows.control import WorkflowControl
    from cli.backends import backends

    with backends(Home.open(home)) as opened:
        record = WorkflowControl(opened.repo).find(run)
    if as_json:
        _print_json(record.to_json() | {"said": record.said})
        return
    request = record.request
    lines = {
        "run": record.id,
        "outcome": record.outcome.value + (f": {record.said}" if record.said else ""),
        "started": f"{_time(record.started_us)} UTC by {request.who or 'unknown'} ({request.trigger})",
        "why": request.why,
        "ended": _time(record.ended_us),
        "seconds": record.seconds or "",
        "attempts": len(record.attempts),
        "parameters": json.dumps(request.parameters),
        "policy": str(record.policy),
        "progress": str(record.progress or ""),
        "cancelled": record.cancel,
        "code": record.code_version,
        **{f"count of {key.replace('_', ' ')}": _short(value) for key, value in record.counts.items()},
    }
    width = max(map(len, lines))
    for label, value in lines.items():
        if value not in ("", None):
            typer.echo(f"{label:{width}}  {value}")
    for failures in record.failures:
        typer.echo(f"failed: {failures.count:,} × {failures.kind}: {failures.reason}")
        for example in failures.examples:
            typer.echo(f"    {example}")


@workflow_app.command("cancel")
def workflow_cancel(
    run: Annotated[str, typer.Argument(help="A run's id, or a workflow for the run that goes on or waits.")],
    home: _HomeOption = None,
    as_json: _JsonOption = False,
    why: _WhyOption = "",
) -> None:
    """Ask a run to end, wherever it runs: it does after its present unit of work, and can be resumed."""
    from batch_workflows.control import WorkflowControl
    from cli.backends import backends

    with backends(Home.open(home)) as opened:
        record = WorkflowControl(opened.repo).cancel(run, whoami(), why)
    if as_json:
        _print_json({"cancelled": record.id})
    else:
        typer.echo(f"{record.id} ends after its present unit of work" if record.number else f"{run} waits no more")


@workflow_app.command("schedule")
def workflow_schedule(
    name: Annotated[str, typer.Argument(help="One of `workflow list`; none: show the schedules.")] = "",
    home: _HomeOption = None,
    as_json: _JsonOption = False,
    every: Annotated[str, typer.Option(help="As 30m, 6h or 1d.")] = "",
    cron: Annotated[str, typer.Option(help="Minute, hour, day of month, month, day of week; UTC.")] = "",
    off: Annotated[bool, typer.Option("--off", help="Take the schedule away.")] = False,
    pause: Annotated[bool, typer.Option("--pause", help="Keep the schedule, but out of force.")] = False,
    enable: Annotated[bool, typer.Option("--enable", help="Put a paused schedule in force from now on.")] = False,
    sets: _SetOption = None,
    on_error: _OnErrorOption = "",
    max_failures: _MaxFailuresOption = None,
    why: _WhyOption = "",
) -> None:
    """Have a workflow run by itself while the service is up; what was missed meanwhile is one run."""
    from batch_workflows.control import WorkflowControl
    from batch_workflows.rpc import parse_policy
    from cli.backends import backends

    with backends(Home.open(home)) as opened:
        control = WorkflowControl(opened.repo)
        if sum(map(bool, (off, pause, enable, every or cron))) > 1 or ((off or pause or enable) and not name):
            raise CommandError("name a workflow, and say one of --every, --cron, --pause, --enable and --off")
        if pause:
            control.pause_schedule(name, whoami(), why)
        elif enable:
            control.enable_schedule(name, whoami(), why)
        elif off:
            said = "is no longer scheduled" if control.unschedule(name, whoami()) else "had no schedule"
            _print_json({"removed": said[0] == "i"}) if as_json else typer.echo(f"{name} {said}")
            return
        elif name and (every or cron):
            control.schedule(
                name, every=every, cron=cron, parameters=parse_sets(sets or ()),
                policy=parse_policy(on_error, max_failures), who=whoami(), why=why,
            )  # fmt: skip
        states = [s for s in control.states() if s.schedule is not None and name in ("", s.workflow.name)]
    if as_json:
        _print_json(
            {"schedules": [s.schedule.to_json() | {"next_due_us": s.next_due_us} for s in states if s.schedule]}
        )
        return
    if not states:
        typer.echo(
            "nothing is scheduled" if not name else f"{name} is not scheduled; say --every 6h or --cron '0 3 * * *'"
        )
        return
    table_of(
        ["workflow", "when", "next (UTC)", "parameters", "set by", "why", "paused"],
        [
            [s.workflow.name, s.schedule, _time(s.next_due_us), json.dumps(s.schedule.parameters), s.schedule.who,
             s.schedule.why, s.schedule.paused]
            for s in states if s.schedule is not None
        ],
    )  # fmt: skip


def map_rows(records: Sequence[RunRecord]) -> list[list[Any]]:
    """Return runs as rows for a table."""
    return [
        [
            r.id if r.number else r.workflow,
            _time(r.started_us),
            r.outcome.value,
            r.progress or "",
            f"{r.seconds:.1f}" if r.ended_us else "",
            r.failed or "",
            r.request.who,
        ]
        for r in records
    ]


def _time(at_us: int) -> str:
    return datetime.fromtimestamp(at_us / 1e6, UTC).isoformat(sep=" ", timespec="seconds")[:19] if at_us else ""


def _short(value: Any) -> str:
    return json.dumps(value, default=str) if isinstance(value, dict | list | tuple) else str(value)


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, ensure_ascii=False, default=str) + "\n")
