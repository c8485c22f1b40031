"""Cutting MySQL packets out of what a connection received, many at a time."""

from __future__ import annotations

LIMIT = 0xFFFFFF
"""A packet of this size goes on in the next one."""

_HEAD = 4  # three bytes of size, one of number


class PacketCutter:
    """Takes bytes as they come and returns payloads as they become whole. Pure.

    A transaction of one row has five packets of some fifty bytes: one read brings hundreds of them, where pymysql reads
    the head and the payload of each by itself. What `add` took can also be read in place: whole packets lie in `data`
    from `at` on, the first of them with the number `number`; who reads there moves both on.
    """

    def __init__(self, number: int) -> None:
        """Begin; `number` is that of the next packet."""
        self.data = b""
        self.at = 0
        self.number = number
        self._later: list[bytes] = []
        """What came after `data` while its only packet was not whole, of `_missing` bytes at least."""
        self._missing = 0
        self._parts: list[bytes] = []

    def add(self, some: bytes) -> None:
        """Take what was received. A packet of many megabytes is put together once, when its last byte has come."""
        self._missing -= len(some)
        if self._missing > 0:
            self._later.append(some)
            return
        self.data = b"".join((self.data[self.at :], *self._later, some))
        self.at = 0
        self._later.clear()

    def next(self) -> bytes | None:
        """Return the next payload; None when none is whole. Raises OSError for one out of turn."""
        while self._missing <= 0:
            data, at = self.data, self.at
            start = at + _HEAD
            head = int.from_bytes(data[at:start], "little")
            size = head & LIMIT
            end = start + size
            if len(data) < end or start > len(data):
                self._missing = end - len(data)
                break
            if head >> 24 != self.number:
                raise OSError(f"packet {head >> 24} came instead of {self.number}")
            self.number = (self.number + 1) & 0xFF
            self.at = end
            payload = data[start:end]
            if size == LIMIT:
                self._parts.append(payload)
                continue
            if self._parts:
                payload = b"".join((*self._parts, payload))
                self._parts.clear()
            return payload
        return None

    def cut(self, some: bytes) -> list[bytes]:
        """Take what was received; return the payloads that are whole now. Raises OSError for one out of turn."""
        self.add(some)
        payloads = list[bytes]()
        while (payload := self.next()) is not None:
            payloads.append(payload)
        return payloads
