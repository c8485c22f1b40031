"""The sync benchmark: both ways find the same rows, and the result has the promised figures."""

from __future__ import annotations

import json

from benchmarks import sync


def test_what_nothing_differing_costs_is_reported() -> None:
    """Rows per second of every part, the cost against the plain way, and fewer rows read where few differ; a row that
    differs where none should ends it."""
    result = sync.run(True, sync.Sizes(ads=(150, 300), rounds=1))
    assert json.loads(json.dumps(result)) == result
    by_metric = {(row["case"].split(" ads")[0], row["metric"]): row for row in result["results"]}
    for ads in ("150", "300"):
        for part in ("ads DB against Repo", "indexes against entities", "documents against handlers"):
            assert by_metric[ads, f"{part}: rows/s"]["ours"] > 0
        assert by_metric[ads, "ads DB against Repo: rows/s"]["peer"] > 0
        assert by_metric[ads, "ads DB against Repo: rows read"]["ratio"] == 2
        found = by_metric[ads, "rows found"]
        assert found["ours"] == found["peer"] == sync.DIFFERING
    assert by_metric["300", "rows read"]["ratio"] > 1
