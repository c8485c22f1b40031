"""A lock whose holder can let others go first."""

from __future__ import annotations

import threading
import time
from collections import deque
from types import TracebackType

_MOMENT = 0.00005
"""Seconds until whoever waited has woken up and has the lock."""


class Turns:
    """A mutual exclusion between requests and the thread that applies deltas, which gives way between batches of them.

    Nothing is fair about a `threading.Lock`: who releases it and asks at once for it has it again, before anybody who
    waits for it has woken up.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting = deque[None]()
        """One for each thread that waits: appending and taking away are atomic, counting would not be."""

    def acquire(self, timeout: float = -1) -> bool:
        """Take the lock, waiting at most `timeout` seconds (-1: for ever); tell whether it was taken."""
        if self._lock.acquire(blocking=False):
            return True
        self._waiting.append(None)
        try:
            return self._lock.acquire(timeout=timeout)
        finally:
            self._waiting.pop()

    def release(self) -> None:
        """Give the lock back."""
        self._lock.release()

    def give_way(self) -> None:
        """Let somebody who waits have the lock, which the caller has just released and wants again."""
        if self._waiting:
            time.sleep(_MOMENT)

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()
