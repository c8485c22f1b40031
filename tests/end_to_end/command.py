"""The command line as a person uses it: real processes, real homes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support import ROOT

UP_SECONDS = 900


def environment() -> dict[str, str]:
    """Return the environment that the launcher gives."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def adsindex(
    *words: str | Path, home: Path, check: bool = True, text: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command on a home and return it; a failure shows what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "cli.main", *map(str, words), "--home", str(home)],
        cwd=ROOT, env=environment(), capture_output=True, text=True, input=text, timeout=UP_SECONDS, check=False,
    )  # fmt: skip
    if check and done.returncode != 0:
        raise AssertionError(f"{words} exited {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done


def as_json(*words: str | Path, home: Path) -> Any:
    """Run a command with --json and return its object."""
    return json.loads(adsindex(*words, "--json", home=home).stdout)


def until_idle(home: Path, *words: str) -> dict[str, Any]:
    """Bring the service up until nothing is outstanding; return its report."""
    report: dict[str, Any] = as_json("up", "--until-idle", *(words or ("--sample", "0")), home=home)
    return report


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
