"""`bench pipeline --stack`: the stages over MariaDB and Kafka, every update seen or accounted for."""

from __future__ import annotations

import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pymysql
import pytest
from sqlalchemy.engine import make_url

from benchmarks import UnknownBenchmark, run_benchmark, stack_latency
from benchmarks._service import STAGES
from benchmarks._stack_servers import Servers
from compose import ServerInfo

TINY = stack_latency.Sizes(
    ads=60, rate=10.0, warm_up_s=0.5, steady_s=2.0, whole_ads=60, whole_rate=10.0, rising=(12.0,), rising_s=2.0
)


def servers_of(mysql_server: ServerInfo, kafka_server: ServerInfo) -> Servers:
    """Return a database and a topic prefix of our own."""
    name = f"ads_lat_{uuid.uuid4().hex[:8]}"
    url = make_url(mysql_server.url)
    with pymysql.connect(
        host=url.host or "", port=url.port or 0, user=url.username or "", password=url.password or "", autocommit=True
    ) as connection:
        connection.cursor().execute(f"CREATE DATABASE {name}")
    return Servers(
        url.set(database=name).render_as_string(hide_password=False),
        f"{kafka_server.url}/{name}-",
        pids={"mysql": mysql_server.pid, "kafka": kafka_server.pid},
    )


@pytest.fixture(scope="module")
def result(mysql_server: ServerInfo, kafka_server: ServerInfo) -> dict[str, Any]:
    """One run at sizes that say nothing about speed, with the embedded Repo."""
    return stack_latency.run(quick=True, sizes=TINY, given=servers_of(mysql_server, kafka_server))


def test_the_whole_stack_is_measured_and_its_rate_raised(
    mysql_server: ServerInfo, kafka_server: ServerInfo, hbase_server: ServerInfo
) -> None:
    """Over HBase: latencies at the first rate and at the raised one, the highest that held, and what was short."""
    at = replace(servers_of(mysql_server, kafka_server), repo=f"{hbase_server.url}&prefix=lat_{uuid.uuid4().hex[:6]}_")
    found = stack_latency.run(quick=True, sizes=TINY, given=at)
    p99 = [row["ours"] for row in found["results"] if row["metric"].startswith("p99 ms from")]
    assert all(value > 0 for value in p99)
    held = next(row["ours"] for row in found["results"] if row["metric"].startswith("highest"))
    assert held == (None if p99[0] >= 2_000 else 10.0 if p99[1] >= 2_000 else 12.0)
    assert any("cores, most of it" in note for note in found["notes"])


def test_latency_and_costs_are_reported(result: dict[str, Any]) -> None:
    """Quantiles in order, the rate that was asked for, and processor time of every stage and server."""
    ours = {row["metric"]: row["ours"] for row in result["results"]}
    quantiles = [ours[f"{q} ms from commit to answerable"] for q in ("p50", "p90", "p99", "max")]
    assert quantiles == sorted(quantiles) and quantiles[0] > 0
    assert ours["updates/s committed"] == pytest.approx(TINY.rate, rel=0.2)
    for name in (*STAGES, "mysql server", "kafka server"):
        assert ours[f"{name}: cpu us/update"] >= 0
    for hop in ("gateway", "updater", "wal_proxy", "argus"):
        for name in (hop, f"queue:{hop}"):
            assert 0 <= ours[f"{name}: p50 ms"] <= ours[f"{name}: p99 ms"]
    assert all(row["case"].endswith("per hop") for row in result["results"] if "queue:" in row["metric"])


def test_every_update_was_measured(result: dict[str, Any]) -> None:
    """No update of the steady phase is left out: measured, or counted as run together with an earlier one."""
    (note,) = (note for note in result["notes"] if "updates measured" in note)
    words = note.rpartition(": ")[2].split()
    together = int(words[words.index("more") - 1]) if "more" in words else 0
    assert int(words[0]) + together == TINY.rate * TINY.steady_s


def test_without_servers_the_lack_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On a machine without MariaDB or Java the quantiles are null, and a note says what to install."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("ADSINDEX_STACK_INSTALL", "0")
    result = stack_latency.run(quick=True, sizes=TINY)
    assert len(result["results"]) == 8 and all(row["ours"] is None for row in result["results"])
    assert any("no figures" in note and "install" in note for note in result["notes"])


def test_only_some_benchmarks_run_on_the_stack() -> None:
    """The error for an unknown name lists those there are."""
    with pytest.raises(UnknownBenchmark, match=r"'nosuch'.*pipeline, cdc"):
        run_benchmark("nosuch", stack=True)
