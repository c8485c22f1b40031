"""Workflows as a person operates them: run, list, show, cancel, schedule, by command and by the running service."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from batch_workflows.runs import RunRequest, RunStore
from batch_workflows.schedules import Schedule, ScheduleStore
from cli.runtime import open_catalog, open_repo
from messaging.home import Home
from messaging.proto import adsindex_pb2 as pb
from messaging.proto import adsindex_pb2_grpc as rpc
from messaging.rpc import open_channel
from tests.debug_ui.pipeline import Pipeline, fill
from tests.end_to_end.command import adsindex, as_json, documents, environment, running, stage_pids, until_idle
from tests.support import ROOT

pytestmark = pytest.mark.timeout(900)
ADS = 60
ROWS = 2_000
"""Of a slow backfill: four seconds at its rate, in which it is killed, cancelled, or the service stopped."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home at rest with 60 ads."""
    home = tmp_path_factory.mktemp("workflows") / "home"
    with closing(Pipeline.open(home)) as pipeline:
        fill(pipeline, ADS // 2)
        pipeline.run()
    return home


def wait_for(what: Callable[[], Any]) -> Any:
    """Return what is there once it is; fail after two minutes."""
    deadline = time.monotonic() + 120
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def last(home: Path, name: str, outcome: str, attempts: int = 1) -> Any:
    """Return the last run of a workflow if it stands so, else None, by our own eyes: quicker than a command."""
    opened = Home.open(home)
    with closing(open_repo(opened, open_catalog(opened))) as repo:
        runs = RunStore(repo).runs(name, 1)
    if runs and runs[0].outcome.value == outcome and len(runs[0].attempts) >= attempts:
        return runs[0].to_json()
    return None


def test_run_leaves_a_record(home: Path) -> None:
    """A run by command is listed and shown with who, parameters, counts and outcome; a refused one says why."""
    ran = as_json("workflow", "run", "refresh", "--table", "ad", "--why", "to see", home=home)
    shown = as_json("workflow", "show", ran["run"], home=home)
    assert shown["outcome"] == "succeeded" and shown["request"]["why"] == "to see"
    assert shown["request"]["parameters"] == {"table": "ad"} and "@" in shown["request"]["who"]
    text = adsindex("workflow", "show", "refresh", home=home).stdout
    assert ran["run"] in text and "to see" in text and "count of rows" in text
    assert ran["run"] in adsindex("workflow", "list", "--runs", home=home).stdout
    assert "refresh-1 succeeded" in adsindex("workflow", "list", home=home).stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("workflow", "run", "refresh", "--stored"), ("stored", "its parameters are")),
        (("workflow", "run", "snapshot", "--set", "day"), ("KEY=VALUE",)),
        (("workflow", "run", "snapshot", "--set", "day=tomorrow"), ("tomorrow", "2026-01-31")),
        (("workflow", "run", "snapshot", "--resume", "--set", "day=2026-01-01"), ("own parameters",)),
        (("workflow", "run", "snapshot-import", "--resume"), ("nothing to resume",)),
        (("workflow", "run", "refresh", "--on-error", "maybe"), ("continue or stop",)),
        (("workflow", "show", "refresh-99"), ("refresh-99",)),
        (("workflow", "list", "refesh"), ("refesh", "refresh")),
        (("workflow", "cancel", "refresh-99"), ("refresh-99",)),
        (("workflow", "schedule", "refresh", "--cron", "0 3 * *"), ("five fields",)),
        (("workflow", "schedule", "refresh", "--every", "soon"), ("soon", "6h")),
        (("workflow", "schedule", "refresh", "--pause"), ("refresh has no schedule", "every (6h)")),
        (("workflow", "schedule", "refresh", "--off", "--every", "6h"), ("one of",)),
    ],
)
def test_wrong_input_is_one_clear_sentence(home: Path, words: tuple[str, ...], told: tuple[str, ...]) -> None:
    """What is wrong is named on standard error, without a traceback, and the exit code is not 0."""
    done = adsindex(*words, home=home, check=False)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert all(word in done.stderr for word in told), done.stderr


def test_schedules_are_set_shown_and_removed(home: Path) -> None:
    """A schedule is kept in the home with who set it, shown with its next time, and taken away."""
    set_ = as_json(
        "workflow", "schedule", "snapshot", "--cron", "0 3 * * *", "--set", "documents=false", "--why", "w", home=home
    )
    [schedule] = set_["schedules"]
    assert schedule["cron"] == "0 3 * * *" and schedule["parameters"] == {"documents": False} and schedule["why"] == "w"
    assert schedule["next_due_us"] > time.time() * 1e6
    assert "cron 0 3 * * * (UTC)" in adsindex("workflow", "list", home=home).stdout
    [paused] = as_json("workflow", "schedule", "snapshot", "--pause", "--why", "full disk", home=home)["schedules"]
    assert paused["paused"].endswith(": full disk") and paused["next_due_us"] == 0
    assert "full disk" in adsindex("workflow", "list", home=home).stdout
    [enabled] = as_json("workflow", "schedule", "snapshot", "--enable", home=home)["schedules"]
    assert enabled["paused"] == "" and enabled["next_due_us"] > time.time() * 1e6
    assert as_json("workflow", "schedule", "snapshot", "--off", home=home) == {"removed": True}
    assert as_json("workflow", "schedule", home=home) == {"schedules": []}


