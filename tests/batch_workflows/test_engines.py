"""Engines: order and cost of tasks aside, each gives the same; Spark too, where pyspark is installed."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from functools import partial
from pathlib import Path

import psutil
import pytest

from batch_workflows._objects_errors import EngineFailed
from batch_workflows.base_store import BaseStore
from batch_workflows.engines import Engine, InlineEngine, LocalEngine, SparkEngine, open_engine
from batch_workflows.objects import Address, Objects
from tests.batch_workflows.base_support import Built, files_of
from tests.batch_workflows.s3_support import ACCOUNT, account, s3
from tests.batch_workflows.spark_support import require_spark

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
    thread.join(30)
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
