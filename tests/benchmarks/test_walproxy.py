"""`bench walproxy` on the shared servers, at sizes that say nothing about speed: every figure is there and adds up."""

from __future__ import annotations

import secrets
from contextlib import closing
from pathlib import Path

import pytest

from benchmarks import BenchmarkFailed, walproxy
from benchmarks._report import Report
from benchmarks._walproxy_load import PEER_ID, Reader, Writers, catalog_of, schema_of
from compose import ServerInfo
from messaging.kafka import open_kafka_log
from messaging.topics import ensure_topics
from storage_repo.hbase import apply_schema
from storage_repo.hbase.wal import walproxy_status

TINY = walproxy.Sizes(rate=20.0, warm_up=2, measured=10, backlog_rows=300)


@pytest.fixture
def given(hbase_server: ServerInfo, kafka_server: ServerInfo) -> dict[str, str]:
    """Tables and topics of the test's own."""
    token = f"bench{secrets.token_hex(4)}"
    return {"repo": f"{hbase_server.url}&prefix={token}_", "log": f"{kafka_server.url}/{token}."}


def test_every_case_has_its_figures(given: dict[str, str]) -> None:
    """Latencies in order, rates above nothing, both writers; the peer is gone afterwards."""
    result = walproxy.run(quick=True, sizes=TINY, given=given)
    figures = {(row["case"], row["metric"]): row["ours"] for row in result["results"]}
    for name, one in (("commits", "commit"), ("puts", "put")):
        quantiles = [
            figures[f"20 {name}/s", f"{q} ms from {one} asked for to notification"]
            for q in ("p50", "p90", "p99", "max")
        ]
        assert 0 < quantiles[0] <= quantiles[1] <= quantiles[2] <= quantiles[3]
    backlog = {metric: value for (case, metric), value in figures.items() if case == "backlog of 3,600 cells"}
    assert len(backlog) == 4
    assert all(value > 0 for value in backlog.values())
    assert PEER_ID not in {peer.id for peer in walproxy_status(given["repo"]).peers}


def test_what_is_never_notified_is_an_error(given: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are missing are not left out of the figures: here no proxy runs."""
    monkeypatch.setattr(walproxy, "_READY_S", 0.5)
    apply_schema(given["repo"], schema_of(catalog_of()))
    with closing(open_kafka_log(given["log"])) as log:
        ensure_topics(log)
    with (
        closing(Writers(given["repo"], catalog_of())) as writers,
        Reader(given["log"]) as reader,
        pytest.raises(BenchmarkFailed, match="12 of 12 commits were not notified"),
    ):
        walproxy._latency(Report(), TINY, "commits", writers, reader, writers.commit)


def test_a_proxy_that_does_not_start_is_an_error(given: dict[str, str], tmp_path: Path) -> None:
    """The end of its log is in the message."""
    with (
        pytest.raises(BenchmarkFailed, match=r"(?s)the proxy did not start: .*is no HBase Repo"),
        walproxy._proxy(tmp_path, "kafka://wrong", given["log"]),
    ):
        pass


def test_put_cells_are_those_of_a_committed_transaction(given: dict[str, str]) -> None:
    """What the bench puts without a transaction, the Repo reads as committed."""
    apply_schema(given["repo"], schema_of(catalog_of()))
    with closing(Writers(given["repo"], catalog_of())) as writers:
        writers.put("one")
        writers.put_many(["two", "three"])
        for row in ("one", "two", "three"):
            assert len(writers.repo.snapshot().get("ad", row)) == 5
