"""The Storage Repo on one machine: a versioned column store in LMDB, shared by several processes.

Priorities, upper wins: (1) what was acknowledged is on disk and whole; (2) every read is of one snapshot; (3) nothing
that a live snapshot or the history needs is collected; (4) batches are fast; (5) the file stays small.

Do not use a repo across fork(): start processes by spawn or exec. The directory must be on a local file system, and
its processes in one PID namespace (LMDB's robust mutexes and reader table).
"""

from __future__ import annotations

from storage_repo.embedded._clock import Clock, SystemClock
from storage_repo.embedded._repo import EmbeddedRepo

__all__ = ["Clock", "EmbeddedRepo", "SystemClock"]
