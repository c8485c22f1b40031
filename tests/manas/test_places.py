"""Distances, cells and real places: what is near a point, and whose circles a point is in, against brute force."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from catalog.documents import encode_document
from catalog.places import FARTHEST_M, PlaceError, circles_of, distance_m, point_of
from manas import Index, InvalidRequest, Segment, SegmentWriter
from manas._geo import cells_at, circle_cells, code_ranges, codes
from messaging.proto import adsindex_pb2 as pb
from tests.manas.audience import CATALOG, haversine_m

R = 6_371_008.8
PLACES = 40_000
LATITUDES = st.sampled_from([-90.0, -89.9999, 0.0, 45.0, 89.9999, 90.0]) | st.floats(-90, 90)
LONGITUDES = st.sampled_from([-180.0, -179.9999, 0.0, 179.9999, 180.0]) | st.floats(-180, 180)
METRES = st.sampled_from([1.0, 500.0, 25_000.0, 2e6, 1e7, FARTHEST_M]) | st.floats(0.5, FARTHEST_M)


def _far(place: tuple[float, float], bearing: float, metres: float) -> tuple[float, float]:
    """Return the place that lies so many metres away in a direction."""
    lat, lon, angle = math.radians(place[0]), math.radians(place[1]), metres / R
    to = math.asin(
        max(-1.0, min(1.0, math.sin(lat) * math.cos(angle) + math.cos(lat) * math.sin(angle) * math.cos(bearing)))
    )
    east = math.atan2(
        math.sin(bearing) * math.sin(angle) * math.cos(lat), math.cos(angle) - math.sin(lat) * math.sin(to)
    )
    return math.degrees(to), (math.degrees(lon + east) + 180) % 360 - 180


@given(LATITUDES, LONGITUDES, METRES, st.floats(0, 2 * math.pi), st.floats(0, 0.999_999))
@example(lat=89.9999, lon=0.0, metres=500.0, bearing=0.0, share=0.9)
@example(lat=0.0, lon=179.9999, metres=500.0, bearing=math.pi / 2, share=0.9)
@settings(max_examples=400, deadline=None)
def test_covers_miss_nothing(lat: float, lon: float, metres: float, bearing: float, share: float) -> None:
    """Whatever is in a circle is in a cell of its cover, of both grids: also over poles and the antimeridian."""
    place = _far((lat, lon), bearing, metres * share)
    if distance_m((lat, lon), place) > metres:  # rounding at the far side of the earth
        return
    cells = circle_cells(lat, lon, metres)
    assert set(cells_at(*place)) & set(cells)
    assert len(cells) <= 60
    code = int(codes(np.array([place[0]]), np.array([place[1]]))[0])
    ranges = code_ranges(lat, lon, metres).tolist()
    assert any(first <= code <= last for first, last in ranges)
    assert len(ranges) <= 64


def test_distances_at_the_edges() -> None:
    """Poles have one place for all longitudes, the antimeridian is one line, and short ways keep their digits."""
    assert distance_m((90, 0), (90, 123)) == pytest.approx(0, abs=1e-6)
    assert distance_m((0, 180), (0, -180)) == pytest.approx(0, abs=1e-6)
    assert distance_m((0, 179.5), (0, -179.5)) == pytest.approx(math.radians(1) * R)
    assert distance_m((90, 0), (-90, 0)) == pytest.approx(FARTHEST_M)
    assert distance_m((51.5, -0.12), (51.50001, -0.12)) == pytest.approx(math.radians(1e-5) * R, rel=1e-6)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("", "expected a point"), ("here", "not JSON"), ("91, 0", "latitude 91"), ("0, 181", "longitude 181"),
        ('{"lat": 1}', "has lat and lon"), ("1, 2, 3", "expected a point"), ("NaN, 1", "not JSON|lat is a finite"),
        ('["1", 2]', "lat is a finite number"), ("[true, 2]", "lat is a finite number"),
    ],
)  # fmt: skip
def test_what_is_no_point_is_refused(value: str, words: str) -> None:
    """A point has two finite numbers of degrees, and the sentence says what is wrong."""
    with pytest.raises(PlaceError, match=words):
        point_of(value)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("[]", "at least one circle"), ("5", "circle 1: expected an object|expected a list"),
        ('[{"lat": 1, "lon": 2}]', "circle 1: give the radius once"),
        ('[{"lat": 1, "lon": 2, "km": 1, "m": 1}]', "circle 1: give the radius once"),
        ('[{"lat": 1, "lon": 2, "km": 1}, {"lat": 1, "lon": 2, "km": 0}]', "circle 2: the radius is 0 m"),
        ('[{"lat": 1, "lon": 2, "km": 1, "color": 1}]', "circle 1: has lat, lon"),
        ('[{"lat": 1, "lon": 2, "km": 1, "exclude": 1}]', "exclude is true or false"),
        ('[{"lat": 1, "lon": 200, "km": 1}]', "circle 1: longitude 200"),
    ],
)  # fmt: skip
def test_what_is_no_circle_is_refused(value: str, words: str) -> None:
    """A circle has a place and one radius above 0; the sentence says which of them is wrong."""
    with pytest.raises(PlaceError, match=words):
        circles_of(value)


def test_circles_have_one_form() -> None:
    """The order, the unit and repetitions make no difference: equal areas are equal values."""
    one = circles_of('[{"lat": 1, "lon": 2, "km": 1.5}, {"lat": 0, "lon": -0.0, "m": 7, "exclude": true}]')
    assert one == [[0.0, 0.0, 7.0, 1.0], [1.0, 2.0, 1500.0, 0.0]]
    assert circles_of(one) == one
    assert circles_of([*one, {"lat": 1, "lon": 2, "m": 1500}]) == one


@pytest.fixture(scope="module")
def cities(data: Path) -> npt.NDArray[np.float64]:
    """Forty thousand real places: latitude and longitude."""
    lines = gzip.decompress((data / "geonames_cities" / "c500-r.txt.gz").read_bytes()).decode().splitlines()
    return np.array([line.split(":", 2)[:2] for line in lines[:PLACES]], np.float64)


@pytest.fixture(scope="module")
def index(cities: npt.NDArray[np.float64], tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Every place as an ad with its own place and a circle around it of 1 to 100 km, the last tenth as deltas."""

    def body(number: int) -> bytes:
        lat, lon = cities[number].tolist()
        area = [[lat, lon, float(1_000 + number % 100 * 1_000), 0.0]]
        return encode_document(
            {"ad_id": number, "campaign_id": 1, "bid": 1.0 + number % 7, "place": [lat, lon], "area": area}
        )

    directory, base = tmp_path_factory.mktemp("cities") / "built", PLACES * 9 // 10
    SegmentWriter(directory, CATALOG).write(((str(n), 1, body(n)) for n in range(base)), 100, {}, {})
    made = Index(CATALOG, Segment.open(directory))
    made.apply_documents(pb.DocumentDelta(document_id=str(n), version=1_000, body=body(n)) for n in range(base, PLACES))
    made.apply_budgets([pb.BudgetState(campaign_id="1", version=1)])
    return made


