"""Clocks and identities of processes, as leases need them."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import psutil

from batch_workflows._runs_model import Holder


def wall_us() -> int:
    """Return microseconds since the epoch: for people; it may jump, so nothing is decided by it alone."""
    return time.time_ns() // 1000


def elapsed_s() -> float:
    """Return seconds that really passed since some moment: nobody can set this clock, and it goes on in suspend."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


def this_process() -> Holder:
    """Return who we are."""
    pid = os.getpid()
    return Holder(host=socket.gethostname(), machine=_machine(), pid=pid, born=_born(pid))


def gone(holder: Holder) -> bool:
    """Return whether a process certainly lives no more; False where that cannot be seen from here."""
    if not holder.machine or holder.machine != _machine():
        return False
    try:
        return psutil.Process(holder.pid).status() == psutil.STATUS_ZOMBIE or _born(holder.pid) != holder.born
    except psutil.NoSuchProcess:
        return True


def _machine() -> str:
    """Return the boot of this kernel and our process namespace: within one, a pid and its birth name one process."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""  # no Linux: others are watched for signs of life instead


def _born(pid: int) -> str:
    """Return when a process began, in ticks since the boot (proc(5), stat, field 22): no clock that is set moves it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""
