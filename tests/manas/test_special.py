"""Predicates, circles, points, weekly hours and frequency caps: the index against brute force on random corpora."""

from __future__ import annotations

import csv
import itertools
import json
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from catalog import Catalog, load_catalog
from catalog.documents import encode_document
from catalog.values import check
from manas import Index, Segment, SegmentWriter
from messaging.proto import adsindex_pb2 as pb
from tests.manas import audience
from tests.manas.audience import CATALOG, Tree
from tests.support import ROOT

AT = "2026-01-05T12:00:00"
AGES, INTERESTS, COUNTRIES, DEVICES = (
    (17, 25, 34, 35, 70),
    ("golf", "tennis", "chess"),
    ("UK", "US"),
    ("phone", "tablet"),
)
_numbers = itertools.count()


def document(ad: dict[str, Any]) -> dict[str, Any]:
    """Return an ad of the tests as a servable document, its values taken as the Gateway takes them."""
    given: dict[str, Any] = {"ad_id": ad["ad_id"], "campaign_id": ad["campaign_id"], "bid": ad.get("bid", 1.0)}
    if ad.get("tree") is not None:
        given["audience"] = audience.text_of(ad["tree"])
    if ad.get("circles") is not None:
        given["area"] = ad["circles"]
    if ad.get("point") is not None:
        given["place"] = list(ad["point"])
    if ad.get("windows") is not None:
        given["hours"] = audience.hours_text(*ad["windows"])
    return {name: check(CATALOG.fields[name].column, value) for name, value in given.items()}


def delta(ad: dict[str, Any], version: int) -> pb.DocumentDelta:
    """Return the delta that brings an ad."""
    return pb.DocumentDelta(document_id=str(ad["ad_id"]), version=version, body=encode_document(document(ad)))


def make_index(directory: Path, base: Iterable[dict[str, Any]], later: Iterable[dict[str, Any]] = ()) -> Index:
    """Return an index of a base and what came since, all campaigns funded."""
    target = directory / f"built-{next(_numbers)}"
    bodies = ((str(ad["ad_id"]), 1, encode_document(document(ad))) for ad in base)
    SegmentWriter(target, CATALOG).write(bodies, 100, {}, {})
    index = Index(CATALOG, Segment.open(target))
    index.apply_documents(delta(ad, 1_000) for ad in later)
    index.apply_budgets(pb.BudgetState(campaign_id=str(c), version=1) for c in range(1, 5))
    return index


def found(index: Index, request: dict[str, Any]) -> set[int]:
    """Return the ads that fit, by all of the ways that count them."""
    answer = index.search(request, 0)
    ads = {int(hit["ad_id"]) for hit in answer["hits"]}
    assert answer["total"] == len(ads)
    first = index.search(request, 2, counting=False)["hits"]
    assert [hit["ad_id"] for hit in first] == [hit["ad_id"] for hit in answer["hits"][:2]]
    return ads


# ---- strategies ----

CONDITIONS: st.SearchStrategy[Tree] = st.one_of(
    st.tuples(st.just("set"), st.just("age"), st.lists(st.sampled_from(AGES), min_size=1, max_size=3)),
    st.tuples(st.just("set"), st.just("interest"), st.lists(st.sampled_from(INTERESTS), min_size=1, max_size=3)),
    st.tuples(st.just("set"), st.just("country"), st.lists(st.sampled_from(COUNTRIES), min_size=1, max_size=2)),
    st.tuples(st.just("set"), st.just("device"), st.lists(st.sampled_from(DEVICES), min_size=1, max_size=2)),
    st.sampled_from([(18, 34), (None, 34), (35, None), (None, None), (-5, 1_000_000), (25, 25)]).map(
        lambda pair: ("range", "age", *pair)
    ),
    st.booleans().map(lambda holds: ("const", holds)),
)
TREES: st.SearchStrategy[Tree] = st.recursive(
    CONDITIONS,
    lambda inner: st.one_of(
        st.tuples(st.just("not"), inner),
        st.tuples(st.sampled_from(["and", "or"]), st.lists(inner, min_size=1, max_size=4).map(tuple)),
    ),
    max_leaves=12,
)
LATITUDES = st.sampled_from([-90.0, -89.99, -45.0, 0.0, 51.5, 89.9, 90.0]) | st.floats(-90, 90)
LONGITUDES = st.sampled_from([-180.0, -179.99, 0.0, -0.12, 179.99, 180.0]) | st.floats(-180, 180)
RADII_KM = st.sampled_from([0.01, 1.0, 25.0, 700.0, 6_000.0, 20_000.0])
PLACES = st.fixed_dictionaries({"lat": LATITUDES, "lon": LONGITUDES})
CIRCLES = st.lists(
    st.fixed_dictionaries({"lat": LATITUDES, "lon": LONGITUDES, "km": RADII_KM}, optional={"exclude": st.booleans()}),
    min_size=1,
    max_size=4,
)
ZONES = ("UTC", "Europe/Paris", "America/New_York", "Asia/Kolkata")
WINDOWS = st.tuples(
    st.lists(
        st.tuples(st.integers(0, 6), st.integers(0, 23), st.integers(1, 23)) | st.just((6, 0, 24)),
        min_size=1,
        max_size=3,
    ),
    st.sampled_from((*ZONES, "user")),
)


