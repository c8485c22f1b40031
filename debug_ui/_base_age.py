"""Whether the log will go on to have every document change that the base index in service lacks."""

from __future__ import annotations

from pathlib import Path

from manas import list_bases
from messaging import EmbeddedLog, Log, OffsetTrimmed
from messaging.topics import DELTAS, SETTINGS

BASE_DAYS = 4
"""A base is to be built at least this often where brokers forget deltas: three days are left to notice and to do it."""

_DAY_US = 24 * 3600 * 1_000_000
_KEPT_DAYS = int(SETTINGS[DELTAS]["retention.ms"]) * 1000 // _DAY_US


def base_problem(log: Log, base_dir: Path, now_us: int) -> str | None:
    """Return what is wrong with the age of the base index, None if nothing is. Raises LogError.

    Serving starts from the base and the deltas since. The embedded log keeps those, however old the base is.
    """
    if isinstance(log, EmbeddedLog) or DELTAS not in log.topics():
        return None
    current = next((base.manifest for base in list_bases(base_dir) if base.current), None)
    first = {} if current is None else current.delta_positions
    do = "run ./adsindex workflow run base-index, and have it run every day"
    oldest = now_us
    for partition, end in log.end_offsets(DELTAS).items():
        at = first.get(partition, 0)
        if at >= end:
            continue
        try:
            oldest = min([oldest, *(record.appended_us for record in log.read(DELTAS, partition, at, 1))])
        except OffsetTrimmed:
            return f"the log has forgotten document changes that the base index lacks; serving cannot start anew: {do}"
    age = (now_us - oldest) // _DAY_US
    if age < BASE_DAYS:
        return None
    lacks = "there is no base index" if current is None else "the base index is old"
    return f"{lacks}: document changes of {age} days are in none, and the log keeps them for {_KEPT_DAYS} days: {do}"
