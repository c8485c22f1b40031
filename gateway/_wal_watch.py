"""Waiting for writes to an SQLite database in WAL mode: inotify on its directory, or slow looks without it."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

SAFETY_NET_S = 0.25
"""Longest time to trust in events alone: queues overflow, and some file systems send none."""

_POLL_S = 0.02
"""Interval where the kernel reports nothing (macOS): 50 cheap looks a second at the files' state."""


class WalWatch:
    """Reports writes to `database` and its -wal file by any process. For one thread."""

    def __init__(self, database: Path) -> None:
        """Begin to watch; a write from now on is not missed. Falls back to polling outside Linux."""
        self._files = (database, database.with_name(database.name + "-wal"))
        self._names = frozenset(file.name for file in self._files)
        self._inotify: Any = None
        if sys.platform == "linux":
            from inotify_simple import INotify, flags

            self._inotify = INotify()
            # The directory, not the files: the -wal file comes and goes, and a database may be put in place later.
            self._inotify.add_watch(
                database.parent, flags.MODIFY | flags.CREATE | flags.DELETE | flags.MOVED_TO | flags.MOVED_FROM
            )
        self._state = self._stat()

    def wait(self, timeout_s: float) -> bool:
        """Block until a write, at most `timeout_s` or SAFETY_NET_S seconds; return whether one was reported."""
        timeout_s = min(timeout_s, SAFETY_NET_S)
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            if self._inotify is None:
                time.sleep(min(left, _POLL_S))
                if self._changed():
                    return True
            elif any(event.name in self._names for event in self._inotify.read(timeout=max(1, int(left * 1000)))):
                return True
        return False

    def close(self) -> None:
        """Stop watching; safe to call twice."""
        if self._inotify is not None and not self._inotify.closed:
            self._inotify.close()

    def _changed(self) -> bool:
        before, self._state = self._state, self._stat()
        return self._state != before

    def _stat(self) -> list[tuple[int, int] | None]:
        return [(s.st_mtime_ns, s.st_size) if (s := _stat_of(file)) else None for file in self._files]


def _stat_of(file: Path) -> Any:
    try:
        return file.stat()
    except FileNotFoundError:
        return None
