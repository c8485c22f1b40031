"""The workflows' RPC: start, list, show, cancel and schedule, for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from batch_workflows._exceptions import BadParameters, BatchError, RunBusy, UnknownRun, UnknownWorkflow
from batch_workflows._runs_model import Policy, RunRecord, RunRequest
from batch_workflows.control import WorkflowControl, WorkflowState
from messaging.proto import adsindex_pb2 as pb
from messaging.proto import adsindex_pb2_grpc as rpc
from messaging.rpc import start_server
from storage_repo import Repo, RepoError

MAX_JSON = 64 << 10
"""Parameters are a selection, not data; whole lists of keys belong into a file."""
_MAX_RUNS = 1_000
_STATUS: tuple[tuple[type[Exception], grpc.StatusCode], ...] = (
    (UnknownWorkflow, grpc.StatusCode.NOT_FOUND),
    (UnknownRun, grpc.StatusCode.NOT_FOUND),
    (RunBusy, grpc.StatusCode.FAILED_PRECONDITION),
    (BadParameters, grpc.StatusCode.INVALID_ARGUMENT),
    (BatchError, grpc.StatusCode.INTERNAL),
    (RepoError, grpc.StatusCode.UNAVAILABLE),
)


@contextmanager
def _answering(context: grpc.ServicerContext) -> Iterator[None]:
    """Turn our errors into status codes with their sentence."""
    try:
        yield
    except (BatchError, RepoError) as error:
        context.abort(next(code for kind, code in _STATUS if isinstance(error, kind)), str(error))


class WorkflowsServicer(rpc.WorkflowsServicer):
    """Service adsindex.v1.Workflows."""

    def __init__(self, repo: Repo) -> None:
        self._control = WorkflowControl(repo)

    def Kinds(self, request: pb.WorkflowKindsRequest, context: grpc.ServicerContext) -> pb.WorkflowKinds:
        """List the workflows with their parameters and schedules."""
        with _answering(context):
            return pb.WorkflowKinds(workflows=[_kind(state) for state in self._control.states()])
        raise AssertionError("abort raises")

    def Run(self, request: pb.WorkflowRequest, context: grpc.ServicerContext) -> pb.WorkflowRun:
        """Put a run in the queue."""
        with _answering(context):
            return to_message(self._control.request(_request(request)))
        raise AssertionError("abort raises")

    def List(self, request: pb.WorkflowListRequest, context: grpc.ServicerContext) -> pb.WorkflowRuns:
        """List runs, the newest first."""
        with _answering(context):
            found = self._control.runs.runs(request.workflow or None, min(request.limit or 50, _MAX_RUNS))
            return pb.WorkflowRuns(runs=[to_message(record) for record in found])
        raise AssertionError("abort raises")

    def Show(self, request: pb.WorkflowRunName, context: grpc.ServicerContext) -> pb.WorkflowRun:
        """Show one run."""
        with _answering(context):
            return to_message(self._control.find(request.id))
        raise AssertionError("abort raises")

    def Cancel(self, request: pb.WorkflowCancelRequest, context: grpc.ServicerContext) -> pb.WorkflowRun:
        """Ask a run to end."""
        with _answering(context):
            return to_message(self._control.cancel(request.id, request.who, request.why))
        raise AssertionError("abort raises")

    def Schedule(self, request: pb.WorkflowScheduleRequest, context: grpc.ServicerContext) -> pb.WorkflowKind:
        """Set or remove a schedule."""
        asked = request.request
        with _answering(context):
            if request.remove:
                self._control.unschedule(asked.workflow, asked.who)
            else:
                wanted = _request(asked)
                self._control.schedule(
                    asked.workflow, every=request.every, cron=request.cron, parameters=wanted.parameters,
                    policy=wanted.policy, who=asked.who, why=asked.why,
                )  # fmt: skip
            return next(_kind(state) for state in self._control.states() if state.workflow.name == asked.workflow)
        raise AssertionError("abort raises")


def serve(repo: Repo) -> tuple[grpc.Server, int]:
    """Start the server on a free loopback port."""
    return start_server(lambda server: rpc.add_WorkflowsServicer_to_server(WorkflowsServicer(repo), server))


def parse_parameters(text: str) -> dict[str, Any]:
    """Return the JSON object of a text, empty for an empty one. Raises BadParameters."""
    if not text.strip():
        return {}
    if len(text) > MAX_JSON:
        raise BadParameters(f"the parameters have {len(text)} characters, at most {MAX_JSON} are allowed")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadParameters(f"the parameters are no JSON that can be read: {error}") from error
    if not isinstance(value, dict):
        raise BadParameters("the parameters must be one JSON object")
    return value


def parse_policy(on_error: str, max_failures: int | None) -> Policy | None:
    """Return the policy that was asked for, None for the workflow's own. Raises BadParameters."""
    if not on_error and max_failures is None:
        return None
    given: dict[str, Any] = {"on_error": on_error or "continue"}
    if max_failures is not None:
        given["max_failures"] = max_failures
    try:
        return Policy.model_validate(given)
    except ValueError as error:
        raise BadParameters(f"on_error is continue or stop, and max_failures at least 0, not {given}") from error


def to_message(record: RunRecord) -> pb.WorkflowRun:
    """Return a run as a message."""
    progress = record.progress
    message = pb.WorkflowRun(
        id=record.id, workflow=record.workflow, outcome=record.outcome.value, started_us=record.started_us,
        ended_us=record.ended_us, seconds=record.seconds, who=record.request.who, said=record.said,
        record_json=json.dumps(record.to_json(), ensure_ascii=False),
    )  # fmt: skip
    if progress is not None:
        message.done, message.total, message.unit = progress.done, progress.total or 0, progress.unit
        message.rate, message.eta_s = progress.rate or 0.0, progress.eta_s or 0.0
    return message


def _request(asked: pb.WorkflowRequest) -> RunRequest:
    return RunRequest(
        workflow=asked.workflow,
        parameters=parse_parameters(asked.parameters_json),
        policy=parse_policy(asked.on_error, asked.max_failures or None),
        who=asked.who,
        why=asked.why,
        trigger="rpc",
        resume=0 if asked.resume else None,
    )


def _kind(state: WorkflowState) -> pb.WorkflowKind:
    workflow = state.workflow
    return pb.WorkflowKind(
        name=workflow.name,
        summary=workflow.summary,
        parameters_schema_json=json.dumps(workflow.parameters.model_json_schema()),
        resumable=workflow.resumable,
        schedule_json="" if state.schedule is None else json.dumps(state.schedule.to_json()),
        next_due_us=state.next_due_us,
    )
