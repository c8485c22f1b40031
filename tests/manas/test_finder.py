"""Internal ids are found by document id, whatever width ids and tie keys are stored in."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manas import Segment, SegmentCorrupt
from manas._finder import Finder
from manas._packed import ShortIds, packed, short_ids
from tests.manas.support import document, write_segment

INT64 = st.integers(-(1 << 63), (1 << 63) - 1)
FILE = Path("ids.order")


def finder(keys: list[int], inputs: list[int], least: int, order: np.ndarray | None = None) -> Finder:
    """Return a finder of documents with these keys by internal id; `inputs` are the ids in order of the keys."""
    ties, packing = packed(np.array(keys, np.int64), least)
    rows = short_ids(np.array(inputs, np.uint32) if order is None else order, len(keys)).reshape(-1)
    return Finder(FILE, ShortIds(rows, len(keys)), ties, packing, len(keys))


@settings(max_examples=60, deadline=None)
@given(
    st.one_of(
        st.lists(INT64, unique=True, max_size=40),
        st.tuples(INT64.map(lambda i: i >> 4), st.integers(1, 1 << 24), st.sets(st.integers(0, 70_000), max_size=40))
        .map(lambda t: [t[0] + t[1] * i for i in t[2]]),
    ),
    st.sampled_from((4, 8)),
    st.randoms(use_true_random=False),
    st.lists(INT64 | st.integers(), max_size=5),
)  # fmt: skip
def test_every_document_is_found_and_nothing_else(
    keys: list[int], least: int, rng: random.Random, others: list[int]
) -> None:
    """Keys of 4 and 8 bytes with base and step, ids of one byte and of two, and what lies between and beyond keys."""
    rng.shuffle(keys)
    found = finder(keys, sorted(range(len(keys)), key=keys.__getitem__), least)
    for internal, key in enumerate(keys):
        assert found.find(str(key)) == internal
    there = {str(key) for key in keys}
    near = [key + off for key in keys[:20] for off in (-1, 1)] + others
    for other in {*map(str, near), "", "x", "1.0", "+5", " 5", "007", "٣", "9" * 5_000} - there:
        assert found.find(other) is None


@pytest.mark.parametrize("count", [1, 255, 256, 257, 65_536, 65_537])
def test_ids_of_one_two_and_three_bytes(count: int) -> None:
    """The first, the last and some between of so many documents, in reversed order."""
    keys = [7 * (count - i) for i in range(count)]
    found = finder(keys, list(range(count - 1, -1, -1)), 4)
    for internal in {0, 1, count // 2, count - 2, count - 1} & set(range(count)):
        assert found.find(str(keys[internal])) == internal
        assert found.find(str(keys[internal] + 1)) is None


def test_damaged_ids_are_named_and_reach_no_other_memory(tmp_path: Path) -> None:
    """An id that no document has is not looked up; a segment names the file."""
    keys = list(range(1, 201))
    with pytest.raises(SegmentCorrupt, match=r"ids\.order: has an id that no document has"):
        finder(keys, [], 4, np.full(200, 250, np.uint32)).find("100")
    built = write_segment(tmp_path, [document(i) for i in range(1, 201)])
    (built / "ids.order").write_bytes(b"\xff" * 200)
    with pytest.raises(SegmentCorrupt, match=r"ids\.order: has an id that no document has"):
        Segment.open(built, verify=False).internal("77")
