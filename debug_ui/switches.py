"""Switches as people see them, and what each holds back."""

from __future__ import annotations

from collections.abc import Iterable

from debug_ui.views import View
from messaging.api import Log
from messaging.switches import PAUSE, PUBLISHING, Switches, default_of
from messaging.topics import LANES, NOTIFICATIONS, SWITCHES, UPDATES

ADS_DB_PLACE = "ads DB change feed"
"""Where changes wait that the Gateway has not published."""


class SwitchView(View):
    """One switch as every process knows it."""

    name: str
    value: str
    changed: bool
    """Whether it is not at its default."""
    who: str
    why: str
    at_us: int

    @property
    def release(self) -> str:
        """The command that puts it back to its default."""
        return f"./adsindex switch set {self.name} {default_of(self.name)} --why TEXT"


def switch_views(log: Log) -> tuple[SwitchView, ...]:
    """Return every switch. Raises LogError."""
    if SWITCHES not in log.topics():
        return ()
    switches = Switches(log)
    switches.refresh(force=True)
    return tuple(
        SwitchView(
            name=s.name, value=s.value, changed=s.value != default_of(s.name), who=s.who, why=s.why, at_us=s.at_us
        )
        for s in switches.all()
    )


def holding_switches(log: Log, places: Iterable[str]) -> list[SwitchView]:
    """Return the switches that let nothing out of one of the places, named as `health.pipeline_lags` names them."""
    wanted = set(places)
    held = {PAUSE[lane]: {UPDATES[lane], NOTIFICATIONS[lane]} for lane in LANES}
    held[PUBLISHING] = {ADS_DB_PLACE, *NOTIFICATIONS.values()}
    return [view for view in switch_views(log) if view.changed and held.get(view.name, set()) & wanted]
