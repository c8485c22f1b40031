"""The pipeline benchmark: it runs on the real processes, and its result has the promised form."""

from __future__ import annotations

import json
from typing import Any

import pytest
from rich.console import Console

from benchmarks import UnknownBenchmark, pipeline, render_benchmark, run_benchmark
from benchmarks._peers import DUCKDB, PATHWAY, missing
from benchmarks._service import STAGES

TINY = pipeline.Sizes(
    ads=(60, 150), compared=60, rate=20.0, warm_up_s=0.2, steady_s=1.5, storms=1, probes=2, peers=frozenset()
)


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    """One run at sizes that say nothing about speed, without peers."""
    return pipeline.run(quick=True, sizes=TINY)


def rows(result: dict[str, Any], words: str) -> list[dict[str, Any]]:
    """Return the results whose case and metric contain the words."""
    return [row for row in result["results"] if words in f"{row['case']}: {row['metric']}"]


def test_the_result_has_the_promised_form(result: dict[str, Any]) -> None:
    """One JSON object: benchmark, machine, results of six keys each, notes."""
    assert json.loads(json.dumps(result)) == result
    assert result["benchmark"] == "pipeline" and result["machine"]["cores"] >= 1
    assert result["machine"]["sync_4k_ms"] > 0
    for row in result["results"]:
        assert list(row) == ["case", "metric", "ours", "peer_name", "peer", "ratio"]


def test_latency_throughput_cost_and_growth_are_reported(result: dict[str, Any]) -> None:
    """Every figure that the benchmark promises is there and positive, at every size."""
    for ads in TINY.ads:
        for words in ("p50 ms from commit", "p99 ms from commit", "bulk load: documents/s"):
            found = [row for row in rows(result, words) if row["case"].startswith(f"{ads} ads")]
            assert found and all(row["ours"] > 0 for row in found), (ads, words)
    for stage in STAGES:
        assert len(rows(result, f"{stage}: cpu us/document")) == len(TINY.ads)
    assert all(row["ours"] > 0 for row in rows(result, "storm of bids")) and rows(result, "storm of bids")
    assert rows(result, "times as long")[0]["ours"] > 0


def test_the_hops_add_up_to_about_the_latency(result: dict[str, Any]) -> None:
    """What messages carry about each stage explains what the application's clock saw."""
    for ads in TINY.ads:
        hops = [r["ours"] for r in rows(result, "p50 ms") if r["case"].startswith(f"{ads} ads") and "cost" in r["case"]]
        (seen,) = {r["ours"] for r in rows(result, "p50 ms from commit to answerable") if f"{ads} ads" in r["case"]}
        assert len(hops) >= 9
        assert 0.2 * seen < sum(hops) < 5 * seen


def test_every_update_was_measured(result: dict[str, Any]) -> None:
    """No update of the steady phase is left out: measured, or counted as run together with an earlier one."""
    for ads in TINY.ads:
        (note,) = (n for n in result["notes"] if n.startswith(f"{ads} ads:"))
        words = note.replace(",", "").split()
        measured = int(words[words.index("updates") - 1])
        together = int(words[words.index("more") - 1]) if "more" in words else 0
        assert measured + together == TINY.rate * TINY.steady_s
        assert "polled by search" in note and not note.endswith(" 0 polled by search")


def test_an_absent_peer_is_null_and_said_aloud(result: dict[str, Any]) -> None:
    """Rows that have a peer name it; without its figures the peer is null, and a note says why."""
    for peer in (PATHWAY, DUCKDB):
        named = [row for row in result["results"] if row["peer_name"] == peer]
        assert named and all(row["peer"] is None and row["ratio"] is None for row in named)
        assert any(note.startswith(peer) and "no figures of it" in note for note in result["notes"])


def test_a_missing_package_is_noticed() -> None:
    """What cannot be imported counts as missing."""
    assert missing("a_package_that_nobody_has") and not missing("rich")


def test_a_result_can_be_shown(result: dict[str, Any]) -> None:
    """The tables name every metric and the notes."""
    console = Console(width=240, record=True, file=None, quiet=False)
    with console.capture() as captured:
        console.print(render_benchmark(result))
    text = captured.get()
    assert all(row["metric"] in text for row in result["results"])
    assert "ratio > 1: ours is better" in text


def test_an_unknown_name_lists_the_known_ones() -> None:
    """The error tells what there is."""
    with pytest.raises(UnknownBenchmark, match=r"'nosuch'.*pipeline"):
        run_benchmark("nosuch")
