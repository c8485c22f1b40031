"""Switches of a running installation: set by a person, kept with who, when and why, followed by every process.

=================== ========================= ==============================================================
switch              values                    effect within seconds
=================== ========================= ==============================================================
publishing          on (default), off         off: Gateway and Argus hold; everything waits where it is, nothing
                                              is lost and serving stays as it is
drop_older.<lane>   off (default), 30s, 10m,  Gateway and Updater drop updates of that lane that are older than
                    2h, 1d                    this, counted and listed by `report drops`; never a deletion
pause.<lane>        off (default), on         on: Updater and Argus leave the lane's records in the log
pause_handler.NAME  off (default), on         on: Argus does not run this handler; what it wrote stays, the others run,
                                              and rows that it is due for wait until it is off again
pause_workflow.NAME off (default), on         on: a run of this workflow holds where it is, if it is one that paces
                                              itself (refresh), and goes on when it is off again
=================== ========================= ==============================================================

They lie in the topic SWITCHES, on Kafka a compacted one: the newest record of a name is its value.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from catalog import LaneName
from messaging._exceptions import BadMessage, LogUnavailable, MessagingError, OffsetTrimmed
from messaging.api import Log, OutRecord, Record
from messaging.dead_letters import parse
from messaging.headers import now_us
from messaging.proto import adsindex_pb2 as pb
from messaging.topics import LANES, SWITCHES

LOOK_SECONDS = 1.0
"""How often a process looks for new settings: a look is one read of a topic that is nearly always at its end."""
MAX_WHY = 1_000
_BATCH = 500
_AGE = re.compile(r"([1-9][0-9]{0,5})([smhd])")
_UNIT_US = {"s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}

PUBLISHING = "publishing"
DROP_OLDER: dict[LaneName, str] = {lane: f"drop_older.{lane.value}" for lane in LANES}
PAUSE: dict[LaneName, str] = {lane: f"pause.{lane.value}" for lane in LANES}
PAUSE_HANDLER = "pause_handler."
"""Before a handler's name. Which handlers there are is Argus' to know: one that does not exist is a switch without
effect, which the command refuses."""
PAUSE_WORKFLOW = "pause_workflow."
"""Before a workflow's name; one that does not exist, or does not pace itself, takes no notice."""
_HANDLER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")

_log = structlog.get_logger()


class BadSwitch(MessagingError):
    """Raised for a switch that does not exist, a value that it cannot have, or a setting without reason."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A switch's value, and who set it when and why; `at_us` is 0 for one that was never set."""

    name: str
    value: str
    who: str = ""
    why: str = ""
    at_us: int = 0


DEFAULTS: dict[str, str] = {PUBLISHING: "on", **dict.fromkeys(DROP_OLDER.values(), "off")} | dict.fromkeys(
    PAUSE.values(), "off"
)
"""Of the switches that are always there."""


def default_of(name: str) -> str:
    """Return the value that a switch has until somebody sets it."""
    return DEFAULTS.get(name, "off")


def parse_age_us(text: str) -> int | None:
    """Return "30s", "10m", "2h" or "1d" in microseconds, None for "off". Raises BadSwitch."""
    if text == "off":
        return None
    if (found := _AGE.fullmatch(text)) is None:
        raise BadSwitch(f"{text!r} is no age; write off, or a number with s, m, h or d, for example 10m")
    return int(found[1]) * _UNIT_US[found[2]]


def check_setting(name: str, value: str) -> None:
    """Raise BadSwitch when there is no such switch or it cannot have this value."""
    of = next((name.removeprefix(p) for p in (PAUSE_HANDLER, PAUSE_WORKFLOW) if name.startswith(p)), None)
    if name not in DEFAULTS and (of is None or not _HANDLER.fullmatch(of)):
        known = f"{', '.join(DEFAULTS)}, {PAUSE_WORKFLOW}NAME and {PAUSE_HANDLER}HANDLER"
        raise BadSwitch(f"there is no switch {name!r}; there are {known}")
    if name in DROP_OLDER.values():
        parse_age_us(value)
    elif value not in ("on", "off"):
        raise BadSwitch(f"{name} is on or off, not {value!r}")


def set_switch(log: Log, name: str, value: str, *, who: str, why: str) -> Setting:
    """Set a switch for every process of the installation and return the setting. Raises BadSwitch, LogError."""
    check_setting(name, value)
    if not why.strip() or not who.strip():
        raise BadSwitch(f"say who sets {name} and why: whoever is on call next reads it")
    message = pb.SwitchSetting(name=name, value=value, who=who[:MAX_WHY], why=why[:MAX_WHY], at_us=now_us())
    log.publish([OutRecord(SWITCHES, name, message.SerializeToString())])
    return Setting(name, value, message.who, message.why, message.at_us)


