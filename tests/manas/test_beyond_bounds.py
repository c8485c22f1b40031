"""Values beyond all bounds, and made-up tokens: the request is refused by name, and those beside it are answered."""

from __future__ import annotations

import base64
import resource
from pathlib import Path
from typing import Any

import msgspec
import pytest

from manas import Broker, Index, InvalidRequest, ManasError, Segment
from manas._common import Ask
from manas._lately import Lately
from tests.manas.audience import CATALOG as AUDIENCE
from tests.manas.support import CATALOG, VALUES, document, embedding, ids, make_index, write_segment

BROWSE: dict[str, Any] = dict.fromkeys(VALUES, "*")
VECTOR = {**BROWSE, "vector": [1.0] * 64}
HUGE = 10**5_000
"""Python refuses to write it out."""


@pytest.mark.parametrize(
    "bad",
    [
        {"at": "0001-01-01T00:00:00+14:00"},
        {"at": "9999-12-31T23:59:59-14:00"},
        {"boost": [{"field": "terms", "value": "red", "weight": 10**400}]},
        {"boost": [{"field": "terms", "value": "red", "weight": HUGE}]},
        {"similar_to": HUGE},
        {"price": {"max": HUGE}},
        {"age": HUGE},
        {"page_token": "", "age": HUGE},
    ],
    ids=["first year", "last year", "weight", "long weight", "id", "price", "age", "page"],
)
def test_a_value_beyond_all_bounds_fails_its_own_request_only(bad: dict[str, Any]) -> None:
    """One index and a broker say what is wrong in its place, and answer the requests before and after it."""
    index = make_index([document(1)])
    with pytest.raises(InvalidRequest):
        index.explain({**BROWSE, **bad})
    assert index.statistics([{**BROWSE, **bad}]).documents == 1
    with Broker(CATALOG, [index]) as broker:
        for engine in (index, broker):
            before, refused, after = engine.search_each([Ask(BROWSE), Ask({**BROWSE, **bad}), Ask(BROWSE)])
            assert isinstance(refused, InvalidRequest), refused
            for answer in (before, after):
                assert not isinstance(answer, ManasError)
                assert ids(answer) == [1]


@pytest.mark.parametrize("at", ["0001-01-01T00:00:00", "9999-12-31T23:59:59"])
def test_an_instant_that_some_clock_cannot_show_is_refused(at: str) -> None:
    """With weekly hours the instant is shown in the user's own time, which has years from 1 to 9999 as well."""
    for zone in ("Asia/Tokyo", "America/New_York"):
        with pytest.raises(InvalidRequest, match="at: an instant in the years 1 to 9999 by every clock"):
            Index(AUDIENCE).search({"at": at, "time_zone": zone})


def _forged(index: Index, request: dict[str, Any], place: int, value: int) -> str:
    token = index.search({**request, "page_token": ""}, 3)["page_token"]
    parts = msgspec.msgpack.decode(base64.urlsafe_b64decode(token))
    parts[place] = value
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(parts)).decode()


@pytest.mark.parametrize("request_", [BROWSE, {**BROWSE, "score": "light"}, VECTOR], ids=["light", "scored", "near"])
@pytest.mark.parametrize(
    ("place", "value"), [(1, 2**62), (1, -(2**62)), (2, -5), (2, 2**63), (5, 0), (5, 2**40), (5, 2**63)]
)
def test_a_made_up_token_is_refused(request_: dict[str, Any], place: int, value: int) -> None:
    """Instants, candidates and places that no answer can have had are no token, by one index and by a broker."""
    index = make_index([document(n) for n in range(1, 30)])
    bad = {**request_, "page_token": _forged(index, request_, place, value)}
    with Broker(CATALOG, [index]) as broker:
        for engine in (index, broker):
            with pytest.raises(InvalidRequest, match="is not a token of this index"):
                engine.search(bad, 3)


def test_who_asks_for_all_there_could_be_pays_for_what_there_is(tmp_path: Path) -> None:
    """Memory follows the documents that pass, not the number asked for: two thousand millions of neighbours."""
    built = write_segment(tmp_path, [document(n, embedding=embedding(n)) for n in range(1, 200)])
    index = make_index([document(500, embedding=embedding(500))], Segment.open(built))
    whole = index.search(VECTOR, 0)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (8 << 30), limits[1]))
    try:
        assert index.search(VECTOR, (1 << 31) - 1) == whole
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert whole["total"] == 200


def test_what_is_kept_of_requests_has_bounds(tmp_path: Path) -> None:
    """A value of a dimension has a length; long terms that nobody has count as long as they are, and others go."""
    with pytest.raises(InvalidRequest, match="country: a value of 1025 characters, more than 1024"):
        make_index([document(1)]).search({**BROWSE, "country": "x" * 1_025})
    index = make_index([], Segment.open(write_segment(tmp_path, [document(1)])))
    fragments = index.view.layers()[0].fragments  # type: ignore[union-attr]
    for number in range(3):
        value = f"{number}" * 200_000
        assert index.search({**BROWSE, "filter": {"term": {"field": "terms", "value": value}}})["total"] == 0
    assert fragments._bytes > 600_000
    kept = Lately(1_000_000)
    for number in range(100):
        kept.put(("terms", f"{number:03}" * 50_000), None, 10)
    assert len(kept._young) + len(kept._old) <= 10
    assert kept.get(("terms", "099" * 50_000), "") is None
