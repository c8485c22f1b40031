"""When the pipeline counts as idle."""

from __future__ import annotations

from cli.idle import DEFERRED_SECONDS, IdleWatch, Outstanding


def test_rows_that_wait_for_a_source_that_is_away_are_not_waited_for() -> None:
    """As long as they get fewer the source answers; when they have not for a while, it is idle without them."""
    now = 0.0
    watch = IdleWatch(lambda: now)
    busy, quiet = Outstanding({"repo": 1}, (1,), 9), {"repo": 0}
    assert not watch.look(busy)
    assert not watch.look(Outstanding(quiet, (1,), 9))
    now = DEFERRED_SECONDS - 0.1
    assert not watch.look(Outstanding(quiet, (1,), 9))
    assert not watch.look(Outstanding(quiet, (1,), 7))
    now += DEFERRED_SECONDS - 0.1
    assert not watch.look(Outstanding(quiet, (1,), 7))
    now += 0.2
    assert watch.look(Outstanding(quiet, (1,), 7))


def test_idle_is_two_looks_without_anything_new() -> None:
    """One look is not enough, and a mark that moved in between starts it over; nothing deferred is no delay."""
    watch = IdleWatch()
    assert not watch.look(Outstanding({"repo": 0}, (1,)))
    assert not watch.look(Outstanding({"repo": 0}, (2,)))
    assert watch.look(Outstanding({"repo": 0}, (2,)))
