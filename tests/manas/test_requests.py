"""Bad requests are refused with a sentence that names the key and what is valid; explanations name the first cause."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from catalog import Dimension, ValueType
from manas import Index, InvalidRequest, Segment, UnusableCatalog
from tests.manas.support import (
    AT,
    CATALOG,
    T0,
    VALUES,
    budget,
    document,
    documents,
    ids,
    make_index,
    requests,
    tombstone,
    write_segment,
)

_KEYS = ("at", "filter", "text", "price", "vector", "similar_to", "max_per_advertiser", "other")
_WORDS = ("and", "or", "not", "term", "range", "field", "value", "gte", "lt", "min", "max", "currency")
BROWSE = {**dict.fromkeys(VALUES, "*"), "at": AT}


def _term(field: Any, value: Any) -> dict[str, Any]:
    return {"filter": {"term": {"field": field, "value": value}}}


def _range(field: str, **bounds: Any) -> dict[str, Any]:
    return {"filter": {"range": {"field": field, **bounds}}}


def _deep(depth: int) -> dict[str, Any]:
    node: dict[str, Any] = {"term": {"field": "ad_id", "value": 1}}
    for _ in range(depth):
        node = {"not": node}
    return {"filter": node}


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ([], "a request is a JSON object"),
        ({"agee": "30-34"}, r"unknown key 'agee'; valid are age, at, .*max_per_advertiser"),
        ({"age": 30}, "age: values are string, got 30"),
        ({"age": ["30-34"]}, "age: takes one value"),
        ({"interests": "16"}, "interests: values are int"),
        ({"interests": [True]}, "interests: values are int"),
        ({"text": 5}, "text: a string"),
        ({"text": " ?! "}, "text: .* has no words"),
        ({"price": 5}, "price: an object with min, max, currency"),
        ({"price": {}}, "price: an object with min"),
        ({"price": {"maximum": 5}}, "price: unknown key 'maximum'"),
        ({"price": {"min": "5"}}, "price.min: a finite number"),
        ({"price": {"min": float("nan")}}, "price.min: a finite number"),
        ({"price": {"min": 6, "max": 5}}, "min 6 is above max 5"),
        ({"price": {"currency": 5}}, "price.currency"),
        ({"at": "yesterday"}, "at: an ISO time"),
        ({"at": 5}, "at: an ISO time"),
        ({"vector": [1.0]}, "vector: a list of 64 finite numbers .*got a list of 1"),
        ({"vector": [float("inf")] * 64}, "finite"),
        ({"vector": [0.0] * 64, "similar_to": 1}, "either vector or similar_to"),
        ({"similar_to": 404}, "no ad 404 in the index"),
        ({"similar_to": 2}, "ad 2 has no embedding"),
        ({"similar_to": [1]}, "similar_to: an ad id"),
        ({"max_per_advertiser": 0}, "a whole number from 1"),
        ({"max_per_advertiser": True}, "a whole number from 1"),
        ({"filter": {}}, "one key out of and, or, not, term, range"),
        ({"filter": {"and": []}}, "'and' takes a list of at least one"),
        ({"filter": {"xor": []}}, "one key out of"),
        ({"filter": {"not": [1]}}, "one key out of"),
        ({"filter": {"term": {"field": "brand"}}}, "filter term: 'value' is missing"),
        (_term("nope", 1), r"no field 'nope'; valid are .*brand"),
        (_term([], 1), "no field"),
        (_term("link", "x"), "field link is not indexed; term works on"),
        (_term("bid_account_micros", 1), "field bid_account_micros is indexed as numeric; term works on"),
        (_term("ad_id", "1"), "values of ad_id are int"),
        (_term("brand", True), "values of brand are str"),
        (_range("brand", gte=1), "field brand is indexed as term; range works on"),
        (_range("bid_account_micros"), "give gte or gt"),
        (_range("bid_account_micros", gte=1, gt=1), "give gte or gt"),
        (_range("bid_account_micros", above=1), "unknown key 'above'"),
        (_range("bid_account_micros", gte="1"), "gte must be a finite number"),
        (_range("ends_us", lt="soon"), "filter range ends_us.lt: an ISO time"),
        (_deep(40), "filter: deeper than 32"),
        ({"filter": {"or": [{"term": {"field": "ad_id", "value": 1}}] * 1001}}, "more than 1000 nodes"),
    ],
)
def test_bad_request_is_refused_with_a_sentence(request_: Any, words: str) -> None:
    """The error names the key, what was given and what would be valid."""
    index = make_index([document(1), document(2, embedding=None)])
    with pytest.raises(InvalidRequest, match=words):
        index.search(request_)


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=3)
    | st.sampled_from(["ad_id", "quality"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_WORDS), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from([*VALUES, *_KEYS]), _JSON, max_size=3))
@example({"similar_to": 10**400})
@example({"vector": [1e39] * 64})
@example({"vector": [10**400] * 64})
@example({"price": {"min": 1e300, "max": 1e308}})
@example({"filter": {"range": {"field": "bid_account_micros", "gt": 2**63 - 1, "lt": 1e300}}})
@example({"text": "\ud800"})
def test_any_json_is_answered_or_refused_as_a_request(request: dict[str, Any]) -> None:
    """Whatever JSON is sent, the result is an answer or InvalidRequest, never another error."""
    index = make_index([document(1, starts_us=-(2**63), ends_us=2**63 - 1)])
    try:
        answer = index.explain(request, 3, 1)
    except InvalidRequest as error:
        assert str(error)
    else:
        assert answer["total"] in (0, 1)


@pytest.mark.parametrize("k", [-1, 1.5, "3", True, None])
def test_bad_k_is_refused(k: Any) -> None:
    """k is a whole number from 0."""
    with pytest.raises(InvalidRequest, match="k: a whole number"):
        make_index().search({}, k)


def test_dimension_named_like_a_key_is_an_unusable_catalog() -> None:
    """A dimension that would hide a key of requests is refused when the index is made."""
    dimensions = {**CATALOG.dimensions, "price": Dimension("price", ValueType.STRING)}
    with pytest.raises(UnusableCatalog, match="price"):
        Index(replace(CATALOG, dimensions=dimensions))
    with pytest.raises(UnusableCatalog, match="diversity"):
        Index(replace(CATALOG, serving=replace(CATALOG.serving, diversity="bid_account_micros")))


def test_declared_values_of_a_dimension_are_the_only_valid_ones() -> None:
    """Where the catalogue lists a dimension's values, a request cannot say anything else."""
    dimensions = {**CATALOG.dimensions, "gender": Dimension("gender", ValueType.STRING, values=("M", "F"))}
    index = Index(replace(CATALOG, dimensions=dimensions))
    index.search({"gender": "M"})
    with pytest.raises(InvalidRequest, match="gender: 'X' is none of M, F"):
        index.search({"gender": "X"})


