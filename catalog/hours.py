"""Weekly hours: when in the week something runs, by the wall clock of a time zone.

    mon-fri 8-18; sat,sun 10-14 @ Europe/Paris

Windows are separated by `;`: days (`mon`, `mon-fri`, `sat,sun`, `daily`) and hours `from-to` (`22-6` runs over
midnight; without hours, the whole day). After `@` comes an IANA zone, or `user` for the zone that the request names.
`always` is every hour. A wall clock's repeated hour runs twice, its missing hour not at all.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

USER = "user"
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_WEEK = 7 * 24
_ALL = (1 << _WEEK) - 1
_WINDOW = re.compile(r"(?P<days>[a-z,\s-]+?)(?:\s+(?P<first>\d{1,2})(?::00)?\s*-\s*(?P<last>\d{1,2})(?::00)?)?")


class HoursError(ValueError):
    """Raised for text that names no weekly hours; the sentence says which part and what is valid."""


@dataclass(frozen=True, slots=True)
class Hours:
    """Hours of the week as bits, Monday 0 o'clock lowest, by the wall clock of `zone`."""

    mask: int
    zone: str
    """An IANA name, or USER."""

    def at(self, moment: datetime, user_zone: ZoneInfo | None) -> bool | None:
        """Tell whether an aware datetime is in the hours; None when they go by a zone that is not known."""
        if self.mask == _ALL:
            return True
        zone = user_zone if self.zone == USER else time_zone(self.zone)
        if zone is None:
            return None
        return bool(self.mask >> hour_of_week(moment, zone) & 1)


def hour_of_week(moment: datetime, zone: ZoneInfo) -> int:
    """Return the hour of the week, 0 to 167, that a zone's clocks show at an aware datetime."""
    local = moment.astimezone(zone)
    return local.weekday() * 24 + local.hour


@lru_cache(1_024)
def time_zone(name: str) -> ZoneInfo:
    """Return a zone by its IANA name. Raises HoursError."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise HoursError(f"no time zone {name[:60]!r}; give an IANA name like Europe/Paris, or {USER}") from None


def parse(text: str) -> Hours:
    """Return the hours that a text names. Raises HoursError."""
    if text.strip().lower() == "always":
        return Hours(_ALL, USER)
    windows, at, zone = text.partition("@")
    zone = zone.strip()
    if not at or not zone:
        raise HoursError(f"no time zone; end with '@ Europe/Paris' or '@ {USER}', got {text[:60]!r}")
    if zone != USER:
        time_zone(zone)
    mask = 0
    for window in windows.split(";"):
        mask |= _window(window.strip().lower())
    return Hours(mask, zone)


def canonical(hours: Hours) -> str:
    """Return the one text of weekly hours."""
    if hours.mask == _ALL:
        return "always"
    days_of: dict[tuple[str, ...], list[str]] = {}
    for number, day in enumerate(DAYS):
        if runs := _runs(hours.mask >> 24 * number & 0xFF_FFFF):
            days_of.setdefault(runs, []).append(day)
    windows = [f"{','.join(days)} {run}" for runs, days in days_of.items() for run in runs]
    return f"{'; '.join(windows)} @ {hours.zone}"


def _runs(day: int) -> tuple[str, ...]:
    runs, first = [], None
    for hour in range(25):
        on = hour < 24 and day >> hour & 1
        if on and first is None:
            first = hour
        elif not on and first is not None:
            runs.append(f"{first}-{hour}")
            first = None
    return tuple(runs)


def _window(text: str) -> int:
    found = _WINDOW.fullmatch(text)
    if found is None:
        raise HoursError(f"{text[:60]!r} is not days and hours like 'mon-fri 8-18'")
    first, last = (0, 24) if found["first"] is None else (int(found["first"]), int(found["last"]))
    if not (0 <= first < 24 and 0 <= last <= 24) or first == last:
        raise HoursError(f"hours {first}-{last} in {text[:60]!r}: from 0-23 to 1-24, and not the same")
    length = (last - first) % 24 or 24
    mask = 0
    for day in _days(found["days"], text):
        for hour in range(length):
            mask |= 1 << (24 * day + first + hour) % _WEEK
    return mask


def _days(text: str, window: str) -> set[int]:
    days: set[int] = set()
    for part in text.split(","):
        first, dash, last = (name.strip() for name in part.partition("-"))
        if first == "daily" and not dash:
            return set(range(7))
        if first not in DAYS or (dash and last not in DAYS):
            raise HoursError(f"{part.strip()[:40]!r} in {window[:60]!r} is no day; days are {', '.join(DAYS)}, daily")
        start = DAYS.index(first)
        count = (DAYS.index(last) - start) % 7 + 1 if dash else 1
        days |= {(start + offset) % 7 for offset in range(count)}
    return days
