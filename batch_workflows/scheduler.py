"""Start what is due, waits or was interrupted, each as a process of its own, and measure what the runs left behind."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from batch_workflows._clocks import elapsed_s, wall_us
from batch_workflows._exceptions import BadRunRecord, BatchError, RunBusy, UnknownWorkflow
from batch_workflows._runs_model import Outcome, RunRecord, RunRequest
from batch_workflows.leases import Held
from batch_workflows.runner import all_workflows, find_workflow
from batch_workflows.runs import RunStore
from batch_workflows.schedules import Schedule, ScheduleStore
from manas.bases import begun_us, current_base, is_version
from messaging.metrics import StageMetrics
from storage_repo import Repo

RESUMED = 3
"""Attempts of a run that are made without a person asking: what dies three times dies of itself."""
SPAWN_AGAIN_S = 10.0
"""A process that ended without taking its run from the queue is started again after so long: something is away."""
SURVEY_S = 5.0
"""Runs are looked through that often for some that were interrupted, and for what is measured of them."""
STOP_S = 6.0
"""A run has so long to end after its present unit of work when the service stops; then it is killed, and resumed."""

Spawn = Callable[[str], "subprocess.Popen[bytes]"]
"""Starts a process that takes the queued run of a workflow."""


@dataclass(slots=True)
class _Child:
    process: subprocess.Popen[bytes]
    started_s: float


@dataclass(slots=True)
class Scheduler:
    """One stage process's work. `tick` does what is to be done now and returns soon."""

    repo: Repo
    spawn: Spawn
    metrics: StageMetrics | None = None
    wall: Callable[[], int] = wall_us
    base_dir: Path | None = None
    """The home's bases, of which the one in service is measured."""
    _children: dict[str, _Child] = field(default_factory=dict)
    _not_before_s: dict[str, float] = field(default_factory=dict)
    _surveyed_s: float = float("-inf")
    _unsynced: set[str] = field(default_factory=set)
    """Kinds that were ever measured."""
    _watched: dict[str, tuple[Held, float]] = field(default_factory=dict)
    """Run that looks interrupted -> its lease as it was first seen, and when."""

    def tick(self) -> None:
        """Reap, look through schedules, interrupted runs and the queue. Raises RepoError."""
        runs, schedules = RunStore(self.repo), ScheduleStore(self.repo)
        ended = self._reap()
        if ended or elapsed_s() - self._surveyed_s >= SURVEY_S:
            self._surveyed_s = elapsed_s()
            self._resume_interrupted(runs)
            self.measure(runs.runs(limit=10_000))
        for schedule in schedules.all():
            self._begin_due(runs, schedules, schedule)
        for request in runs.queued():
            self._start(runs, request)

    def stop(self) -> None:
        """Ask the runs to end and wait a little; what was not done by then is resumed when the service is up again."""
        for child in self._children.values():
            child.process.terminate()
        deadline = elapsed_s() + STOP_S
        for child in self._children.values():
            try:
                child.process.wait(max(0.1, deadline - elapsed_s()))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()
        self._children.clear()

    @property
    def working(self) -> list[str]:
        """Workflows whose runs this process has started and that go on."""
        return sorted(self._children)

    def measure(self, records: list[RunRecord]) -> None:
        """Set the gauges: how old the base is, how it changed, what it covers, what syncs found, and how runs ended."""
        if self.metrics is None:
            return
        newest: dict[str, list[RunRecord]] = {}
        for record in records:
            if record.outcome is Outcome.SUCCEEDED:
                newest.setdefault(record.workflow, []).append(record)
        now = self.wall()
        for name, done in newest.items():
            self.metrics.gauge(f"workflow_last_success_age_s:{name}", max(0, now - done[0].ended_us) / 1e6)
            self.metrics.gauge(f"workflow_last_seconds:{name}", done[0].seconds)
            self.metrics.gauge(f"workflow_last_failed_items:{name}", done[0].failed)
            unsynced = done[0].counts.get("unsynced")
            if isinstance(unsynced, dict):
                self._unsynced |= unsynced.keys()
                for kind in self._unsynced:  # also those of which the last sync found none
                    count = unsynced.get(kind, 0)
                    if isinstance(count, int | float):
                        self.metrics.gauge(f"unsynced:{kind}", count)
        self._measure_base(newest.get("base-index", []), now)
        running = {record.workflow for record in records if record.outcome is Outcome.RUNNING}
        for name in {record.workflow for record in records}:
            self.metrics.gauge(f"workflow_running:{name}", float(name in running))

    def _measure_base(self, bases: list[RunRecord], now: int) -> None:
        """Measure the base that is in service here, whether it was built last or rolled back to."""
        assert self.metrics is not None
        current = None if self.base_dir is None else current_base(self.base_dir)
        if current is not None and is_version(current):
            # What it lacks was committed after it was begun.
            self.metrics.gauge("base_staleness_s", max(0, now - begun_us(current)) / 1e6)
            built = [record.counts.get("base_version") for record in bases]
            bases = bases[built.index(current) :] if current in built else bases
        elif bases:
            self.metrics.gauge("base_staleness_s", max(0, now - bases[0].started_us) / 1e6)
        if not bases:
            return
        coverage = bases[0].counts.get("coverage")
        if isinstance(coverage, dict):
            for name, share in coverage.items():
                if isinstance(share, int | float):
                    self.metrics.gauge(f"base_field_coverage:{name}", share)
        documents = [record.counts.get("documents") for record in bases[:2]]
        if isinstance(documents[0], int):
            self.metrics.gauge("base_documents", documents[0])
            if len(documents) > 1 and isinstance(documents[1], int) and documents[1] > 0:
                self.metrics.gauge("base_volume_change", documents[0] / documents[1] - 1)

    def _reap(self) -> list[str]:
        ended = [name for name, child in self._children.items() if child.process.poll() is not None]
        for name in ended:
            code = self._children.pop(name).process.returncode
            structlog.get_logger().info("workflow_process_ended", workflow=name, exit_code=code)
            if self.metrics is not None:
                self.metrics.count(f"workflow_processes:{name}.{'ok' if code == 0 else 'failed'}")
        return ended

    def _begin_due(self, runs: RunStore, schedules: ScheduleStore, schedule: Schedule) -> None:
        due = schedules.due(schedule, self.wall())
        if not due:
            return
        request = RunRequest(
            workflow=schedule.workflow, parameters=schedule.parameters, policy=schedule.policy,
            who=f"schedule ({schedule}, set by {schedule.who})", why=schedule.why,
            trigger="schedule", at_us=self.wall(),
        )  # fmt: skip
        try:
            workflow = find_workflow(schedule.workflow)
            last = next(iter(runs.runs(schedule.workflow, 1)), None)
            if workflow.resumable and last is not None and _goes_on(last, request):
                request = request.model_copy(update={"resume": last.number})
            # In one step with the mark: killed in between, a due time would lead to two runs, or to none.
            mine = runs.submit(request, workflow.lease, lambda at: schedules.mark(at, schedule, due))
        except RunBusy:
            return  # all that become due until it ends are one run then
        except BatchError as error:  # a workflow that this release does not have, a row that does not parse
            self._failed(schedule.workflow, error)
            mine = schedules.done(schedule, due)
        if mine:
            structlog.get_logger().info("workflow_due", workflow=schedule.workflow, due_us=due, resume=request.resume)

    def _resume_interrupted(self, runs: RunStore) -> None:
        """Have interrupted runs of the service's own gone on with."""
        for record in to_resume(runs):
            request = RunRequest(
                workflow=record.workflow, who=f"service (attempt {len(record.attempts) + 1})",
                trigger="restart", resume=record.number, at_us=self.wall(),
            )  # fmt: skip
            try:
                lease = find_workflow(record.workflow).lease
                if self._lives(runs, record, lease):
                    continue
                runs.submit(request, lease)
            except RunBusy:
                continue
            except BatchError as error:
                self._failed(record.workflow, error)

    def _lives(self, runs: RunStore, record: RunRecord, lease: str) -> bool:
        """Return whether a run that looks interrupted may still be at work: its process is not gone, and has not been
        watched without a sign of life for as long as the lease lasts. By the wall clock alone nothing is decided."""
        held = runs.holder(record, lease)
        if held is None:
            self._watched.pop(record.id, None)
            return False
        seen, since_s = self._watched.get(record.id, (None, 0.0))
        if seen != held:
            self._watched[record.id] = held, elapsed_s()
            return True
        return elapsed_s() - since_s < runs.ttl_s

    def _start(self, runs: RunStore, request: RunRequest) -> None:
        name = request.workflow
        if name in self._children or elapsed_s() < self._not_before_s.get(name, 0.0):
            return
        try:
            lease = find_workflow(name).lease
        except UnknownWorkflow as error:
            runs.unqueue(name)
            self._failed(name, error)
            return
        try:
            if runs.busy(lease):
                return
        except BadRunRecord as error:  # the others go on; this one waits until somebody has mended its lease
            self._failed(name, error)
            return
        self._not_before_s[name] = elapsed_s() + SPAWN_AGAIN_S
        self._children[name] = _Child(self.spawn(name), elapsed_s())
        structlog.get_logger().info("workflow_started", workflow=name, pid=self._children[name].process.pid)

    def _failed(self, workflow: str, error: Exception) -> None:
        structlog.get_logger().error("workflow_not_started", workflow=workflow, error=str(error))
        if self.metrics is not None:
            self.metrics.count(f"workflow_not_started:{workflow}")


def to_resume(runs: RunStore) -> list[RunRecord]:
    """Return the service's own runs that were interrupted and are to go on; what a person began, a person resumes.

    One that a person had cancelled before it was killed does not. Only those that keep checkpoints: of others nobody
    knows how far they got, and a second roll-back is one too many.
    """
    workflows = all_workflows()
    return [
        record
        for name, record in runs.latest().items()
        if record.outcome is Outcome.INTERRUPTED
        and not record.cancel
        and record.request.trigger != "command"
        and len(record.attempts) < RESUMED
        and name in workflows
        and workflows[name].resumable
    ]


def _goes_on(last: RunRecord, request: RunRequest) -> bool:
    """Return whether a due run is the rest of one that was interrupted or failed, rather than a new one."""
    return (
        last.outcome in (Outcome.INTERRUPTED, Outcome.FAILED)
        and last.has_checkpoint
        and last.request.parameters == request.parameters
        and len(last.attempts) < RESUMED
    )