def _ads() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {"ad_id": st.integers(1, 30), "campaign_id": st.integers(1, 4), "bid": st.sampled_from([0.5, 1.0, 2.0])},
        optional={
            "tree": TREES,
            "circles": CIRCLES,
            "point": st.tuples(LATITUDES, LONGITUDES),
            "windows": WINDOWS,
        },
    )


def _requests() -> st.SearchStrategy[dict[str, Any]]:
    moments = st.sampled_from([AT, "2026-03-29T00:30:00", "2026-03-29T01:30:00", "2026-10-25T00:30:00",
                               "2026-10-25T01:30:00", "2026-11-01T05:59:59"])  # fmt: skip
    return st.fixed_dictionaries(
        {"at": moments},
        optional={
            "age": st.sampled_from([*AGES, "*", 26]),
            "interest": st.just("*") | st.lists(st.sampled_from([*INTERESTS, "other"]), max_size=3),
            "country": st.sampled_from([*COUNTRIES, "FR", "*"]),
            "device": st.sampled_from([*DEVICES, "*"]),
            "position": PLACES | st.just("*"),
            "time_zone": st.sampled_from([*ZONES, "*"]),
        },
    )  # fmt: skip


def near_a_border(ads: Iterable[dict[str, Any]], request: dict[str, Any]) -> bool:
    """Tell whether a distance is so close to a radius that formulas with other rounding may disagree."""
    position = request.get("position")
    if isinstance(position, dict):
        for ad in ads:
            for circle in ad.get("circles") or ():
                gap = audience.haversine_m((circle["lat"], circle["lon"]), (position["lat"], position["lon"]))
                if abs(gap - circle["km"] * 1_000) < 0.05:
                    return True
    near = request.get("near")
    return near is not None and any(
        abs(audience.haversine_m(ad["point"], (near["lat"], near["lon"])) - near["km"] * 1_000) < 0.05
        for ad in ads
        if ad.get("point") is not None
    )


# ---- tests ----


@given(
    base=st.lists(_ads(), max_size=15, unique_by=lambda ad: ad["ad_id"]),
    later=st.lists(_ads(), max_size=6),
    asked=st.lists(_requests(), min_size=1, max_size=4),
    near=st.none() | st.fixed_dictionaries({"lat": LATITUDES, "lon": LONGITUDES, "km": RADII_KM}),
)
@settings(max_examples=40, deadline=None)
def test_every_kind_together_answers_as_brute_force(
    tmp_path_factory: Any, base: list[Any], later: list[Any], asked: list[Any], near: Any
) -> None:
    """Predicates, circles, points and hours in a base and in deltas: exactly the ads that loops over them find."""
    index = make_index(tmp_path_factory.mktemp("special"), base)
    alive = {ad["ad_id"]: ad for ad in base}
    for version, ad in enumerate(later):  # the last of each id wins: apply them one after another
        index.apply_documents([delta(ad, 2_000 + version)])
        alive[ad["ad_id"]] = ad
    for said in asked:
        request = said if near is None else {**said, "near": near}
        if near_a_border(alive.values(), request):
            continue
        expected = {ad_id for ad_id, ad in alive.items() if audience.matches(ad, request)}
        assert found(index, request) == expected
        if near is not None:
            tree = {"not": {"near": {"field": "place", **near}}}
            fits = {ad_id for ad_id, ad in alive.items() if audience.matches(ad, said)}
            assert found(index, {**said, "filter": tree}) == fits - expected
        for ad_id in list(alive)[:3]:
            step = index.explain(request, 0, ad_id)["ad"]
            assert step["in_answer"] == (ad_id in expected), step


@given(trees=st.lists(TREES, min_size=1, max_size=40), asked=st.lists(_requests(), min_size=1, max_size=4))
@example(trees=[("and", (("not", ("set", "age", [17])), ("const", True)))], asked=[{"at": AT, "age": 17}])
@settings(max_examples=80, deadline=None)
def test_predicates_of_any_nesting(tmp_path_factory: Any, trees: list[Tree], asked: list[dict[str, Any]]) -> None:
    """Unknown dimensions, "*", several values and negation at any depth mean the same in base, delta and by hand."""
    ads = [{"ad_id": number, "campaign_id": 1, "tree": tree} for number, tree in enumerate(trees, 1)]
    half = len(ads) // 2
    index = make_index(tmp_path_factory.mktemp("trees"), ads[:half], ads[half:])
    for request in asked:
        assert found(index, request) == {ad["ad_id"] for ad in ads if audience.matches(ad, request)}


