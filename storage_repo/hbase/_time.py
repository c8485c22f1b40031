"""How old is a timestamp? The TSO's own clock tells: nobody else's can make anything old."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from typing import Protocol

from storage_repo.omid import TsoClient, TsoError, TsoUnavailable

_SHARED_SNAPSHOTS = 64
"""Snapshots whose reserved start timestamps are remembered; a process works on a few batches at a time."""


class Timeline(Protocol):
    """When timestamps were given out; tests bring their own."""

    def us(self, ts: int) -> int:
        """Return the microseconds since some beginning at which `ts` was given out; grows with `ts`."""

    def latest(self, us: int) -> int:
        """Return the largest timestamp given out before a time."""


class WorldTime:
    """The TSO's timestampType WORLD_TIME: a timestamp is its millisecond since 1970, times a million."""

    def us(self, ts: int) -> int:
        """Return microseconds since 1970."""
        return ts // 1000

    def latest(self, us: int) -> int:
        """Return the largest timestamp given out before a time."""
        return us * 1000 - 1


class Oracle:
    """Gives out start timestamps, and knows what time it is by them."""

    def __init__(self, tso: TsoClient, timeline: Timeline) -> None:
        self.tso, self.timeline = tso, timeline
        self._lock = threading.Lock()
        self._newest = (0, time.monotonic())
        self._reserved: dict[int, list[int]] = {}  # snapshot -> start timestamps just before it
        self._gathering: Future[int] | None = None
        self._asking = threading.Lock()

    def begin(self) -> int:
        """Return a new start timestamp: all that is committed before it is in the commit table. Raises TsoError."""
        return self._seen(self.tso.begin())

    def view(self) -> int:
        """Return a timestamp to read at, not to write at: concurrent callers share it. Raises TsoError.

        It was asked for after each of them had called, so all that was committed before is in it.
        """
        with self._lock:
            shared, leads = self._gathering, self._gathering is None
            if shared is None:
                shared = self._gathering = Future()
        if leads:
            with self._asking:  # meanwhile others come; whoever comes from now on needs a later timestamp
                with self._lock:
                    self._gathering = None
                try:
                    shared.set_result(self.begin())
                except BaseException as error:
                    why = error if isinstance(error, TsoError) else TsoUnavailable(f"the thread that asked: {error!r}")
                    shared.set_exception(why)
                    raise
        try:
            return shared.result()
        except TsoError as error:  # an exception of one's own: a shared one's traceback grows with every raise
            raise TsoUnavailable(str(error)) from error

    def begin_many(self, count: int) -> list[int]:
        """Return new start timestamps, ascending, in one round trip. Raises TsoError."""
        starts = self.tso.begin_many(count)
        self._seen(starts[-1])
        return starts

    def begin_shared(self, transactions: int) -> int:
        """Return a snapshot's timestamp, with a start timestamp just before it for every transaction to be on it.

        A transaction that reads at the snapshot and starts a moment before conflicts with what committed since its
        start: with a little more than it had to, never with less.
        """
        *starts, ts = self.begin_many(transactions + 1)
        with self._lock:
            while len(self._reserved) >= _SHARED_SNAPSHOTS:
                del self._reserved[next(iter(self._reserved))]
            self._reserved[ts] = starts
        return ts

    def take_reserved(self, ts: int) -> int | None:
        """Return one of the start timestamps reserved with a snapshot; None when there is none (left)."""
        with self._lock:
            starts = self._reserved.get(ts)
            return starts.pop() if starts else None

    def newest(self, at_least: int = 0) -> int:
        """Return the newest start timestamp known here; asks for another one if it is below `at_least`."""
        newest = self._newest[0]
        return newest if newest >= at_least and newest else self.begin()

    def now_us(self) -> int:
        """Return about what time it is, without asking."""
        newest, at = self._newest
        return self.timeline.us(newest) + round((time.monotonic() - at) * 1e6)

    def age_us(self, ts: int) -> int:
        """Return about how old a timestamp is."""
        return self.now_us() - self.timeline.us(ts)

    def _seen(self, ts: int) -> int:
        with self._lock:
            if ts > self._newest[0]:
                self._newest = (ts, time.monotonic())
        return ts