def test_times_in_ranges_can_be_written_as_iso() -> None:
    """A time field takes ISO times as limits."""
    index = make_index([document(1, ends_us=T0 + 20_000_000), document(2, ends_us=T0 + 30_000_000)])
    assert ids(index.search({**BROWSE, **_range("ends_us", gt="2026-01-01T00:00:20Z")})) == [2]


@pytest.mark.parametrize(
    ("ad_id", "clause", "evidence"),
    [
        (1, None, "in the answer"),
        (2, "rank", "rank 2 with score 1.16252, below the first 1"),
        (3, "schedule", "runs from 2026-01-02"),
        (4, "budget", "campaign_id 9: no budget is known"),
        (5, "targeting:age", "the ad says age=18-24"),
        (6, "targeting:country", "the ad says !country=US, country=*"),
        (7, "price", "price_micros is 30000000"),
        (8, "text", "terms is ['sofa']"),
        (9, "filter", "category is 'toys'"),
        (10, "exists", "deleted from serving by the delta of version 2000"),
        (11, "exists", "neither base nor delta"),
    ],
)
def test_explain_says_why_an_ad_is_not_in_the_answer(
    tmp_path: Path, ad_id: int, clause: str | None, evidence: str
) -> None:
    """The first failing clause is named with the ad's own values as evidence."""
    fine: dict[str, Any] = {"terms": ["lamp"], "price_micros": 5_000_000, "category": "home"}
    general = [f"{name}=*" for name in VALUES]
    docs = [
        document(1, **{**fine, "bid_account_micros": 2_000_000}),
        document(2, **fine),
        document(3, **fine, starts_us=T0 + 86_400_000_000),
        document(4, **fine, campaign_id=9),
        document(5, **{**fine, "targeting": ["age=18-24", *general[1:]]}),
        document(6, **{**fine, "targeting": ["!country=US", *general]}),
        document(7, **{**fine, "price_micros": 30_000_000}),
        document(8, **{**fine, "terms": ["sofa"]}),
        document(9, **{**fine, "category": "toys"}),
        document(10, **fine),
    ]
    half = Segment.open(write_segment(tmp_path, docs[::2]))
    index = make_index(docs[1::2], half)
    index.apply_documents([tombstone(10, 2_000)])
    request = {
        "at": AT, "age": "30-34", "country": "US", "price": {"max": 10}, "text": "lamp",
        "filter": {"and": [{"term": {"field": "category", "value": "home"}}]},
    }  # fmt: skip
    found = index.explain(request, 1, ad_id)
    assert ids(found) == [1]
    assert found["ad"]["in_answer"] is (clause is None)
    assert evidence in found["ad"]["why"]
    if clause is not None:
        assert found["ad"]["why"].startswith(clause + ":")
        assert [s["clause"] for s in found["ad"]["steps"] if not s["passes"]] == [clause]
    assert sum(layer["survivors"] for layer in found["plan"]["layers"]) == found["total"] == 2


