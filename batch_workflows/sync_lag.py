"""Waiting until what is in flight has arrived: a difference counts only if it outlives the pipeline's lag."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from gateway import AdsDb, feed_lag
from messaging import Log
from messaging.topics import (
    ARGUS_GROUP,
    LANES,
    NOTIFICATIONS,
    SIGNALS,
    UPDATER_GROUP,
    UPDATES,
)
from storage_repo.feed import RepoFeed

PATIENCE_SECONDS = 20.0
"""How long nothing may move before the pipeline counts as down or held: stages are restarted within five seconds, and a
batch takes less than one."""
_LOOK_SECONDS = 0.05
_ROUNDS = 20
"""A large fan-out goes on in messages behind all others of its lane: so many times the queue's end is waited for,
unless the queue is empty before."""


@dataclass(frozen=True, slots=True)
class Lag:
    """The stages' positions, seen from outside; `pause` waits for some seconds, and may raise to end the wait."""

    ads_db: AdsDb
    log: Log
    feed: RepoFeed
    pause: Callable[[float], object] = time.sleep
    patience_s: float = PATIENCE_SECONDS

    def pass_by(self) -> bool:
        """Wait until all that was in flight has gone through all stages; False if nothing moved for `patience_s`.

        Rows that wait for an external source or a paused handler are not waited for. Raises AdsDbUnavailable, LogError,
        RepoError.
        """
        return all(self._await(arrived) for arrived in self._steps())

    def _steps(self) -> Iterator[Callable[[], tuple[bool, object]]]:
        """Yield one place after the other, downstream; what is looked at says (arrived, what moves meanwhile)."""
        end = feed_lag(self.ads_db, self.log).end

        def captured() -> tuple[bool, object]:
            lag = feed_lag(self.ads_db, self.log)
            return lag.position >= end or not lag.waiting, lag.position

        yield captured
        for topic in (*UPDATES.values(), SIGNALS):
            yield self._read_by(UPDATER_GROUP, topic)
        yield lambda: (self.feed.confirm() == 0, self.feed.lag().position)
        for _ in range(_ROUNDS):
            for lane in LANES:
                yield self._read_by(ARGUS_GROUP, NOTIFICATIONS[lane])
            if all(self._read_by(ARGUS_GROUP, NOTIFICATIONS[lane])()[0] for lane in LANES):
                return

    def _read_by(self, group: str, topic: str) -> Callable[[], tuple[bool, object]]:
        ends = self.log.end_offsets(topic)

        def read() -> tuple[bool, object]:
            done = self.log.committed(group, topic)
            return all(done.get(partition, 0) >= end for partition, end in ends.items()), done

        return read

    def _await(self, look: Callable[[], tuple[bool, object]]) -> bool:
        arrived, moves = look()
        since = time.monotonic()
        while not arrived:
            self.pause(_LOOK_SECONDS)
            arrived, now = look()
            if now != moves:
                moves, since = now, time.monotonic()
            elif not arrived and time.monotonic() - since >= self.patience_s:
                return False
        return True
