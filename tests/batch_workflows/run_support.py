"""Workflows for the tests of runs, and a process that runs one: `python run_support.py HOME WORKFLOW [--resume]`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batch_workflows import BaseRefused
from batch_workflows.execution import Stop, execute
from batch_workflows.leases import TTL_S
from batch_workflows.runner import Counts, NoParameters, Parameters, RunContext, workflow
from batch_workflows.runs import RunRequest, RunStore
from catalog import DEFAULT_CATALOG, Catalog, load_catalog
from catalog.values import decode, encode
from messaging.home import Home
from storage_repo import Repo, RepoSchema
from storage_repo.embedded import EmbeddedRepo
from tests.support import ROOT

CATALOG = load_catalog(DEFAULT_CATALOG)
UNITS = 40
ROW = ("advertiser", "counted", "meta:count")


@dataclass(frozen=True)
class Opened:
    """What these workflows use of a home's backends."""

    home: Home
    catalog: Catalog
    repo: Repo
    log: Any = None
    ads_db: Any = None
    open_repo: Any = None


def open_home(root: Path) -> Opened:
    """Open a home's Repo."""
    home = Home.open(root)
    schema = RepoSchema.of(CATALOG.repo_tables())
    return Opened(home, CATALOG, EmbeddedRepo.open(home.store, schema, wake_dir=home.wake))


class CountParameters(Parameters):
    """Of test-count."""

    units: int = UNITS
    pause_s: float = 0.0
    fail_at: tuple[int, ...] = ()


@workflow("test-count", "adds 1 to a cell per unit", CountParameters, resumable=True)
def count(context: RunContext[CountParameters]) -> Counts:
    """Add 1 to a cell for every unit, each in one fenced transaction with nothing between it and the checkpoint."""
    for unit in range(context.state or 0, context.parameters.units):
        context.check()
        if unit in context.parameters.fail_at:
            context.failed("unit", str(unit), "unlucky", "as asked")
        transaction = context.begin()
        before = decode(transaction.get(*ROW[:2]).get(ROW[2])) or 0
        transaction.put(*ROW, encode(unit + 1 if before == unit else before))
        transaction.commit()
        context.counts["units"] = unit + 1
        context.progress(unit + 1, context.parameters.units, "units")
        context.checkpoint(unit + 1)
        print(unit, flush=True)
        if context.parameters.pause_s:
            time.sleep(context.parameters.pause_s)
    return {"last": context.parameters.units}


class RowsParameters(Parameters):
    """Of test-rows."""

    rows: int


@workflow("test-rows", "says how many rows it has seen, not how many there are", RowsParameters)
def see_rows(context: RunContext[RowsParameters]) -> Counts:
    """Say so."""
    for row in range(context.parameters.rows):
        context.progress(row + 1, unit="rows")
    return {}


@workflow("test-zombie", "waits without a sign of life, then writes", NoParameters)
def zombie(context: RunContext[NoParameters]) -> Counts:
    """Begin a fenced transaction, say so, wait for a line (the test stops this process meanwhile), and commit."""
    transaction = context.begin()
    transaction.put(*ROW, b"zombie")
    print("begun", flush=True)
    sys.stdin.readline()
    transaction.commit()
    return {}


@workflow("test-refused", "is refused by its gate", NoParameters)
def refused(context: RunContext[NoParameters]) -> Counts:
    """Refuse."""
    raise BaseRefused("field 'x': 3% have it")


@workflow("test-bug", "has a bug", NoParameters)
def bug(context: RunContext[NoParameters]) -> Counts:
    """Divide by zero."""
    context.counts["before"] = 1
    return {"never": 1 // 0}


def run(
    opened: Any,
    name: str,
    resume: bool = False,
    ttl_s: float = TTL_S,
    trigger: Any = "command",
    queued: bool = False,
    **parameters: Any,
) -> Any:
    """Run a workflow in this process and return its record."""
    store = RunStore(opened.repo, ttl_s=ttl_s)
    request = RunRequest(
        workflow=name, parameters=parameters, who="tester", resume=0 if resume else None, trigger=trigger
    )
    if queued:
        [request] = store.queued()
    return execute(opened, request, store=store, stop=Stop(), queued=queued)


def start(home: Path, name: str, *arguments: str, **parameters: Any) -> subprocess.Popen[str]:
    """Start this file as a process."""
    return subprocess.Popen(
        [sys.executable, __file__, str(home), name, json.dumps(parameters), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


if __name__ == "__main__":
    here = open_home(Path(sys.argv[1]))
    options = dict(a.removeprefix("--").split("=") for a in sys.argv[4:] if "=" in a)
    try:
        done = run(
            here, sys.argv[2], resume="--resume" in sys.argv, queued="--queued" in sys.argv,
            ttl_s=float(options.get("ttl", TTL_S)), trigger=options.get("trigger", "command"),
            **json.loads(sys.argv[3]),
        )  # fmt: skip
        print(done.outcome.value, flush=True)
    except Exception as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        raise
