"""Base indexes on a real S3 server, by command: published, followed by another server, killed, rolled back, away."""

from __future__ import annotations

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

from batch_workflows import base_mirror
from batch_workflows.objects import Objects
from catalog import load_catalog
from cli.inprocess import InProcess
from compose import ServerInfo, Stack
from manas import current_base
from messaging.home import Home
from messaging.metrics import read_metrics
from tests.batch_workflows.s3_support import account, new_bucket
from tests.debug_ui.pipeline import Pipeline, fill
from tests.end_to_end.command import adsindex, as_json, documents, environment
from tests.stack_support import up_or_skip
from tests.support import ROOT

__all__ = ["account"]

pytestmark = pytest.mark.timeout(900)
ADS = 40
PATIENCE = "&patience_s=20"
"""Shorter than the default, for S3 is stopped below; longer than a busy machine lets an S3 that runs wait."""


@pytest.fixture
def s3(own_stack: Stack) -> ServerInfo:
    """An S3 server that this test may stop."""
    return up_or_skip(own_stack, ["s3"])["s3"]


@pytest.fixture
def home(tmp_path: Path, account: None) -> Path:
    """A home at rest."""
    home = tmp_path / "builder" / "home"
    with closing(Pipeline.open(home)) as pipeline:
        fill(pipeline, ADS // 2)
        pipeline.run()
    return home


@pytest.fixture
def server(tmp_path: Path, home: Path) -> Home:
    """The home of a server beside it: it shares log and Repo, and has bases of its own."""
    root = tmp_path / "server"
    root.mkdir()
    for shared in ("log", "wake", "store"):
        (root / shared).symlink_to(home / shared)
    return Home.open(root)


def wait_for(what: Callable[[], Any], seconds: float = 120) -> Any:
    """Return what is there once it is."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def failures(home: Home) -> int:
    """Return how often the stage could not look at the address."""
    return sum(stage["counters"].get("mirror_failures", 0) for stage in read_metrics(home.metrics))


def test_bases_on_s3_by_command(s3: ServerInfo, home: Path, server: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is published there is served elsewhere; what was killed on the way is nowhere; away, it is only missed."""
    address = f"{new_bucket(s3)}{PATIENCE}"
    for one in (home, server.root):
        assert as_json("workflow", "run", "base-address", "--set", f"to={address}", home=one)["address"] == address
    monkeypatch.setattr(base_mirror, "LOOK_SECONDS", 0.05)
    with InProcess(server, load_catalog(), ["bases", "manas"]):
        first = as_json("workflow", "run", "base-index", home=home)["base_version"]
        wait_for(lambda: current_base(server.base) == first)
        wait_for(lambda: documents(server.root, "--served") == documents(home))

        interrupted(home, Objects(address))
        [listed] = as_json("workflow", "run", "list-bases", home=home)["bases"]
        assert (listed["version"], listed["current"], listed["documents"]) == (first, True, ADS)
        assert current_base(server.base) == first

        second = as_json("workflow", "run", "base-index", home=home)["base_version"]
        assert Objects(address).directories() == [first, second], "nothing is left of what was killed"
        wait_for(lambda: current_base(server.base) == second)
        assert (
            as_json("workflow", "run", "verify-base", "--set", f"at={address}", home=server.root)["version"] == second
        )
        assert as_json("workflow", "run", "rollback-base", home=home)["base_version"] == first
        wait_for(lambda: current_base(server.base) == first)

        os.kill(s3.pid, signal.SIGSTOP)
        try:
            refused = adsindex("workflow", "run", "base-index", home=home, check=False)
            assert refused.returncode == 1 and "Traceback" not in refused.stderr
            assert "no answer for" in refused.stderr and "endpoint is right" in refused.stderr, refused.stderr
            wait_for(lambda: failures(server))
            assert documents(server.root, "--served") == documents(home), "serving goes on"
        finally:
            os.kill(s3.pid, signal.SIGCONT)
        shown = as_json("workflow", "show", "base-index", home=home)
        assert shown["outcome"] == "failed" and "no answer for" in shown["said"]
        third = as_json("workflow", "run", "base-index", home=home)["base_version"]
        wait_for(lambda: current_base(server.base) == third)


def interrupted(home: Path, objects: Objects) -> None:
    """Begin a build by command, and kill it -9 when its first files are there."""
    before = len(objects.names())
    command = [sys.executable, "-m", "cli.main", "workflow", "run", "base-index", "--home", str(home)]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for(lambda: len(objects.names()) > before + 1 or process.poll() is not None)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "the build was quicker than its killer"
    assert len(objects.names()) > before
