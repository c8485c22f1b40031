"""Building by columns: the same lists, numbers and refusals as taking documents apart one by one gives, but faster."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catalog.documents import encode_document
from manas import InvalidDocument, Segment, SegmentWriter, _columns
from manas._schema import DocumentSchema, PreparedDocument
from tests.manas.scoring_support import SCORED
from tests.manas.support import document, documents

SCHEMA = DocumentSchema(SCORED)
STRANGE: tuple[Any, ...] = (
    None, True, 0, 7, -1, 1 << 63, 2.5, float("nan"), float("inf"), "", "x", "\0", "é", b"", b"1234", [], [1], ["a"],
    ["a", 1], [True], [1.5], [[1]], {}, {"a": 1}, -(1 << 63),
)  # fmt: skip
"""Values of every type, most of them wrong for most fields."""


def _compare(segment: Segment, prepared: dict[str, PreparedDocument]) -> None:
    """Assert that a segment holds exactly what its documents say."""
    wanted: dict[tuple[str, str], set[str]] = defaultdict(set)
    for name, one in prepared.items():
        for field, terms in one.terms.items():
            for term in terms:
                wanted[field, term].add(name)
    for (field, term), holders in wanted.items():
        posting = segment.posting(field, term)
        assert posting is not None
        assert posting.ids.tolist() == sorted(set(posting.ids.tolist()))
        assert {segment.document_id(i) for i in posting.ids.tolist()} == holders
        assert posting.count == len(holders)
        if field in SCHEMA.payload_fields:
            carried = [prepared[segment.document_id(i)].payloads[field][term] for i in posting.ids.tolist()]
            assert posting.payloads is not None
            assert posting.payloads.values.tolist() == carried
    assert segment.manifest.postings["terms"] == sum(field not in segment.manifest.keys for field, _ in wanted)
    for field in SCHEMA.number_fields:
        column = segment.column(field)
        assert column is not None
        has = {name for name, one in prepared.items() if field in one.numbers}
        assert {segment.document_id(i) for i in column.order[:].tolist()} == has
        ranked = [column.ranked(place) for place in range(len(column.order))]
        assert ranked == sorted(prepared[name].numbers[field] for name in has)
        for name in has:
            internal = segment.internal(name)
            assert internal is not None
            assert column.at(np.array([internal], np.uint32)).tolist() == [float(prepared[name].numbers[field])]
    for field in SCORED.fields:
        share = sum(field in one.present for one in prepared.values()) / max(1, len(prepared))
        assert segment.manifest.coverage[field] == pytest.approx(share)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(documents(st.integers(-50, 50)), max_size=20, unique_by=lambda d: d["ad_id"]), st.sampled_from((1, 3, 99))
)
def test_columns_hold_what_documents_say(docs: list[dict[str, Any]], batch: int) -> None:
    """Random documents, cut into batches anyhow, give the lists, payloads and numbers of `prepare`."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as directory:
        patch.setattr(_columns, "_BATCH", batch)
        bodies = {str(d["ad_id"]): encode_document(d) for d in docs}
        built = Path(directory) / "built"
        SegmentWriter(built, SCORED).write(((name, 1, body) for name, body in bodies.items()), 9, {}, {})
        segment = Segment.open(built)
        assert {segment.document_id(i): segment.body(i) for i in range(segment.count)} == bodies
        _compare(segment, {name: SCHEMA.prepare(name, 1, body) for name, body in bodies.items()})


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(sorted(SCORED.fields)), st.sampled_from(STRANGE))
def test_a_value_is_refused_in_a_base_exactly_when_a_delta_is(field: str, value: Any) -> None:
    """Whatever a field has, building by columns and taking apart one by one agree, with the same words."""
    docs = [document(1), {**document(2), field: value}, document(3)]
    bodies = [(str(place), 1, encode_document(doc)) for place, doc in enumerate(docs, 1)]
    try:
        prepared = {name: SCHEMA.prepare(name, version, body) for name, version, body in bodies}
        refusal = None
    except InvalidDocument as error:
        refusal = str(error)
    with tempfile.TemporaryDirectory() as directory:
        writer = SegmentWriter(Path(directory) / "built", SCORED)
        if refusal is not None:
            with pytest.raises(InvalidDocument) as raised:
                writer.write(bodies, 9, {}, {})
            assert str(raised.value) == refusal
        else:
            writer.write(bodies, 9, {}, {})
            _compare(Segment.open(Path(directory) / "built"), prepared)


def test_collector_is_left_as_it_was(tmp_path: Path) -> None:
    """The cycle collector rests while a batch is taken apart and is afterwards what it was, also after a refusal."""
    import gc

    assert gc.isenabled()
    SegmentWriter(tmp_path / "a", SCORED).write([("1", 1, encode_document(document(1)))], 9, {}, {})
    assert gc.isenabled()
    with pytest.raises(InvalidDocument):
        SegmentWriter(tmp_path / "b", SCORED).write([("1", 1, b"\xc1")], 9, {}, {})
    assert gc.isenabled()
    gc.disable()
    try:
        SegmentWriter(tmp_path / "c", SCORED).write([("1", 1, encode_document(document(1)))], 9, {}, {})
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_dictionary_beyond_four_gigabytes_has_long_offsets(tmp_path: Path) -> None:
    """Offsets of the dictionary are as short as they can be, and both lengths are read."""
    docs = [(str(i), 1, encode_document(document(i, brand=f"brand {i}"))) for i in range(50)]
    built = tmp_path / "built"
    manifest = SegmentWriter(built, SCORED).write(docs, 9, {}, {})
    short = np.fromfile(built / "terms.offsets", np.uint32)
    assert len(short) == sum(-(-sizes["terms"] // 16) for sizes in manifest.postings_by_field.values()) + 1
    short.astype(np.uint64).tofile(built / "terms.offsets")
    from manas._manifest import read_manifest

    posting = Segment(built, read_manifest(built)).posting("brand", "brand 7")
    assert posting is not None
    assert posting.count == 1
