"""Omid's ids and its layout in HBase: bytes seen from Java clients 1.1.3, and properties."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from storage_repo.omid import ids, layout

TIMESTAMPS = st.integers(min_value=0, max_value=(1 << 62) // 50).map(lambda n: n * 50)


def test_ids_are_those_of_the_java_client() -> None:
    """A cell, its row and its table have the ids that the Java client sends for them."""
    assert ids.cell_id(b"t1", b"row1", b"f", b"q1") == -1269226248792266828
    assert ids.row_id(b"t1", b"row1") == -732781050262596009
    assert ids.table_id(b"t1") == 4156076910416592124


def test_an_id_that_would_end_the_server_is_never_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a hash should be that number, the cell takes its neighbour."""
    monkeypatch.setattr("mmh3.hash64", lambda *_, **__: (ids.FORBIDDEN_ID, 0))
    assert ids.cell_id(b"t", b"r", b"f", b"q") == ids.FORBIDDEN_ID + 1


def test_shadow_qualifiers_are_those_of_the_java_client() -> None:
    """U+0000 U+0080, the qualifier, U+0080, in UTF-8; a family's delete marker has an empty one."""
    assert layout.shadow_qualifier(b"q") == b"\x00\xc2\x80q\xc2\x80"
    assert layout.shadow_qualifier(layout.FAMILY_DELETE_QUALIFIER) == b"\x00\xc2\x80\xc2\x80"


@given(st.binary(max_size=40))
def test_a_shadow_qualifier_gives_back_its_cell(qualifier: bytes) -> None:
    """For every qualifier, also those that themselves look like Omid's."""
    shadow = layout.shadow_qualifier(qualifier)
    assert layout.is_shadow(shadow)
    assert layout.data_qualifier(shadow) == qualifier


@given(st.binary(min_size=1, max_size=40))
def test_shadow_cells_of_the_first_layout_are_known(qualifier: bytes) -> None:
    """They have the suffix only."""
    assume(not qualifier.startswith(layout.SHADOW_PREFIX))
    assert layout.is_shadow(qualifier + layout.SHADOW_SUFFIX)
    assert layout.data_qualifier(qualifier + layout.SHADOW_SUFFIX) == qualifier


@pytest.mark.parametrize("qualifier", [b"", b"q", b"\xc2\x80", b"\x00\xc2\x80q", b"q\xc2\x80r"])
def test_other_qualifiers_are_users(qualifier: bytes) -> None:
    """Only the suffix makes a shadow cell, and not when it is all there is."""
    assert not layout.is_shadow(qualifier)
    with pytest.raises(layout.MalformedCell, match="shadow cell"):
        layout.data_qualifier(qualifier)


def test_the_commit_table_is_that_of_the_java_server() -> None:
    """Row key with its bucket, and the varint of the time between start and commit."""
    start = 1795316117977000000
    assert layout.commit_key(start) == bytes.fromhex("0018ea3e7f4f8d6840")
    assert layout.encode_commit(start, start + 35_000_000) == bytes.fromhex("c09dd810")
    assert layout.commit_key(200).hex() == "0800000000000000c8"


@given(TIMESTAMPS, st.integers(0, 49), TIMESTAMPS)
def test_commit_entries_come_back(start: int, checkpoint: int, later: int) -> None:
    """Key and value give back start and commit timestamp, for every version of the transaction."""
    commit = start + later
    version = start + checkpoint
    assert layout.start_of(version) == start
    assert layout.start_of_commit_key(layout.commit_key(version)) == start
    assert layout.decode_commit(version, layout.encode_commit(version, commit)) == commit
    assert layout.decode_timestamp(layout.encode_timestamp(commit)) == commit


@given(TIMESTAMPS)
def test_what_the_commit_table_says(start: int) -> None:
    """Nothing, a commit timestamp, or invalid, which wins over a commit."""
    committed = layout.encode_commit(start, start + 50)
    assert layout.commit_entry(start, None, None) is None
    assert layout.commit_entry(start, committed, None) == layout.CommitEntry(start + 50)
    assert layout.commit_entry(start, None, layout.INVALID_VALUE) == layout.CommitEntry(None)
    assert layout.commit_entry(start, committed, layout.INVALID_VALUE) == layout.CommitEntry(None)


@pytest.mark.parametrize(
    "value", [b"", b"\x80", b"\x01\x01", b"\xff" * 9, b"\xff" * 9 + b"\x01", b"\x80" * 30 + b"\x00"]
)
def test_a_value_that_is_no_varint_is_refused(value: bytes) -> None:
    """Cut off, followed by something, or longer than 63 bits."""
    with pytest.raises(layout.MalformedCell, match="varint"):
        layout.decode_varint(value)


@pytest.mark.parametrize("key", [b"", b"LOW_WATERMARK", b"\x01" + bytes(8), bytes(8), bytes(10)])
def test_other_rows_of_the_commit_table_are_no_transactions(key: bytes) -> None:
    """The low watermark's row, a wrong bucket, a wrong length."""
    with pytest.raises(layout.MalformedCell, match="commit table"):
        layout.start_of_commit_key(key)


def test_malformed_numbers_are_refused() -> None:
    """A shadow cell that is not 8 bytes long, and a commit before its start."""
    with pytest.raises(layout.MalformedCell, match="8 bytes"):
        layout.decode_timestamp(b"\x00" * 7)
    with pytest.raises(ValueError, match="-50"):
        layout.encode_commit(100, 50)


def test_tombstones() -> None:
    """An empty value and Omid's old marker delete a cell; only an empty one under the empty qualifier a family."""
    assert layout.is_tombstone(b"")
    assert layout.is_tombstone(b"__OMID_TOMBSTONE__")
    assert not layout.is_tombstone(b"0")
    assert layout.is_family_delete(b"", b"")
    assert not layout.is_family_delete(b"", b"x")
    assert not layout.is_family_delete(b"q", b"")
