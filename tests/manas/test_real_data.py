"""Real products, real ads and real images, against independent loops over the files."""

from __future__ import annotations

import csv
import gzip
import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from catalog import Catalog
from catalog.text import unique_terms
from manas import Index, PlannerLimits, Segment
from tests.manas.support import CATALOG, VALUES, budget, check_answer, delta, document, ids, make_index, write_segment

BROWSE = dict.fromkeys(VALUES, "*")
AT = {"at": "2026-01-01T00:00:00"}


@pytest.fixture(scope="module")
def products(data: Path) -> list[dict[str, Any]]:
    """Three thousand products out of all three categories, as documents; rating (0..5) is the quality."""
    file = data / "vespa_product_feed" / "data_0_1_0.json.zst"
    lines = subprocess.run(["zstd", "-dc", str(file)], check=True, capture_output=True).stdout.splitlines()
    rng = np.random.default_rng(7)
    docs = []
    for line in lines[::8][:3_000]:
        fields = json.loads(line)["fields"]
        vector = rng.standard_normal(64).astype("<f4").tobytes()
        own = {"price_micros": fields["price"] * 10_000, "quality": float(fields["average_rating"]), "currency": "USD"}
        own |= {"category": fields["category"], "terms": unique_terms(fields["title"]), "embedding": vector}
        docs.append(document(fields["id"], **own, impressions=fields["quantity"], advertiser_id=fields["id"] % 50))
    return docs


def test_products_by_category_price_rating_and_words(products: list[dict[str, Any]], tmp_path: Path) -> None:
    """Real queries over base and delta give exactly what loops over the products give."""
    segment = Segment.open(write_segment(tmp_path, products[:2_000]))
    index = make_index(products[1_500:], segment)
    alive = {str(d["ad_id"]): d for d in products}
    category = {"term": {"field": "category", "value": "Musical_Instruments"}}
    rated = {"range": {"field": "quality", "gte": 4}}
    cheap = {"price": {"max": 99.99, "currency": "USD"}}
    for own in (
        {"filter": category},
        {"filter": {"and": [category, rated]}, **cheap},
        {"filter": {"or": [{"not": category}, {"range": {"field": "price_micros", "lt": 10_000_000}}]}},
        {"text": "puzzle guitar"},
        {"text": "guitar strings", **cheap, "max_per_advertiser": 1},
        {"similar_to": products[0]["ad_id"], "filter": rated, **cheap},
        {"similar_to": products[2_500]["ad_id"], "text": "wooden", "max_per_advertiser": 2},
    ):
        for k in (10, 0):
            request: dict[str, Any] = {**BROWSE, **AT, **own}
            assert index.search(request, k)["total"] > 0
            check_answer(index, alive, {"1": {}}, request, k)


def test_every_targeting_combination_of_the_facebook_ads(data: Path) -> None:
    """For every (age, gender, interest) that occurs, exactly the ads of the file are returned."""
    with (data / "kag_facebook_ads" / "KAG_conversion_data.csv").open(encoding="utf-8-sig", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == 1_143
    open_to_all = [f"{name}=*" for name in VALUES if name not in ("age", "gender", "interests")]
    index = make_index(
        document(
            int(row["ad_id"]),
            targeting=[f"age={row['age']}", f"gender={row['gender']}", f"interests={row['interest']}", *open_to_all],
        )
        for row in rows
    )
    expected: dict[tuple[str, str, str], set[int]] = {}
    for row in rows:
        expected.setdefault((row["age"], row["gender"], row["interest"]), set()).add(int(row["ad_id"]))
    assert len(expected) > 250
    for (age, gender, interest), ads in expected.items():
        answer = index.search({"age": age, "gender": gender, "interests": [int(interest)]}, 0)
        assert set(ids(answer)) == ads
        assert answer["total"] == len(ads)
    assert index.search({"age": "30-34", "gender": "M"}, 0)["total"] == 0


@pytest.fixture(scope="module")
def digits(data: Path) -> tuple[Catalog, list[dict[str, Any]], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Four thousand images of 14 x 14 pixels as documents, their unit vectors and their labels."""
    folder = data / "mnist_t10k"
    pixels = np.frombuffer(gzip.decompress((folder / "t10k-images-idx3-ubyte.gz").read_bytes())[16:], np.uint8)
    labels = np.frombuffer(gzip.decompress((folder / "t10k-labels-idx1-ubyte.gz").read_bytes())[8:], np.uint8)
    small = pixels.reshape(-1, 14, 2, 14, 2)[:4_000].mean(axis=(2, 4)).reshape(-1, 196).astype("<f4")
    fields = dict(CATALOG.fields)
    fields["embedding"] = replace(fields["embedding"], column=replace(fields["embedding"].column, dims=196))
    docs = [
        document(i, embedding=small[i].tobytes(), category=str(labels[i]), impressions=i % 1_000)
        for i in range(len(small))
    ]
    unit = small / np.linalg.norm(small, axis=1, keepdims=True)
    return replace(CATALOG, fields=fields), docs, unit, labels[: len(small)]


def test_recall_of_filtered_neighbours_at_every_selectivity(
    digits: tuple[Catalog, list[dict[str, Any]], np.ndarray[Any, Any], np.ndarray[Any, Any]], tmp_path: Path
) -> None:
    """Recall@10 is at least 0.95 and never fewer than k come back, whatever share a filter lets through."""
    catalog, docs, unit, labels = digits
    built = write_segment(tmp_path, docs[:3_500], catalog=catalog, graph_from=1_000)
    index = Index(catalog, Segment.open(built), limits=PlannerLimits(exact_survivors=100, max_walk_share=0.5))
    index.apply_budgets([budget(1)])
    index.apply_documents([delta(d, 1_000) for d in docs[3_500:]])
    spread = np.arange(len(docs)) % 1_000
    cases: list[tuple[str, dict[str, Any], Any]] = [
        (f"{share:.1%}", {"range": {"field": "impressions", "lt": int(1_000 * share)}}, spread < 1_000 * share)
        for share in (0.003, 0.01, 0.1, 0.5, 1.0)
    ]
    cases += [(f"label {n}", {"term": {"field": "category", "value": str(n)}}, labels == n) for n in (1, 8)]
    walked = 0
    for name, tree, allowed in cases:
        found = wanted = 0
        for query in range(0, 4_000, 133):
            similarity = np.where(allowed, unit @ unit[query], -9)
            best = np.argsort(-similarity, kind="stable")[:10]
            request = {**BROWSE, "filter": tree, "vector": unit[query].tolist()}
            answer = index.search(request, 10)
            assert len(answer["hits"]) == min(10, int(allowed.sum()))
            assert answer["total"] == int(allowed.sum())
            threshold = similarity[best[-1]] - 1e-6
            found += sum(similarity[i] >= threshold for i in ids(answer))
            wanted += len(answer["hits"])
        plan = index.explain({**BROWSE, "filter": tree, "vector": unit[1].tolist()}, 10)["plan"]
        walked += "graph walk" in plan["layers"][0]["ranking"]
        assert found / wanted >= 0.95, name
    assert walked >= 3, "the test must see the graph at work, not only exact scans"
