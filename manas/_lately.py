"""What was used lately, up to so many bytes."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from typing import Any


class Lately:
    """Values by key in two generations of half the bytes each: what is asked for moves to the younger one.

    When that is full, the older one is dropped. Safe for threads.
    """

    __slots__ = ("_bytes", "_lock", "_most", "_old", "_young")

    def __init__(self, most: int) -> None:
        """`most` is in bytes, as `put` is told them."""
        self._young: dict[Hashable, tuple[Any, int]] = {}
        self._old: dict[Hashable, tuple[Any, int]] = {}
        self._bytes, self._most = 0, most
        self._lock = threading.Lock()

    def get(self, key: Hashable, default: Any = None) -> Any:
        """Return what is kept under a key, else `default`."""
        found = self._young.get(key)
        if found is None:
            found = self._old.get(key)
            if found is None:
                return default
            self._keep(key, *found)
        return found[0]

    def put(self, key: Hashable, value: Any, size: int) -> None:
        """Keep a value of so many bytes, and its key: a caller's own words may be longer than what they lead to."""
        self._keep(key, value, size + len(repr(key)))

    def _keep(self, key: Hashable, value: Any, size: int) -> None:
        with self._lock:
            if self._bytes >= self._most // 2:
                self._old, self._young, self._bytes = self._young, {}, 0
            self._young[key] = value, size
            self._bytes += size
