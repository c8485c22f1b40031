"""Similar to this, under $100, rated 4 or more, ships to the UK: on all real products against loops over them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from argus.handlers.text_embedding import embed
from catalog.text import unique_terms
from manas import Index, PlannerLimits, Segment, VectorBuild, Way
from tests.manas import reference
from tests.manas.support import CATALOG, VALUES, budget, delta, document, ids, tombstone, write_segment

BUDGETS: dict[str, dict[str, int]] = {"1": {}}
AT = "2026-01-01T00:00:00"
UK = {**dict.fromkeys(VALUES, "*"), "country": "GB", "at": AT}
RATED = {"range": {"field": "quality", "gte": 4}}
UNDER_100 = {"price": {"max": 99.99, "currency": "USD"}}
K = 10


def _ships(number: int) -> list[str]:
    """Return where a product is delivered: the feed does not say, so its number decides."""
    everywhere = [f"{name}=*" for name in VALUES if name != "country"]
    match number % 10:
        case 0 | 1 | 2:
            return [*everywhere, "country=GB", "country=US"]
        case 3:
            return [*everywhere, "country=*"]
        case 4:
            return [*everywhere, "!country=GB", "country=*"]
        case _:
            return [*everywhere, "country=US"]


@pytest.fixture(scope="module")
def products(data: Path) -> dict[str, dict[str, Any]]:
    """All 24,576 products as documents; the rating is the quality, the title is the text and what is embedded."""
    file = data / "vespa_product_feed" / "data_0_1_0.json.zst"
    lines = subprocess.run(["zstd", "-dc", str(file)], check=True, capture_output=True).stdout.splitlines()
    docs = {}
    for line in lines:
        fields = json.loads(line)["fields"]
        own = {"price_micros": fields["price"] * 10_000, "quality": float(fields["average_rating"]), "currency": "USD"}
        own |= {"category": fields["category"], "terms": unique_terms(fields["title"])}
        own |= {"embedding": embed(fields["title"][:60], "", 64), "targeting": _ships(fields["id"])}
        docs[str(fields["id"])] = document(fields["id"], **own, advertiser_id=fields["id"] % 50)
    assert len(docs) == 24_576
    return docs


@pytest.fixture(scope="module")
def served(
    products: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Segment, dict[str, dict[str, Any]]]:
    """A base of all products, and the products that are alive after some deltas."""
    built = write_segment(tmp_path_factory.mktemp("products"), products.values(), vectors=VectorBuild(1_000))
    alive = dict(products)
    for place, key in enumerate(sorted(products)[::40]):
        if place % 3:
            alive[key] = {**products[key], "price_micros": 5_000_000, "quality": 4.5}
        else:
            del alive[key]
    return Segment.open(built), alive


def _index(segment: Segment, products: Mapping[str, Any], alive: Mapping[str, Any], only: Way | None) -> Index:
    index = Index(CATALOG, segment, limits=PlannerLimits(exact_survivors=0, only=only))
    index.apply_budgets([budget(1)])
    changed = [delta(doc, 200) for key, doc in alive.items() if doc is not products[key]]
    index.apply_documents([*changed, *(tombstone(int(key), 200) for key in products.keys() - alive.keys())])
    return index


@pytest.mark.parametrize("only", [None, Way.EXACT, Way.LISTS])
def test_similar_under_100_rated_4_or_more_that_ships_to_the_uk(
    served: tuple[Segment, dict[str, dict[str, Any]]], products: dict[str, dict[str, Any]], only: Way | None
) -> None:
    """The request of the project's aims, and parts of it: totals exact, ten hits, recall at least 0.95."""
    segment, alive = served
    index = _index(segment, products, alive, only)
    found = wanted = 0
    for place, key in enumerate(sorted(alive)[:: len(alive) // 6]):
        same = {"term": {"field": "category", "value": alive[key]["category"]}}
        own: dict[str, Any] = [
            {"filter": RATED, **UNDER_100},
            {"filter": {"and": [RATED, {"not": same}]}, **UNDER_100},
            {"filter": {"and": [RATED, same]}, **UNDER_100, "text": "guitar puzzle"},
        ][place % 3]
        request = {**UK, "similar_to": int(key), **own}
        best, total = reference.search(alive, BUDGETS, request, 0)
        answer = index.search(request, K)
        assert answer["total"] == total > K
        assert len(answer["hits"]) == K
        scores = dict(best)
        for hit in answer["hits"]:
            assert hit["score"] == pytest.approx(scores[int(hit["ad_id"])], abs=1e-5)
        found += sum(hit["score"] >= best[K - 1][1] - 1e-5 for hit in answer["hits"])
        wanted += K
        if only is Way.EXACT:
            assert [h["score"] for h in answer["hits"]] == [pytest.approx(s, abs=1e-5) for _, s in best[:K]]
    assert found / wanted >= 0.95
    explained = index.explain(request, K)["plan"]["layers"][0]
    assert explained["survivors"] <= total
    assert "estimated" in explained["ranking"]
    if only is not None:
        assert explained["ranking"].startswith(only)


def test_a_product_that_nothing_resembles_under_the_filter_has_all_that_pass(
    served: tuple[Segment, dict[str, dict[str, Any]]], products: dict[str, dict[str, Any]]
) -> None:
    """A filter that leaves a handful, far from the query, gives exactly that handful."""
    segment, alive = served
    index = _index(segment, products, alive, None)
    toy = next(key for key, doc in alive.items() if doc["category"] == "Toys_and_Games")
    rare = {
        "and": [{"term": {"field": "category", "value": "Kindle_Store"}}, {"range": {"field": "quality", "gte": 5}}]
    }
    request = {**UK, "similar_to": int(toy), "filter": rare, "price": {"max": 3}}
    best, total = reference.search(alive, BUDGETS, request, 0)
    assert 0 < total < 100
    assert sorted(ids(index.search(request, 100))) == sorted(ad_id for ad_id, _ in best)
