"""Shares of a poll between topics in order of priority."""

from __future__ import annotations

import random

import pytest

from messaging._lanes import LATER_SHARE, parts


@pytest.mark.parametrize(
    ("waiting", "room", "taken"),
    [
        ([1000, 0, 0], 256, [256, 0, 0]),
        ([1000, 1000, 1000], 256, [224, 16, 16]),
        ([1000, 3, 1000], 256, [237, 3, 16]),
        ([10, 1000, 1000], 256, [10, 230, 16]),
        ([10, 20, 30], 256, [10, 20, 30]),
        ([0, 0, 1000], 256, [0, 0, 256]),
        ([1000, 1000, 1000], 15, [15, 0, 0]),
        ([], 256, []),
    ],
)
def test_earlier_topics_come_first_and_later_ones_have_a_share(waiting: list[int], room: int, taken: list[int]) -> None:
    """The first takes what it has, as far as a 16th is left for each one that waits after it."""
    assert parts(waiting, room) == taken


def test_shares_hold_for_any_topics() -> None:
    """Never more than waits or fits, never less than fits, and at least the share of each, by any number of topics."""
    chance = random.Random(4)
    for _ in range(2000):
        waiting = [chance.choice([0, 1, 5, 100, 10_000]) for _ in range(chance.randrange(1, 40))]
        room = chance.randrange(1, 600)
        taken = parts(waiting, room)
        assert sum(taken) == min(room, sum(waiting))
        share = room // max(LATER_SHARE, 2 * len(waiting))
        for took, count in zip(taken, waiting, strict=True):
            assert min(count, share) <= took <= count