def test_explain_names_diversity_and_the_filter_tree() -> None:
    """An ad behind better ads of its advertiser hears so; the filter tree is shown node by node."""
    index = make_index([document(1, bid_account_micros=5_000_000), document(2)])
    found = index.explain({**BROWSE, "max_per_advertiser": 1}, 10, 2)
    assert "1 better ads share its advertiser" in found["ad"]["why"]
    tree = {
        "or": [{"not": {"term": {"field": "ad_id", "value": 2}}}, {"range": {"field": "bid_account_micros", "lt": 5}}]
    }
    [step] = [s for s in index.explain({**BROWSE, "filter": tree}, 10, 2)["ad"]["steps"] if s["clause"] == "filter"]
    assert [part["passes"] for part in step["tree"]["parts"]] == [False, False]
    assert step["tree"]["parts"][0]["parts"][0] == {
        "passes": True, "kind": "term", "field": "ad_id", "wanted": "2", "has": "2",
    }  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    st.lists(documents(st.integers(1, 9)), max_size=6, unique_by=lambda d: d["ad_id"]), requests(), st.integers(0, 2)
)
def test_explain_agrees_with_search(docs: list[dict[str, Any]], request: dict[str, Any], k: int) -> None:
    """The explanation has the search's own answer, and an ad passes all its steps exactly if it is in that answer."""
    index = make_index(docs, funded=(1, 2))
    answer = index.search(request, k)
    for ad_id in range(1, 10):
        found = index.explain(request, k, ad_id)
        assert {key: found[key] for key in answer} == answer
        assert found["ad"]["in_answer"] is (ad_id in ids(answer))
        assert all(s["passes"] for s in found["ad"]["steps"]) is (ad_id in ids(answer))


def test_budget_state_is_returned_as_it_came() -> None:
    """The debug UI sees the newest state of a campaign, and nothing for an unknown one."""
    index = make_index(funded=())
    state = budget(5, 3, daily_micros=7, currency="EUR")
    index.apply_budgets([state])
    assert index.budget("5") == state
    assert index.budget("6") is None
