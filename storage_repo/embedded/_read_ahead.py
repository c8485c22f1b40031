"""Reading the store's file in order, beside those who look for its pages one by one."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

STEP = 4 << 20
"""Bytes of one read: a disk is at its full rate, and whoever waits for one page does not wait long."""
SMALL = 64 << 20
"""Bytes of a file that is not worth a thread."""
SHARE = 0.7
"""Of the memory that is free: of a larger file the first pages would be gone before they are looked at."""


class ReadAhead:
    """What one reading came to."""

    def __init__(self, file: Path, free_bytes: int) -> None:
        """Of a file, while there are so many bytes of memory for it."""
        self._file, self._stop = file, threading.Event()
        self.size = file.stat().st_size
        self.bytes_read = 0
        self.left_out = ""
        """Why nothing is read, or not all; "" if all is."""
        if self.size < SMALL:
            self.left_out = "small"
        elif self.size > free_bytes * SHARE:
            self.left_out = f"larger than {SHARE:.0%} of {free_bytes} free bytes"

    def run(self) -> None:
        """Read until the end of the file, or until somebody stops it; its pages stay in the system's memory."""
        started, buffer = time.monotonic(), bytearray(STEP)
        try:
            with self._file.open("rb", buffering=0) as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
                while not self._stop.is_set() and (count := file.readinto(buffer)):
                    self.bytes_read += count
        except OSError as error:  # whoever needs these pages meets it too, and tells
            self.left_out = f"{type(error).__name__}: {error}"
        if self._stop.is_set():
            self.left_out = self.left_out or "stopped"
        structlog.get_logger().info(
            "repo.read_ahead", bytes_read=self.bytes_read, of=self.size, left_out=self.left_out,
            seconds=round(time.monotonic() - started, 3),
        )  # fmt: skip

    def stop(self) -> None:
        """End it after its current step."""
        self._stop.set()


@contextmanager
def reading_ahead(file: Path) -> Iterator[ReadAhead]:
    """Read a file in order by a thread of its own, for as long as the block lasts at most.

    A mapped file whose pages are asked for in the order of keys comes from the disk in single pages of 4 KiB, at a
    hundredth of the rate that it has when it is read in the order of its bytes.
    """
    ahead = ReadAhead(file, free_memory())
    if ahead.left_out:
        if ahead.left_out != "small":
            structlog.get_logger().info("repo.read_ahead", bytes_read=0, of=ahead.size, left_out=ahead.left_out)
        yield ahead
        return
    thread = threading.Thread(target=ahead.run, name="read-ahead", daemon=True)
    thread.start()
    try:
        yield ahead
    finally:
        ahead.stop()
        thread.join()


def free_memory() -> int:
    """Return how many bytes the system would give without swapping; 0 where it does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except FileNotFoundError:
        return 0
    found = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), "0")
    return int(found) * 1024
