"""The reports stage, a Faust app, on a real broker: as a process that is killed, and in step with the command."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from catalog import load_catalog
from cli.settings import choose
from cli.supervisor import STOP_SECONDS
from compose import ServerInfo, Stack
from messaging import Log, LogError, OutRecord, open_embedded_log
from messaging.home import Home
from messaging.kafka import open_kafka_log
from messaging.metrics import StageMetrics
from messaging.reports import load_counts
from messaging.reports_stage import Counter, run
from messaging.stage import StageContext
from messaging.topics import DEAD_LETTERS, DROP_COUNTS, DROPS, ensure_topics
from tests.messaging.test_reports import recount, reported, some_records
from tests.stack_support import up_or_skip
from tests.support import ROOT

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def home(kafka_server: ServerInfo, tmp_path: Path) -> Home:
    """A home on a log of its own."""
    home = Home.open(tmp_path / "home")
    choose(home, log=f"{kafka_server.url}/r{uuid.uuid4().hex[:10]}-")
    return home


@pytest.fixture
def log(home: Home) -> Iterator[Log]:
    """The log of the home, with its topics."""
    from cli.settings import Settings

    with open_kafka_log(Settings.load(home).log) as log:
        ensure_topics(log)
        yield log


@pytest.fixture
def start(home: Home) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Return a function that starts the stage as `up` does; what still runs at the end is killed."""
    processes: list[subprocess.Popen[bytes]] = []

    def start_process() -> subprocess.Popen[bytes]:
        with (home.logs / "reports-0.log").open("ab") as out:
            command = [sys.executable, "-m", "cli.worker", "reports", "--home", str(home.root)]
            processes.append(subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out))
        return processes[-1]

    yield start_process
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.wait()


def counted(log: Log) -> dict[bytes, int]:
    """Return what lies in the changelog: key -> offset up to which it has counted."""
    return {key: json.loads(value)[1] for key, value in load_counts(log).items()}


def until(condition: Callable[[], bool], process: subprocess.Popen[bytes], home: Home) -> None:
    """Wait until the condition holds while the process lives; a start takes 4 s, on a busy machine much longer."""
    deadline = time.monotonic() + 280
    while not condition():
        assert process.poll() is None, (home.logs / "reports-0.log").read_text()[-3000:]
        assert time.monotonic() < deadline, (home.logs / "reports-0.log").read_text()[-3000:]
        time.sleep(0.05)


def all_counted(log: Log) -> bool:
    """Say whether the stage has counted the last record of both topics."""
    ends = {log.end_offsets(topic)[0] - 1 for topic in (DROPS, DEAD_LETTERS)}
    return ends <= {*counted(log).values()}


def test_counts_are_exact_after_kill_9_at_random_moments(
    home: Home, log: Log, start: Callable[[], subprocess.Popen[bytes]]
) -> None:
    """However often the stage is killed - before, while and after it counts - the report is the recount of the topics
    at every moment, and so are, in the end, the stage's own counts."""
    chance = random.Random(11)
    for _ in range(2):
        process = start()
        before = sum(counted(log).values())
        for _ in range(20):
            log.publish(some_records(chance, 10))
        until(lambda before=before: sum(counted(log).values()) > before, process, home)  # type: ignore[misc]
        time.sleep(chance.random())  # now somewhere between a count and a stored position
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert reported(log) == recount(log)
    log.publish(some_records(chance, 10))
    assert reported(log) == recount(log)
    process = start()
    until(lambda: all_counted(log), process, home)
    process.terminate()
    assert process.wait(120) == 0
    wanted = recount(log)
    for topic in (DROPS, DEAD_LETTERS):  # what is left are the stage's counts alone
        log.trim(topic, 0, log.end_offsets(topic)[0])
    assert reported(log) == wanted


