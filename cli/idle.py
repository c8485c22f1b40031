"""What is still to be done anywhere in the pipeline, and whether it is idle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from debug_ui.backends import Backends
from gateway import feed_lag
from messaging.api import Log
from messaging.topics import (
    ARGUS_GROUP,
    BUDGETS,
    DELTAS,
    LANES,
    NOTIFICATIONS,
    REPO_FEED,
    SIGNALS,
    UPDATER_GROUP,
    UPDATES,
    WAL_PROXY_GROUP,
)


@dataclass(frozen=True, slots=True)
class Outstanding:
    """Units waiting per place, in the order of the life of an update, and marks that move when anything is made."""

    waiting: dict[str, int]
    marks: tuple[int, ...]

    @property
    def total(self) -> int:
        """Everything that waits."""
        return sum(self.waiting.values())


def outstanding(backends: Backends, served: Mapping[str, Mapping[Any, int]]) -> Outstanding:
    """Count what waits, upstream first. `served` has Manas' positions: topic -> partition -> next offset."""
    log, repo = backends.log, backends.repo
    waiting: dict[str, int] = {}
    feed = feed_lag(backends.ads_db, log)
    marks = [feed.end]
    waiting["ads_db"] = feed.waiting
    for topic in (*(UPDATES[lane] for lane in LANES), SIGNALS):
        waiting[topic] = _lag(log, UPDATER_GROUP, topic, marks)
    last = repo.last_commit_ts()
    marks.append(last)
    waiting["repo"] = max(0, last - log.committed(WAL_PROXY_GROUP, REPO_FEED).get(0, 0))
    for lane in LANES:
        waiting[NOTIFICATIONS[lane]] = _lag(log, ARGUS_GROUP, NOTIFICATIONS[lane], marks)
    for topic in (DELTAS, BUDGETS):
        ends = log.end_offsets(topic)
        marks += ends.values()
        done = {int(p): offset for p, offset in served.get(topic, {}).items()}  # JSON made the keys text
        waiting[topic] = sum(max(0, end - done.get(p, 0)) for p, end in ends.items())
    return Outstanding(waiting, tuple(marks))


def _lag(log: Log, group: str, topic: str, marks: list[int]) -> int:
    ends, done = log.end_offsets(topic), log.committed(group, topic)
    marks += ends.values()
    return sum(max(0, end - done.get(partition, 0)) for partition, end in ends.items())


class IdleWatch:
    """Says when nothing is outstanding: everything at zero in two looks between which nothing new was made.

    One look is not enough: it reads one place after the other, and a unit may hop from a place not yet read to one
    already read. A stage stores its position only after its effects, so what is in flight counts as waiting.
    """

    def __init__(self) -> None:
        self._marks: tuple[int, ...] | None = None

    def look(self, state: Outstanding) -> bool:
        """Return whether the pipeline was idle between the last look and this one."""
        idle = state.total == 0 and state.marks == self._marks
        self._marks = state.marks if state.total == 0 else None
        return idle
