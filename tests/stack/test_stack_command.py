"""`adsindex stack` as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner, Result

from cli.main import app
from compose import Stack
from tests.stack_support import up_or_skip
from tests.support import ROOT


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A home whose servers are stopped in the end."""
    yield tmp_path / "home"
    Stack(tmp_path / "home" / "stack").down()


def command(*arguments: str | Path) -> Result:
    """Run the command line in this process."""
    return CliRunner().invoke(app, ["stack", *map(str, arguments)])


def as_json(*arguments: str | Path) -> dict[str, Any]:
    """Run the command line with --json and return the object that it prints."""
    done = command(*arguments, "--json")
    assert done.exit_code == 0, done.output
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    """Start the command line as a process."""
    return subprocess.Popen(
        [sys.executable, "-m", "cli.main", "stack", *map(str, arguments)], cwd=ROOT, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_up_status_and_down_of_one_server(home: Path) -> None:
    """The address is in the output as text and JSON; a named server leaves the others alone."""
    up_or_skip(Stack(home / "stack"), ["mysql"])
    up = as_json("up", "mysql", "--home", home)["mysql"]
    assert up["state"] == "ready"
    assert up["url"] == f"mysql+pymysql://adsindex:adsindex@127.0.0.1:{up['port']}/ads"
    both = as_json("status", "--home", home)
    assert both["mysql"] == up
    assert both["kafka"]["state"] == "absent"
    text = command("status", "--home", home).stdout
    assert up["url"] in text
    assert str(up["pid"]) in text
    assert up["log_file"] in text
    assert as_json("down", "mysql", "--home", home) == {"mysql": {**up, "state": "stopped", "pid": 0}}
    assert not psutil.pid_exists(up["pid"])


def test_a_fault_is_one_sentence_and_exit_code_one(home: Path) -> None:
    """No traceback for a wrong name."""
    done = start("up", "oracle", "--home", home)
    output, errors = done.communicate(timeout=100)
    assert done.returncode == 1
    names = "mysql, kafka, hbase, thrift, thrift2, omid, omid2, regionserver, regionserver2, mysql8, s3"
    assert errors == f"adsindex: no server 'oracle'; there are {names}\n"
    assert output == ""


def test_servers_outlive_a_killed_command_and_are_found_again(home: Path) -> None:
    """SIGKILL of `up` in the middle of starting loses nothing: another `up` waits for its server, `down` stops it."""
    up_or_skip(Stack(home / "stack"), ["mysql"])
    Stack(home / "stack").down()
    pid_file = home / "stack" / "mysql" / "server.pid"
    starting = start("up", "mysql", "--home", home)
    deadline = time.monotonic() + 100
    while not pid_file.exists():
        assert time.monotonic() < deadline, "no server was started"
        time.sleep(0.001)
    starting.kill()
    starting.communicate()
    up = as_json("up", "mysql", "--home", home)["mysql"]
    assert str(up["pid"]) == pid_file.read_text().split()[0], "a second server was started"
    as_json("down", "--home", home)
    assert not psutil.pid_exists(up["pid"]) or psutil.Process(up["pid"]).status() == psutil.STATUS_ZOMBIE
