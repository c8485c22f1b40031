"""Syncs that the Gateway asks for: a table was emptied, or capture was lost, and rows may be gone unseen."""

from __future__ import annotations

import structlog
from pydantic import JsonValue

from batch_workflows._clocks import wall_us
from batch_workflows._exceptions import RunBusy
from batch_workflows._runs_model import Outcome, RunRequest
from batch_workflows.runner import find_workflow
from batch_workflows.runs import RunStore
from gateway import lost_rows
from messaging import Log

WORKFLOW = "sync"
AGAIN_US = 60_000_000
"""A sync that failed is asked for again after so long: something is away, or held."""
CANCELLED_AGAIN_US = 3_600_000_000
"""And one that a person cancelled: whoever did so had a reason, and the rows are still to be looked for."""
_AGAIN_US = {Outcome.FAILED: AGAIN_US, Outcome.CANCELLED: CANCELLED_AGAIN_US}


def submit_wanted(log: Log, runs: RunStore) -> bool:
    """Queue a sync of the tables that the Gateway asks for, if it does; say whether one was queued.

    The request stays until a sync has met it, whoever started that. Raises RepoError, LogError.
    """
    wanted = lost_rows.pending(log)
    if wanted is None:
        return False
    last = next(iter(runs.runs(WORKFLOW, 1)), None)
    if last is not None and wall_us() - last.ended_us < _AGAIN_US.get(last.outcome, 0):
        return False
    request = RunRequest(
        workflow=WORKFLOW,
        parameters={"tables": list[JsonValue](sorted(wanted.tables)), "parts": ["ads_db"]},
        who="gateway",
        why="rows may have been deleted without a change that says so",
        trigger="restart",
        at_us=wall_us(),
    )
    try:
        runs.submit(request, find_workflow(WORKFLOW).lease)
    except RunBusy:
        return False
    structlog.get_logger().warning("sync_wanted", tables=sorted(wanted.tables) or "all", by="gateway")
    return True
