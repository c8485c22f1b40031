"""Runs of workflows: records, leases that survive kills and zombies, checkpoints, cancelling, policies."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from batch_workflows import _clocks, leases, runs
from batch_workflows._exceptions import (
    BadParameters,
    BaseRefused,
    LeaseLost,
    RunBusy,
    RunStopped,
    TooManyFailures,
    UnknownRun,
    UnknownWorkflow,
)
from batch_workflows._runs_model import Policy, Progress
from batch_workflows.control import WorkflowControl
from batch_workflows.execution import Stop, execute
from batch_workflows.leases import FENCE, RECORD, Lease, lease_row, read_lease, run_row
from batch_workflows.runs import Outcome, RunRequest, RunStore
from catalog.model import WORKFLOW_TABLE
from catalog.values import decode
from storage_repo import Conflict, Origin
from tests.batch_workflows.run_support import ROW, UNITS, Opened, open_home, run, start

TTL_S = 1.0
"""Short enough for a test, long enough for a beat in time on a busy machine (the holder here is stopped, not slow)."""


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    """A home with an empty Repo."""
    home = open_home(tmp_path)
    yield home
    home.repo.close()


def counted(opened: Opened) -> Any:
    """Return what test-count has added up."""
    return decode(opened.repo.snapshot().get(*ROW[:2]).get(ROW[2]))


def take(opened: Opened, name: str = "test-count", ttl_s: float = leases.TTL_S) -> Lease:
    """Take a workflow's lease without running it."""
    store = RunStore(opened.repo, ttl_s=ttl_s)
    return store.take(RunRequest(workflow=name, who="taker"), name, Policy())[1]


def stop_between_writes(opened: Opened, process: subprocess.Popen[str]) -> None:
    """Send SIGSTOP when the process does not hold the embedded store's write lock, which would block us as well."""

    def write() -> None:
        transaction = opened.repo.begin(Origin("test"))
        transaction.put("advertiser", "probe", "meta:x", b"")
        transaction.commit()

    while True:
        process.send_signal(signal.SIGSTOP)
        probe = threading.Thread(target=write, daemon=True)
        probe.start()
        probe.join(2)
        if not probe.is_alive():
            return
        process.send_signal(signal.SIGCONT)
        probe.join()


def test_a_run_leaves_its_record(opened: Opened) -> None:
    """Parameters, who, policy, counts, progress, duration and outcome are kept, and runs are numbered by workflow."""
    first = run(opened, "test-count", units=3)
    second = run(opened, "test-count", units=5)
    stored = RunStore(opened.repo).runs("test-count")
    assert [record.id for record in stored] == ["test-count-2", "test-count-1"]
    assert stored == [second, first]
    assert second.outcome is Outcome.SUCCEEDED and second.request.who == "tester"
    assert second.request.parameters == {"units": 5} and second.counts == {"units": 5, "last": 5}
    assert (second.progress.done, second.progress.total, second.progress.unit) == (5, 5, "units")
    assert second.seconds > 0 and second.ended_us >= second.started_us > 1e15
    assert not second.has_checkpoint, "what is done needs no checkpoint"


def test_ends_by_error_are_recorded_and_raised(opened: Opened) -> None:
    """A refusing gate is no failure, a bug leaves its traceback, and what was counted before it stays."""
    with pytest.raises(BaseRefused):
        run(opened, "test-refused")
    refused = RunStore(opened.repo).get("test-refused-1")
    assert refused.outcome is Outcome.REFUSED and refused.error == "field 'x': 3% have it"
    with pytest.raises(ZeroDivisionError):
        run(opened, "test-bug")
    bug = RunStore(opened.repo).get("test-bug-1")
    assert bug.outcome is Outcome.FAILED and bug.counts == {"before": 1}
    assert bug.error.startswith("ZeroDivisionError") and "in bug" in bug.error
    assert run(opened, "test-count", units=1).outcome is Outcome.SUCCEEDED, "a failed run gives its lease back"


@pytest.mark.parametrize(
    "name, parameters, error, said",
    [
        ("test-cuont", {}, UnknownWorkflow, "test-count"),
        ("test-count", {"unit": 3}, BadParameters, "unit: Extra inputs.*its parameters are: units, pause_s, fail_at"),
        ("test-count", {"units": "many"}, BadParameters, "units: "),
    ],
)
def test_what_cannot_run_leaves_no_record(
    opened: Opened, name: str, parameters: dict[str, Any], error: type[Exception], said: str
) -> None:
    """An unknown workflow or a parameter that it does not take is refused with what there is, before anything."""
    with pytest.raises(error, match=said):
        run(opened, name, **parameters)
    assert RunStore(opened.repo).runs() == []


