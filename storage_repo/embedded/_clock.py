"""Two clocks: the wall clock is only shown to people; ages are measured by one that never jumps."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Protocol

import psutil

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Clock(Protocol):
    """Where an engine takes its time from; tests bring their own."""

    def wall_us(self) -> int:
        """Microseconds since 1970; may jump."""

    def steady_us(self) -> int:
        """Microseconds since some time at or after the boot, equal for all processes of a machine; never jumps."""

    def boot_id(self) -> bytes:
        """What tells one boot from the next: steady_us() of different boots cannot be compared."""


class SystemClock:
    """The machine's clocks. CLOCK_MONOTONIC stands still while the machine sleeps, which only delays collection."""

    def __init__(self) -> None:
        try:
            self._boot_id = _BOOT_ID.read_bytes().strip()
        except FileNotFoundError:  # not Linux
            self._boot_id = str(int(psutil.boot_time())).encode()

    def wall_us(self) -> int:
        """Return microseconds since 1970."""
        return time.time_ns() // 1000

    def steady_us(self) -> int:
        """Return microseconds of CLOCK_MONOTONIC."""
        return time.monotonic_ns() // 1000

    def boot_id(self) -> bytes:
        """Return the kernel's boot id (elsewhere: the time of the boot)."""
        return self._boot_id
