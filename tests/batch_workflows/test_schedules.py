"""Schedules: when runs are due, against a reckoning minute by minute, over missed times and clocks that are set; and
the scheduler, which starts what is due, waits or was interrupted."""

from __future__ import annotations

import bisect
import random
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from batch_workflows import BadParameters, UnknownWorkflow
from batch_workflows.control import WorkflowControl
from batch_workflows.runs import Outcome, RunStore
from batch_workflows.scheduler import RESUMED, Scheduler
from batch_workflows.schedules import Schedule, ScheduleStore, make_schedule, parse_every
from catalog.model import WORKFLOW_TABLE
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
    Scheduler(repo, Processes(opened).spawn, metrics, wall=lambda: now).measure(records)
    gauges = metrics.gauges
    assert gauges["base_staleness_s"] == 1_800 and gauges["base_field_coverage:bid"] == 0.99
    assert gauges["base_volume_change"] == pytest.approx(-0.1) and gauges["base_documents"] == 90
    assert (gauges["unsynced:missing"], gauges["unsynced:stale"]) == (3, 1)
    assert gauges["workflow_last_success_age_s:sync"] == 540


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
    """A spoilt schedule and a spoilt request are passed over; the others are worked on."""
    control = WorkflowControl(repo)
    control.schedule("test-count", every="10s", who="me")
    spoil = repo.begin(Origin("test"))
    spoil.put(WORKFLOW_TABLE, "schedule/bad", "meta:schedule", b"{")
    spoil.put(WORKFLOW_TABLE, "queue/bad", "meta:request", b"[]")
    spoil.commit()
    processes = Processes(opened)
    Scheduler(repo, processes.spawn, wall=lambda: us(datetime.now(UTC)) + 3_600_000_000).tick()
    assert [request.workflow for request in control.runs.queued()] == ["test-count"] and len(processes.started) == 1
    processes.started[0].wait()
