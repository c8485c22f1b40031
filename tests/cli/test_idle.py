"""When the pipeline counts as idle."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from catalog import LaneName, load_catalog
from cli.backends import close_backends, open_backends
from cli.idle import DEFERRED_SECONDS, IdleWatch, Outstanding, held_sentence, outstanding
from cli.inprocess import InProcess
from cli.runtime import CommandError
from debug_ui.backends import Backends
from messaging import LogUnavailable
from messaging.api import OutRecord
from messaging.home import Home
from messaging.switches import Switches, set_switch
from messaging.topics import DEFERRED, NOTIFICATIONS, UPDATES


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
