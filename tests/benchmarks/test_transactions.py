"""`bench transactions`: our engine, the real Java client and plain HBase, all on one real HBase."""

from __future__ import annotations

import itertools
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from benchmarks import BenchmarkFailed, _java, run_benchmark, transactions
from benchmarks._transactions_java import java_client
from benchmarks._transactions_load import SCHEMA, Load, Measured, percentile
from compose import ServerInfo, ServerMissing, Stack
from storage_repo.hbase.address import HbaseAddress
from storage_repo.hbase.repo import HbaseRepo
from tests.support import IN_CI

TINY = transactions.Sizes(
    loads=(Load(1, 6), Load(4, 24), Load(4, 24, batched=True)), rows=200, repeats=1
)  # fmt: skip
WAYS = ("1 in flight, serial", "4 in flight, in threads", "4 in flight, in one batch")


@pytest.fixture(scope="module")
def servers(hbase_server: ServerInfo, shared_stack: Stack) -> transactions.HbaseServers:
    """The shared HBase."""
    if not IN_CI:
        try:
            _java._javac()
        except ServerMissing as missing:
            pytest.skip(str(missing))
    pids = {name: info.pid for name, info in shared_stack.status(["hbase", "thrift", "thrift2", "omid"]).items()}
    return transactions.HbaseServers(hbase_server.url, hbase_server.log_file.parent / "conf", pids)


@pytest.fixture(scope="module")
def result(servers: transactions.HbaseServers) -> dict[str, Any]:
    """One run at sizes that say nothing about speed."""
    return transactions.run(quick=True, sizes=TINY, given=servers)


def test_every_case_has_ours_and_its_peers_figures(result: dict[str, Any]) -> None:
    """Update, write and read (also again), each way, against Java and against plain HBase, and nothing else."""
    figures = {(row["case"], row["metric"]): row for row in result["results"]}
    peers = {"java": ("update", "write", "read"), "java-async": ("update", "write")}
    wanted = {f"{peer}/{kind}, {way}" for peer, kinds in peers.items() for kind in kinds for way in WAYS}
    plain = {"write": "raw-write", "read": "raw-read", "read again": "raw-read"}
    wanted |= {f"{peer}/{kind}, {way}" for kind, peer in plain.items() for way in WAYS}
    compared = {case for case, _ in figures if not case.startswith("cost/")}
    assert compared == wanted
    for case, metric in itertools.product(wanted, ("transactions/s", "p50 ms", "p99 ms")):
        row = figures[case, metric]
        assert row["ours"] > 0
        assert row["peer"] > 0
        assert row["ratio"] == pytest.approx(
            row["ours"] / row["peer"] if metric == "transactions/s" else row["peer"] / row["ours"], rel=1e-2
        )


def test_the_cost_of_a_transaction_is_shown_in_round_trips(result: dict[str, Any]) -> None:
    """Alone it needs a handful of calls; in a batch, calls are shared."""
    cost = {
        row["case"].removeprefix("cost/"): row["ours"]
        for row in result["results"]
        if row["metric"] == "HBase round trips/transaction"
    }
    assert 1 <= cost[f"read, {WAYS[0]}"] < 2
    assert cost[f"write, {WAYS[0]}"] < 4
    assert cost[f"update, {WAYS[0]}"] < 5
    assert cost[f"update, {WAYS[2]}"] < cost[f"update, {WAYS[0]}"] / 2


def test_both_clients_wrote_every_cell(result: dict[str, Any], servers: transactions.HbaseServers) -> None:
    """After the run all rows have all their cells, and the last writers were of both kinds."""
    url = f"{servers.url}&prefix=bench_"
    with closing(HbaseRepo.open(url, SCHEMA)) as repo:
        rows = dict(repo.snapshot().scan("docs"))
        origins = [repo.history("docs", row, "f:bid")["f:bid"][0].origin for row in list(rows)[:60]]
    assert rows.pop("settled")
    assert len(rows) == TINY.rows
    assert all(
        set(row) == {"f:name", "f:bid"} and {len(value) for value in row.values()} == {64} for row in rows.values()
    )
    assert {origin is None for origin in origins} == {True, False}


def test_a_java_client_that_fails_is_an_error(servers: transactions.HbaseServers, tmp_path: Path) -> None:
    """Its error is the benchmark's error."""
    zookeeper = HbaseAddress.parse(servers.url).zookeeper
    with (
        java_client(servers.conf, zookeeper, "bench_docs", 1_000_000, tmp_path) as java,
        pytest.raises(BenchmarkFailed, match="a value is missing"),
    ):
        java.run("read", Load(1, 1))


def test_java_source_that_does_not_compile_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """javac's message is shown."""
    source = tmp_path / "Broken.java"
    source.write_text("public final class Broken { nonsense }")
    monkeypatch.setattr(_java, "class_path", lambda: "")
    monkeypatch.setattr(_java, "jars", list)
    with pytest.raises(_java.CompileError, match="nonsense"):
        _java.java_command(source, tmp_path, [])


def test_java_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second command runs what the first has compiled; another source is compiled anew."""
    monkeypatch.setattr(_java, "class_path", lambda: "")
    monkeypatch.setattr(_java, "jars", list)
    monkeypatch.setattr(_java, "cache_directory", lambda: tmp_path / "cache")
    source = tmp_path / "Hello.java"
    text = 'public final class Hello { public static void main(String[] a) { System.out.print(a[0] + "%s"); } }'
    source.write_text(text % 1)
    command = _java.java_command(source, tmp_path, ["x"])
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "x1"
    monkeypatch.setattr(_java, "_javac", lambda: "no-javac")
    assert _java.java_command(source, tmp_path, ["x"]) == command
    source.write_text(text % 2)
    with pytest.raises(FileNotFoundError):
        _java.java_command(source, tmp_path, ["x"])


def test_figures() -> None:
    """Rate and percentiles."""
    assert Measured(2.0, [1.0, 2.0], 10).rate == 5
    assert [percentile([3.0, 1.0, 2.0], share) for share in (0.0, 0.5, 0.99)] == [1, 2, 3]


def test_it_is_one_of_the_benchmarks() -> None:
    """By name, with and without --stack."""
    from benchmarks._run import BENCHMARKS, ON_THE_STACK

    assert BENCHMARKS["transactions"] is ON_THE_STACK["transactions"] is transactions.run
    assert callable(run_benchmark)
