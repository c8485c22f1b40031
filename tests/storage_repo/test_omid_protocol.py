"""The TSO's wire protocol: bytes seen between Java clients and a Java TSO 1.1.3, and an independent codec."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage_repo.generate import PROTOS, ROOT, generate
from storage_repo.omid import CommitRequest, TsoIncompatible, ids
from storage_repo.omid.proto import omid_pb2 as pb
from storage_repo.omid.protocol import (
    BEGIN,
    HANDSHAKE,
    MAX_MESSAGE_BYTES,
    ResponseReader,
    check_handshake,
    commit_frame,
    fence_frame,
    frame,
)

INT64 = st.integers(min_value=-(1 << 63), max_value=(1 << 63) - 1)
SENDABLE = INT64.filter(lambda number: number != ids.FORBIDDEN_ID)
SEEN = {
    "0a020832": ("timestamp", {"start_ts": 50}),
    "120708001032189601": ("commit", {"aborted": False, "start_ts": 50, "commit_ts": 150}),
    "120408011064": ("commit", {"aborted": True, "start_ts": 100}),
    "1a06080112001800": ("handshake", {"client_compatible": True, "low_latency": False}),
    "2205084d10c203": ("fence", {"table_id": 77, "fence_ts": 450}),
}
"""Answers of a Java TSO."""


def varint(number: int) -> bytes:
    """Write a 64-bit number as protobuf does: seven bits a byte, negative ones as their two's complement."""
    number &= (1 << 64) - 1
    out = b""
    while number > 0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield (field number, value) of a message that has varints and length-delimited fields only."""
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        tag = number()
        if tag & 7 == 0:
            yield tag >> 3, number()
        else:
            assert tag & 7 == 2, "only these two wire types occur"
            length = number()
            yield tag >> 3, message[at : at + length]
            at += length


def packed(data: bytes) -> list[int]:
    """Return the signed numbers of a packed field."""
    numbers, value, shift = [], 0, 0
    for byte in data:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            numbers.append(value - (1 << 64) if value >> 63 else value)
            value = shift = 0
    return numbers


def test_requests_are_those_of_the_java_client() -> None:
    """Handshake, begin and fence, with their lengths."""
    assert HANDSHAKE.hex() == "00000004" + "1a020a00"
    assert BEGIN.hex() == "00000002" + "0a00"
    assert fence_frame(77).hex() == "00000004" + "2202084d"


@given(SENDABLE, st.lists(SENDABLE), st.lists(SENDABLE), st.booleans())
def test_a_commit_is_readable_by_another_codec(start: int, cells: list[int], tables: list[int], is_retry: bool) -> None:
    """Field numbers, packing and two's complement are as the protocol says; a first attempt says nothing of retries."""
    data = commit_frame(CommitRequest(start, cells, tables), is_retry=is_retry)
    assert int.from_bytes(data[:4], "big") == len(data) - 4
    ((kind, body),) = fields(data[4:])
    assert kind == 2
    assert isinstance(body, bytes)
    found = dict(fields(body))
    assert found.pop(1) == start & (1 << 64) - 1
    assert found.pop(2, 0) == is_retry
    for number, wanted in ((3, cells), (4, tables)):
        value = found.pop(number, b"")
        assert isinstance(value, bytes)
        assert packed(value) == wanted
    assert not found


@pytest.mark.parametrize("seen", SEEN)
def test_answers_of_a_java_tso_are_understood(seen: str) -> None:
    """Each says what it says, and what is not there is not there."""
    (response,) = ResponseReader().feed(frame(bytes.fromhex(seen)))
    kind, wanted = SEEN[seen]
    assert response.WhichOneof("kind") == kind
    message = getattr(response, kind)
    values = {field.name: value for field, value in message.ListFields() if field.name != "capabilities"}
    assert values == wanted


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just(1), st.tuples(INT64)),
            st.tuples(st.just(2), st.tuples(st.integers(0, 1), INT64, INT64)),
            st.tuples(st.just(4), st.tuples(INT64, INT64)),
        ),
        max_size=20,
    ),
    st.lists(st.integers(1, 50)),
)
def test_answers_come_in_whatever_pieces(answers: list[tuple[int, tuple[int, ...]]], cuts: list[int]) -> None:
    """Written by another codec and cut anywhere, all answers come out, in order and with their values."""
    stream = b""
    for kind, values in answers:
        body = b"".join(varint(number << 3) + varint(value) for number, value in enumerate(values, 1))
        stream += frame(varint(kind << 3 | 2) + varint(len(body)) + body)
    reader = ResponseReader()
    responses = []
    for cut in cuts:
        responses += reader.feed(stream[:cut])
        stream = stream[cut:]
    responses += reader.feed(stream)
    names = {1: "timestamp", 2: "commit", 4: "fence"}
    assert [response.WhichOneof("kind") for response in responses] == [names[kind] for kind, _ in answers]
    for response, (kind, values) in zip(responses, answers, strict=True):
        assert tuple(value for _, value in getattr(response, names[kind]).ListFields()) == values


@given(st.binary(min_size=1, max_size=60))
def test_other_bytes_never_pass_for_an_answer(data: bytes) -> None:
    """Whatever comes is an answer that has one of the four kinds, or an error."""
    try:
        (response,) = ResponseReader().feed(frame(data))
    except TsoIncompatible:
        return
    assert response.WhichOneof("kind") in ("timestamp", "commit", "handshake", "fence")


def test_a_message_longer_than_the_server_takes_is_not_waited_for() -> None:
    """The length of another protocol's first bytes is an error at once."""
    with pytest.raises(TsoIncompatible, match="no TSO"):
        ResponseReader().feed(b"HTTP/1.1 400")


def test_a_commit_that_would_harm_the_server_is_not_made() -> None:
    """Neither the id that ends it, nor a message that makes it close the connection."""
    with pytest.raises(ValueError, match="would end the TSO"):
        commit_frame(CommitRequest(50, [1, ids.FORBIDDEN_ID], []))
    cells = [-1] * (MAX_MESSAGE_BYTES // 10)
    with pytest.raises(ValueError, match="more than the TSO takes"):
        commit_frame(CommitRequest(50, cells, []))
    assert commit_frame(CommitRequest(50, cells[:-10], []))


@pytest.mark.parametrize(
    ("seen", "error"),
    [("1a020800", "refused"), ("1a00", "refused"), ("0a020832", "refused"), ("1a06080112001801", "lowLatency")],
)
def test_a_server_that_cannot_serve_us_is_refused(seen: str, error: str) -> None:
    """One that finds us incompatible, that answers something else, or that leaves the commit table to its clients."""
    with pytest.raises(TsoIncompatible, match=error):
        check_handshake(pb.Response.FromString(bytes.fromhex(seen)))


def test_generated_code_is_up_to_date(tmp_path: Path) -> None:
    """Generating again gives the committed files, byte by byte, and no file more."""
    generate(tmp_path)
    made = {file.relative_to(tmp_path): file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    stems = [proto.removesuffix(".proto") for proto in PROTOS]
    assert {str(file) for file in made} == {f"{stem}_pb2.py{end}" for stem in stems for end in ("", "i")}
    for file, content in made.items():
        assert (ROOT / file).read_bytes() == content, f"{file} is stale; run python -m storage_repo.generate"
