"""The page of workflows: runs as they stand, and starting and cancelling with the guards of every post."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from batch_workflows._runs_model import Failures, Outcome, Policy, Progress
from batch_workflows.execution import execute
from batch_workflows.runs import RunRequest, RunStore
from batch_workflows.schedules import ScheduleStore
from debug_ui.app import create_app
from tests.batch_workflows import run_support
from tests.debug_ui.pipeline import Pipeline


@pytest.fixture
def client(pipeline: Pipeline) -> Iterator[TestClient]:
    """A client of the pages."""
    with TestClient(create_app(pipeline.backends), base_url="http://127.0.0.1:8080") as opened:
        yield opened


def token(client: TestClient) -> str:
    """Return the form's token."""
    found = re.search(r'name="csrf_token" value="([^"]+)"', client.get("/workflows").text)
    assert found is not None
    return found[1]


def going_on(pipeline: Pipeline, number: int = 1) -> None:
    """Leave a run of test-count that goes on, half done, with two failed units."""
    request = RunRequest(workflow="test-count", parameters={"units": 9}, who="<b>mallory</b>", why="to see")
    record, lease, _, _ = RunStore(pipeline.backends.repo).take(request, "test-count", Policy())
    lease.show(Progress(done=450, total=1_000, unit="units", rate=12.5, eta_s=44.0))
    lease.failures = lambda: [Failures(kind="unit", reason="unlucky", count=2, examples=("3: as asked", "<i>4"))]
    lease.renew()
    assert record.number == number


def test_a_run_that_goes_on(pipeline: Pipeline, client: TestClient) -> None:
    """State, progress, rate, time left, who, parameters and failures are shown, and what people wrote is escaped."""
    going_on(pipeline)
    page = client.get("/workflows").text
    for text in ("test-count-1", "running", "450 of 1,000 units (45%), 12/s, 44 s left", "&lt;b&gt;mallory", "to see"):
        assert text in page, text
    run = client.get("/workflows/run/test-count-1").text
    for text in ("units = 9", "unlucky", "3: as asked", "&lt;i&gt;4", "go on, and stop after more than 1000 failures"):
        assert text in run, text
    assert "<b>mallory" not in page + run and 'http-equiv="refresh"' in run
    asked = client.get("/workflows/run/test-count-1?cancel=true").text
    assert 'http-equiv="refresh"' not in asked, "a page that reloads would wipe the form"
    assert client.get("/api/workflows/runs").json()[0]["share"] == 0.45


def test_start_and_cancel(pipeline: Pipeline, client: TestClient) -> None:
    """The form queues a run with who and why; a second is refused; what waits is taken back, what runs told to end."""
    form = {
        "csrf_token": token(client),
        "workflow": "test-count",
        "parameters": '{"units": 2}',
        "who": "me",
        "why": "x",
    }
    assert client.post("/workflows/start", data=form, follow_redirects=False).status_code == 303
    store = RunStore(pipeline.backends.repo)
    [request] = store.queued()
    assert (request.who, request.trigger, request.parameters) == ("me", "ui", {"units": 2})
    assert "queued" in client.get("/workflows/run/test-count").text
    busy = client.post("/workflows/start", data=form)
    assert busy.status_code == 409 and "waits to begin already" in busy.text
    assert client.post("/workflows/run/test-count/cancel", data=form).status_code == 200
    assert store.queued() == []
    going_on(pipeline, 2)
    assert store.get("test-count-1").cancel == "by me: x", "what was cancelled before it began is on record"
    assert client.post("/workflows/run/test-count-2/cancel", data=form).status_code == 200
    assert store.get("test-count-2").cancel == "by me: x"


@pytest.mark.parametrize(
    "change, status, said",
    [
        ({"csrf_token": "wrong"}, 403, "token"),
        ({"workflow": "nope"}, 404, "there are"),
        ({"workflow": "repair-after-restore"}, 400, "service to be down"),
        ({"parameters": "{"}, 400, "no JSON"),
        ({"parameters": '{"unit": 1}'}, 400, "its parameters are"),
        ({"who": " "}, 400, "say who you are"),
        ({"why": ""}, 400, "say who you are"),
    ],
)
def test_starts_that_are_refused(
    pipeline: Pipeline, client: TestClient, change: dict[str, str], status: int, said: str
) -> None:
    """A foreign post, an unknown workflow, bad parameters and a start without a name queue nothing and say why."""
    form = {"csrf_token": token(client), "workflow": "test-count", "parameters": "", "who": "me", "why": "x"} | change
    answer = client.post("/workflows/start", data=form)
    assert answer.status_code == status and said in answer.text
    assert RunStore(pipeline.backends.repo).queued() == []
    foreign = client.post("/workflows/start", data=form, headers={"origin": "http://evil.example"})
    assert foreign.status_code == 403


