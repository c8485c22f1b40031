"""The vector benchmarks: they run on small sets, every figure is there, and recall is what is promised."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import vectors
from benchmarks._report import Report
from benchmarks._retrieval_vectors import QUICK, VectorSizes, measure_vectors, vector_sizes
from benchmarks._vector_peers import Mask, Peer, missing
from benchmarks._vector_trials import K, draw_vectors, true_answers, tuned

KINDS = ("clustered", "weak")


def _rows(results: list[dict[str, Any]], metric: str) -> list[dict[str, Any]]:
    return [row for row in results if row["metric"] == metric]


def test_hybrid_requests_reach_the_recall_and_stand_beside_every_peer(tmp_path: Path) -> None:
    """Nine filters on each kind of vectors; most ask for a price as well."""
    report = Report()
    sizes = VectorSizes(vectors=2_000, centres=30, queries=6, rounds=1)
    measure_vectors(report, tmp_path, quick=True, sizes=sizes)
    recalls = {row["case"]: row["ours"] for row in _rows(report.results, f"recall@{K}")}
    assert len(recalls) == 18
    assert {case.partition(", ")[2].partition(", ")[0] for case in recalls} == {f"2,000 {kind}" for kind in KINDS}
    assert min(recalls.values()) >= 0.95
    for metric in ("QPS", "p99 us", "p50 us, whole request"):
        assert {row["case"] for row in _rows(report.results, metric) if row["ours"] > 0} == recalls.keys()
    names = {row["peer_name"].partition(" (")[0] for row in _rows(report.results, "p50 us")}
    assert {"hnswlib callback", "hnswlib over-fetch"} <= names
    for peer in missing():
        assert any(note.startswith(f"{peer} is not installed") for note in report.notes)


def test_vectors_alone_compare_the_planner_with_every_way() -> None:
    """Each case has the planner's choice beside the ways that it passed over."""
    sizes = vectors.Sizes(vectors=5_500, centres=50, queries=6, rounds=1, graphs=False, graph_micros=np.inf)
    result = vectors.run(True, sizes)
    assert result["benchmark"] == "vectors"
    forced = {row["peer_name"].partition(" (")[0] for row in _rows(result["results"], "p50 us")}
    assert {"ours, exact only", "ours, lists only"} <= forced
    assert min(row["ours"] for row in _rows(result["results"], f"recall@{K}")) >= 0.95


@pytest.mark.parametrize(("enough", "expected"), [(1, 1), (5, 5), (11, 12), (16, 16), (17, None)])
def test_peer_is_compared_at_its_cheapest_setting_that_does(enough: int, expected: int | None) -> None:
    """Between a setting that does not do and one that does, those between are tried; without any there is no figure."""
    matrix, queries = draw_vectors(300, 12, 5, 0.8)
    truth = true_answers(matrix, queries, None)

    def search(query: Any, mask: Mask | None, ready: Any, setting: int, k: int) -> Any:
        number = int(np.flatnonzero((queries == query).all(axis=1))[0])
        return np.array(sorted(truth[number])[: k if setting >= enough else k // 2])

    peer = Peer("one", 0.0, (1, 2, 4, 8, 16), lambda mask: None, search)
    found = tuned(peer, queries, lambda: None, truth, 1)
    if expected is None or found is None:
        assert found is None
        assert expected is None
    else:
        assert (found[1], found[0].recall) == (expected, 1.0)


def test_setting_that_can_no_longer_do_is_not_asked_further() -> None:
    """Tuning ends a setting as soon as its misses are too many, and asks one that does every query."""
    matrix, queries = draw_vectors(300, 40, 5, 0.8)
    truth = true_answers(matrix, queries, None)
    asked: Counter[int] = Counter()

    def search(query: Any, mask: Mask | None, ready: Any, setting: int, k: int) -> Any:
        number = int(np.flatnonzero((queries == query).all(axis=1))[0])
        asked[setting] += 1
        return np.array(sorted(truth[number])[: k if setting == 2 else 0])

    assert tuned(Peer("one", 0.0, (1, 2), lambda mask: None, search), queries, lambda: None, truth, 1) is not None
    assert asked == {1: 3, 2: 2 * len(queries)}


def test_a_million_vectors_are_asked_without_graphs() -> None:
    """The number of documents is that of vectors; so many have no peers that are graphs, and fewer queries."""
    assert vector_sizes(True, None) == QUICK
    assert vector_sizes(False, None) == VectorSizes()
    many, few = vector_sizes(False, 1_000_000), vector_sizes(False, 50_000)
    assert (many.vectors, many.graphs, many.queries) == (1_000_000, False, 40)
    assert few == VectorSizes(vectors=50_000)
