"""`bench serving` at a size that says nothing about speed: every figure is there and adds up."""

from __future__ import annotations

from benchmarks import serving
from benchmarks._run import BENCHMARKS


def test_every_figure_is_there() -> None:
    """Latencies in order at rest and under deltas, both rates of batches, deltas that arrive, and a start."""
    assert BENCHMARKS["serving"] is serving.run
    sizes = serving.Sizes(ads=400, seconds=0.3, rounds=1, deltas_per_s=200, batches=(4,), k=10, starts=1)
    result = serving.run(quick=True, sizes=sizes)
    rows = {row["metric"]: row for row in result["results"]}
    for name in ("at rest", "under 200 deltas/s"):
        quantiles = [rows[f"{q} ms {name}"]["ours"] for q in ("p50", "p99", "p99.9")]
        assert 0 < quantiles[0] <= quantiles[1] <= quantiles[2]
        batches = rows[f"requests/s in batches of 4 {name}"]
        assert batches["ours"] > 0
        assert batches["peer"] > 0
    started = [
        rows[f"ms from the start of the process until {what}"]["ours"] for what in ("it is ready", "its first answer")
    ]
    assert 0 < started[0] < started[1]
    lags = [rows[f"{q} ms from a delta's publication to answerable"]["ours"] for q in ("p50", "p99")]
    assert 0 < lags[0] <= lags[1]
    assert {row["case"] for row in result["results"]} == {"400 ads, one shard, k = 10"}