SCHEDULE = {"action": "set", "every": "6h", "cron": "", "parameters": '{"units": 2}', "who": "me", "why": "nightly"}


def test_a_schedule_is_set_paused_enabled_and_removed(pipeline: Pipeline, client: TestClient) -> None:
    """Each is a form of its own page, kept with who and why, and what people wrote is escaped."""
    store, url = ScheduleStore(pipeline.backends.repo), "/workflows/schedule/test-count"
    form = {"csrf_token": token(client), **SCHEDULE, "why": "<b>nightly"}
    assert 'href="/workflows/schedule/test-count">set a schedule' in client.get("/workflows").text
    assert client.post(url, data=form, follow_redirects=False).headers["location"] == url
    [schedule] = store.all()
    assert (schedule.every_s, schedule.parameters, schedule.who) == (21_600, {"units": 2}, "me")
    page = client.get(url).text
    for text in ("in force", "every 6h", "units = 2", "me: &lt;b&gt;nightly", 'value="6h"'):
        assert text in page, text
    paused = client.post(url, data=form | {"action": "pause", "why": "too much load"}).text
    assert "by me: too much load" in paused and 'value="enable"' in paused and "in force" not in paused
    assert "paused" in client.get("/workflows").text
    assert "in force" in client.post(url, data=form | {"action": "enable"}).text
    replaced = client.post(url, data=form | {"every": "", "cron": "0 3 * * *", "on_error": "stop"}).text
    assert "cron 0 3 * * * (UTC)" in replaced and '<option value="stop" selected>' in replaced
    assert [str(s) for s in store.all()] == ["cron 0 3 * * * (UTC)"]
    assert "runs when it is asked for" in client.post(url, data=form | {"action": "remove"}).text
    assert store.all() == []
    gone = client.post(url, data=form | {"action": "remove"})
    assert gone.status_code == 400 and "no schedule any more" in gone.text


@pytest.mark.parametrize(
    "name, change, status, said",
    [
        ("test-count", {"csrf_token": "wrong"}, 403, "token"),
        ("nope", {}, 404, "there are"),
        ("repair-after-restore", {}, 400, "service to be down"),
        ("test-count", {"every": "soon"}, 400, "no span of time"),
        ("test-count", {"every": "", "cron": "0 3 * *"}, 400, "five fields"),
        ("test-count", {"cron": "0 3 * * *"}, 400, "either"),
        ("test-count", {"parameters": "{"}, 400, "no JSON"),
        ("test-count", {"parameters": '{"unit": 1}'}, 400, "its parameters are"),
        ("test-count", {"who": " "}, 400, "say who you are"),
        ("test-count", {"action": "explode"}, 400, "explode"),
        ("test-count", {"action": "pause"}, 400, "has no schedule"),
    ],
)
def test_schedules_that_are_refused(
    pipeline: Pipeline, client: TestClient, name: str, change: dict[str, str], status: int, said: str
) -> None:
    """A foreign post and bad input set nothing and say why, in words."""
    form = {"csrf_token": token(client), **SCHEDULE} | change
    answer = client.post(f"/workflows/schedule/{name}", data=form)
    assert answer.status_code == status and said in answer.text, answer.text
    foreign = client.post(
        "/workflows/schedule/test-count", data=form | {"csrf_token": token(client)},
        headers={"origin": "http://evil.example"},
    )  # fmt: skip
    assert foreign.status_code == 403
    assert ScheduleStore(pipeline.backends.repo).all() == []


def test_runs_that_ended(pipeline: Pipeline, client: TestClient) -> None:
    """Counts, outcome and the sentence of a failed run are shown; one that nobody knows is not found."""
    done = execute(pipeline.backends, RunRequest(workflow="test-count", parameters={"units": 4}, who="me"))
    with pytest.raises(ZeroDivisionError):
        execute(pipeline.backends, RunRequest(workflow="test-bug", who="me"))
    assert done.outcome is Outcome.SUCCEEDED
    page = client.get("/workflows/run/test-count-1").text
    assert "succeeded" in page and "last" in page and "not yet" not in page
    failed = client.get("/workflows/run/test-bug").text
    assert "ZeroDivisionError" in failed and "whole text" in failed
    assert client.get("/workflows/run/test-count-77").status_code == 404
    assert "test-bug-1" not in client.get("/workflows?workflow=test-count").text.split("<h2>Workflows")[0]
    names = {w["name"]: w for w in client.get("/api/workflows").json()}
    assert names["test-count"]["last"]["id"] == "test-count-1" and not names["repair-after-restore"]["startable"]
    assert run_support.UNITS
