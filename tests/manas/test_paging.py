"""Pages: together they are the answer, whatever their size, the order and the ties; none repeats or skips an ad."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from catalog import Catalog, ValueType
from manas import Broker, Index, InvalidRequest, Segment
from tests.manas.scoring_support import SCORED, corpus, diverse, light, matching, ordered
from tests.manas.support import (
    AT,
    CATALOG,
    VALUES,
    budget,
    delta,
    document,
    embedding,
    ids,
    make_index,
    tombstone,
    write_segment,
)

BUDGETS: dict[str, dict[str, int]] = {"1": {}, "2": {}}
BROWSE: dict[str, Any] = {"at": AT, **dict.fromkeys(VALUES, "*")}
Served = tuple[Index, dict[str, dict[str, Any]]]
_LAST_PAGE = 400
"""Pages after which a test gives up."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """An index of a base and deltas with many equal scores, and what it must hold."""
    docs = corpus(2_500, 27)
    segment = Segment.open(write_segment(tmp_path_factory.mktemp("paging"), docs.values(), catalog=SCORED))
    index = Index(SCORED, segment)
    index.apply_budgets([budget(int(campaign)) for campaign in BUDGETS])
    other = corpus(2_500, 28)
    for ad_id in list(docs)[::40]:
        docs[ad_id] = other[ad_id]
        index.apply_documents([delta(docs[ad_id], 200)])
    for ad_id in list(docs)[7::100]:
        del docs[ad_id]
        index.apply_documents([tombstone(int(ad_id), 200)])
    yield index, docs


def _pages(index: Index, request: dict[str, Any], k: int, **more: Any) -> list[list[tuple[Any, float]]]:
    """Return the hits page by page."""
    token = ""
    pages: list[list[tuple[Any, float]]] = []
    for _ in range(_LAST_PAGE):
        answer = index.search({**request, "page_token": token}, k, **more)
        pages.append([(hit["ad_id"], hit["score"]) for hit in answer["hits"]])
        token = answer["page_token"]
        if not token:
            return pages
        assert len(answer["hits"]) == k
    raise AssertionError("the pages do not end")


ORDERS = st.fixed_dictionaries(
    {},
    optional={
        "text": st.sampled_from(["red", "sofa lamp"]),
        "boost": st.just([{"field": "interests", "value": 15, "weight": 0.25}]),
        "filter": st.sampled_from(
            [{"term": {"field": "categories", "value": "rare"}}, {"range": {"field": "price_micros", "gte": 1}}]
        ),
        "max_per_advertiser": st.integers(1, 3),
    },
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ORDERS, st.sampled_from((7, 50, 333, 10_000)), st.booleans())
def test_pages_of_the_light_order_are_the_whole_order(
    served: Served, own: dict[str, Any], k: int, counting: bool
) -> None:
    """Page by page, counted or not, the hits are those of brute force without a cut."""
    index, docs = served
    request = {**BROWSE, **own}
    found = matching(docs, BUDGETS, request)
    wanted = diverse(ordered(light(docs, found, request)), docs, own.get("max_per_advertiser"))
    pages = _pages(index, request, k, counting=counting)
    assert [hit for page in pages for hit in page] == wanted
    assert len(pages) == len(wanted) // k + 1
    if counting:
        assert index.search({**request, "page_token": ""}, k)["total"] == len(found)


@pytest.mark.parametrize("most", [None, 2])
def test_pages_of_a_second_phase_end_with_its_candidates(served: Served, most: int | None) -> None:
    """All pages order the same candidates; the first page's number of candidates counts for all of them."""
    index, _ = served
    request = {**BROWSE, "score": "price - bid"} | ({} if most is None else {"max_per_advertiser": most})
    whole = index.search({**request, "rerank": 100}, 100)["hits"]
    pages = _pages(index, request, 15)
    assert [ad_id for page in pages for ad_id, _ in page] == [hit["ad_id"] for hit in whole]
    first = index.search({**request, "page_token": ""}, 40)
    second = index.search({**request, "page_token": first["page_token"]}, 11)
    assert [*first["hits"], *second["hits"]] == index.search({**request, "rerank": 160}, 51)["hits"]


@pytest.mark.parametrize("most", [None, 2])
def test_pages_of_neighbours(served: Served, most: int | None) -> None:
    """Pages by similarity, with many ties, are the whole order."""
    index, docs = served
    vector = np.frombuffer(embedding(5), "<f4").tolist()
    request = {**BROWSE, "vector": vector} | ({} if most is None else {"max_per_advertiser": most})
    whole: list[tuple[Any, float]] = [(hit["ad_id"], hit["score"]) for hit in index.search(request, 0)["hits"]]
    assert len(whole) > 60
    for k in (9, 64):
        assert [hit for page in _pages(index, request, k) for hit in page] == whole
    assert diverse(whole, docs, most) == whole


