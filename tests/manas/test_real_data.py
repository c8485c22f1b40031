"""Real products, real ads and real images, against independent loops over the files."""

from __future__ import annotations

import csv
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from catalog.text import unique_terms
from manas import Segment
from tests.manas.support import VALUES, check_answer, document, ids, make_index, write_segment

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
