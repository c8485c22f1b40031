"""Engines: order and cost of tasks aside, each gives the same; Spark too, where pyspark is installed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import closing
from functools import partial
from pathlib import Path

import psutil
import pytest

from batch_workflows._objects_errors import EngineFailed
from batch_workflows.base_store import BaseStore
from batch_workflows.engines import Engine, InlineEngine, LocalEngine, SparkEngine, open_engine
from batch_workflows.objects import Address, Objects
from storage_repo import SnapshotTooOld
from tests.batch_workflows.base_support import Built, files_of
from tests.batch_workflows.s3_support import ACCOUNT, account, s3
from tests.batch_workflows.spark_support import require_spark
from tests.support import ROOT

__all__ = ["account", "s3"]

KINDS = ["inline", "local", pytest.param("spark", marks=pytest.mark.spark)]


@pytest.fixture(scope="module")
def engines() -> Iterator[dict[str, Engine]]:
    """One engine of each kind, made on first use."""
    made: dict[str, Engine] = {}
    yield made
    for engine in made.values():
        engine.close()


@pytest.fixture
def engine(request: pytest.FixtureRequest, engines: dict[str, Engine]) -> Engine:
    """An engine of the kind asked for."""
    kind = str(request.param)
    if kind not in engines:
        engines[kind] = spark_engine() if kind == "spark" else open_engine(kind, processes=2)
    return engines[kind]


def spark_engine() -> SparkEngine:
    """Return Spark within this process, whose executors have an account of S3."""
    require_spark()
    account_there = {f"spark.executorEnv.{name}": value for name, value in ACCOUNT.items()}
    return SparkEngine("local[2]", {"spark.driver.memory": "512m", **account_there})


def square(offset: int, number: int) -> tuple[int, int, int]:
    """A task."""
    if number == 13:
        raise ArithmeticError("thirteen is not squared here")
    return number, number * number + offset, os.getpid()


@pytest.mark.parametrize("engine", KINDS, indirect=True)
def test_every_task_is_run_once_and_its_result_comes_back(engine: Engine) -> None:
    """In whatever order; no tasks, no results."""
    results = list(engine.map(partial(square, 5), range(12)))
    assert sorted(result[:2] for result in results) == [(n, n * n + 5) for n in range(12)]
    assert list(engine.map(partial(square, 5), [])) == []


@pytest.mark.parametrize("engine", KINDS, indirect=True)
def test_the_error_of_a_task_ends_the_run_and_the_engine_works_on(engine: Engine) -> None:
    """Its sentence reaches the caller."""
    with pytest.raises((ArithmeticError, EngineFailed), match="thirteen is not squared here"):
        list(engine.map(partial(square, 0), range(20)))
    assert len(list(engine.map(partial(square, 0), range(3)))) == 3


def test_a_pool_uses_processes_and_takes_tasks_as_they_become_free(engines: dict[str, Engine]) -> None:
    """A generator of a million tasks is not run dry before the first result."""
    pool = engines.setdefault("local", LocalEngine(2))
    taken = 0

    def tasks() -> Iterator[int]:
        nonlocal taken
        for number in range(100, 1_000_100):
            taken += 1
            yield number

    results = pool.map(partial(square, 0), tasks())
    pids = {next(results)[2] for _ in range(30)}
    assert taken < 50
    assert os.getpid() not in pids
    results.close()  # type: ignore[attr-defined]


def awaited(task: tuple[str, int]) -> int:
    """A task that waits for a file, where one is named."""
    file, number = task
    deadline = time.monotonic() + 120
    while file and not Path(file).exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return number


@pytest.mark.parametrize("engine", KINDS[1:], indirect=True)
def test_each_result_comes_when_it_is_there_and_somebody_looks_meanwhile(engine: Engine, tmp_path: Path) -> None:
    """One task's result is there while the other still waits for what is only done in between; an error from there
    ends the run."""
    go, never = tmp_path / "go", tmp_path / "never"
    came: list[int] = []
    # What the first task waits for is done only after the second one's result came, however slowly the engine begins.
    for result in engine.map(awaited, [(str(go), 1), ("", 2)], lambda: go.touch() if came else None):
        came.append(result)
    assert came == [2, 1]

    def cancelled() -> None:
        raise KeyError("cancelled by a person")

    with pytest.raises(KeyError, match="by a person"):
        list(engine.map(awaited, [(str(never), 1)], cancelled))
    never.touch()
    assert list(engine.map(awaited, [("", 3)])) == [3]


def test_closing_ends_the_processes_in_the_middle_of_a_task() -> None:
    """Twice is fine."""
    me = psutil.Process()
    others = set(me.children())
    pool = LocalEngine(2)
    ended: list[BaseException] = []

    def work() -> None:
        try:
            list(pool.map(_hang, [1]))
        except (EngineFailed, CancelledError) as error:
            ended.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    pause = threading.Event()
    while not (mine := [c for c in set(me.children()) - others if "spawn_main" in " ".join(c.cmdline())]):
        pause.wait(0.02)
    pool.close()
    pool.close()
    thread.join(120)
    assert not thread.is_alive()
    assert len(ended) == 1
    assert not any(process.is_running() for process in mine)


def _hang(number: int) -> None:
    threading.Event().wait(300)


def test_without_pyspark_the_engine_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an extra that the service never needs by itself."""
    monkeypatch.setitem(__import__("sys").modules, "pyspark.sql", None)
    with pytest.raises(EngineFailed, match=r"needs pyspark .*pip install 'adsindex\[spark\]'"):
        SparkEngine("local[1]")


