"""Workflows over gRPC: what the command line and the page can do, programs can."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from batch_workflows._exceptions import BadParameters
from batch_workflows._runs_model import Policy
from batch_workflows.rpc import parse_policy, serve
from batch_workflows.runs import RunStore
from messaging.proto import adsindex_pb2 as pb
from messaging.proto import adsindex_pb2_grpc as rpc
from messaging.rpc import open_channel
from tests.batch_workflows.run_support import Opened, open_home, run


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    """A home with an empty Repo."""
    home = open_home(tmp_path)
    yield home
    home.repo.close()


@pytest.fixture
def client(opened: Opened) -> Iterator[rpc.WorkflowsStub]:
    """A client of a server on that home."""
    server, port = serve(opened.repo)
    with open_channel(port) as channel:
        yield rpc.WorkflowsStub(channel)
    server.stop(grace=None).wait()


def test_start_list_show_cancel(opened: Opened, client: rpc.WorkflowsStub) -> None:
    """A run is queued with who and why, shown with others, cancelled while it waits; one that ran has its record."""
    run(opened, "test-count", units=3)
    asked = pb.WorkflowRequest(workflow="test-count", parameters_json='{"units": 2}', who="bot", why="nightly")
    queued = client.Run(asked)
    assert (queued.id, queued.outcome, queued.who) == ("test-count-0", "queued", "bot")
    assert json.loads(queued.record_json)["request"]["parameters"] == {"units": 2}
    runs = client.List(pb.WorkflowListRequest()).runs
    assert [(r.id, r.outcome) for r in runs] == [("test-count-0", "queued"), ("test-count-1", "succeeded")]
    shown = client.Show(pb.WorkflowRunName(id="test-count-1"))
    assert (shown.done, shown.total, shown.unit, shown.who) == (3, 3, "units", "tester") and shown.seconds > 0
    assert client.Cancel(pb.WorkflowCancelRequest(id="test-count", who="bot")).outcome == "cancelled"
    assert RunStore(opened.repo).queued() == []


def test_schedules(client: rpc.WorkflowsStub) -> None:
    """Kinds tell parameters and schedules; a schedule is set and removed."""
    request = pb.WorkflowRequest(workflow="test-count", parameters_json='{"units": 2}', who="bot")
    kind = client.Schedule(pb.WorkflowScheduleRequest(request=request, cron="0 3 * * *"))
    assert json.loads(kind.schedule_json)["cron"] == "0 3 * * *" and kind.next_due_us > 0 and kind.resumable
    kinds = {k.name: k for k in client.Kinds(pb.WorkflowKindsRequest()).workflows}
    assert kinds["test-count"] == kind and {"backfill", "snapshot", "resync"} <= kinds.keys()
    assert "units" in json.loads(kind.parameters_schema_json)["properties"]
    assert client.Schedule(pb.WorkflowScheduleRequest(request=request, remove=True)).schedule_json == ""


def test_no_failure_is_allowed_by_none() -> None:
    """--max-failures 0 is a policy of its own, not the default; nothing said is the workflow's own policy."""
    assert parse_policy("", 0) == parse_policy("continue", 0) == Policy(max_failures=0)
    assert parse_policy("", None) is None and parse_policy("stop", None) == Policy(on_error="stop")
    with pytest.raises(BadParameters, match="at least 0"):
        parse_policy("", -1)


TOO_NEW = json.dumps({"file": "x.csv", "table": "ad", "signal": "extra", "version": 1 << 63})


@pytest.mark.parametrize(
    "call, code, said",
    [
        (lambda c: c.Run(pb.WorkflowRequest(workflow="nope")), grpc.StatusCode.NOT_FOUND, "there are"),
        (lambda c: c.Show(pb.WorkflowRunName(id="test-count-9")), grpc.StatusCode.NOT_FOUND, "no run"),
        (lambda c: c.Cancel(pb.WorkflowCancelRequest(id="x", who="y")), grpc.StatusCode.NOT_FOUND, "no run"),
        (
            lambda c: c.Run(pb.WorkflowRequest(workflow="test-count", parameters_json='{"unit": 1}')),
            grpc.StatusCode.INVALID_ARGUMENT,
            "unit: Extra inputs",
        ),
        (
            lambda c: c.Run(pb.WorkflowRequest(workflow="test-count", parameters_json="[1")),
            grpc.StatusCode.INVALID_ARGUMENT,
            "no JSON",
        ),
        (
            lambda c: c.Run(pb.WorkflowRequest(workflow="test-count", parameters_json='{"a":"' + "x" * 70_000 + '"}')),
            grpc.StatusCode.INVALID_ARGUMENT,
            "at most",
        ),
        (
            lambda c: c.Run(pb.WorkflowRequest(workflow="test-count", parameters_json="[" * 60_000)),
            grpc.StatusCode.INVALID_ARGUMENT,
            "can be read: maximum recursion",
        ),
        (
            lambda c: c.Run(pb.WorkflowRequest(workflow="backfill", parameters_json=TOO_NEW)),
            grpc.StatusCode.INVALID_ARGUMENT,
            "version: Input should be less than 9223372036854775808",
        ),
        (
            lambda c: c.Run(pb.WorkflowRequest(workflow="test-count", on_error="maybe")),
            grpc.StatusCode.INVALID_ARGUMENT,
            "continue or stop",
        ),
        (
            lambda c: [c.Run(pb.WorkflowRequest(workflow="test-count")) for _ in range(2)],
            grpc.StatusCode.FAILED_PRECONDITION,
            "waits",
        ),
    ],
)
def test_errors_have_codes_and_sentences(
    client: rpc.WorkflowsStub, call: Callable[[rpc.WorkflowsStub], object], code: grpc.StatusCode, said: str
) -> None:
    """What cannot be is answered with a code for programs and a sentence for people."""
    with pytest.raises(grpc.RpcError) as failure:
        call(client)
    assert failure.value.code() is code and said in str(failure.value.details())
