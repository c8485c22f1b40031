"""Schedules: when runs are due, against a reckoning minute by minute, over missed times and clocks that are set; and
the scheduler, which starts what is due, waits or was interrupted."""

from __future__ import annotations

import bisect
import contextlib
import random
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from batch_workflows import BadParameters, UnknownWorkflow
from batch_workflows._clocks import wall_us
from batch_workflows._runs_model import Policy
from batch_workflows.control import WorkflowControl
from batch_workflows.leases import CANCEL, FENCE, lease_row, run_row
from batch_workflows.runner import find_workflow
from batch_workflows.runs import Outcome, RunRequest, RunStore
from batch_workflows.scheduler import RESUMED, Scheduler
from batch_workflows.schedules import Schedule, ScheduleStore, make_schedule, parse_every
from catalog.model import WORKFLOW_TABLE
from manas.bases import CURRENT
from messaging.metrics import StageMetrics
from storage_repo import Origin, Repo
from tests.batch_workflows.run_support import Opened, open_home, run, start

MINUTE_US = 60_000_000
START = datetime(2026, 3, 1, 12, 30, 20, tzinfo=UTC)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    """A home with an empty Repo."""
    home = open_home(tmp_path)
    yield home
    home.repo.close()


@pytest.fixture
def repo(opened: Opened) -> Repo:
    """Its Repo."""
    return opened.repo


def us(moment: datetime) -> int:
    """Return microseconds since the epoch."""
    return round(moment.timestamp() * 1e6)


class Processes:
    """Stands for the scheduler's way to start processes: real ones that run test-count from the queue."""

    def __init__(self, opened: Opened) -> None:
        self.home = opened.home
        self.started: list[subprocess.Popen[bytes]] = []

    def spawn(self, name: str) -> subprocess.Popen[bytes]:
        """Start a process that ends at once and leaves the queue as it is."""
        self.started.append(subprocess.Popen([sys.executable, "-c", ""]))
        return self.started[-1]


def matches(cron: str, moment: datetime) -> bool:
    """Return whether a minute matches a cron expression: our own reading of lists, ranges, steps and stars."""

    def fits(text: str, value: int, low: int, high: int) -> bool:
        for part in text.split(","):
            span, _, step = part.partition("/")
            first, _, last = span.partition("-")
            begin, end = (low, high) if span == "*" else (int(first), int(last or (high if step else first)))
            if begin <= value <= end and (value - begin) % int(step or 1) == 0:
                return True
        return False

    minute, hour, day, month, weekday = cron.split()
    by_day = fits(day, moment.day, 1, 31)
    by_weekday = fits(weekday, moment.isoweekday() % 7, 0, 6)
    any_day = by_day and by_weekday if "*" in (day, weekday) else by_day or by_weekday
    return (
        fits(minute, moment.minute, 0, 59) and fits(hour, moment.hour, 0, 23) and fits(month, moment.month, 1, 12)
        and any_day
    )  # fmt: skip


@pytest.mark.parametrize("cron", ["0 3 * * *", "*/7 9-17 * * 1-5", "15,45 */6 1,15 * *", "0 0 13 * 5", "30 12 1 * *"])
def test_cron_against_every_minute(cron: str) -> None:
    """Last and next due times are those that a walk over the minutes finds, also exactly at a due time."""
    rng = random.Random(cron)
    schedule = Schedule(workflow="test-count", cron=cron, set_us=1)
    begin = datetime(2026, 1, 28, tzinfo=UTC)
    due = [us(m) for m in (begin + timedelta(minutes=n) for n in range(80 * 1440)) if matches(cron, m)]
    for _ in range(300):
        now = us(begin) + rng.randrange(35 * 86_400, 48 * 86_400) * 10**6
        if rng.random() < 0.3:
            now = rng.choice([at for at in due if at <= now])
        assert schedule.last_due_us(now) == due[bisect.bisect_right(due, now) - 1], (cron, now)
        assert schedule.next_due_us(now) == due[bisect.bisect_right(due, now)], (cron, now)