@pytest.mark.spark
def test_spark_builds_the_same_base_as_the_pool_and_writes_to_s3(
    tmp_path: Path, s3: Address, engines: dict[str, Engine]
) -> None:
    """Key ranges of the Repo at one timestamp in parallel tasks; the shards' files are equal byte for byte."""
    spark = engines.get("spark") or engines.setdefault("spark", spark_engine())
    built = Built(tmp_path / "home")
    try:
        built.fill(300)
        here = built.build(engine=InlineEngine(), shards=2, range_rows=100)
        spread = built.build(engine=spark, shards=2, range_rows=60)
        there = built.build(engine=spark, shards=2, range_rows=60, address=str(s3))
        assert files_of(built.home.base / spread.base_version) == files_of(built.home.base / here.base_version)
        ignored = {"base_version": "", "seconds": {}, "address": "", "volume_change": 0.0, "bytes": 0}
        assert here.to_json() | ignored == spread.to_json() | ignored == there.to_json() | ignored
        stored = BaseStore(Objects(s3)).manifest(there.base_version)
        assert {n: f.blake2b for n, f in stored.files.items() if not n.endswith("manifest.json")} == files_of(
            built.home.base / here.base_version
        )
    finally:
        built.close()


def too_old(number: int) -> int:
    """A task whose snapshot is gone."""
    raise SnapshotTooOld(number, number + 4)


@pytest.mark.parametrize("engine", ["inline", "local"], indirect=True)
def test_an_error_that_makes_its_own_text_arrives_as_it_was(engine: Engine) -> None:
    """It is the task's error, with what it knows, and not that the pool is broken; the engine goes on."""
    with pytest.raises(SnapshotTooOld, match="snapshot 3 is older than the low watermark 7") as raised:
        list(engine.map(too_old, [3]))
    assert (raised.value.ts, raised.value.low_watermark) == (3, 7)
    assert [found for _, found, _ in engine.map(partial(square, 1), [2])] == [5]


class Stubborn(Exception):
    """An error of some library, whose pickle cannot be read."""

    def __init__(self, what: str, where: str) -> None:
        super().__init__(f"{what} at {where}")


def stubborn(where: str) -> None:
    """A task that such a library lets down."""
    raise Stubborn("no luck", where)


def test_an_error_that_cannot_travel_is_told_in_words_and_the_pool_goes_on() -> None:
    """It is not taken for a process that was killed."""
    with closing(LocalEngine(1)) as engine:
        with pytest.raises(EngineFailed, match="a task failed with Stubborn: no luck at home"):
            list(engine.map(stubborn, ["home"]))
        assert [found for _, found, _ in engine.map(partial(square, 1), [2])] == [5]


def test_a_pool_dies_with_the_process_that_made_it(tmp_path: Path) -> None:
    """Killed -9 in the middle of its tasks, a run leaves no process behind that could still write."""
    maker = subprocess.Popen([sys.executable, "-m", "tests.batch_workflows.engine_sleeper", str(tmp_path)], cwd=ROOT)
    try:
        wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
        workers = [int(file.name) for file in tmp_path.iterdir()]
    finally:
        maker.kill()
        maker.wait()
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in workers))


def wait_until(holds: Callable[[], bool]) -> None:
    """Return once it holds; fail after a minute."""
    deadline = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)
