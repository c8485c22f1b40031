"""When the pipeline counts as idle."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from catalog import LaneName, load_catalog
from cli.backends import close_backends, open_backends
from cli.idle import DEFERRED_SECONDS, IdleWatch, Outstanding, held_sentence, outstanding
from cli.inprocess import InProcess
from cli.runtime import CommandError
from debug_ui.backends import Backends
from messaging import LogUnavailable
from messaging.api import OutRecord, Position
from messaging.home import Home
from messaging.switches import Switches, set_switch
from messaging.topics import (
    ARGUS_GROUP,
    BUDGETS,
    DEFERRED,
    DEFERRED_GROUP,
    DELTAS,
    NOTIFICATIONS,
    UPDATER_GROUP,
    UPDATES,
)
from storage_repo.feed import FeedLag


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


def test_what_arrives_while_it_is_made_certain_is_waited_for(backends: Backends) -> None:
    """A Repo that says only when asked whether all of it was notified: what it notified meanwhile counts."""
    group = [
        (topic, backends.log.end_offsets(topic)) for topic in (*UPDATES.values(), *NOTIFICATIONS.values(), DEFERRED)
    ]
    for topic, ends in group:
        name = DEFERRED_GROUP if topic == DEFERRED else UPDATER_GROUP if topic in UPDATES.values() else ARGUS_GROUP
        backends.log.set_committed([Position(name, topic, partition, end) for partition, end in ends.items()])

    class Feed:
        late = 1

        def lag(self) -> FeedLag:
            return FeedLag(0, self.late, 0, "feed", "commits")

        def confirm(self) -> int:
            if self.late:
                self.late -= 1
                backends.log.publish([OutRecord(NOTIFICATIONS[LaneName.HIGH], "k", b"")])
            return 0

    watched = replace(backends, repo_feed=Feed())
    served = {topic: backends.log.end_offsets(topic) for topic in (DELTAS, BUDGETS)}
    assert outstanding(watched, served, certain=False).waiting["repo"] == 0
    assert outstanding(watched, served, certain=True).waiting[NOTIFICATIONS[LaneName.HIGH]] == 1


def test_a_probe_that_moves_the_feeds_own_end_does_not_keep_it_from_idle(backends: Backends) -> None:
    """Asking may itself be work for the feed; that nothing new was notified is what counts."""
    set_switch(backends.log, "pause.low", "on", who="anna", why="what is held is no reason not to ask")
    log = backends.log
    groups = {
        UPDATES[LaneName.HIGH]: UPDATER_GROUP,
        NOTIFICATIONS[LaneName.HIGH]: ARGUS_GROUP,
        DEFERRED: DEFERRED_GROUP,
    }
    for topic, name in groups.items():
        log.set_committed([Position(name, topic, p, end) for p, end in log.end_offsets(topic).items()])

    class Feed:
        end = asked = 0

        def lag(self) -> FeedLag:
            return FeedLag(self.end % 2, self.end, self.end, "feed", "commits")

        def confirm(self) -> int:
            self.end, self.asked = self.end + 1, self.asked + 1
            return 0

    watch, feed = IdleWatch(), Feed()
    watched = replace(backends, repo_feed=feed)
    served = {topic: log.end_offsets(topic) for topic in (DELTAS, BUDGETS)}
    looks = [watch.look(outstanding(watched, served, certain=True)) for _ in range(3)]
    assert looks == [False, True, True]
    assert feed.asked == 3


@pytest.fixture
def backends(tmp_path: Path) -> Iterator[Backends]:
    """A new home's backends, with something waiting in the low and in the high lane and for Argus."""
    home = Home.open(tmp_path / "home")
    opened = open_backends(home, load_catalog())
    opened.log.publish(
        [
            *(OutRecord(UPDATES[LaneName.LOW], str(n), b"") for n in range(5)),
            *(OutRecord(UPDATES[LaneName.HIGH], str(n), b"") for n in range(2)),
            OutRecord(NOTIFICATIONS[LaneName.HIGH], "k", b""),
            OutRecord(DEFERRED, "k", b""),
        ]
    )
    yield opened
    close_backends(opened)


def test_what_switches_hold_counts_as_held_and_not_as_waiting(backends: Backends) -> None:
    """Each switch holds its own places; what it does not hold is waited for as ever."""
    switches = Switches(backends.log)

    def held(**settings: str) -> dict[tuple[str, str], int]:
        for name, value in settings.items():
            set_switch(backends.log, name.replace("__", "."), value, who="anna", why="storm")
        switches.refresh(force=True)
        state = outstanding(backends, {}, switches)
        everything = state.total + sum(h.count for h in state.held if h.place != DEFERRED)
        assert everything == outstanding(backends, {}).total + sum(
            h.count for h in outstanding(backends, {}).held if h.place != DEFERRED
        )
        assert everything == 8 + outstanding(backends, {}).waiting.get("ads_db", 0)
        return {(h.switch.name, h.place): h.count for h in state.held}

    low, high = UPDATES[LaneName.LOW], NOTIFICATIONS[LaneName.HIGH]
    assert held() == {}
    assert held(pause__low="on") == {("pause.low", low): 5, ("pause.low", DEFERRED): 1}
    assert held(pause__low="off", publishing="off") == {("publishing", high): 1}
    assert held(publishing="on", pause_handler__bid="on") == {("pause_handler.bid", DEFERRED): 1}
    assert held(pause_handler__bid="off") == {}


def test_a_pipeline_is_idle_but_for_what_is_held_and_says_so(backends: Backends) -> None:
    """Nothing else waits: two looks are enough, and the sentence has the switch, who set it, why and the way out."""
    for name in ("pause.low", "pause.high"):
        set_switch(backends.log, name, "on", who="anna", why="storm")
    watch = IdleWatch(lambda: 0.0)
    switches = Switches(backends.log)
    state = outstanding(backends, {}, switches)
    state = Outstanding(dict.fromkeys(state.waiting, 0), state.marks, 0, state.held)
    assert not watch.look(state)
    assert watch.look(state)
    said = held_sentence(state.held)
    assert "pause.low is on (by anna: storm) and holds 5 in updates.low" in said
    assert "./adsindex switch set pause.high off" in said


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_stages_in_this_process_end_when_a_later_one_does_not_start(tmp_path: Path) -> None:
    """The Updater runs when the Gateway finds that the ads DB lacks a column; then neither runs, and all is closed."""
    home = Home.open(tmp_path / "home")
    pipeline = InProcess(home, load_catalog(), ["updater", "gateway"])
    pipeline.backends.ads_db.execute("ALTER TABLE pins RENAME COLUMN title TO heading")
    with pytest.raises(CommandError, match=r"stage gateway failed.*pins"), pipeline:
        raise AssertionError("it must not come up")
    assert not [thread.name for thread in threading.enumerate() if thread.name in ("updater", "gateway")]
    assert not list(home.run.glob("*-0.json"))
    with pytest.raises(LogUnavailable):
        pipeline.backends.log.topics()
