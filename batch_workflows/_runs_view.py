"""How a run is shown as it stands: with live progress, and as interrupted where its process is gone."""

from __future__ import annotations

import structlog

from batch_workflows._clocks import wall_us
from batch_workflows._exceptions import BadRunRecord
from batch_workflows._runs_model import ENDED, Outcome, RunRecord, RunRequest
from batch_workflows.leases import BEAT, CANCEL, CHECKPOINT, FENCE, LIVE, RECORD, Beat, Fence, Held, Live
from catalog.model import WORKFLOW_TABLE
from storage_repo import Row, Snapshot

RUN_CELLS = (RECORD, LIVE, CANCEL, CHECKPOINT)
GONE = "its process ended without saying so (killed, or its machine is away)"
_SHOWN_GONE = 4
"""A run of another machine that was silent for so many lifetimes of its lease is shown as interrupted. Nothing else is
decided by it: who goes on with the run watches the lease first."""


def parsed(row: str, cells: Row) -> RunRecord:
    """Return a record as it is stored; one that cannot be read as a failed run that says so."""
    try:
        return RunRecord.of_cell(f"{WORKFLOW_TABLE}/{row}", cells.get(RECORD, b""))
    except BadRunRecord as error:
        _, workflow, number = row.split("/")
        request = RunRequest(workflow=workflow)
        return RunRecord(
            workflow=workflow, number=int(number), request=request, outcome=Outcome.FAILED, error=str(error)
        )


def shown(snapshot: Snapshot, row: str, cells: Row, ttl_s: float) -> RunRecord:
    """Return a record as it stands: with live progress, and as interrupted if its process is gone."""
    record = parsed(row, cells)
    record = record.model_copy(update={"has_checkpoint": CHECKPOINT in cells})
    if record.outcome in ENDED:
        return record
    record = with_live(record, row, cells)
    token = record.attempts[-1].token if record.attempts else 0
    leases = snapshot.scan(WORKFLOW_TABLE, prefix="lease/", columns=[FENCE, BEAT])
    for name, found in leases:
        try:
            held = Held(Fence.of_cell(name, found.get(FENCE, b"{}")), Beat.of_cell(name, found.get(BEAT, b"{}")))
        except BadRunRecord as error:  # one that cannot be read must not hide all runs
            structlog.get_logger().error("workflow_lease_unreadable", error=str(error))
            continue
        if (held.fence.workflow, held.fence.number, held.fence.token) == (record.workflow, record.number, token):
            silent_s = (wall_us() - held.beat.at_us) / 1e6
            if held.free or silent_s > _SHOWN_GONE * ttl_s:
                break
            return record
    return record.model_copy(update={"outcome": Outcome.INTERRUPTED, "error": GONE})


def with_live(record: RunRecord, row: str, cells: Row) -> RunRecord:
    """Return a record with what its run says of itself while it goes on."""
    if LIVE not in cells:
        return record.model_copy(update={"cancel": cells.get(CANCEL, b"").decode()})
    live = Live.of_cell(row, cells[LIVE])
    return record.model_copy(
        update={
            "progress": live.progress,
            "failures": live.failures,
            "counts": live.counts,
            "cancel": cells.get(CANCEL, b"").decode(),
        }
    )
