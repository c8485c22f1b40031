"""Run a workflow under its lease, and record what became of it, whatever happens in between."""

from __future__ import annotations

import errno
import threading
import traceback
from collections.abc import Callable
from typing import Any

import structlog
from pydantic import JsonValue

from batch_workflows._clocks import elapsed_s, wall_us
from batch_workflows._exceptions import BadParameters, BaseRefused, BatchError, LeaseLost, RunStopped, UnknownRun
from batch_workflows._runs_model import MAX_TEXT, Outcome, Progress, RunRecord, RunRequest
from batch_workflows.leases import Lease, Live
from batch_workflows.runner import Opened, RunContext, Workflow, find_workflow
from batch_workflows.runs import RunStore
from gateway import GatewayError
from manas import ManasError
from messaging import MessagingError
from storage_repo import RepoError

EXPECTED = (BatchError, GatewayError, ManasError, MessagingError, RepoError, OSError)
"""Faults of input or surroundings: their text says what to do. Of everything else the traceback is kept."""


class Stop(threading.Event):
    """Set when the process is to end. `cancelled_by` names the person who ends the run with it, if one does."""

    cancelled_by: str = ""


def execute(
    opened: Opened,
    request: RunRequest,
    *,
    store: RunStore | None = None,
    stop: Stop | None = None,
    queued: bool = False,
    code_version: str = "",
    on_start: Callable[[RunRecord], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> RunRecord:
    """Run a workflow to its end and return its record, which is stored then.

    Whatever the workflow raises is recorded first and then raised. Killed at any point, the run shows as interrupted,
    and a request with `resume` goes on from its last checkpoint. `stop` ends it after its present unit of work.
    Raises UnknownWorkflow, BadParameters, RunBusy, UnknownRun (nothing was recorded), and what workflows raise.
    """
    workflow = find_workflow(request.workflow)
    store, stop = store or RunStore(opened.repo), stop or Stop()
    try:
        if request.resume is not None:
            workflow.check_resumable()
        elif not queued:
            workflow.check(request.parameters)  # of a queued one the fault goes into the record, where people look
        record, lease, state, live = store.take(
            request, workflow.lease, workflow.policy, code_version=code_version, queued=queued,
            alone=workflow.needs_rest, stop=stop,
        )  # fmt: skip
    except (BadParameters, UnknownRun) as error:
        if queued:  # what can never begin must not keep others of the workflow from it
            store.refuse(request, str(error), code_version)
        raise
    run = _Run(workflow, store, record, lease, live, stop)
    try:
        if on_start is not None:
            on_start(record)
        context = RunContext(
            opened=opened, parameters=workflow.check(record.request.parameters), record=record, lease=lease,
            state=state, policy=record.policy, stop=stop, code_version=code_version, on_progress=on_progress,
            last=store.like(record),
        )  # fmt: skip
        run.begin(context)
        counts = workflow.function(context)
    except LeaseLost as error:
        structlog.get_logger().error("workflow_run_lost", run=record.id, error=str(error))
        raise  # whoever has the lease has recorded this run's end
    except BaseException as error:
        run.failed(error)
        raise
    else:
        return run.succeeded(counts)
    finally:
        lease.stop()


class _Run:
    """One attempt: keeps what has been counted, and records how it ended."""

    def __init__(
        self, workflow: Workflow, store: RunStore, record: RunRecord, lease: Lease, live: Live, stop: Stop
    ) -> None:
        self._workflow, self._store, self._record, self._lease, self._stop = workflow, store, record, lease, stop
        self._live = live
        self._begun = elapsed_s()
        self._context: RunContext[Any] | None = None

    def begin(self, context: RunContext[Any]) -> None:
        """Let the context go on counting where the last checkpoint left off, and begin the beats."""
        self._context = context
        context.go_on(self._live.failures, self._live.counts)
        self._lease.failures, self._lease.counts = (lambda: context.failures), (lambda: dict(context.counts))
        if not self._workflow.needs_rest:
            self._lease.start()

    def succeeded(self, counts: Any) -> RunRecord:
        """Record a run that did all it was to do."""
        return self._finish(Outcome.SUCCEEDED, "", dict(counts))

    def failed(self, error: BaseException) -> None:
        """Record a run that ended by an error. If even that fails, the run shows as interrupted once we are gone."""
        text = sentence(error)
        if isinstance(error, RunStopped | KeyboardInterrupt):
            by_person = self._stop.cancelled_by or self._lease.cancelled or isinstance(error, KeyboardInterrupt)
            outcome = Outcome.CANCELLED if by_person else Outcome.INTERRUPTED
        else:
            outcome = Outcome.REFUSED if isinstance(error, BaseRefused) else Outcome.FAILED
        if outcome is Outcome.FAILED and not isinstance(error, EXPECTED):
            text = f"{text}\n{''.join(traceback.format_exception(error))[-MAX_TEXT:]}"
        counts: dict[str, JsonValue] = (
            {"report": error.report} if isinstance(error, BaseRefused) and error.report else {}
        )
        try:
            self._finish(outcome, text, counts)
        except (BatchError, RepoError) as second:
            structlog.get_logger().error("workflow_outcome_not_recorded", run=self._record.id, error=str(second))

    def _finish(self, outcome: Outcome, error: str, counts: dict[str, JsonValue]) -> RunRecord:
        context, spent = self._context, elapsed_s() - self._begun
        record = self._record.model_copy(
            update={
                "outcome": outcome,
                "error": error[: 2 * MAX_TEXT],
                "ended_us": wall_us(),
                "seconds": round(self._record.seconds + spent, 3),
                "counts": {} if context is None else {**context.counts, **counts},
                "failures": () if context is None else context.failures,
                "progress": self._lease.live().progress,
                "cancel": self._stop.cancelled_by or self._lease.cancelled,
            }
        )
        self._store.finish(self._lease, record, keep_checkpoint=outcome not in (Outcome.SUCCEEDED, Outcome.REFUSED))
        structlog.get_logger().info(
            "workflow_run", run=record.id, outcome=outcome.value, seconds=record.seconds, failed=record.failed
        )
        return record


def sentence(error: BaseException) -> str:
    """Return what to tell people of an error, with what to do where the error itself does not say."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = error.filename or "a disk"
        return f"{where}: {error.strerror}; free some space and run it again with --resume; nothing half-made is used"
    if isinstance(error, EXPECTED) and str(error):
        return str(error)
    return f"{type(error).__name__}: {error}"
