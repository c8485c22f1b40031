"""What is still to be done anywhere in the pipeline, and whether it is idle."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from catalog import LaneName
from debug_ui.backends import Backends
from gateway import feed_lag
from messaging.api import Log
from messaging.switches import PAUSE, PUBLISHING, Setting, Switches
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
class Held:
    """Units that move on only when somebody sets a switch."""

    switch: Setting
    place: str
    count: int

    def __str__(self) -> str:
        return (
            f"{self.switch.name} is {self.switch.value} (by {self.switch.who}: {self.switch.why}) and holds "
            f"{self.count} in {self.place}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"switch": self.switch.name, "value": self.switch.value, "place": self.place, "count": self.count}


@dataclass(frozen=True, slots=True)
class Outstanding:
    """Units waiting per place, in the order of the life of an update, and marks that move when anything is made.

    `deferred` are rows that wait for an external source or a paused handler, and `held` is what switches hold; both
    count as waiting nowhere.
    """

    waiting: dict[str, int]
    marks: tuple[int, ...]
    deferred: int = 0
    held: tuple[Held, ...] = ()

    @property
    def total(self) -> int:
        """Everything that waits."""
        return sum(self.waiting.values())


def outstanding(
    backends: Backends,
    served: Mapping[str, Mapping[Any, int]],
    switches: Switches | None = None,
    *,
    certain: bool = False,
) -> Outstanding:
    """Count what waits, upstream first. `served` has Manas' positions: topic -> partition -> next offset.

    Who looks often keeps `switches`, which are then read when they change only. Not every Repo says how many of its
    commits have become notifications: `certain` finds out when nothing else waits, which may take a second and write
    to the Repo; all is counted again after that, for what was on its way has arrived. Raises FeedStuck when nobody
    makes notifications of commits.
    """
    switches = switches or Switches(backends.log)
    state = _count(backends, served, switches)
    if not certain or any(count for place, count in state.waiting.items() if place != "repo"):
        return state
    unnotified = backends.repo_feed.confirm()
    if not unnotified:
        state = _count(backends, served, switches)
    state.waiting["repo"] = unnotified
    return state


def _count(backends: Backends, served: Mapping[str, Mapping[Any, int]], switches: Switches) -> Outstanding:
    in_force = switches.all()  # before counting: what is released while we count still counts as held this once
    log = backends.log
    waiting: dict[str, int] = {}
    feed = feed_lag(backends.ads_db, log)
    marks = [feed.end]
    waiting["ads_db"] = feed.waiting
    for topic in (*(UPDATES[lane] for lane in LANES), SIGNALS):
        waiting[topic] = _lag(log, UPDATER_GROUP, topic, marks)
    waiting["repo"] = backends.repo_feed.lag().waiting  # its end is no mark: what matters of it ends in notifications
    for lane in LANES:
        waiting[NOTIFICATIONS[lane]] = _lag(log, ARGUS_GROUP, NOTIFICATIONS[lane], marks)
    deferred = deferred_rows(log)
    for topic in (DELTAS, BUDGETS):
        ends = log.end_offsets(topic)
        marks += ends.values()
        done = {int(p): offset for p, offset in served.get(topic, {}).items()}  # JSON made the keys text
        waiting[topic] = sum(max(0, end - done.get(p, 0)) for p, end in ends.items())
    held = [Held(setting, place, waiting.pop(place)) for place, setting in _holds(in_force) if waiting.get(place)]
    if deferred:
        lanes = [setting for setting in in_force if setting.name == PAUSE[LaneName.LOW] and setting.value == "on"]
        held += [Held(setting, DEFERRED, deferred) for setting in lanes or switches.paused_handlers().values()]
    return Outstanding(waiting, tuple(marks), deferred, tuple(held))


def held_sentence(held: tuple[Held, ...]) -> str:
    """Return what to tell a person when nothing moves any more but for what switches hold."""
    names = dict.fromkeys(h.switch.name for h in held)
    release = "; ".join(
        f"./adsindex switch set {name} {'on' if name == PUBLISHING else 'off'} --why TEXT" for name in names
    )
    return f"all is done but for what switches hold: {'; '.join(map(str, held))}. To let it go on: {release}"


def _holds(settings: list[Setting]) -> Iterator[tuple[str, Setting]]:
    """Yield (place, switch that holds it); a place that two hold is counted with the first."""
    by_name = {setting.name: setting for setting in settings}
    for lane in LANES:
        if by_name[PAUSE[lane]].value == "on":
            yield UPDATES[lane], by_name[PAUSE[lane]]
            yield NOTIFICATIONS[lane], by_name[PAUSE[lane]]
    if by_name[PUBLISHING].value == "off":
        for place in ("ads_db", *(NOTIFICATIONS[lane] for lane in LANES)):
            yield place, by_name[PUBLISHING]


def deferred_rows(log: Log) -> int:
    """Return how many rows wait for a source or a paused handler. No mark: they go round while nothing happens."""
    return _lag(log, DEFERRED_GROUP, DEFERRED, [])


def _lag(log: Log, group: str, topic: str, marks: list[int]) -> int:
    ends, done = log.end_offsets(topic), log.committed(group, topic)
    marks += ends.values()
    return sum(max(0, end - done.get(partition, 0)) for partition, end in ends.items())


class IdleWatch:
    """Says when nothing is outstanding: everything at zero in two looks between which nothing new was made.

    One look is not enough: it reads one place after the other, and a unit may hop from a place not yet read to one
    already read. A stage stores its position only after its effects, so what is in flight counts as waiting.
    What a switch holds is not waited for. Rows that wait for an external source or a paused handler are waited for
    only while they get fewer, and DEFERRED_SECONDS longer.
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
