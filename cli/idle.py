"""What is still to be done anywhere in the pipeline, and whether it is idle."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from debug_ui.backends import Backends
from gateway import feed_lag
from messaging.api import Log
from messaging.topics import (
    ARGUS_GROUP,
    BUDGETS,
    DEFERRED,
    DEFERRED_GROUP,
    DELTAS,
    LANES,
    NOTIFICATIONS,
    SIGNALS,
    UPDATER_GROUP,
    UPDATES,
)

DEFERRED_SECONDS = 8.0
"""Rows that wait for a source are tried every 2 s. If none got through for several times as long, its source is away,
and an idle pipeline does not wait for it."""


@dataclass(frozen=True, slots=True)
class Outstanding:
    """Units waiting per place, in the order of the life of an update, and marks that move when anything is made.

    `deferred` are rows that wait for an external source; they count as waiting nowhere.
    """

    waiting: dict[str, int]
    marks: tuple[int, ...]
    deferred: int = 0

    @property
    def total(self) -> int:
        """Everything that waits."""
        return sum(self.waiting.values())


def outstanding(backends: Backends, served: Mapping[str, Mapping[Any, int]], *, certain: bool = False) -> Outstanding:
    """Count what waits, upstream first. `served` has Manas' positions: topic -> partition -> next offset.

    Not every Repo says how many of its commits have become notifications. `certain` finds out when nothing else waits,
    which may take a second and write to the Repo.
    """
    log = backends.log
    waiting: dict[str, int] = {}
    feed = feed_lag(backends.ads_db, log)
    marks = [feed.end]
    waiting["ads_db"] = feed.waiting
    for topic in (*(UPDATES[lane] for lane in LANES), SIGNALS):
        waiting[topic] = _lag(log, UPDATER_GROUP, topic, marks)
    repo = backends.repo_feed.lag()
    marks.append(repo.end)
    waiting["repo"] = repo.waiting
    for lane in LANES:
        waiting[NOTIFICATIONS[lane]] = _lag(log, ARGUS_GROUP, NOTIFICATIONS[lane], marks)
    deferred = deferred_rows(log)
    for topic in (DELTAS, BUDGETS):
        ends = log.end_offsets(topic)
        marks += ends.values()
        done = {int(p): offset for p, offset in served.get(topic, {}).items()}  # JSON made the keys text
        waiting[topic] = sum(max(0, end - done.get(p, 0)) for p, end in ends.items())
    if certain and not any(count for place, count in waiting.items() if place != "repo"):
        waiting["repo"] = backends.repo_feed.confirm()
    return Outstanding(waiting, tuple(marks), deferred)


def deferred_rows(log: Log) -> int:
    """Return how many rows wait for an external source. They are no mark: they move round while nothing happens."""
    return _lag(log, DEFERRED_GROUP, DEFERRED, [])


def _lag(log: Log, group: str, topic: str, marks: list[int]) -> int:
    ends, done = log.end_offsets(topic), log.committed(group, topic)
    marks += ends.values()
    return sum(max(0, end - done.get(partition, 0)) for partition, end in ends.items())


class IdleWatch:
    """Says when nothing is outstanding: everything at zero in two looks between which nothing new was made.

    One look is not enough: it reads one place after the other, and a unit may hop from a place not yet read to one
    already read. A stage stores its position only after its effects, so what is in flight counts as waiting.
    Rows that wait for an external source are waited for only while they get fewer, and DEFERRED_SECONDS longer.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._marks: tuple[int, ...] | None = None
        self._clock = clock
        self._deferred, self._since = 0, 0.0

    def look(self, state: Outstanding) -> bool:
        """Return whether the pipeline was idle between the last look and this one."""
        idle = state.total == 0 and state.marks == self._marks
        self._marks = state.marks if state.total == 0 else None
        if not idle or state.deferred < self._deferred:
            self._deferred, self._since = state.deferred, self._clock()
        return idle and (state.deferred == 0 or self._clock() - self._since >= DEFERRED_SECONDS)
