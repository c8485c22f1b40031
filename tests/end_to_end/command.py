"""The command line as a person uses it: real processes, real homes."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from cli.backends import backends
from cli.idle import IdleWatch, outstanding
from messaging.home import Home
from messaging.switches import Switches
from tests.support import ROOT

UP_SECONDS = 900
_ON_THEIR_OWN = ("up", "stack", "bench")
"""Commands that start processes which outlive or supervise others: started as from a shell."""


def environment() -> dict[str, str]:
    """Return the environment that the launcher gives."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def adsindex(
    *words: str | Path, home: Path, check: bool = True, text: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command on a home and return it; a failure shows what it printed."""
    line = [*map(str, words), "--home", str(home)]
    if words[0] in _ON_THEIR_OWN:
        done = subprocess.run(
            [sys.executable, "-m", "cli.main", *line],
            cwd=ROOT, env=environment(), capture_output=True, text=True, input=text, timeout=UP_SECONDS, check=False,
        )  # fmt: skip
    else:
        done = _server().run(line, text or "")
    if check and done.returncode != 0:
        raise AssertionError(f"{words} exited {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done


class _CommandServer:
    """Starts commands as processes that need not import everything anew, which takes seconds each."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="adsindex-commands-"))
        self._address = str(self._folder / "socket")
        command = [sys.executable, "-m", "tests.end_to_end.command_server", self._address]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, cwd=ROOT, env=environment())
        atexit.register(self.close)

    def run(self, words: list[str], text: str) -> subprocess.CompletedProcess[str]:
        """Run a command with this process's environment and wait for it."""
        asked = {"words": words, "cwd": str(ROOT), "environment": environment()}
        with (
            tempfile.TemporaryFile("w+") as read,
            tempfile.TemporaryFile("w+") as out,
            tempfile.TemporaryFile("w+") as err,
        ):
            read.write(text)
            read.seek(0)
            with self._connected() as connection, connection.makefile() as answers:
                streams = [stream.fileno() for stream in (read, out, err)]
                socket.send_fds(connection, [json.dumps(asked).encode() + b"\n"], streams)
                pid = int(answers.readline())
                connection.settimeout(UP_SECONDS)
                try:
                    code = int(answers.readline())
                except TimeoutError:
                    os.kill(pid, signal.SIGKILL)
                    raise
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(words, code, out.read(), err.read())

    def _connected(self) -> socket.socket:
        """Connect; the first time the server may have to import first."""
        deadline = time.monotonic() + 120
        while True:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(self._address)
            except (FileNotFoundError, ConnectionRefusedError):
                connection.close()
                assert self._process.poll() is None, "the server of commands has ended"
                assert time.monotonic() < deadline
                time.sleep(0.02)
            else:
                return connection

    def close(self) -> None:
        """End the server; commands that run go on."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(30)
        shutil.rmtree(self._folder, ignore_errors=True)


@cache
def _server() -> _CommandServer:
    """The server of this test process, started when it is first asked."""
    return _CommandServer()


def as_json(*words: str | Path, home: Path) -> Any:
    """Run a command with --json and return its object."""
    return json.loads(adsindex(*words, "--json", home=home).stdout)


def until_idle(home: Path, *words: str) -> dict[str, Any]:
    """Bring the service up until nothing is outstanding; return its report."""
    report: dict[str, Any] = as_json("up", "--until-idle", *(words or ("--sample", "0")), home=home)
    return report


def settle(home: Path) -> None:
    """Wait until nothing is outstanding in the service that runs on a home: what `up --until-idle` looks for."""
    deadline = time.monotonic() + UP_SECONDS
    with backends(Home.open(home)) as opened:
        watch, switches = IdleWatch(), Switches(opened.log)
        while not watch.look(state := outstanding(opened, opened.serving.stats()["positions"], switches, certain=True)):
            assert time.monotonic() < deadline, f"not idle: {state}"
            time.sleep(0.05)


def documents(home: Path, *words: str) -> dict[str, str]:
    """Return id -> canonical bytes (hex) of every servable document; with "--served" of what serving has."""
    lines = adsindex("documents", "--no-readable", *words, home=home).stdout.splitlines()
    return {row["id"]: row["document"] for row in map(json.loads, lines)}


def readable_documents(home: Path) -> dict[str, dict[str, Any]]:
    """Return id -> fields of every servable document."""
    return {row["id"]: row["document"] for row in map(json.loads, adsindex("documents", home=home).stdout.splitlines())}


def answers(home: Path, requests: list[dict[str, Any]], folder: Path) -> list[set[str]]:
    """Return the ids that fit each request."""
    file = folder / "requests.jsonl"
    file.write_text("".join(json.dumps(request) + "\n" for request in requests))
    lines = adsindex("search", "--requests", file, "-k", "0", "--json", home=home).stdout.splitlines()
    found = [json.loads(line) for line in lines]
    assert all(answer["total"] == len(answer["hits"]) for answer in found)
    return [{str(hit["ad_id"]) for hit in answer["hits"]} for answer in found]


@contextmanager
def running(home: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run `up` beside the test; stopped by SIGTERM at the end, as a service manager would."""
    with (home.parent / "up.out").open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "cli.main", "up", "--home", str(home), *(words or ("--sample", "0"))],
            cwd=home.parent, env=environment(), stdout=out, stderr=out,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 90
        while not (
            stage_pids(home, ready=True).keys() >= {"gateway-0", "updater-0", "wal_proxy-0", "argus-0", "manas-0"}
        ):
            assert process.poll() is None, (home.parent / "up.out").read_text()
            assert time.monotonic() < deadline, f"not up: {stage_pids(home)}"
            time.sleep(0.05)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def stage_pids(home: Path, *, ready: bool = False) -> dict[str, int]:
    """Return process name -> pid as the stages wrote them."""
    pids = {}
    for file in (home / "run").glob("*-*.json"):
        try:
            values = json.loads(file.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            continue
        if not ready or values["state"] == "ready":
            pids[values["process"]] = values["pid"]
    return pids