def _distances(cities: npt.NDArray[np.float64], lat: float, lon: float) -> npt.NDArray[np.float64]:
    p, q = np.radians(cities[:, 0]), np.radians(cities[:, 1])
    r, s = math.radians(lat), math.radians(lon)
    h = np.sin((p - r) / 2) ** 2 + np.cos(p) * math.cos(r) * np.sin((q - s) / 2) ** 2
    return 2 * R * np.arcsin(np.minimum(1, np.sqrt(h)))


CENTRES = [
    (51.5, -0.12), (35.68, 139.69), (40.71, -74.0), (-36.85, 174.76), (64.9, -180.0), (-18.0, 179.99), (90.0, 0.0),
    (78.2, 15.6), (-90.0, 45.0), (-77.85, 166.67), (0.0, 0.0), (28.6, 77.2),
]  # fmt: skip


@pytest.mark.parametrize("centre", CENTRES)
def test_real_places_near_a_point(index: Index, cities: npt.NDArray[np.float64], centre: tuple[float, float]) -> None:
    """Within any radius exactly the places that the haversine of all of them finds, and the plan estimates no fewer."""
    gaps = _distances(cities, *centre)
    for km in (1, 10, 100, 1_500, 9_000, 20_015):
        if (np.abs(gaps - km * 1_000) < 0.01).any():
            continue
        request = {"position": "*", "near": {"lat": centre[0], "lon": centre[1], "km": km}}
        expected = set(np.flatnonzero(gaps <= km * 1_000).tolist())
        assert {hit["ad_id"] for hit in index.search(request, 0)["hits"]} == expected
        plan = index.explain(request, 1)["plan"]["layers"][0]
        row = next(row for row in plan["clauses"] if row["clause"] == "near")
        assert row["estimate"] >= row["matched"]


@pytest.mark.parametrize("centre", CENTRES)
def test_real_circles_take_a_position(
    index: Index, cities: npt.NDArray[np.float64], centre: tuple[float, float]
) -> None:
    """A position is in exactly the circles whose centres are near enough by the haversine."""
    gaps, radii = _distances(cities, *centre), 1_000.0 + np.arange(PLACES) % 100 * 1_000
    assert not (np.abs(gaps - radii) < 0.01).any()
    answer = index.search({"position": {"lat": centre[0], "lon": centre[1]}}, 0)
    assert {hit["ad_id"] for hit in answer["hits"]} == set(np.flatnonzero(gaps <= radii).tolist())


def test_without_a_position_circles_take_nobody(index: Index) -> None:
    """An unknown position is in no circle; "*" puts no condition; both forms of a bad one are refused with the key."""
    assert index.search({}, 0)["total"] == 0
    assert index.search({"position": "*"}, 0)["total"] == PLACES
    for bad, words in (
        ({"position": {"lat": 91, "lon": 0}}, "position: latitude 91"),
        ({"position": 5}, "position: an object"),
        ({"near": {"lat": 1, "lon": 1}}, "near: give the radius once"),
        ({"near": {"lat": 1, "lon": 1, "km": 1, "ft": 2}}, "near: unknown key 'ft'"),
        ({"near": {"lon": 1, "km": 1}}, "near: a point has lat and lon"),
        ({"filter": {"near": {"field": "area", "lat": 1, "lon": 1, "km": 1}}}, "field area is indexed as circles"),
        ({"filter": {"near": {"lat": 1, "lon": 1, "km": 1}}}, "no field None; valid are place"),
    ):
        with pytest.raises(InvalidRequest, match=words):
            index.search(bad)


def test_explains_how_far_it_is(index: Index, cities: npt.NDArray[np.float64]) -> None:
    """Evidence of places and circles has the distance in words."""
    place = (float(cities[5, 0]), float(cities[5, 1]))
    away = haversine_m(place, (0, 0))
    request = {"position": {"lat": 0, "lon": 0}, "near": {"lat": 0, "lon": 0, "km": 1}}
    steps = {step["clause"]: step for step in index.explain(request, 1, 5)["ad"]["steps"]}
    assert (
        not steps["near"]["passes"] and f"{away / 1_000:.6g} km away, 1 km were asked for" in steps["near"]["evidence"]
    )
    assert "outside the nearest circle" in steps["area"]["evidence"]
