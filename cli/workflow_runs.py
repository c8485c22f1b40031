"""Run a workflow in this process, hand it to the service, or start the process that takes one from the queue."""

from __future__ import annotations

import getpass
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import TYPE_CHECKING, Any

from cli.runtime import ROOT, CommandError, code_version, process_file
from cli.supervisor import Supervisor
from messaging.home import Home

if TYPE_CHECKING:
    from batch_workflows.execution import Stop
    from batch_workflows.runs import RunRecord, RunRequest
    from storage_repo import Repo


def run_workflow(
    home: Home,
    name: str,
    *,
    parameters: Mapping[str, Any] | None = None,
    table: str = "",
    ids: Sequence[str] = (),
    advertiser: str = "",
    stored: bool = False,
    force: bool = False,
    on_error: str = "",
    max_failures: int | None = None,
    why: str = "",
    resume: bool = False,
    queued: bool = False,
) -> dict[str, Any]:
    """Run a workflow to its end in this process and return what it counted, with the run's id and outcome.

    Raises UnknownWorkflow, BadParameters, RunBusy, UnknownRun, CommandError for what the machine refuses, and whatever
    else the workflow ends by.
    """
    from batch_workflows.execution import Stop, execute, sentence
    from batch_workflows.rpc import parse_policy
    from batch_workflows.runner import find_workflow
    from batch_workflows.runs import RunRequest

    workflow = find_workflow(name)
    chosen = dict(parameters or {}) | flags(
        table=table, ids=",".join(ids), advertiser=advertiser, stored=stored, force=force
    )
    request = RunRequest(
        workflow=name, parameters=chosen, policy=parse_policy(on_error, max_failures), who=whoami(), why=why,
        resume=0 if resume else None,
    )  # fmt: skip
    stop = Stop()
    at_rest = Supervisor(home, []) if workflow.needs_rest else nullcontext()  # holds the home's lock: no stage may run
    from cli.backends import backends

    with at_rest, backends(home) as opened, _signals(stop), _progress() as progress:
        if queued:
            request = next((r for r in _queue(opened.repo) if r.workflow == name), request)
        if workflow.needs_capture and serving_down(home):
            opened.ads_db.ensure_capture(opened.catalog)
        try:
            record = execute(
                opened, request, stop=stop, queued=queued, code_version=code_version(), on_progress=progress.update,
                on_start=progress.begin,
            )  # fmt: skip
        except OSError as error:  # a full disk, a directory that may not be written
            raise CommandError(f"{name}: {sentence(error)}") from error
    result = {"workflow": name, **record.counts, "seconds": record.seconds, "run": record.id}
    if name == "refresh" and serving_down(home):
        result["note"] = "the service is not up; the rows run when it is"
    if record.said:
        result["said"] = record.said
        result["failures"] = {f"{f.kind}: {f.reason}": f.count for f in record.failures}
    return result


def detach_workflow(
    home: Home,
    name: str,
    parameters: Mapping[str, Any],
    *,
    on_error: str = "",
    max_failures: int | None = None,
    why: str = "",
    resume: bool = False,
) -> dict[str, Any]:
    """Put a run in the queue of the service and return how it waits."""
    from batch_workflows.control import WorkflowControl
    from batch_workflows.rpc import parse_policy
    from batch_workflows.runs import RunRequest
    from cli.backends import backends

    with backends(home) as opened:
        WorkflowControl(opened.repo).request(
            RunRequest(
                workflow=name, parameters=dict(parameters), policy=parse_policy(on_error, max_failures), who=whoami(),
                why=why, resume=0 if resume else None, trigger="detached",
            )
        )  # fmt: skip
    when = "when the service is up" if serving_down(home) else "within seconds"
    return {"workflow": name, "outcome": "queued", "note": f"it begins {when}; see `workflow show {name}`"}


def spawn_queued(home: Home, name: str) -> subprocess.Popen[bytes]:
    """Start a process that takes the queued run of a workflow; its output goes to the home's logs."""
    command = [
        sys.executable, "-m", "cli.workflow_process", "--home", str(home.root), "--workflow", name,
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with (home.logs / f"workflow-{name}.log").open("ab") as out:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out)


def serving_down(home: Home) -> bool:
    """Return whether no `up` runs on the home."""
    return process_file(home, "up").read() is None


def whoami() -> str:
    """Return the user and host that run this command."""
    return f"{getpass.getuser()}@{socket.gethostname()}"


def parse_sets(sets: Sequence[str]) -> dict[str, Any]:
    """Return the parameters of KEY=VALUE texts; a value that is no JSON is text. Raises CommandError."""
    found: dict[str, Any] = {}
    for text in sets:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise CommandError(f"--set {text!r} is no KEY=VALUE")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
        except RecursionError as error:
            raise CommandError(f"--set {key}: {error}") from error
    return found


def _queue(repo: Repo) -> list[RunRequest]:
    from batch_workflows.runs import RunStore

    return RunStore(repo).queued()


def flags(**given: object) -> dict[str, Any]:
    """Return the flags that were given: an empty text and False mean that one was not."""
    return {name: value for name, value in given.items() if value}


@contextmanager
def _signals(stop: Stop) -> Iterator[None]:
    """Let Ctrl-C cancel the run and SIGTERM end it, after its present unit; a second Ctrl-C ends it at once."""

    def on_signal(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if stop.cancelled_by:
                raise KeyboardInterrupt
            stop.cancelled_by = f"by {whoami()}: Ctrl-C"
        stop.set()

    try:
        before = [(number, signal.signal(number, on_signal)) for number in (signal.SIGINT, signal.SIGTERM)]
    except ValueError:  # not the main thread, as in tests: who started us decides
        before = []
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


class _Bar:
    """A progress bar with rate and time left on a terminal; elsewhere nothing."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress

        console = Console(stderr=True)
        self._bar = (
            RichProgress(
                TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[said]}"), console=console
            )
            if console.is_terminal
            else None
        )
        self._task: Any = None

    def begin(self, record: RunRecord) -> None:
        """Show which run this is."""
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(record.id, total=None, said="")

    def update(self, progress: Any) -> None:
        """Show how far it is."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=progress.done, total=progress.total, said=str(progress))

    def end(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()


@contextmanager
def _progress() -> Iterator[_Bar]:
    bar = _Bar()
    try:
        yield bar
    finally:
        bar.end()
