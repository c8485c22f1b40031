"""What a segment keeps small comes back as it was: numbers, posting lists, dictionaries, payloads."""

from __future__ import annotations

import random
import tempfile
from bisect import bisect_left
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manas import Index, Segment, SegmentCorrupt, _posting_lists
from manas._columns import TermColumn
from manas._dictionary import Strings, groups_of, shortest, write_strings
from manas._manifest import read_manifest
from manas._packed import ShortIds, packed, short_ids
from tests.manas.scoring_support import SCORED
from tests.manas.support import CATALOG, budget, document, ids, write_segment

INT64 = st.integers(-(1 << 63), (1 << 63) - 1)


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(
        st.lists(INT64, min_size=1, max_size=20),
        st.tuples(
            INT64.map(lambda i: i >> 8), st.integers(1, 1 << 20), st.lists(st.integers(0, 70_000), min_size=1)
        ).map(lambda t: [t[0] + t[1] * i for i in t[2]]),
    ),
    st.data(),
)
def test_packed_numbers_and_their_intervals(numbers: list[int], data: st.DataObject) -> None:
    """Numbers come back, in as few bytes as base and step allow, and intervals hold in stored units."""
    stored, packing = packed(np.array(numbers, np.int64))
    assert packing.values(stored).tolist() == numbers
    assert stored.dtype == packing.dtype
    span = max(numbers) - min(numbers)
    assert packing.bytes == 1 or span // packing.step >= 1 << (8 * packing.bytes // 2 if packing.bytes < 8 else 32)
    near = st.sampled_from(numbers).flatmap(lambda n: st.integers(n - 2 * packing.step, n + 2 * packing.step))
    low, high = data.draw(st.tuples(*[near | st.none() | INT64 | st.floats(-1e19, 1e19) for _ in range(2)]))
    least, most = packing.within(low, high)
    inside = [(low is None or n >= low) and (high is None or n <= high) for n in numbers]
    assert [least <= int(s) <= most for s in stored] == inside


def test_a_common_step_that_a_sample_shows_is_checked_on_all() -> None:
    """Where one number of many does not have the step, it is not taken."""
    numbers = np.arange(5_000, dtype=np.int64) * 10_000
    assert packed(numbers)[1].step == 10_000
    numbers[4_001] += 1
    stored, packing = packed(numbers)
    assert (packing.step, packing.bytes) == (1, 4)
    assert (packing.values(stored) == numbers).all()


@settings(max_examples=150, deadline=None)
@given(st.sets(st.binary(max_size=5) | st.binary(min_size=126, max_size=260), max_size=70), st.binary(max_size=5))
def test_front_coded_strings(strings: set[bytes], other: bytes) -> None:
    """Every string is found at its place, and what is not there where it would be, over groups and long strings."""
    whole = sorted(strings)
    with tempfile.TemporaryFile() as file:
        offsets = shortest(np.array([0, *write_strings(file, whole, 0)], np.uint64))
        file.seek(0)
        kept = Strings(file.read(), offsets, len(whole))
    assert len(offsets) == groups_of(len(whole)) + 1
    assert [kept[place] for place in range(len(kept))] == whole
    for wanted in (*whole, other):
        place = bisect_left(whole, wanted)
        assert kept.find(wanted) == (place, place < len(whole) and whole[place] == wanted)


COUNT = 17_000
"""Documents: so many that a list of a whole run and one more is joined id by id."""


def _lists(seed: int) -> list[dict[str, Any]]:
    """Return documents whose brands are held by 1 to all of them, in runs and scattered."""
    rng = random.Random(seed)
    sizes = {"one": 1, "two": 2, "run": 128, "more": 129, "split": 270, "dense": 540, "common": 2_200}
    sizes["most"] = COUNT - 1
    scattered = {name: set(rng.sample(range(COUNT), size)) for name, size in sizes.items()}
    scattered["neighbours"] = set(range(700, 900))
    return [
        document(
            i, categories=sorted(name for name, held in scattered.items() if i in held), bid_account_micros=COUNT - i
        )
        for i in range(COUNT)
    ]


