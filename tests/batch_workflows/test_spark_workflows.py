"""Workflows by each engine: a snapshot is the same bytes, on S3 too, and a sync finds the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from batch_workflows import _sync_sums, _sync_tasks, parquet_snapshot, sync
from batch_workflows.engines import LocalEngine, SparkEngine
from batch_workflows.objects import Address, Objects
from batch_workflows.parquet_snapshot import Day, read_day
from tests.batch_workflows.run_support import Opened, run
from tests.batch_workflows.s3_support import ACCOUNT, account, s3
from tests.batch_workflows.spark_support import require_spark
from tests.batch_workflows.sync_support import Chaos, filled, work

__all__ = ["account", "s3"]

COST = ("seconds", "rows_per_second", "parts")
"""What a sync counts that no two runs have alike."""
ENGINES = [
    pytest.param({"engine": "local", "processes": 2}, LocalEngine, id="local"),
    pytest.param({"engine": "spark", "master": "local[2]"}, SparkEngine, id="spark", marks=pytest.mark.spark),
]


@pytest.fixture
def began(monkeypatch: pytest.MonkeyPatch) -> dict[type, list[str]]:
    """Which functions each kind of engine was asked to run, a name per task."""
    seen: dict[type, list[str]] = {LocalEngine: [], SparkEngine: []}
    real: dict[type, Callable[..., Any]] = {}
    for kind in (LocalEngine, SparkEngine):

        def spied(self: Any, function: Any, tasks: Iterable[Any], idle: Any = None, kind: type = kind) -> Any:
            def counted() -> Iterator[Any]:
                for task in tasks:
                    seen[kind].append((function.func if isinstance(function, partial) else function).__name__)
                    yield task

            return real[kind](self, function, counted(), idle)

        real[kind] = kind.map
        monkeypatch.setattr(kind, "map", spied)
    return seen


def prepare(kind: type) -> None:
    """Make Spark's session, which the run takes over: its executors have an account of S3."""
    if kind is SparkEngine:
        require_spark()
        account_there = {f"spark.executorEnv.{name}": value for name, value in ACCOUNT.items()}
        SparkEngine("local[2]", {"spark.driver.memory": "512m", **account_there})


def bytes_of(objects: Objects, day: Day) -> dict[str, list[bytes]]:
    """Return the bytes of a day's files by table."""
    return {table.table: [objects.read(name) for name in day.files(table.table)] for table in day.all_tables}


@pytest.mark.spark
def test_a_snapshot_by_spark_is_the_same_bytes(
    opened: Opened, s3: Address, tmp_path: Path, began: dict[type, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files and digests on S3 are those that one process writes to a directory, as a pool's are (test_parquet_pool)."""
    monkeypatch.setattr(parquet_snapshot, "PART_ROWS", 100)
    monkeypatch.setattr(parquet_snapshot, "GROUP_ROWS", 20)
    run(opened, "snapshot", to=str(tmp_path / "here"), day="2026-03-01", engine="inline")
    prepare(SparkEngine)
    run(opened, "snapshot", to=str(s3), day="2026-03-01", engine="spark", master="local[2]")
    here, there = Objects(tmp_path / "here"), Objects(s3)
    one, other = read_day(here), read_day(there)
    assert (one.tables, one.documents) == (other.tables, other.documents)
    assert bytes_of(here, one) == bytes_of(there, other)
    assert {*began[SparkEngine]} == {"write_part"}
    assert len(began[SparkEngine]) == sum(len(table.parts) for table in other.all_tables) > len(other.all_tables)


@pytest.mark.parametrize(("engine", "kind"), ENGINES)
def test_a_sync_finds_the_same_on_every_engine(
    engine: dict[str, Any], kind: type, tmp_path: Path, began: dict[type, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of the ads DB, indexes and documents that were damaged: kinds, examples and what was read are equal."""
    monkeypatch.setattr(_sync_tasks, "RANGE_ROWS", 20)
    monkeypatch.setattr(_sync_sums, "RANGE_ROWS", 20)
    with closing(filled(tmp_path)) as pipeline:
        Chaos(pipeline, 5).all(1)
        work(pipeline)
        monkeypatch.setattr(sync, "_sleep", lambda _: work(pipeline))
        alone = run(pipeline.backends, "sync", repair=False, engine="inline")
        prepare(kind)
        spread = run(pipeline.backends, "sync", repair=False, **engine)
    said = [
        {
            **{name: value for name, value in record.counts.items() if name not in COST},
            "examples": {kind: sorted(rows) for kind, rows in record.counts["examples"].items()},
        }
        for record in (alone, spread)
    ]
    assert said[0] == said[1]
    assert {what.partition(":")[0] for what in alone.counts["unsynced"]} >= {
        "ad",
        "ad_document",
        "ad_by_ad_group",
        "served",
    }
    assert began[kind].count("look_range") > 2 and began[kind].count("sum_range") > 6


def test_an_engines_own_parameters_are_of_no_other(opened: Opened) -> None:
    """A master without Spark, or processes with it, is refused rather than passed over."""
    for parameters, said in (
        ({"master": "local[2]"}, "add engine=spark"),
        ({"engine": "spark", "processes": 2}, "of the engine local"),
    ):
        with pytest.raises(Exception, match=said):
            run(opened, "snapshot", **parameters)