def test_policy_to_go_on_counts_by_reason(opened: Opened) -> None:
    """Failed items are counted with examples, the run goes on, and its record says so and by which policy."""
    record = run(opened, "test-count", units=20, fail_at=list(range(15)))
    [found] = record.failures
    assert (found.kind, found.reason, found.count) == ("unit", "unlucky", 15)
    assert found.examples == tuple(f"{n}: as asked" for n in range(10))
    assert "15 items failed and were left out; the policy is to go on" in record.said


@pytest.mark.parametrize(
    "policy, failed", [(Policy(on_error="stop"), 1), (Policy(max_failures=3), 4), (Policy(max_failures=0), 1)]
)
def test_policy_to_stop(opened: Opened, policy: Policy, failed: int) -> None:
    """A run stops at the first failure, or after more than it allows, and its record says which policy it was."""
    request = RunRequest(workflow="test-count", parameters={"fail_at": list(range(9))}, policy=policy)
    with pytest.raises(TooManyFailures, match="the policy is to"):
        execute(opened, request)
    record = RunStore(opened.repo).get("test-count-1")
    assert record.outcome is Outcome.FAILED and record.failed == failed and "the policy is to" in record.error


def test_one_run_at_a_time(opened: Opened) -> None:
    """While one runs, a second is refused with who runs since when; another workflow is not held up."""
    lease = take(opened)
    with pytest.raises(RunBusy, match=r"test-count-1 runs already.*started by taker.*workflow cancel test-count-1"):
        run(opened, "test-count")
    with pytest.raises(BaseRefused):
        run(opened, "test-refused")
    lease.stop()


def test_racing_processes_one_wins(opened: Opened) -> None:
    """Of many that take a free lease at once exactly one gets it, and every holder's token is larger than the last."""
    tokens: list[int] = []
    for _ in range(5):
        won: list[Lease] = []
        gate = threading.Barrier(8)

        def attempt(won: list[Lease] = won, gate: threading.Barrier = gate) -> None:
            gate.wait()
            with contextlib.suppress(RunBusy):
                won.append(take(opened))

        threads = [threading.Thread(target=attempt) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        tokens.append(won[0].token)
        store = RunStore(opened.repo)
        store.finish(won[0], store.runs("test-count", 1)[0], keep_checkpoint=False)
    assert tokens == [1, 2, 3, 4, 5]


def test_killed_run_is_seen_at_once_and_resumed(opened: Opened, tmp_path: Path) -> None:
    """After kill -9 the run shows as interrupted; a resume goes on from its checkpoint, and every unit counts once."""
    for kill_after, arguments in ((5, ()), (3, ("--resume",)), (1, ("--resume",))):
        process = start(tmp_path, "test-count", *arguments, pause_s=0.02)
        assert process.stdout is not None
        for _ in range(kill_after):
            process.stdout.readline()
        process.kill()
        process.wait()
        shown = RunStore(opened.repo).get("test-count-1")
        assert shown.outcome is Outcome.INTERRUPTED and shown.has_checkpoint and "--resume" in shown.said
    done = run(opened, "test-count", resume=True)
    assert done.id == "test-count-1" and len(done.attempts) == 4 and done.outcome is Outcome.SUCCEEDED
    assert [attempt.token for attempt in done.attempts] == [1, 2, 3, 4]
    assert done.counts["units"] == UNITS and counted(opened) == UNITS
    with pytest.raises(UnknownRun, match="nothing to resume"):
        run(opened, "test-count", resume=True)


def test_a_new_run_after_a_kill_records_the_killed_one(opened: Opened, tmp_path: Path) -> None:
    """Without a resume a new run begins at once, and the killed one is recorded as interrupted for good."""
    process = start(tmp_path, "test-count", pause_s=0.02)
    assert process.stdout is not None
    process.stdout.readline()
    process.kill()
    process.wait()
    assert run(opened, "test-count", units=2).id == "test-count-2"
    killed = RunStore(opened.repo).get("test-count-1")
    assert killed.outcome is Outcome.INTERRUPTED and killed.error == runs.GONE and killed.ended_us


def test_zombie_cannot_write(opened: Opened, tmp_path: Path) -> None:
    """A process that slept while another took its lease cannot commit, records nothing, and says so."""
    process = start(tmp_path, "test-zombie", f"--ttl={TTL_S}")
    assert process.stdout is not None and process.stdin is not None
    assert process.stdout.readline() == "begun\n"
    stop_between_writes(opened, process)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                lease = take(opened, "test-zombie", TTL_S)
                break
            except RunBusy:
                assert time.monotonic() < deadline
                time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGCONT)
    out, _ = process.communicate("go\n", timeout=60)
    assert process.returncode != 0 and ("LeaseLost" in out or "Conflict" in out), out
    assert ROW[2] not in opened.repo.snapshot().get(*ROW[:2])
    record = RunStore(opened.repo).get("test-zombie-1")
    assert record.outcome is Outcome.INTERRUPTED, "the zombie has not written over what its successor recorded"
    assert read_lease(opened.repo.snapshot(), "test-zombie").fence.token == lease.token == 2


