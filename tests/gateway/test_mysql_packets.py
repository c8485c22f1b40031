"""Packets of the binlog's connection: whole and in order, however the bytes come."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway._mysql_packets import LIMIT, PacketCutter


def packet(number: int, payload: bytes) -> bytes:
    """Return a payload as the server sends it."""
    return len(payload).to_bytes(3, "little") + bytes([number & 0xFF]) + payload


@given(st.lists(st.binary(max_size=40), max_size=300), st.lists(st.integers(1, 90)), st.integers(0, 255))
def test_packets_do_not_depend_on_how_the_bytes_come(payloads: list[bytes], sizes: list[int], first: int) -> None:
    """Any cut of the stream gives the same payloads, and none before its last byte is there."""
    sent = b"".join(packet(first + i, payload) for i, payload in enumerate(payloads))
    cutter, came, at = PacketCutter(first), list[bytes](), 0
    for size in (*sizes, len(sent)):
        came += cutter.cut(sent[at : at + size])
        at += size
        assert sum(len(payload) + 4 for payload in came) <= at
    assert came == payloads


@pytest.mark.parametrize("size", [LIMIT - 1, LIMIT, LIMIT + 5])
def test_a_payload_may_take_several_packets(size: int) -> None:
    """An event of 16 MiB goes on in the next packet, which is empty when the size is just the limit."""
    payload = bytes(range(251)) * (size // 251 + 1)
    payload = payload[:size]
    parts = [payload[i : i + LIMIT] for i in range(0, size + 1, LIMIT)]
    sent = b"".join(packet(i, part) for i, part in enumerate(parts)) + packet(len(parts), b"next")
    cutter, came = PacketCutter(0), list[bytes]()
    for at in range(0, len(sent), 1 << 20):
        came += cutter.cut(sent[at : at + (1 << 20)])
    assert [len(one) for one in came] == [size, 4]
    assert came[0] == payload


def test_a_packet_out_of_turn_is_an_error() -> None:
    """A gap in the numbers means that bytes were lost: nothing after it is believed."""
    cutter = PacketCutter(255)
    assert cutter.cut(packet(255, b"a") + packet(0, b"b")) == [b"a", b"b"]
    with pytest.raises(OSError, match="packet 2 came instead of 1"):
        cutter.cut(packet(2, b"c"))
