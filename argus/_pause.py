"""Handlers that a switch pauses."""

from __future__ import annotations

from argus._exceptions import CannotPause
from argus._registry import Registry
from argus._run import SERVABLE_COLUMN, Paused
from messaging.switches import PAUSE_HANDLER, Setting, Switches


def paused_handlers(switches: Switches) -> Paused:
    """Return the handlers that are paused now, each with what is said of it wherever its outputs are shown."""
    return {name: _sentence(setting) for name, setting in switches.paused_handlers().items()}


def check_pausable(registry: Registry, switch: str) -> None:
    """Raise CannotPause unless the switch is no handler's, or names a handler that may be paused.

    The handler that says what may serve may not: an advertiser's pause always takes effect.
    """
    if not switch.startswith(PAUSE_HANDLER):
        return
    name = switch.removeprefix(PAUSE_HANDLER)
    if name not in registry.handlers:
        raise CannotPause(f"there is no handler {name!r}; there are {', '.join(sorted(registry.handlers))}")
    servable = f"{registry.catalog.document_table}.{SERVABLE_COLUMN}"
    if servable in registry.handlers[name].declaration.writes:
        raise CannotPause(
            f"handler {name!r} decides what may serve ({servable}): paused, no advertiser's pause would take effect; "
            "use pause.LANE or publishing instead"
        )


def _sentence(setting: Setting) -> str:
    """Return the same words as long as the handler is paused: a sentence that differs is a change of the row."""
    return (
        f"paused by {setting.who}: {setting.why}; what it wrote before stays until "
        f"`./adsindex switch set {setting.name} off`"
    )
