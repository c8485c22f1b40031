"""Cutting MySQL packets out of what a connection received, many at a time."""

from __future__ import annotations

LIMIT = 0xFFFFFF
"""A packet of this size goes on in the next one."""

_HEAD = 4  # three bytes of size, one of number


class PacketCutter:
    """Takes bytes as they come and returns payloads as they become whole. Pure.

    A transaction of one row has five packets of some fifty bytes: one read brings hundreds of them, where pymysql reads
    the head and the payload of each by itself.
    """

    def __init__(self, number: int) -> None:
        """Begin; `number` is that of the next packet."""
        self._number = number
        self._received = bytearray()
        self._parts: list[bytes] = []

    def cut(self, some: bytes) -> list[bytes]:
        """Take what was received; return the payloads that are whole now. Raises OSError for one out of turn."""
        received, payloads = self._received, list[bytes]()
        received += some
        at, end = 0, len(received)
        while at + _HEAD <= end:
            size = received[at] | received[at + 1] << 8 | received[at + 2] << 16
            start = at + _HEAD
            if start + size > end:
                break
            if received[at + 3] != self._number:
                raise OSError(f"packet {received[at + 3]} came instead of {self._number}")
            self._number = (self._number + 1) & 0xFF
            at = start + size
            data = bytes(memoryview(received)[start:at])
            if size == LIMIT:
                self._parts.append(data)
                continue
            if self._parts:
                data = b"".join((*self._parts, data))
                self._parts.clear()
            payloads.append(data)
        del received[:at]
        return payloads
