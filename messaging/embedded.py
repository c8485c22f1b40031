"""The front door to the embedded log, for who composes a set of backends."""

from __future__ import annotations

from pathlib import Path

from messaging._embedded import EmbeddedLog
from messaging._limits import MAX_RECORD_BYTES
from messaging.api import Log

__all__ = ["MAX_RECORD_BYTES", "EmbeddedLog", "open_embedded_log"]


def open_embedded_log(path: Path, wake_dir: Path) -> Log:
    """Open the log in directory `path`, creating it if missing; readers are woken by way of `wake_dir`.

    All processes that share a log must name the same `wake_dir`, on a local file system. Raises LogUnavailable.
    """
    return EmbeddedLog(path, wake_dir)
