"""How much a poll takes of each topic: earlier ones first, and yet some of every one that has anything."""

from __future__ import annotations

from collections.abc import Sequence

LATER_SHARE = 16
"""A topic that has records gets at least a 16th of each poll, whatever lies in the topics before it: enough that a
lower lane goes on under a storm in a higher one, little enough that the higher one keeps its pace (three lower ones
cost it a fifth of it at most)."""


def parts(waiting: Sequence[int], room: int) -> list[int]:
    """Return how many to take of each topic, of those that wait there, `room` in all; topics in order of priority.

    Each takes what is there, as far as enough is left for the minimal shares of those after it. A `room` below
    LATER_SHARE has no shares: the first topics take it all.
    """
    share = room // max(LATER_SHARE, 2 * len(waiting))
    kept = sum(min(count, share) for count in waiting)
    taken = []
    for count in waiting:
        kept -= min(count, share)
        taken.append(min(count, room - kept))
        room -= taken[-1]
    return taken
