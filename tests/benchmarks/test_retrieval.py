"""The retrieval benchmark: it runs, all engines answer the same, and a wrong answer ends it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks import retrieval
from benchmarks._exceptions import BenchmarkFailed
from benchmarks._report import Report
from benchmarks._retrieval_checks import check, same
from benchmarks._retrieval_requests import KINDS, requests
from benchmarks._retrieval_sizes import Sizes
from benchmarks._retrieval_worker import Figures, Result

SIZES = Sizes(documents=4_000, queries=30, rounds=1, builds=1, checked=30, budget_s=0.3, changed=0.1)


def test_every_engine_answers_the_same_and_figures_are_reported(tmp_path: Path) -> None:
    """Thousands of ads with a tenth of them changed: equal answers, and a figure of every kind."""
    result = retrieval.run(True, SIZES, parts=("boolean",))
    assert json.loads(json.dumps(result)) == result
    by_case: Mapping[tuple[str, str], Any] = {(row["case"], row["metric"]): row["ours"] for row in result["results"]}
    head = "4,000 ads"
    metrics = ["documents/s built", "index bytes per document", "s from process start to first answer"]
    metrics += ["bytes per document, all files", "p50 us to read the documents of 100 hits"]
    for metric in metrics:
        assert by_case[head, metric] > 0
    for task in retrieval._tasks(tmp_path, "ours"):
        for metric in ("QPS", "p50 us", "p99 us"):
            assert by_case[f"{head}, {task.name}", metric] > 0
    judged = [note for note in result["notes"] if note.startswith("answers equal to those of looking at every ad: ")]
    assert int(judged[0].split(": ")[1].split(";")[0]) > 150


def test_requests_are_the_same_every_time_and_of_all_kinds() -> None:
    """A seed draws them, so that every engine is asked the same in a process of its own."""
    for kind in KINDS:
        assert requests(kind, 5) == requests(kind, 5)
        assert requests(kind, 7)[:1] != requests(kind, 7)[1:2]


def test_a_different_answer_ends_the_benchmark() -> None:
    """Another id, another score, a hit too few and no hit at all are told; a choice among equal scores is none."""
    hits = [(1, 5.0), (2, 4.0), (3, 4.0), (4, 2.0)]
    assert same(hits, [(1, 5.0), (3, 4.0), (2, 4.0), (9, 2.0)])
    for wrong in ([(7, 5.0), *hits[1:]], [(1, 5.5), *hits[1:]], hits[:3]):
        assert not same(hits, wrong)
        rounds = {"ours": [_result(hits)], "tantivy": [_result(wrong)]}
        with pytest.raises(BenchmarkFailed, match="tantivy: request 0 of 'a' has a wrong answer"):
            check(rounds, {"a": {0: hits}}, Report())
        with pytest.raises(BenchmarkFailed, match="ours: request 0 of 'a' has a wrong answer"):
            check({"ours": [_result(wrong)]}, {"a": {0: hits}}, Report())
    with pytest.raises(BenchmarkFailed, match="no hit"):
        check({"ours": [_result([])]}, {}, Report())


def _result(hits: list[tuple[int, float]]) -> Result:
    return Result(0.1, {"a": Figures([1.0], {0: hits}, 1.0)}, [])
