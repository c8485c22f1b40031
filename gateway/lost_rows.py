"""Tables of which rows may be gone that nobody was told of: a durable request that somebody look for them.

The Gateway sees that a table was emptied without row events, or that capture was lost, but not which rows the Storage
Repo still has. So it says so in the log, in the step before it stores a position after it; a sync of those tables finds
the rows and has them deleted, and takes the request back. Requests that come meanwhile stay.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from messaging import Log, Position
from messaging.topics import CHANGE_FEED

ASKED_GROUP, DONE_GROUP = "gateway-lost-rows", "gateway-lost-rows-done"
"""Their positions on CHANGE_FEED count requests, and those that were met; with the first go the tables."""
_MAX_BYTES = 3_000
"""Kafka keeps 4,096 bytes with a position; more tables than that are all tables."""
ALL: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class LostRows:
    """A request that was not met yet: Repo tables, none for all."""

    number: int
    tables: frozenset[str]


def pending(log: Log) -> LostRows | None:
    """Return what is asked for and not met, None if nothing is. Raises LogError."""
    if CHANGE_FEED not in log.topics():
        return None
    number = log.committed(ASKED_GROUP, CHANGE_FEED).get(0, 0)
    if number <= log.committed(DONE_GROUP, CHANGE_FEED).get(0, 0):
        return None
    text = log.committed_metadata(ASKED_GROUP, CHANGE_FEED).get(0, "")
    return LostRows(number, frozenset(json.loads(text)) if text else ALL)


def ask(log: Log, tables: Iterable[str]) -> None:
    """Ask for a look at some Repo tables, none for all, besides what is asked for already. Raises LogError."""
    wanted, before = frozenset(tables), pending(log)
    if before is not None:
        wanted = wanted | before.tables if wanted and before.tables else ALL
    text = json.dumps(sorted(wanted)) if wanted else ""
    if len(text.encode()) > _MAX_BYTES:
        text = ""
    number = log.committed(ASKED_GROUP, CHANGE_FEED).get(0, 0)
    # A broker forgets positions that are long not stored anew, each for itself.
    number = max(number, log.committed(DONE_GROUP, CHANGE_FEED).get(0, 0)) + 1
    log.set_committed([Position(ASKED_GROUP, CHANGE_FEED, 0, number, text)])


def done(log: Log, request: LostRows) -> None:
    """Take back a request that was met, and all before it. Raises LogError."""
    log.set_committed([Position(DONE_GROUP, CHANGE_FEED, 0, request.number)])