class Switches:
    """The switches as one process knows them. Safe for threads."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._position: int | None = None
        self._known = False  # whether all settings were read once
        self._looked = -LOOK_SECONDS
        self._settings = {name: Setting(name, value) for name, value in DEFAULTS.items()}
        self._ages: dict[LaneName, int | None] = dict.fromkeys(LANES)
        self.history: list[Setting] = []
        """Every setting read so far, oldest first: on Kafka, those of the last day and the newest of each switch."""

    def refresh(self, *, force: bool = False) -> None:
        """Read new settings if the last look is LOOK_SECONDS old. While the log is away, the old ones hold.

        Raises LogUnavailable when nothing was read yet: what is off, paused or too old is not known then.
        """
        with self._lock:
            if not force and time.monotonic() - self._looked < LOOK_SECONDS:
                return
            try:
                self._read()
            except LogUnavailable as error:
                if force or not self._known:
                    raise
                _log.warning("switches_not_read", error=str(error))
            else:
                self._known = True
            self._looked = time.monotonic()

    def all(self) -> list[Setting]:
        """Return every switch with its current setting; of handlers, those that were ever set."""
        self.refresh()
        with self._lock:
            return [*self._settings.values()]

    def publishing(self) -> bool:
        """Return whether Gateway and Argus may publish. Raises LogUnavailable as `refresh`, like all that follow."""
        self.refresh()
        return self._settings[PUBLISHING].value == "on"

    def paused(self, lane: LaneName) -> bool:
        """Return whether a lane is paused."""
        self.refresh()
        return self._settings[PAUSE[lane]].value == "on"

    def paused_handlers(self) -> dict[str, Setting]:
        """Return the handlers that are paused, with who paused them and why."""
        return {
            setting.name.removeprefix(PAUSE_HANDLER): setting
            for setting in self.all()
            if setting.name.startswith(PAUSE_HANDLER) and setting.value == "on"
        }

    def paused_workflow(self, name: str) -> Setting | None:
        """Return the setting that pauses a workflow, None if none does."""
        setting = next((s for s in self.all() if s.name == f"{PAUSE_WORKFLOW}{name}"), None)
        return setting if setting is not None and setting.value == "on" else None

    def paused_topics(self, topics: dict[LaneName, str]) -> list[str]:
        """Return the topics of those lanes that are paused: what a consumer leaves in the log."""
        return [topic for lane, topic in topics.items() if self.paused(lane)]

    def oldest_allowed_us(self, lane: LaneName) -> int | None:
        """Return the origin time below which an update of the lane is dropped, None when dropping is off."""
        self.refresh()
        age = self._ages[lane]
        return None if age is None else now_us() - age

    def hold(self, stopped: Callable[[float], bool], beat: Callable[[], None]) -> None:
        """Return once publishing is on, or when `stopped(seconds to wait)` says so. Calls `beat` meanwhile."""
        held = False
        while not self.publishing():
            if not held:
                _log.warning("publishing_off", why=self._settings[PUBLISHING].why, who=self._settings[PUBLISHING].who)
                held = True
            beat()
            if stopped(LOOK_SECONDS / 4):
                return
        if held:
            _log.info("publishing_on")

    def _read(self) -> None:
        if self._position is None:
            self._position = self._log.start_offsets(SWITCHES)[0]
        while True:
            try:
                records = self._log.read(SWITCHES, 0, self._position, _BATCH)
            except OffsetTrimmed as error:
                self._position = error.oldest
                continue
            for record in records:
                self._take(record)
                self._position = record.offset + 1
            if not records:
                return

    def _take(self, record: Record) -> None:
        try:
            message = parse(pb.SwitchSetting, record)
            check_setting(message.name, message.value)
        except (BadMessage, BadSwitch) as error:  # of another release, or by hand: never a reason to stop a stage
            _log.warning("switch_ignored", offset=record.offset, error=str(error))
            return
        setting = Setting(message.name, message.value, message.who, message.why, message.at_us)
        self._settings[setting.name] = setting
        self.history.append(setting)
        for lane, name in DROP_OLDER.items():
            if name == setting.name:
                self._ages[lane] = parse_age_us(setting.value)
