"""The benchmark of the workflows: each runs by its command on a generated home, and its line has all figures."""

from __future__ import annotations

import json

from benchmarks import workflows


def test_every_workflow_runs_and_reports_its_rows() -> None:
    """Base index, sync, refresh, snapshot, import, backfill and garbage collection, in their order, each killed -9."""
    result = workflows.run(True, 120)
    assert json.loads(json.dumps(result)) == result
    rows = {row["metric"]: row for row in result["results"] if row["case"].endswith("control updates/s")}
    for quantile in ("p50", "p99"):
        row = rows.pop(f"{quantile} ms from change to answerable beside a refresh")
        assert row["ours"] > 0 and row["peer"] > 0 and row["peer_name"] == "without one"
    assert rows.pop("refreshed rows/s meanwhile")["ours"] > 0 and not rows
    by_line = {(row["case"].partition(" ads, ")[2], row["metric"]): row["ours"] for row in result["results"]}
    assert [line.name for line in workflows.LINES if not line.middle] == ["gc, dry run"], "all others are killed"
    for line in workflows.LINES:
        for metric in ("rows", "rows/s", "seconds", "CPU seconds", "MB"):
            assert by_line[line.name, metric] > 0, (line.name, metric)
    assert by_line["base-index of stored documents", "rows"] > 60
    assert by_line["refresh", "rows"] >= 120
    assert by_line["import of it", "rows"] == by_line["snapshot to Parquet", "rows"]