def test_lists_of_all_lengths_come_back(tmp_path: Path) -> None:
    """Lists of one id, of whole and broken runs, dense ones kept packed, and bitmaps."""
    docs = _lists(3)
    segment = Segment.open(write_segment(tmp_path, docs))
    for name in ("one", "two", "run", "more", "split", "dense", "common", "most", "neighbours"):
        posting = segment.posting("categories", name)
        assert posting is not None
        assert posting.ids.tolist() == [doc["ad_id"] for doc in docs if name in doc["categories"]]
        assert (posting.dense is not None) == (posting.count >= COUNT / 128)
    assert segment.posting("categories", "none") is segment.posting("nowhere", "one") is None
    sizes = segment.manifest.postings_by_field["categories"]
    assert (sizes["terms"], sizes["dense_lists"], sizes["split_lists"]) == (9, 3, 6)
    assert sizes["dense_bytes"] < 2 * 17 * 128 + 540 * 2
    neighbours = sizes["split_bytes"] - segment.manifest.files["postings.packed"].bytes
    assert abs(neighbours) < 1_000
    assert sizes["split_bytes"] < 1.5 * (2 + 128 + 129 + 270)


@pytest.mark.parametrize("count", [2, 32, 33, 64, 100, 128, 129])
def test_lists_of_one_id_in_small_segments(tmp_path: Path, count: int) -> None:
    """They have no packed ids, also where one id is a large share of all."""
    segment = Segment.open(write_segment(tmp_path, [document(i, categories=[f"c{i}"]) for i in range(1, count + 1)]))
    for i in (1, count // 2, count):
        posting = segment.posting("categories", f"c{i}")
        assert posting is not None
        assert posting.ids.tolist() == [segment.internal(str(i))]


def test_a_damaged_list_is_named_and_nothing_else_happens(tmp_path: Path) -> None:
    """Whatever the bytes of a packed list are, they are a list below the number of documents or refused by name."""
    built = write_segment(tmp_path, _lists(4))
    file = built / "postings.packed"
    whole, refused = file.read_bytes(), 0
    rng = random.Random(5)
    for _ in range(200):
        damaged = bytearray(whole)
        for _ in range(rng.choice((1, 3, 500))):
            damaged[rng.randrange(len(damaged))] = rng.choice((0, 255, rng.randrange(256)))
        file.write_bytes(damaged)
        segment = Segment(built, read_manifest(built))
        for name in ("two", "run", "more", "split", "dense", "neighbours"):
            try:
                posting = segment.posting("categories", name)
            except SegmentCorrupt as error:
                assert "postings.packed" in str(error)
                refused += 1
            else:
                assert posting is not None
                assert posting.ids.max() < COUNT
                assert (np.diff(posting.ids.astype(np.int64)) > 0).all()
    assert refused > 50


def test_few_different_payloads_take_a_byte_each(tmp_path: Path) -> None:
    """Up to 256 different payloads are places in a table, more are floats, and both come back exactly."""
    for different, width in ((256, 1), (257, 4)):
        docs = [document(i, interests=[1, 2], affinities=[i % different + 1, 3]) for i in range(600)]
        segment = Segment.open(write_segment(tmp_path, docs, catalog=SCORED))
        assert segment.manifest.files["payloads.interests.values"].bytes == 1_200 * width
        posting = segment.posting("interests", "1")
        assert posting is not None
        assert posting.payloads is not None
        carried = [docs[int(segment.document_id(i))]["affinities"][0] for i in posting.ids.tolist()]
        assert posting.payloads.values.tolist() == carried


def test_a_field_that_is_the_documents_own_id_has_no_lists(tmp_path: Path) -> None:
    """The ids find its documents; a field that only nearly is has lists."""
    segment = Segment.open(write_segment(tmp_path, [document(7), document(3)]))
    assert segment.manifest.keys == ("ad_id",)
    assert segment.manifest.postings_by_field.get("ad_id") is None
    posting = segment.posting("ad_id", "3")
    assert posting is not None
    assert [segment.document_id(i) for i in posting.ids.tolist()] == ["3"]
    assert segment.posting("ad_id", "4") is segment.posting("ad_id", "x") is None
    index = Index(CATALOG, segment)
    found = index.search({"filter": {"not": {"term": {"field": "ad_id", "value": 3}}}, **_everything()})
    assert ids(found) == []  # no budget: nothing is funded
    strange: list[list[list[Any]]] = [[[1], [2, 1]], [[1, 2], []], [[True], [2]], [[2], [1]], [[1], [1]]]
    for values in strange:
        column = TermColumn(payloads=False)
        column.extend_lists(values, None)
        assert not column.is_key([1, 2])
    column = TermColumn(payloads=False)
    column.extend_scalars([1, 2], None)
    assert column.is_key([1, 2])


def _everything() -> dict[str, Any]:
    return dict.fromkeys(CATALOG.dimensions, "*")


def test_lists_kept_in_memory_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists that nobody asks for make room for others, and are read again when they are wanted."""
    monkeypatch.setattr(_posting_lists, "_KEPT_BYTES", 8_000)
    segment = Segment.open(write_segment(tmp_path, [document(i, brand=f"b{i}") for i in range(200)]))
    first = segment.posting("brand", "b0")
    assert segment.posting("brand", "b0") is first
    for i in range(1, 200):
        segment.posting("brand", f"b{i}")
    again = segment.posting("brand", "b0")
    assert again is not first
    assert first is not None
    assert again is not None
    assert again.ids.tolist() == first.ids.tolist()


def test_numbers_of_all_widths_answer_ranges(tmp_path: Path) -> None:
    """Whole numbers of 1, 2, 4 and 8 bytes and floats of 4 and 8: the same documents as comparing one by one."""
    rng = random.Random(9)
    for spread in (200, 60_000, 1 << 31, 1 << 40, 0.5, 1 / 3):
        values = [rng.randrange(2_000) * spread if spread < 1 else rng.randrange(int(spread)) for _ in range(2_000)]
        field = "quality" if spread < 1 else "impressions"
        docs = [document(i, **{field: value if i % 7 else None}) for i, value in enumerate(values)]
        segment = Segment.open(write_segment(tmp_path, docs))
        index = Index(CATALOG, segment)
        index.apply_budgets([budget(1)])
        for low, high in ((values[3], values[9]), (values[1], values[1]), (None, values[4]), (values[5], None)):
            bounds = {name: bound for name, bound in (("gte", low), ("lte", high)) if bound is not None}
            request = {**_everything(), "filter": {"range": {"field": field, **bounds}}}
            wanted = {
                i
                for i, value in enumerate(values)
                if i % 7 and (low is None or value >= low) and (high is None or value <= high)
            }
            assert set(ids(index.search(request, 0))) == wanted


@pytest.mark.parametrize(("documents", "width"), [(1, 1), (256, 1), (257, 2), (65_537, 3), ((1 << 24) + 1, 4)])
def test_ids_take_as_few_bytes_as_the_last_needs(documents: int, width: int) -> None:
    """Ids come back one by one and in slices, at every width."""
    numbers = np.array([0, documents - 1, documents // 2, documents // 3], np.uint32)
    stored = short_ids(numbers, documents)
    kept = ShortIds(stored.reshape(-1), documents)
    assert stored.nbytes == width * len(numbers)
    assert [kept[place] for place in range(len(kept))] == kept[:].tolist() == numbers.tolist()
    assert kept[1:3].dtype == np.uint32
    assert kept[1:3].tolist() == numbers[1:3].tolist()
    if width > 1:
        with pytest.raises(ValueError, match="reshape"):
            ShortIds(stored.reshape(-1)[:-1], documents)