def test_a_lapsed_lease_that_nobody_took_goes_on(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """A holder that slept longer than the lease lasts renews it and goes on, if nobody has taken it."""
    lease = take(opened)
    lease.start()
    now = [_clocks.elapsed_s() + 3_600]
    monkeypatch.setattr(leases, "elapsed_s", lambda: now[0])
    beats = read_lease(opened.repo.snapshot(), "test-count").beat.count
    lease.check()
    assert read_lease(opened.repo.snapshot(), "test-count").beat.count > beats
    lease.stop()


def test_a_lapsed_lease_that_was_taken_stops_the_run(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """A holder that slept and lost its lease is told so by the next check, before it does anything more."""
    lease = take(opened)
    stolen = opened.repo.begin(Origin("test"))
    cell = read_lease(stolen, "test-count").fence.model_copy(update={"token": 7, "number": 9})
    stolen.put(WORKFLOW_TABLE, lease_row("test-count"), FENCE, cell.to_cell())
    stolen.commit()
    monkeypatch.setattr(leases, "elapsed_s", lambda: _clocks.elapsed_s() + 3_600)
    lease._thread = threading.Thread()  # as if the beats had slept as well
    with pytest.raises(LeaseLost, match="must not go on"):
        lease.check()
    with pytest.raises(LeaseLost):
        lease.checkpoint("never")
    lease._thread = None


def test_transactions_conflict_once_the_lease_is_taken(opened: Opened) -> None:
    """A transaction that was fenced before the lease was taken does not commit after it; beats do not disturb it."""
    lease = take(opened)
    lives, dies = opened.repo.begin(Origin("test")), opened.repo.begin(Origin("test"))
    for transaction, value in ((lives, b"lives"), (dies, b"dies")):
        lease.fence(transaction)
        transaction.put("advertiser", value.decode(), "meta:x", value)
    lease.renew()
    lives.commit()
    other = opened.repo.begin(Origin("test"))
    other.put(WORKFLOW_TABLE, lease_row("test-count"), FENCE, b"{}")
    other.commit()
    with pytest.raises(Conflict):
        dies.commit()


@pytest.mark.parametrize("hours", [-24, 24])
def test_a_clock_that_is_set_does_not_lose_a_lease(opened: Opened, monkeypatch: pytest.MonkeyPatch, hours: int) -> None:
    """Whoever sees an old (or future) beat watches the lease first, sees it live, and is refused."""
    lease = take(opened, ttl_s=TTL_S)
    monkeypatch.setattr(runs, "wall_us", lambda: time.time_ns() // 1000 + hours * 3_600_000_000)
    lease.start()
    with pytest.raises(RunBusy):
        take(opened, ttl_s=TTL_S)
    lease.stop()
    lease.check()


def test_a_silent_holder_elsewhere_is_waited_for(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """A holder that cannot be looked at (another machine) loses the lease only after a whole lifetime of silence."""
    monkeypatch.setattr(leases, "gone", lambda holder: False)
    take(opened, ttl_s=TTL_S)
    monkeypatch.setattr(runs, "wall_us", lambda: time.time_ns() // 1000 + 60_000_000)
    begun = time.monotonic()
    assert take(opened, ttl_s=TTL_S).token == 2
    assert time.monotonic() - begun >= TTL_S


def test_cancel_and_resume(opened: Opened) -> None:
    """A run that is cancelled from elsewhere ends after its unit, records by whom, and can be resumed."""
    store, ended = RunStore(opened.repo, ttl_s=TTL_S), []
    request = RunRequest(workflow="test-count", parameters={"units": 2_000, "pause_s": 0.005}, who="tester")

    def work() -> None:
        try:
            execute(opened, request, store=store)
        except RunStopped as error:
            ended.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    deadline = time.monotonic() + 120
    while not any(record.outcome is Outcome.RUNNING for record in store.runs()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    store.cancel("test-count-1", "on-call", "too slow")
    thread.join(120)
    record = store.get("test-count-1")
    assert ended and record.outcome is Outcome.CANCELLED and record.cancel == "by on-call: too slow"
    assert record.counts["units"] == counted(opened) and 0 < counted(opened) < 2_000
    with pytest.raises(UnknownRun, match="does not run"):
        store.cancel("test-count-1", "on-call")
    stop = Stop()
    stop.set()
    with pytest.raises(RunStopped):
        execute(opened, RunRequest(workflow="test-count", resume=0), store=store, stop=stop)
    again = store.get("test-count-1")
    assert again.outcome is Outcome.INTERRUPTED and again.cancel == "" and again.counts["units"] == counted(opened)


def test_failures_are_not_counted_twice_by_a_resume(opened: Opened, tmp_path: Path) -> None:
    """What failed before the checkpoint is kept over a kill, what failed after it is counted again, nothing twice."""
    process = start(tmp_path, "test-count", pause_s=0.02, fail_at=[0, 2, 4, 30])
    assert process.stdout is not None
    for _ in range(8):
        process.stdout.readline()
    process.kill()
    process.wait()
    done = run(opened, "test-count", resume=True)
    assert done.failed == 4 and len(done.failures[0].examples) == 4


def test_a_record_that_does_not_parse(opened: Opened) -> None:
    """A spoilt row is told as a failed run that names it; the others are shown, and numbers go on after it."""
    for _ in range(3):
        run(opened, "test-count", units=1)
    spoil = opened.repo.begin(Origin("test"))
    spoil.put(WORKFLOW_TABLE, run_row("test-count", 3), RECORD, b'{"workflow": 3')
    spoil.commit()
    shown = {record.number: record for record in RunStore(opened.repo).runs("test-count")}
    assert "_workflow/run/test-count/000000000003" in shown[3].error and shown[3].outcome is Outcome.FAILED
    assert shown[1].outcome is shown[2].outcome is Outcome.SUCCEEDED
    assert run(opened, "test-count", units=1).number == 4


def test_what_keeps_no_checkpoint_is_not_resumed(opened: Opened) -> None:
    """Of a workflow without checkpoints nobody knows how far it got: it is to be run anew."""
    with pytest.raises(BaseRefused):
        run(opened, "test-refused")
    with pytest.raises(BadParameters, match="run it anew"):
        run(opened, "test-refused", resume=True)


def test_the_last_run_is_the_one_that_began_last(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that is set back between two runs does not make the older one the last."""
    run(opened, "test-count", units=1)
    monkeypatch.setattr(runs, "wall_us", lambda: time.time_ns() // 1000 - 86_400_000_000)
    run(opened, "test-count", units=2)
    store = RunStore(opened.repo)
    assert store.latest()["test-count"].number == store.runs("test-count", 1)[0].number == 2


def test_the_last_run_tells_how_much_there_is(opened: Opened) -> None:
    """Where a run names no total, that of the last one with the same parameters counts, until there is more."""
    shown: list[Progress] = []
    for _ in range(2):
        execute(opened, RunRequest(workflow="test-rows", parameters={"rows": 3}), on_progress=shown.append)
    execute(opened, RunRequest(workflow="test-rows", parameters={"rows": 4}), on_progress=shown.append)
    assert [p.done for p in shown] == [1, 2, 3, 1, 2, 3, 1, 2, 3, 4]
    assert [(p.total, p.about) for p in shown] == [*3 * [(None, False)], *3 * [(3, True)], *4 * [(None, False)]]
    assert str(shown[4]).startswith("2 of about 3 rows (67%)")


def test_old_records_go(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a workflow only the newest records are kept, and the last that succeeded; those of others stay."""
    monkeypatch.setattr(runs, "RECORDS_KEPT", 3)
    with pytest.raises(BaseRefused):
        run(opened, "test-refused")
    for _ in range(6):
        run(opened, "test-count", units=1)
    assert [record.number for record in RunStore(opened.repo).runs("test-count")] == [6, 5, 4, 3, 2]
    assert len(RunStore(opened.repo).runs()) == 6
    fails = RunRequest(workflow="test-count", parameters={"fail_at": [0]}, policy=Policy(on_error="stop"))
    for _ in range(6):
        with pytest.raises(TooManyFailures):
            execute(opened, fails)
    assert [r.number for r in RunStore(opened.repo).runs("test-count")] == [12, 11, 10, 9, 6]


def test_the_queue_holds_one_of_a_workflow(opened: Opened) -> None:
    """A second request is refused while one waits; what waits is shown, taken once, and may be taken out."""
    store = RunStore(opened.repo)
    request = RunRequest(workflow="test-count", parameters={"units": 1}, who="first")
    store.submit(request, "test-count")
    with pytest.raises(RunBusy, match="by first waits"):
        store.submit(request.model_copy(update={"who": "second"}), "test-count")
    assert [r.outcome for r in store.runs()] == [Outcome.QUEUED]
    assert execute(opened, request, queued=True).outcome is Outcome.SUCCEEDED
    with pytest.raises(UnknownRun, match="no run waits"):
        execute(opened, request, queued=True)
    store.submit(request, "test-count")
    assert store.cancel("test-count", "x").outcome is Outcome.CANCELLED and store.queued() == []
    assert (store.get("test-count-2").cancel, store.get("test-count-2").attempts) == ("by x", ())


@pytest.mark.parametrize(
    "workflow, error, said",
    [
        ("test-count", UnknownRun, "nothing to resume, test-count-1 succeeded"),
        ("test-zombie", BadParameters, "keeps no checkpoints"),
    ],
)
def test_a_resume_that_cannot_be_taken_holds_nobody_up(
    opened: Opened, workflow: str, error: type[Exception], said: str
) -> None:
    """It is refused when it is asked for; one that waits already leaves the queue with its reason on record, and what
    is due next can be asked for. The refusal itself is nothing to resume either."""
    store, control = RunStore(opened.repo), WorkflowControl(opened.repo)
    execute(opened, RunRequest(workflow="test-count", parameters={"units": 1}))
    request = RunRequest(workflow=workflow, resume=0, who="on-call", trigger="ui")
    with pytest.raises(error, match=said):
        control.request(request)
    assert store.queued() == []
    store.submit(request, workflow)
    with pytest.raises(error, match=said):
        execute(opened, store.queued()[0], queued=True)
    assert store.queued() == []
    refused = store.runs(workflow, 1)[0]
    assert refused.outcome is Outcome.REFUSED and refused.request.who == "on-call" and said in refused.error
    with pytest.raises(error):
        execute(opened, request)
    store.submit(RunRequest(workflow=workflow, trigger="schedule"), workflow)


def test_a_request_that_somebody_else_took_is_not_refused(opened: Opened) -> None:
    """A process that comes too late for a request leaves the one that waits now."""
    store = RunStore(opened.repo)
    late = RunRequest(workflow="test-count", resume=0, who="late")
    store.submit(RunRequest(workflow="test-count", parameters={"units": 1}, who="next"), "test-count")
    with pytest.raises(UnknownRun):
        execute(opened, late, queued=True)
    assert [request.who for request in store.queued()] == ["next"]
    assert store.runs("test-count")[0].outcome is Outcome.QUEUED


def test_what_is_at_work(opened: Opened) -> None:
    """What runs and what waits is at work; a run that ended, and one whose process is gone, is not."""
    store = RunStore(opened.repo)
    run(opened, "test-count", units=1)
    assert store.at_work() == []
    lease = take(opened)
    store.submit(RunRequest(workflow="test-refused"), "test-refused")
    assert store.at_work() == ["test-count", "test-refused"]
    store.finish(lease, store.get("test-count-2"), keep_checkpoint=False)
    store.unqueue("test-refused")
    assert store.at_work() == []


def test_a_checkpoint_is_bounded(opened: Opened) -> None:
    """A state that is too large is refused with its size, not cut."""
    lease = take(opened)
    with pytest.raises(BadParameters, match="checkpoint of"):
        lease.checkpoint("x" * leases.MAX_STATE_BYTES)
