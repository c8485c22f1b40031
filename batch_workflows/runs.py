"""The record of every run, the queue of those that wait, and who may run: all in one table of the Storage Repo.

Rows are `lease/NAME`, `queue/WORKFLOW`, `run/WORKFLOW/NUMBER` and `schedule/WORKFLOW`. Taking a lease, ending the run
that lost it, and beginning or resuming one is a single transaction, so a crash leaves either all of it or nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import structlog

from batch_workflows._clocks import this_process, wall_us
from batch_workflows._exceptions import BadRunRecord, RunBusy, UnknownRun
from batch_workflows._runs_model import MAX_TEXT, Attempt, Outcome, Policy, RunRecord, RunRequest
from batch_workflows._runs_view import GONE, RUN_CELLS, parsed, shown, with_live
from batch_workflows.leases import (
    BEAT,
    CANCEL,
    CHECKPOINT,
    FENCE,
    LIVE,
    ORIGIN,
    RECORD,
    TTL_S,
    Beat,
    Fence,
    Held,
    Lease,
    Live,
    lease_row,
    read_checkpoint,
    read_lease,
    run_row,
    silent,
)
from catalog.model import WORKFLOW_TABLE
from storage_repo import Conflict, Repo, Row, Snapshot, SnapshotTooOld, Transaction

__all__ = ["Outcome", "RunRecord", "RunRequest", "RunStore"]

RECORDS_KEPT = 100
"""Of a workflow: four days of an hourly one, three months of a daily one. The last that succeeded stays besides."""
REQUEST = "meta:request"
_ATTEMPTS = 20
_ALL = 1_000_000


class RunStore:
    """Runs of one installation. Holds no state but the Repo; safe for threads as the Repo is."""

    def __init__(self, repo: Repo, *, ttl_s: float = TTL_S) -> None:
        self.repo, self.ttl_s = repo, ttl_s

    def submit(
        self, request: RunRequest, lease: str, only_if: Callable[[Transaction], bool] = lambda _transaction: True
    ) -> bool:
        """Put a run in the queue, from which the `workflows` stage takes it; return whether it is there.

        `only_if` is asked last and may write, which becomes visible with the request or not at all.
        Raises RunBusy when one of the workflow waits there already, or one with the same lease runs.
        """
        there = False

        def write(transaction: Transaction) -> None:
            nonlocal there
            row = f"queue/{request.workflow}"
            if cells := transaction.get(WORKFLOW_TABLE, row, [REQUEST]):
                waiting = RunRequest.of_cell(row, cells[REQUEST])
                raise RunBusy(f"{request.workflow}: a run by {waiting.who} waits to begin already")
            held = read_lease(transaction, lease)
            if not held.free and self._fresh(held):
                raise RunBusy(self._busy(transaction, held))
            there = only_if(transaction)
            if there:
                transaction.put(WORKFLOW_TABLE, row, REQUEST, request.to_cell())

        self._commit(write)
        return there

    def refuse(self, request: RunRequest, why: str, code_version: str = "") -> None:
        """Take a request that cannot be met out of the queue and record why; nothing if it waits there no more.

        Raises RepoError.
        """
        self._drop(request.workflow, Outcome.REFUSED, error=why[:MAX_TEXT], only=request, code_version=code_version)

    def _drop(
        self, workflow: str, outcome: Outcome, *, only: RunRequest | None = None, **fields: str
    ) -> RunRecord | None:
        """End a run that waits (or only that one) before it began; return its record, None if none waits."""
        ended: RunRecord | None = None

        def write(transaction: Transaction) -> None:
            nonlocal ended
            ended, row = None, f"queue/{workflow}"
            cell = transaction.get(WORKFLOW_TABLE, row, [REQUEST]).get(REQUEST)
            waiting = None if cell is None else RunRequest.of_cell(row, cell)
            if waiting is None or only not in (None, waiting):
                return
            records, now = {run.number: run for run in self._records(transaction, workflow)}, wall_us()
            ended = RunRecord(
                workflow=workflow,
                number=max(records, default=0) + 1,
                request=waiting.model_copy(update={"at_us": now}),
                outcome=outcome,
                ended_us=now,
            ).model_copy(update=fields)
            transaction.delete(WORKFLOW_TABLE, row, REQUEST)
            transaction.put(WORKFLOW_TABLE, run_row(workflow, ended.number), RECORD, ended.to_cell())
            self._forget_old(transaction, workflow, records)

        self._commit(write)
        return ended

    def resumed(self, request: RunRequest) -> RunRecord:
        """Return the run that a request to go on with one means. Raises UnknownRun when there is none to go on with."""
        return self._to_resume(request, {run.number: run for run in self.runs(request.workflow, _ALL) if run.number})

    def holder(self, record: RunRecord, lease: str) -> Held | None:
        """Return the lease of a run as it is read now, None if the run has it no more, or its process is gone."""
        held = read_lease(self.repo.snapshot(), lease)
        mine = (held.fence.workflow, held.fence.number) == (record.workflow, record.number)
        return held if mine and not held.free else None

    def queued(self) -> list[RunRequest]:
        """Return the runs that wait, at most one of a workflow. What does not parse is logged and waits for ever."""
        found = []
        for row, cells in self.repo.snapshot().scan(WORKFLOW_TABLE, prefix="queue/", columns=[REQUEST]):
            try:
                found.append(RunRequest.of_cell(f"{WORKFLOW_TABLE}/{row}", cells[REQUEST]))
            except BadRunRecord as error:
                structlog.get_logger().error("workflow_request_unreadable", error=str(error))
        return found

    def unqueue(self, workflow: str) -> bool:
        """Take a run out of the queue unrun; return whether there was one."""
        found = False

        def write(transaction: Transaction) -> None:
            nonlocal found
            found = bool(transaction.get(WORKFLOW_TABLE, f"queue/{workflow}", [REQUEST]))
            if found:
                transaction.delete(WORKFLOW_TABLE, f"queue/{workflow}", REQUEST)

        self._commit(write)
        return found

    def busy(self, lease: str) -> bool:
        """Return whether somebody who gave a sign of life of late has the lease."""
        held = read_lease(self.repo.snapshot(), lease)
        return not held.free and self._fresh(held)

    def at_work(self) -> list[str]:
        """Return the leases of runs that go on, and the workflows of those that wait."""
        snapshot = self.repo.snapshot()
        leases = [row.removeprefix("lease/") for row, _ in snapshot.scan(WORKFLOW_TABLE, prefix="lease/")]
        return [name for name in leases if self.busy(name)] + [request.workflow for request in self.queued()]

    def take(
        self,
        request: RunRequest,
        lease: str,
        policy: Policy,
        *,
        code_version: str = "",
        queued: bool = False,
        alone: bool = False,
        stop: threading.Event | None = None,
    ) -> tuple[RunRecord, Lease, Any, Live]:
        """Take the lease and begin the run, or go on with the one that the request names.

        Returns the record, the lease (its beats not started), and the last checkpoint's state and counts. A run whose
        holder is gone or silent for TTL_S seconds is recorded as interrupted; nothing is waited for while its holder
        was heard of in that time. `queued`: the request leaves the queue in the same transaction. `alone`: the caller
        holds the home's lock, so nobody else can be at work. Raises RunBusy, UnknownRun, RepoError.
        """
        seen: Held | None = None
        wait = (stop or threading.Event()).wait
        while True:
            held = read_lease(self.repo.snapshot(), lease)
            if not (alone or held.free or held == seen):
                if self._fresh(held):
                    raise RunBusy(self._busy(self.repo.snapshot(), held))
                if not silent(self.repo, lease, held, wait, self.ttl_s):
                    raise RunBusy(self._busy(self.repo.snapshot(), read_lease(self.repo.snapshot(), lease)))
                seen = held
            taken = self._try_take(request, lease, held, policy, code_version, queued)
            if taken is not None:
                return taken

    def finish(self, lease: Lease, record: RunRecord, *, keep_checkpoint: bool) -> None:
        """Record how a run ended and give the lease back, in one step. Raises LeaseLost, RepoError."""
        lease.stop()
        row, fence = run_row(record.workflow, record.number), lease.fence_cell

        def write(transaction: Transaction) -> None:
            cells = transaction.get(WORKFLOW_TABLE, row, [*RUN_CELLS])
            transaction.put(WORKFLOW_TABLE, row, RECORD, record.to_cell())
            for cell in (LIVE, *(() if keep_checkpoint else (CHECKPOINT,))):
                if cell in cells:
                    transaction.delete(WORKFLOW_TABLE, row, cell)
            transaction.put(WORKFLOW_TABLE, lease_row(lease.name), FENCE, Fence(token=fence.token).to_cell())

        lease.write(write)

    def runs(self, workflow: str | None = None, limit: int = 50) -> list[RunRecord]:
        """Return runs as they stand now, those that wait and then the newest first. A row that does not parse is told
        as a failed run, so that one bad row does not hide the others."""
        snapshot = self.repo.snapshot()
        prefix = "run/" if workflow is None else f"run/{workflow}/"
        found = [shown(snapshot, row, cells, self.ttl_s) for row, cells in self._rows(snapshot, prefix)]
        if workflow is None:
            found.sort(key=lambda record: (record.started_us, record.number), reverse=True)
        else:  # in the order in which they began, whatever a clock said then
            found.reverse()
        waiting = [
            RunRecord(workflow=request.workflow, number=0, request=request, outcome=Outcome.QUEUED)
            for request in self.queued()
            if workflow in (None, request.workflow)
        ]
        return [*waiting, *found[:limit]]

    def latest(self) -> dict[str, RunRecord]:
        """Return workflow -> its run that waits, or else its last one, whatever a clock said when it began."""
        found: dict[str, RunRecord] = {}
        for record in self.runs(limit=_ALL):
            known = found.get(record.workflow)
            if known is None or (known.number and record.number > known.number):
                found[record.workflow] = record
        return found

    def get(self, run_id: str) -> RunRecord:
        """Return a run by its id, WORKFLOW-NUMBER. Raises UnknownRun, BadRunRecord."""
        return self._get(self.repo.snapshot(), run_id)

    def cancel(self, run_id: str, who: str, why: str = "") -> RunRecord:
        """Ask a run to end; it does so after its present unit of work. Of one that waits: WORKFLOW or WORKFLOW-0.

        Raises UnknownRun when it does not run.
        """
        workflow = run_id.removesuffix("-0")
        said = f"by {who}{f': {why}' if why else ''}"
        waited = self._drop(workflow, Outcome.CANCELLED, cancel=said)
        if waited is not None:
            return waited
        record = self.get(run_id)
        if record.outcome is not Outcome.RUNNING:
            raise UnknownRun(f"{run_id} does not run: it was {record.outcome.value}")
        text = said.encode()[:1_000]
        row = run_row(record.workflow, record.number)
        self._commit(lambda transaction: transaction.put(WORKFLOW_TABLE, row, CANCEL, text))
        return record

    def last(self, workflow: str, outcome: Outcome = Outcome.SUCCEEDED) -> RunRecord | None:
        """Return the newest run of a workflow that ended so."""
        return next((record for record in self.runs(workflow, RECORDS_KEPT) if record.outcome is outcome), None)

    def like(self, record: RunRecord) -> RunRecord | None:
        """Return the newest run of the same workflow with the same parameters that succeeded."""
        done = (run for run in self.runs(record.workflow, _ALL) if run.outcome is Outcome.SUCCEEDED)
        return next((run for run in done if run.request.parameters == record.request.parameters), None)

    def _try_take(
        self, request: RunRequest, lease: str, seen: Held, policy: Policy, code_version: str, queued: bool
    ) -> tuple[RunRecord, Lease, Any, Live] | None:
        """Take the lease if it still is as it was seen; None if somebody came between."""
        transaction = self.repo.begin(ORIGIN)
        held = read_lease(transaction, lease)
        if held != seen:
            transaction.abort()
            return None
        if queued and REQUEST not in transaction.get(WORKFLOW_TABLE, f"queue/{request.workflow}", [REQUEST]):
            transaction.abort()
            raise UnknownRun(f"{request.workflow}: no run waits any more")
        records = {record.number: record for record in self._records(transaction, request.workflow)}
        attempt = Attempt(token=held.fence.token + 1, holder=this_process(), started_us=wall_us())
        state: Any = None
        live = Live()
        if request.resume is not None:
            record = self._to_resume(request, records)
            cells = transaction.get(WORKFLOW_TABLE, run_row(record.workflow, record.number), [CHECKPOINT, CANCEL])
            if CHECKPOINT in cells:
                state, live = read_checkpoint(cells[CHECKPOINT])
            if CANCEL in cells:
                transaction.delete(WORKFLOW_TABLE, run_row(record.workflow, record.number), CANCEL)
            record = record.model_copy(
                update={
                    "attempts": (*record.attempts, attempt),
                    "outcome": Outcome.RUNNING,
                    "ended_us": 0,
                    "error": "",
                    "cancel": "",
                    "code_version": code_version,
                }
            )
        else:
            record = RunRecord(
                workflow=request.workflow,
                number=max(records, default=0) + 1,
                request=request,
                policy=request.policy or policy,
                code_version=code_version,
                attempts=(attempt,),
            )
        self._end_lost(transaction, held.fence, record)
        fence = Fence(token=attempt.token, workflow=record.workflow, number=record.number, holder=attempt.holder)
        transaction.put(WORKFLOW_TABLE, lease_row(lease), FENCE, fence.to_cell())
        transaction.put(WORKFLOW_TABLE, lease_row(lease), BEAT, Beat(at_us=wall_us()).to_cell())
        transaction.put(WORKFLOW_TABLE, run_row(record.workflow, record.number), RECORD, record.to_cell())
        if queued:
            transaction.delete(WORKFLOW_TABLE, f"queue/{request.workflow}", REQUEST)
        self._forget_old(transaction, request.workflow, records)
        try:
            transaction.commit()
        except (Conflict, SnapshotTooOld):
            return None
        return record, Lease(self.repo, lease, fence, ttl_s=self.ttl_s), state, live

    def _to_resume(self, request: RunRequest, records: dict[int, RunRecord]) -> RunRecord:
        if request.resume:
            chosen = records.get(request.resume)
            if chosen is None:
                raise UnknownRun(f"there is no run {request.workflow}-{request.resume}")
        else:
            begun = [n for n, run in records.items() if run.outcome is not Outcome.REFUSED and run.attempts]
            chosen = records[max(begun)] if begun else None
        # A record that still says running is of the holder whose lease is being taken: it is interrupted.
        if chosen is None or not (chosen.resumable or chosen.outcome is Outcome.RUNNING):
            what = f"{chosen.id} {chosen.outcome.value}" if chosen else "it never ran"
            raise UnknownRun(f"{request.workflow}: there is nothing to resume, {what}; leave --resume out")
        return chosen

    def _end_lost(self, transaction: Transaction, fence: Fence, taken: RunRecord) -> None:
        """Record a run whose holder went without a word as interrupted, unless it is the one that goes on."""
        if fence.number == 0 or (fence.workflow, fence.number) == (taken.workflow, taken.number):
            return
        row = run_row(fence.workflow, fence.number)
        cells = transaction.get(WORKFLOW_TABLE, row, [*RUN_CELLS])
        if RECORD in cells:
            ended = with_live(RunRecord.of_cell(row, cells[RECORD]), row, cells)
            ended = ended.model_copy(update={"outcome": Outcome.INTERRUPTED, "error": GONE, "ended_us": wall_us()})
            transaction.put(WORKFLOW_TABLE, row, RECORD, ended.to_cell())

    def _forget_old(self, transaction: Transaction, workflow: str, records: dict[int, RunRecord]) -> None:
        succeeded = max((n for n, run in records.items() if run.outcome is Outcome.SUCCEEDED), default=0)
        for number in sorted(records.keys() - {succeeded})[:-RECORDS_KEPT]:
            row = run_row(workflow, number)
            for cell in transaction.get(WORKFLOW_TABLE, row, [*RUN_CELLS]):
                transaction.delete(WORKFLOW_TABLE, row, cell)

    def _records(self, snapshot: Snapshot, workflow: str) -> Iterator[RunRecord]:
        for row, cells in self._rows(snapshot, f"run/{workflow}/"):
            yield parsed(row, cells)

    def _rows(self, snapshot: Snapshot, prefix: str) -> Iterator[tuple[str, Row]]:
        return snapshot.scan(WORKFLOW_TABLE, prefix=prefix, columns=[*RUN_CELLS])

    def _get(self, snapshot: Snapshot, run_id: str) -> RunRecord:
        workflow, _, number = run_id.rpartition("-")
        row = run_row(workflow, int(number)) if workflow and number.isdecimal() and len(number) <= 12 else ""
        cells = snapshot.get(WORKFLOW_TABLE, row, [*RUN_CELLS]) if row else {}
        if RECORD not in cells:
            raise UnknownRun(f"there is no run {run_id[:100]!r}; `workflow list` shows them")
        return shown(snapshot, row, cells, self.ttl_s)

    def _fresh(self, held: Held) -> bool:
        """Return whether the last sign of life looks recent: then it is not worth waiting for the holder's end.

        By the machines' clocks, so only a hint: who is not believed is watched.
        """
        return 0 <= wall_us() - held.beat.at_us <= self.ttl_s * 1e6

    def _busy(self, snapshot: Snapshot, held: Held) -> str:
        fence = held.fence
        try:
            record = self._get(snapshot, f"{fence.workflow}-{fence.number}")
        except UnknownRun:
            return "somebody else has just taken the lease"
        since = (wall_us() - record.started_us) / 60e6
        done = "" if record.progress is None else f", {record.progress}"
        return (
            f"{record.id} runs already, since {since:.0f} min, started by {record.request.who or 'somebody'}{done}; "
            f"one run of a kind at a time: wait, or `workflow cancel {record.id}`"
        )

    def _commit(self, write: Any) -> None:
        for attempt in range(_ATTEMPTS):
            transaction = self.repo.begin(ORIGIN)
            try:
                write(transaction)
                transaction.commit()
                return
            except (Conflict, SnapshotTooOld):
                if attempt == _ATTEMPTS - 1:
                    raise
            finally:
                transaction.abort()