def test_every_so_often_counts_from_when_it_was_set() -> None:
    """The first time is one span after the schedule was set, not at once, and then each span after it."""
    schedule = Schedule(workflow="test-count", every_s=600, set_us=us(START))
    assert schedule.last_due_us(us(START) + 599_999_999) == 0
    assert schedule.last_due_us(us(START) + 1_500 * 10**6) == us(START) + 1_200 * 10**6
    assert schedule.next_due_us(us(START) + 1_500 * 10**6) == us(START) + 1_800 * 10**6
    assert schedule.next_due_us(us(START) - 10**12) == us(START) + 0, "a clock that was set back does not stop it"


@pytest.mark.parametrize(
    "asked, said",
    [
        ({"cron": "0 3 * *"}, "five fields"),
        ({"cron": "61 * * * *"}, "61"),
        ({"cron": "0 0 31 2 *"}, "next date"),
        ({"every": "5 minutes"}, "30m, 6h or 1d"),
        ({"every": "1s"}, "at least 10 seconds"),
        ({"every": "1h", "cron": "0 3 * * *"}, "either"),
        ({}, "either"),
        ({"every": "1h", "parameters": {"unit": 1}}, "unit"),
    ],
)
def test_schedules_that_cannot_be(asked: dict[str, str], said: str) -> None:
    """A schedule that would never run, or only fail, is refused when it is set, with what is wrong."""
    with pytest.raises(BadParameters, match=said):
        make_schedule("test-count", **asked)  # type: ignore[arg-type]
    with pytest.raises(UnknownWorkflow):
        make_schedule("test-cuont", every="1h")


def test_spans() -> None:
    """Spans read as they are written."""
    assert [parse_every(text) for text in ("90s", "30m", "6h", "1d")] == [90, 1_800, 21_600, 86_400]


def test_missed_times_are_one_run(opened: Opened, repo: Repo, tmp_path: Path) -> None:
    """Over hours of downtime, clocks set forth and back and runs that take long, each look starts at most one run."""
    processes = Processes(opened)
    now = [us(START)]
    schedule = Schedule(workflow="test-count", every_s=600, set_us=now[0], parameters={"units": 1}, who="me")
    ScheduleStore(repo).set(schedule)
    scheduler = Scheduler(repo, processes.spawn, wall=lambda: now[0])
    store = RunStore(repo)

    def due_runs() -> int:
        scheduler.tick()
        waiting = len(store.queued())
        store.unqueue("test-count")
        return waiting

    assert due_runs() == 0, "nothing is due when it is set"
    now[0] += 601 * 10**6
    assert (due_runs(), due_runs()) == (1, 0)
    now[0] += 86_400 * 10**6
    assert (due_runs(), due_runs()) == (1, 0), "144 missed times are one run"
    now[0] += 365 * 86_400 * 10**6
    assert due_runs() == 1, "a clock that jumps a year ahead"
    now[0] -= 365 * 86_400 * 10**6
    assert due_runs() == 1, "and is set right again: what it remembers of the future is forgotten"
    now[0] += 600 * 10**6
    assert due_runs() == 1
    for process in processes.started:
        process.wait()