def test_ten_thousand_hits(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A page may be large, and equals brute force: in one order and in the other, diverse and not."""
    docs = corpus(12_000, 37)
    segment = Segment.open(write_segment(tmp_path_factory.mktemp("many"), docs.values(), catalog=SCORED))
    index = Index(SCORED, segment)
    index.apply_budgets([budget(int(campaign)) for campaign in BUDGETS])
    orders: tuple[dict[str, Any], ...] = (
        {},
        {"boost": [{"field": "interests", "value": 15, "weight": 0.01}]},
        {"max_per_advertiser": 290},
    )
    for own in orders:
        request = {**BROWSE, **own}
        found = matching(docs, BUDGETS, request)
        wanted = diverse(ordered(light(docs, found, request)), docs, own.get("max_per_advertiser"))
        assert len(wanted) > 10_000
        pages = _pages(index, request, 10_000, counting=False)
        assert list(map(len, pages)) == [10_000, len(wanted) - 10_000]
        assert pages[0] + pages[1] == wanted


def test_string_ids_are_paged_too(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Ties of documents whose ids are text go by the text, across base and delta."""
    catalog = _text_keys(SCORED)
    index_of = {name: {**doc, "ad_id": name} for doc in corpus(600, 47).values() if (name := f"ad-{doc['ad_id']}")}
    base = {name: doc for place, (name, doc) in enumerate(index_of.items()) if place % 3}
    segment = Segment.open(write_segment(tmp_path_factory.mktemp("text"), base.values(), catalog=catalog))
    index = Index(catalog, segment)
    index.apply_budgets([budget(int(campaign)) for campaign in BUDGETS])
    index.apply_documents([delta(doc, 200) for name, doc in index_of.items() if name not in base])
    whole = [(hit["ad_id"], hit["score"]) for hit in index.search(BROWSE, 0)["hits"]]
    assert len(whole) > 500
    assert whole == sorted(whole, key=lambda hit: (-hit[1], str(hit[0])))
    for k in (7, 100):
        for counting in (True, False):
            assert [hit for page in _pages(index, BROWSE, k, counting=counting) for hit in page] == whole


def _text_keys(catalog: Catalog) -> Catalog:
    from dataclasses import replace

    tables = dict(catalog.tables)
    tables[catalog.root] = replace(tables[catalog.root], key_type=ValueType.STRING)
    fields = dict(catalog.fields)
    column = replace(fields["ad_id"].column, type=ValueType.STRING)
    fields["ad_id"] = replace(fields["ad_id"], column=column)
    return replace(catalog, tables=tables, fields=fields)


def test_pages_keep_the_instant_of_the_first(served: Served) -> None:
    """Without a time in the request, all pages are answered for the instant of the first."""
    index, _ = served
    request = {name: value for name, value in BROWSE.items() if name != "at"}
    first = index.search({**request, "page_token": ""}, 5)
    plan = [index.explain({**request, "page_token": token}, 5)["plan"] for token in (first["page_token"],) * 2]
    said = [[c["words"] for c in p["layers"][0]["clauses"] if c["clause"] == "schedule"] for p in plan]
    assert said[0] == said[1] != []


def test_tokens_are_checked(served: Served) -> None:
    """A token of another request, a spoilt one, and a page without a size are refused in words."""
    index, _ = served
    token = index.search({**BROWSE, "page_token": ""}, 5)["page_token"]
    for request, k, words in (
        ({**BROWSE, "page_token": token, "text": "red"}, 5, "belongs to another request"),
        ({**BROWSE, "page_token": "x" + token}, 5, "is not a token"),
        ({**BROWSE, "page_token": "gqNh"}, 5, "is not a token"),
        ({**BROWSE, "page_token": 5}, 5, "'' for the first page"),
        ({**BROWSE, "page_token": ""}, 0, "pages have a size"),
    ):
        with pytest.raises(InvalidRequest, match=words):
            index.search(request, k)
    assert "page_token" not in index.search(BROWSE, 5)


def test_a_page_that_time_cut_short_is_not_the_last(tmp_path: Path) -> None:
    """Without a token the caller knows that the page has to be asked for again; the last whole page still says so."""
    whole = make_index([], Segment.open(write_segment(tmp_path, [document(i) for i in range(1, 3_000)])))
    first = {**dict.fromkeys(VALUES, "*"), "page_token": ""}
    answer = whole.search(first, 3_000, timeout_s=0.0)
    assert answer["partial"]
    assert len(answer["hits"]) < 2_999
    assert "page_token" not in answer
    assert whole.search(first, 3_000)["page_token"] == ""
    assert whole.search(first, 10)["page_token"]
    with Broker(CATALOG, [whole]) as broker:
        assert "page_token" not in broker.search(first, 3_000, timeout_s=0.0)
        assert broker.search(first, 3_000)["page_token"] == ""


def test_a_deadline_counts_the_wait_for_its_turn() -> None:
    """Behind somebody who holds the index, a search comes back in its time: partial, empty, and without a token."""
    index = make_index([document(1)])
    request = {**dict.fromkeys(VALUES, "*"), "page_token": ""}
    with ThreadPoolExecutor(1) as pool, index._lock:
        answer = pool.submit(index.search, request, timeout_s=0.02).result(20)
    assert answer == {"hits": [], "total": 0, "total_is_lower_bound": True, "partial": True}
    assert ids(index.search(request, timeout_s=5.0)) == [1]
