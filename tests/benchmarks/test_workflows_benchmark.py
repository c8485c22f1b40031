"""The benchmark of the workflows: each runs by its command on a generated home, and its line has all figures."""

from __future__ import annotations

import json

from benchmarks import workflows


def test_every_workflow_runs_and_reports_its_rows() -> None:
    """Base index, sync, refresh, snapshot, import, backfill and garbage collection, in their order."""
    result = workflows.run(True, 120)
    assert json.loads(json.dumps(result)) == result
    by_line = {(row["case"].partition(" ads, ")[2], row["metric"]): row["ours"] for row in result["results"]}
    for line in workflows.LINES:
        for metric in ("rows", "rows/s", "seconds", "CPU seconds", "MB"):
            assert by_line[line.name, metric] > 0, (line.name, metric)
    assert by_line["base-index", "rows"] == 120
    assert by_line["refresh", "rows"] >= 120
    assert by_line["import of it", "rows"] == by_line["snapshot to Parquet", "rows"]