def test_a_due_time_and_its_run_are_one_step(opened: Opened, repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler that dies as it has queued a run has remembered the due time: once the run is done, none follows."""
    control, processes = WorkflowControl(repo), Processes(opened)
    control.schedule("test-count", every="10s", parameters={"units": 1}, who="me")
    later = us(datetime.now(UTC)) + 25_000_000

    def die(self: ScheduleStore, schedule: Schedule, due_us: int) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(ScheduleStore, "done", die)
    scheduler = Scheduler(repo, processes.spawn, wall=lambda: later)
    for _ in range(2):
        with contextlib.suppress(KeyboardInterrupt):
            scheduler._begin_due(control.runs, control.schedules, control.schedules.all()[0])
        if control.runs.queued():
            run(opened, "test-count", queued=True)
    assert [record.number for record in control.runs.runs("test-count")] == [1]


def test_due_while_one_runs_waits_for_its_end(opened: Opened, repo: Repo) -> None:
    """What becomes due while a run goes on is not lost and not started beside it: it is one run afterwards."""
    now = [us(START)]
    control = WorkflowControl(repo)
    ScheduleStore(repo).set(Schedule(workflow="test-count", every_s=600, set_us=now[0], parameters={"units": 1}))
    processes = Processes(opened)
    scheduler = Scheduler(repo, processes.spawn, wall=lambda: now[0])
    now[0] += 700 * 10**6
    from batch_workflows._runs_model import Policy, RunRequest

    record, lease, _, _ = control.runs.take(RunRequest(workflow="test-count"), "test-count", Policy())
    for _ in range(3):
        scheduler.tick()
        now[0] += 600 * 10**6
    assert control.runs.queued() == [] and processes.started == []
    control.runs.finish(lease, record.model_copy(update={"outcome": Outcome.SUCCEEDED}), keep_checkpoint=False)
    scheduler.tick()
    assert [r.trigger for r in control.runs.queued()] == ["schedule"] and len(processes.started) == 1
    processes.started[0].wait()


def test_interrupted_runs_of_the_service_go_on(opened: Opened, repo: Repo, tmp_path: Path) -> None:
    """A run that a schedule began and that was killed is asked for again with its checkpoint, a person's is not, and
    after some attempts the service gives up."""
    processes = Processes(opened)
    scheduler = Scheduler(repo, processes.spawn)
    store = RunStore(repo)
    by_person = start(tmp_path, "test-count", pause_s=0.05)
    assert by_person.stdout is not None
    by_person.stdout.readline()
    by_person.kill()
    by_person.wait()
    scheduler.tick()
    assert store.queued() == [], "whoever killed it knows"
    for attempt in range(RESUMED + 1):
        scheduler._surveyed_s = float("-inf")
        if attempt == 0:
            process = start(tmp_path, "test-count", "--trigger=ui", pause_s=0.05)
        else:
            scheduler.tick()
            if not store.queued():
                assert attempt == RESUMED
                break
            assert store.queued()[0].resume == 2
            process = start(tmp_path, "test-count", "--queued")
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
        process.wait()
    assert len(store.get("test-count-2").attempts) == RESUMED
    for started in processes.started:
        started.wait()


def test_a_step_of_the_clock_interrupts_no_run(
    opened: Opened, repo: Repo, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A run that lives is shown as silent after the clock was set by minutes; it is asked for again only once it has
    been watched without a sign of life for as long as its lease lasts, and never if a person cancelled it."""
    store, scheduler = RunStore(repo), Scheduler(repo, Processes(opened).spawn)
    elapsed = [1_000.0]
    monkeypatch.setattr("batch_workflows.scheduler.elapsed_s", lambda: elapsed[0])

    def look() -> list[int | None]:
        elapsed[0] += 10
        scheduler._resume_interrupted(store)
        return [request.resume for request in store.queued()]

    count = find_workflow("test-count")
    asked = RunRequest(workflow="test-count", trigger="ui")
    _, lease, _, _ = store.take(asked, count.lease, count.policy)
    now = wall_us()
    for module in ("runs", "_runs_view"):
        monkeypatch.setattr(f"batch_workflows.{module}.wall_us", lambda: now + 120_000_000)
    assert store.get("test-count-1").outcome is Outcome.INTERRUPTED, "as it looks by the clock"
    for _ in range(4):
        assert look() == [], "it gives signs of life"
        lease.renew()
    assert look() == [], "the first look at this silence"
    store._commit(lambda transaction: transaction.put(WORKFLOW_TABLE, run_row("test-count", 1), CANCEL, b"by bob"))
    assert [look() for _ in range(3)] == [[], [], []], "somebody has cancelled it"
    store._commit(lambda transaction: transaction.delete(WORKFLOW_TABLE, run_row("test-count", 1), CANCEL))
    assert look() == [1]


def test_measures(opened: Opened, repo: Repo, tmp_path: Path) -> None:
    """What runs leave behind becomes gauges: age of the base, change of volume, coverage, what syncs found."""
    from batch_workflows._runs_model import Attempt, Holder, RunRecord, RunRequest

    metrics = StageMetrics(opened.home.metrics, "workflows-0")
    now = us(START)

    def ended(workflow: str, number: int, minutes_ago: int, counts: dict[str, object]) -> RunRecord:
        began = now - minutes_ago * MINUTE_US
        return RunRecord(
            workflow=workflow, number=number, request=RunRequest(workflow=workflow), outcome=Outcome.SUCCEEDED,
            attempts=(Attempt(token=1, holder=Holder(host="h", pid=1), started_us=began),), ended_us=began + MINUTE_US,
            counts=counts,  # type: ignore[arg-type]
        )  # fmt: skip

    records = [
        ended("base-index", 2, 30, {"documents": 90, "coverage": {"bid": 0.99}}),
        ended("base-index", 1, 90, {"documents": 100, "coverage": {"bid": 0.5}}),
        ended("sync", 1, 10, {"unsynced": {"missing": 3, "stale": 1}}),
    ]
    scheduler = Scheduler(repo, Processes(opened).spawn, metrics, wall=lambda: now, base_dir=opened.home.base)
    scheduler.measure(records)
    gauges = metrics.gauges
    assert gauges["base_staleness_s"] == 1_800 and gauges["base_field_coverage:bid"] == 0.99
    assert gauges["base_volume_change"] == pytest.approx(-0.1) and gauges["base_documents"] == 90
    assert (gauges["unsynced:missing"], gauges["unsynced:stale"]) == (3, 1)
    assert gauges["workflow_last_success_age_s:sync"] == 540
    scheduler.measure([ended("sync", 2, 5, {"unsynced": {"stale": 2}}), *records])
    assert (gauges["unsynced:missing"], gauges["unsynced:stale"]) == (0, 2), "the last sync found no missing one"


def test_the_base_in_service_is_what_is_measured(opened: Opened, repo: Repo) -> None:
    """Rolled back to, an older base is as old as it is, however many newer builds there were and went from record."""
    from batch_workflows._runs_model import RunRecord, RunRequest

    metrics = StageMetrics(opened.home.metrics, "workflows-0")
    old, new = (f"20260301T{hour}0000.000000Z-{hour}" for hour in ("10", "12"))
    records = [
        RunRecord(
            workflow="base-index", number=number, request=RunRequest(workflow="base-index"),
            outcome=Outcome.SUCCEEDED, ended_us=us(START), counts={"base_version": version, "documents": documents},
        )
        for number, version, documents in ((2, new, 50), (1, old, 100))
    ]  # fmt: skip
    scheduler = Scheduler(repo, Processes(opened).spawn, metrics, wall=lambda: us(START), base_dir=opened.home.base)
    opened.home.base.mkdir(exist_ok=True)
    for version, hours, documents in ((new, 0.5, 50), (old, 2.5, 100)):
        (opened.home.base / CURRENT).write_text(f"{version}\n")
        scheduler.measure(records)
        assert metrics.gauges["base_staleness_s"] == hours * 3_600 + 20
        assert metrics.gauges["base_documents"] == documents
    scheduler.measure([])
    assert metrics.gauges["base_staleness_s"] == 2.5 * 3_600 + 20


def test_control_asks_for_what_exists(opened: Opened, repo: Repo) -> None:
    """States show schedules and last runs; a schedule is replaced, removed, and refused where it cannot run."""
    control = WorkflowControl(repo)
    run(opened, "test-count", units=1)
    control.schedule("test-count", cron="0 3 * * *", parameters={"units": 2}, who="me", why="nightly")
    state = next(s for s in control.states() if s.workflow.name == "test-count")
    assert state.last is not None and state.last.id == "test-count-1"
    assert str(state.schedule) == "cron 0 3 * * * (UTC)" and state.next_due_us > 0
    control.schedule("test-count", every="6h", who="me")
    assert [str(s) for s in control.schedules.all()] == ["every 6h"]
    assert control.unschedule("test-count", "me") and not control.unschedule("test-count", "me")
    with pytest.raises(BadParameters, match="service to be down"):
        control.schedule("repair-after-restore", every="6h")


def test_a_paused_schedule_is_kept_and_makes_up_for_nothing(opened: Opened, repo: Repo) -> None:
    """Paused, nothing becomes due; enabled, the first run is at the first due time after that; others know by whom."""
    control, processes, now = WorkflowControl(repo), Processes(opened), us(datetime.now(UTC))
    control.schedule("test-count", cron="0 3 * * *", parameters={"units": 2}, who="me", why="nightly")
    assert control.pause_schedule("test-count", "on-call", "the disk is full").paused == "by on-call: the disk is full"
    later = now + 3 * 24 * 60 * MINUTE_US
    Scheduler(repo, processes.spawn, wall=lambda: later).tick()
    state = next(s for s in control.states() if s.workflow.name == "test-count")
    assert control.runs.queued() == [] and state.next_due_us == 0 and state.schedule is not None
    assert (state.schedule.cron, state.schedule.parameters) == ("0 3 * * *", {"units": 2})
    enabled = control.enable_schedule("test-count", "on-call", "there is space")
    assert not enabled.paused and enabled.set_us >= now
    Scheduler(repo, processes.spawn, wall=lambda: enabled.set_us + 1).tick()
    assert control.runs.queued() == [], "of the time in which it was paused nothing is due"
    Scheduler(repo, processes.spawn, wall=lambda: enabled.next_due_us(enabled.set_us)).tick()
    assert [request.workflow for request in control.runs.queued()] == ["test-count"]
    assert control.enable_schedule("test-count", "x", "again") == enabled, "of one in force nothing changes"
    control.unschedule("test-count", "me")
    for change in (control.pause_schedule, control.enable_schedule):
        with pytest.raises(BadParameters, match="test-count has no schedule"):
            change("test-count", "me", "why")
    for started in processes.started:
        started.wait()


def test_rows_that_do_not_parse_stop_nothing(opened: Opened, repo: Repo) -> None:
    """A spoilt schedule, request or lease is passed over; the others are worked on, and all runs can be looked at."""
    control = WorkflowControl(repo)
    _, lease, _, _ = control.runs.take(RunRequest(workflow="test-bug"), "test-bug", Policy())
    control.runs.submit(RunRequest(workflow="test-refused", trigger="ui"), "test-refused")
    control.schedule("test-count", every="10s", who="me")
    spoil = repo.begin(Origin("test"))
    spoil.put(WORKFLOW_TABLE, "schedule/bad", "meta:schedule", b"{")
    spoil.put(WORKFLOW_TABLE, "queue/bad", "meta:request", b"[]")
    spoil.put(WORKFLOW_TABLE, lease_row("a-bad-one"), FENCE, b"{")
    spoil.put(WORKFLOW_TABLE, lease_row("test-refused"), FENCE, b"\xff")
    spoil.commit()
    processes = Processes(opened)
    Scheduler(repo, processes.spawn, wall=lambda: us(datetime.now(UTC)) + 3_600_000_000).tick()
    assert [request.workflow for request in control.runs.queued()] == ["test-count", "test-refused"]
    assert len(processes.started) == 1, "whose lease cannot be read waits until it can"
    processes.started[0].wait()
    assert control.runs.get("test-bug-1").outcome is Outcome.RUNNING
    lease.renew()