def test_stage_says_that_it_lives_and_stops(home: Home, log: Log) -> None:
    """It is ready at once, shows how much waits, counts, and ends when told to, its metrics written."""
    stop, ready = threading.Event(), threading.Event()
    metrics = StageMetrics(home.metrics, "reports-0")
    context = StageContext("reports", 0, home, load_catalog(), log, metrics, stop, lambda port: ready.set())
    log.publish(some_records(random.Random(5), 100))
    thread = threading.Thread(target=run, args=(context,))
    thread.start()
    assert ready.wait(120)
    deadline = time.monotonic() + 280
    while not all_counted(log):
        assert thread.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert metrics.gauges["uncounted"] >= 0
    stop.set()
    thread.join(120)
    assert not thread.is_alive()
    assert reported(log) == recount(log)


@pytest.mark.stress
def test_stage_says_that_it_lives_and_stops_while_the_broker_hangs(
    own_stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker that answers nothing, not even that it is away, keeps it neither from its signs of life nor from ending
    within the time that the supervisor gives."""
    server = up_or_skip(own_stack, ["kafka"])["kafka"]
    monkeypatch.setattr("messaging.reports_stage._LOOK_SECONDS", 0.1)
    stop, ready = threading.Event(), threading.Event()
    with open_kafka_log(server.url) as log:
        ensure_topics(log)
        metrics = StageMetrics(tmp_path / "metrics", "reports-0")
        context = StageContext(
            "reports", 0, Home.open(tmp_path), load_catalog(), log, metrics, stop, lambda port: ready.set()
        )
        beats: list[float] = []
        monkeypatch.setattr(metrics, "flush", lambda force=False: beats.append(time.monotonic()))
        thread = threading.Thread(target=run, args=(context,))
        thread.start()
        assert ready.wait(120)
        time.sleep(3.0)  # into the middle of joining, or after it
        try:
            os.kill(server.pid, signal.SIGSTOP)
            hung = time.monotonic()
            time.sleep(8.0)
            stop.set()
            thread.join(STOP_SECONDS)
            assert not thread.is_alive()
        finally:
            os.kill(server.pid, signal.SIGCONT)
    during = [hung, *(beat for beat in beats if beat > hung)]
    assert max(after - before for before, after in pairwise(during)) < STOP_SECONDS


def test_missed_record_is_sought_again(tmp_path: Path) -> None:
    """A record beyond the next one is not counted but leads back to that; one that was counted is passed over; and
    records that the topic no longer keeps are not waited for."""
    with open_embedded_log(tmp_path / "log", tmp_path / "wake") as log:
        ensure_topics(log)
        log.publish(some_records(random.Random(2), 60))
        records = {topic: log.read(topic, 0, 0, 100) for topic in (DROPS, DEAD_LETTERS)}
        table: dict[bytes, bytes] = {}
        sought: dict[str, int] = {}

        async def seek(topic: str, offset: int) -> None:
            sought[topic] = offset

        counter = Counter(log)
        counter.bind(table, seek)
        asyncio.run(counter.go_on())
        drops = records[DROPS]
        for record in (drops[0], drops[1], drops[0], drops[3], drops[4]):
            counter.take(record)
        assert [counter.missed] == [True]
        asyncio.run(counter.seek_back())
        assert sought == {DROPS: 2, DEAD_LETTERS: 0}
        for record in (*drops[1:], *records[DEAD_LETTERS]):
            counter.take(record)
        assert [counter.missed] == [False]
        log.publish([OutRecord(DROP_COUNTS, key.decode(), value) for key, value in table.items()])
        wanted = recount(log)
        for topic, kept in records.items():
            log.trim(topic, 0, len(kept))
        assert reported(log) == wanted
        fresh = Counter(log)
        fresh.bind({}, seek)
        asyncio.run(fresh.go_on())
        assert sought == {topic: len(kept) for topic, kept in records.items()}


def test_embedded_log_needs_no_stage(tmp_path: Path) -> None:
    """On the embedded log the stage refuses to run, in a sentence that says why it is not needed."""
    home = Home.open(tmp_path / "home")
    with open_embedded_log(home.log, home.wake) as log:
        context = StageContext(
            "reports",
            0,
            home,
            load_catalog(),
            log,
            StageMetrics(home.metrics, "r"),
            threading.Event(),
            lambda port: None,
        )
        with pytest.raises(LogError, match="counts by itself"):
            run(context)