# ---- real data ----


def _with_dimension(folder: Path) -> Catalog:
    text = (ROOT / "examples" / "audience" / "audience.yaml").read_text(encoding="utf-8")
    file = folder / "audience.yaml"
    file.write_text(text.replace("dimensions:\n", "dimensions:\n  gender: {type: string}\n", 1))
    return load_catalog(file)


def test_real_ads_with_nested_predicates(data: Path, tmp_path: Path) -> None:
    """Every real Facebook ad, or the next one's audience without its own interest: who gets it, as loops say."""
    with (data / "kag_facebook_ads" / "KAG_conversion_data.csv").open(encoding="utf-8-sig") as handle:
        rows = list(csv.DictReader(handle))
    catalog = _with_dimension(tmp_path)

    def own(row: dict[str, str]) -> str:
        low, high = row["age"].split("-")
        return f"age in [{low}..{high}] and gender = {row['gender']} and interest = '{row['interest']}'"

    def body(place: int) -> bytes:
        row, following = rows[place], rows[(place + 1) % len(rows)]
        text = f"({own(row)}) or (({own(following)}) and not interest in {{'{row['interest']}', 'none'}})"
        audience_of = check(catalog.fields["audience"].column, text)
        return encode_document({"ad_id": place, "campaign_id": 1, "bid": 1.0, "audience": audience_of})

    target, half = tmp_path / "built", len(rows) // 2
    SegmentWriter(target, catalog).write(((str(n), 1, body(n)) for n in range(half)), 100, {}, {})
    index = Index(catalog, Segment.open(target))
    index.apply_documents(
        pb.DocumentDelta(document_id=str(n), version=1_000, body=body(n)) for n in range(half, len(rows))
    )
    index.apply_budgets([pb.BudgetState(campaign_id="1", version=1)])

    def fits(row: dict[str, str], age: int, gender: str, interests: set[str]) -> bool:
        low, high = map(int, row["age"].split("-"))
        return low <= age <= high and row["gender"] == gender and row["interest"] in interests

    some = sorted({row["interest"] for row in rows})
    matched = 0
    for age, gender, first in itertools.product((29, 30, 36, 44, 49), "MF", range(0, len(some), 5)):
        interests = set(some[first : first + 3])
        expected = {
            place
            for place, row in enumerate(rows)
            if fits(row, age, gender, interests)
            or (fits(rows[(place + 1) % len(rows)], age, gender, interests) and row["interest"] not in interests)
        }
        assert found(index, {"age": age, "gender": gender, "interest": sorted(interests)}) == expected
        matched += len(expected)
    assert matched > 1_000
    assert found(index, {"age": 36, "gender": "M"}) == set(), "the interest is not said"
    assert found(index, {"age": 29, "gender": "M", "interest": "*"}) == set()


def test_real_products_for_a_budget(data: Path, tmp_path: Path) -> None:
    """Six thousand products that ask for a buyer of their category with enough money: thresholds as real as prices."""
    file = data / "vespa_product_feed" / "data_0_1_0.json.zst"
    lines = subprocess.run(["zstd", "-dc", str(file)], check=True, capture_output=True).stdout.splitlines()
    products = [json.loads(line)["fields"] for line in lines[::4]]
    column = CATALOG.fields["audience"].column

    def body(product: dict[str, Any]) -> bytes:
        text = f"interest = {product['category']} and (age >= {product['price']} or country in {{rich, 'very rich'}})"
        values = {"campaign_id": 1, "bid": float(product["average_rating"]), "audience": check(column, text)}
        return encode_document({"ad_id": product["id"], **values})

    target = tmp_path / "built"
    SegmentWriter(target, CATALOG).write(((str(p["id"]), 1, body(p)) for p in products), 100, {}, {})
    index = Index(CATALOG, Segment.open(target))
    index.apply_budgets([pb.BudgetState(campaign_id="1", version=1)])
    for category, cents in itertools.product({p["category"] for p in products}, (0, 999, 1_999, 10_000, 600_000)):
        expected = {p["id"] for p in products if p["category"] == category and p["price"] <= cents}
        assert found(index, {"interest": [category], "age": cents}) == expected
        rich = {p["id"] for p in products if p["category"] == category}
        assert found(index, {"interest": [category, "other"], "country": "rich"}) == rich