def test_ctrl_c_cancels_and_sigterm_interrupts(home: Path, tmp_path: Path) -> None:
    """A run that is stopped from the keyboard is cancelled, one that is terminated is interrupted; both end cleanly,
    and the backfill waits for an Updater meanwhile, which does not run."""
    file = tmp_path / "a.csv"
    file.write_text("id,performance_version\n" + "".join(f"{ad},5\n" for ad in documents(home)))
    for number, outcome in ((signal.SIGINT, "cancelled"), (signal.SIGTERM, "interrupted")):
        process = subprocess.Popen(
            [sys.executable, "-m", "cli.main", "workflow", "run", "backfill", "--home", str(home),
             "--set", f"file={file}", "--set", "table=ad", "--set", "signal=performance"],
            cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        wait_for(lambda: last(home, "backfill", "running"))
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 1 and "was stopped" in said and "Traceback" not in said
        assert last(home, "backfill", outcome)


def test_the_service_runs_what_is_asked_for_and_what_is_due(home: Path, tmp_path: Path) -> None:
    """With the service up: detached runs and those by RPC are done, a killed one is resumed by itself from its
    checkpoint, a schedule fires, a cancel arrives, and `up` stops with a run at work, which the next `up` ends."""
    before = documents(home)
    file = tmp_path / "slow.csv"
    ads = [int(ad) for ad in before]
    with file.open("w", newline="") as handle:
        csv.writer(handle).writerows([["id", "performance_version"], *([ads[n % len(ads)], 5] for n in range(ROWS))])
    slow = {"file": str(file), "table": "ad", "signal": "performance", "rate": 500}
    sets = [word for name, value in slow.items() for word in ("--set", f"{name}={value}")]
    opened = Home.open(home)
    with running(home), closing(open_repo(opened, open_catalog(opened))) as repo:
        wait_for(lambda: "workflows-0" in stage_pids(home, ready=True))
        assert as_json("workflow", "run", "backfill", "--detach", *sets, home=home)["outcome"] == "queued"
        at_work = wait_for(lambda: last(home, "backfill", "running"))
        assert at_work["request"]["trigger"] == "detached"
        busy = adsindex("workflow", "run", "backfill", *sets, home=home, check=False)
        assert busy.returncode == 1 and f"{at_work['id']} runs already" in busy.stderr
        wait_for(lambda: (found := last(home, "backfill", "running")) and found["has_checkpoint"] and found["counts"])
        os.kill(at_work["attempts"][0]["holder"]["pid"], signal.SIGKILL)
        resumed = wait_for(lambda: last(home, "backfill", "succeeded", attempts=2))
        assert resumed["id"] == at_work["id"] and resumed["counts"]["rows"] == ROWS
        past = time.time_ns() // 1000 - 11_000_000
        ScheduleStore(repo).set(Schedule(workflow="snapshot", every_s=10, set_us=past, who="test"))
        port = json.loads((home / "run" / "workflows-0.json").read_text())["port"]
        with open_channel(port) as channel:
            stub = rpc.WorkflowsStub(channel)
            stub.Run(pb.WorkflowRequest(workflow="collect-garbage", who="bot", why="rpc"))
            slower = json.dumps({**slow, "rate": 50})  # still at work when a slow machine has begun to cancel it
            stub.Run(pb.WorkflowRequest(workflow="backfill", parameters_json=slower, who="bot"))
        wait_for(lambda: last(home, "backfill", "running"))
        adsindex("workflow", "cancel", "backfill", "--why", "enough", home=home)
        assert wait_for(lambda: last(home, "backfill", "cancelled"))["cancel"].endswith("enough")
        wait_for(lambda: last(home, "collect-garbage", "succeeded"))
        scheduled = wait_for(lambda: last(home, "snapshot", "succeeded"))
        assert scheduled["request"]["trigger"] == "schedule" and scheduled["counts"]["rows"] > 60
        assert ScheduleStore(repo).remove("snapshot")
        RunStore(repo).submit(RunRequest(workflow="backfill", parameters=slow, who="me", trigger="ui"), "backfill")
        wait_for(lambda: (found := last(home, "backfill", "running")) and found["counts"])
    stopped = last(home, "backfill", "interrupted")
    assert stopped and stopped["has_checkpoint"], "the service's stop is no cancel"
    until_idle(home)
    done = last(home, "backfill", "succeeded", attempts=2)
    assert done and done["id"] == stopped["id"], "a run that is to be resumed is no idleness"
    assert documents(home).keys() == before.keys()
