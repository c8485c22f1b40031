"""Hits are columns that look like a list of objects; what was said before changes nothing of how requests are read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manas import Index, InvalidRequest, Segment
from manas._hits import Hits
from manas._request import RequestParser
from manas._schema import DocumentSchema
from tests.manas.support import AT, CATALOG, T0, VALUES, budget, delta, document, write_segment

BROWSE = {**dict.fromkeys(VALUES, "*"), "at": AT}


@pytest.mark.parametrize("keys", [[7, 3, 9], ["a", "ü", "b"]])
def test_columns_and_objects_are_the_same_hits(keys: list[Any]) -> None:
    """By place, slice and one after another, and equal to a list; ids and scores are plain Python values."""
    plain: list[Any] = [{"ad_id": key, "score": score} for key, score in zip(keys, (3.5, 2.0, 2.0), strict=True)]
    hits = Hits(np.array(keys), np.array([3.5, 2.0, 2.0]))
    assert isinstance(hits, Sequence)
    assert (hits.ad_ids, hits.scores, len(hits)) == (keys, [3.5, 2.0, 2.0], 3)
    assert hits == plain
    assert plain == hits
    assert hits == Hits(np.array(keys), np.array([3.5, 2.0, 2.0]))
    assert hits != plain[:2]
    assert (hits[0], hits[-1], hits[1:], hits[:0]) == (plain[0], plain[2], plain[1:], [])
    assert json.dumps(list(hits)) == json.dumps(plain)
    assert not Hits(np.array([], np.int64), np.array([]))
    with pytest.raises(IndexError):
        hits[3]


def test_hits_stay_as_they_are_when_more_is_asked(tmp_path: Path) -> None:
    """An answer's columns are its own: neither the next search nor a change of the index touches them."""
    index = Index(CATALOG, Segment.open(write_segment(tmp_path, [document(i) for i in range(1, 40)])))
    index.apply_budgets([budget(1)])
    first = index.search(BROWSE, 10)
    before = list(first["hits"])
    index.apply_documents([delta(document(5, bid_account_micros=9_000_000), T0 + 5)])
    assert index.search(BROWSE, 10)["hits"] != before
    assert index.search({**BROWSE, "filter": {"term": {"field": "ad_id", "value": 9}}}, 3)["total"] == 1
    assert first["hits"] == before


def test_what_equals_something_said_before_is_still_judged_by_its_type() -> None:
    """True is no 1, 1.0 neither, and a tuple is no list, however often the right one was said before."""
    parser = RequestParser(DocumentSchema(CATALOG))
    for _ in range(2):
        right = parser.parse({"interests": [1, 2], "age": "30-34"})
        again = parser.parse({"interests": [1, 2], "age": "30-34"})
        assert all(one is other for one, other in zip(again.conditions[2:], right.conditions[2:], strict=True))
        assert parser.parse({"interests": [2, 1]}).conditions != parser.parse({"interests": [1, 2]}).conditions
        for wrong in ([True, 2], [1.0, 2], (1, 2), True, 1.0, [1, "2"], [1, None], [[1], 2]):
            with pytest.raises(InvalidRequest, match=r"^interests: "):
                parser.parse({"interests": wrong})
        with pytest.raises(InvalidRequest, match=r"^age: "):
            parser.parse({"age": ["30-34"]})


def test_what_was_said_is_kept_up_to_a_number() -> None:
    """Ever new values of a dimension do not take ever more memory."""
    parser = RequestParser(DocumentSchema(CATALOG))
    for value in range(10_000):
        parser.parse({"interests": [value]})
    kept = {name: said.cache_info().currsize for name, _, said in parser._flat}  # type: ignore[attr-defined]
    assert max(kept.values()) == kept["interests"] == 4_096
