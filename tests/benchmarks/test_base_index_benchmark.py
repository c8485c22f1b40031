"""The base index benchmark: every engine builds all documents of a generated Repo, and the figures are as promised."""

from __future__ import annotations

import json
from pathlib import Path

from batch_workflows.engines import usable_processors
from benchmarks import base_index
from catalog import load_catalog


def test_every_engine_builds_all_documents_and_growth_is_reported() -> None:
    """Handlers run again and stored documents taken, at two sizes."""
    result = base_index.run(True, base_index.Sizes(ads=(150, 300), engines=("inline", "local"), rounds=1))
    assert json.loads(json.dumps(result)) == result
    by_case = {(row["case"], row["metric"]): row["ours"] for row in result["results"]}
    for ads in ("150", "300"):
        for engine in ("one process", f"{usable_processors()} processes"):
            for metric in ("documents/s", "documents/s per core", "seconds to read", "seconds to build"):
                assert by_case[f"{ads} ads, handlers run again, {engine}", metric] > 0
        assert by_case[f"{ads} ads, stored documents, one process", "bytes per document"] > 300
    for engine in ("one process", f"{usable_processors()} processes"):
        assert by_case[f"300 ads against 150, {engine}", "time per document, times as long"] > 0


def test_the_generated_repo_holds_what_the_handlers_make(tmp_path: Path) -> None:
    """Nothing differs from what is stored, and nearly every ad is servable."""
    catalog = load_catalog()
    with base_index._filled(tmp_path, catalog, 200) as (home, repo, log):
        report = base_index._build(home, catalog, repo, log, "inline", recompute=True).report
    assert (report.rows, report.differing, report.failures) == (200, 0, {})
    assert report.documents > 180
