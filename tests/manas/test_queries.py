"""Every kind of query against brute force, on random corpora, in the delta, in the base and in both."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manas import Index, PlannerLimits, Segment, VectorBuild
from tests.manas.support import (
    CATALOG,
    VALUES,
    budget,
    check_answer,
    delta,
    document,
    documents,
    embedding,
    ids,
    make_index,
    requests,
    tombstone,
    write_segment,
)

BUDGETS: dict[str, dict[str, int]] = {
    "1": {"daily_micros": 0},
    "2": {"daily_micros": 100, "spent_today_micros": 99, "lifetime_micros": 1_000, "spent_total_micros": 999},
    "3": {"daily_micros": 100, "spent_today_micros": 100},
}
CORPORA = st.lists(documents(st.integers(1, 30)), max_size=14, unique_by=lambda d: d["ad_id"])
BROWSE = dict.fromkeys(VALUES, "*")


def _by_id(docs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {str(d["ad_id"]): d for d in docs}


def _with_similar(request: dict[str, Any], docs: list[dict[str, Any]], data: st.DataObject) -> dict[str, Any]:
    able: list[int] = [d["ad_id"] for d in docs if d.get("embedding") is not None]
    if "vector" not in request and able and data.draw(st.sampled_from([True, False]), "similar"):
        return {**request, "similar_to": data.draw(st.sampled_from(able))}
    return request


@settings(max_examples=150, deadline=None)
@given(CORPORA, st.lists(requests(), min_size=1, max_size=4), st.integers(0, 6), st.data())
def test_delta_answers_as_brute_force(
    docs: list[dict[str, Any]], asked: list[dict[str, Any]], k: int, data: st.DataObject
) -> None:
    """Documents that came as deltas are found, scored and ordered exactly as the definition says."""
    index = Index(CATALOG)
    index.apply_budgets([budget(int(c), **state) for c, state in BUDGETS.items()])
    index.apply_documents([delta(d, 5) for d in docs])
    for request in asked:
        check_answer(index, _by_id(docs), BUDGETS, _with_similar(request, docs, data), k)


@settings(max_examples=70, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    CORPORA, CORPORA, st.sets(st.integers(1, 30), max_size=4), st.lists(requests(), min_size=1, max_size=4), st.data()
)
def test_base_and_delta_answer_as_brute_force(
    base: list[dict[str, Any]],
    newer: list[dict[str, Any]],
    deleted: set[int],
    asked: list[dict[str, Any]],
    data: st.DataObject,
) -> None:
    """A base with newer documents and deletions over it answers like the documents that are alive, at every k."""
    alive = {**_by_id(base), **_by_id(newer)}
    alive = {key: d for key, d in alive.items() if int(key) not in deleted}
    with tempfile.TemporaryDirectory() as directory:
        build = VectorBuild(lists_from=data.draw(st.sampled_from([2, 1_000])))
        segment = Segment.open(write_segment(Path(directory), base, vectors=build))
        limits = PlannerLimits(exact_survivors=data.draw(st.sampled_from([1, 1_000])))
        index = Index(CATALOG, segment, limits=limits)
        index.apply_documents([delta(d, 200) for d in newer] + [tombstone(i, 300) for i in deleted])
        index.apply_budgets([budget(int(c), **state) for c, state in BUDGETS.items()])
        for request in asked:
            full = _with_similar(request, list(alive.values()), data)
            check_answer(index, alive, BUDGETS, full, data.draw(st.integers(0, 6), "k"))


def test_ties_are_broken_by_the_numeric_ad_id() -> None:
    """Of equal scores the smaller ad id comes first, as a number: 9 before 10."""
    index = make_index([document(i) for i in (10, 9, 100, 2)])
    assert ids(index.search(BROWSE, 3)) == [2, 9, 10]


def test_similar_to_leaves_the_ad_itself_out_but_not_its_twins() -> None:
    """An ad with the very same vector is the best answer; the ad asked about is none."""
    index = make_index([document(1), document(2), document(3, embedding=embedding(2))])
    answer = index.search({**BROWSE, "similar_to": 1}, 0)
    assert ids(answer) == [2, 3]
    assert answer["hits"][0]["score"] > 0.999999


def test_max_per_advertiser_still_finds_k_when_one_advertiser_has_the_whole_top() -> None:
    """Diversity looks past any number of better ads of a full advertiser."""
    docs = [document(i, bid_account_micros=9_000_000) for i in range(1, 201)]
    docs += [document(1_000 + i, advertiser_id=2 + i) for i in range(3)]
    answer = make_index(docs).search({**BROWSE, "max_per_advertiser": 2}, 5)
    assert ids(answer) == [1, 2, 1000, 1001, 1002]
    assert answer["total"] == 203


def test_documents_are_found_by_terms_of_every_script() -> None:
    """Text is analysed for the query as it was for the document, whatever the script or accents."""
    from catalog.text import unique_terms

    docs = [document(1, terms=unique_terms("Crème BRÛLÉE")), document(2, terms=unique_terms("карта мира"))]
    index = make_index(docs)
    assert ids(index.search({**BROWSE, "text": "brulee"}, 0)) == [1]
    assert ids(index.search({**BROWSE, "text": "МИРА"}, 0)) == [2]


def test_price_limits_are_exact_to_the_millionth_and_inclusive() -> None:
    """Limits between two millionths include neither neighbour wrongly; equal prices are inside."""
    index = make_index(
        [document(i, price_micros=price) for i, price in ((1, 9_990_000), (2, 10_000_000), (3, 10_000_001))]
    )
    for limits, expected in (
        ({"max": 10.0000005}, [1, 2]),
        ({"min": 10.0000005}, [3]),
        ({"min": 9.99, "max": 9.99}, [1]),
        ({"max": 10}, [1, 2]),
    ):
        assert ids(index.search({**BROWSE, "price": limits}, 0)) == expected
