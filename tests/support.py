"""What several test packages share: where the data is, and the whole pipeline in this process."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
IN_CI = os.environ.get("CI", "").lower() == "true"
_MEMORY = Path("/dev/shm")
_ROOM = 8 << 30
"""Bytes of memory, and of its file system, that must be free before servers' files are kept there."""


def data_directory() -> Path:
    """Return the folder with real data sets: $ADSINDEX_TEST_DATA, or shared/data beside the checkout."""
    explicit = os.environ.get("ADSINDEX_TEST_DATA")
    return Path(explicit) if explicit else ROOT.parent / "shared" / "data"


def in_memory() -> Path | None:
    """Return Linux' file system in memory if it has room, else None, which `tempfile` takes for the usual place.

    Servers whose files are there are not held up for a minute by a disk that is busy with other tests' files; what is
    written there outlives a kill -9, as it does on a disk.
    """
    if not os.access(_MEMORY, os.W_OK):
        return None
    room = min(shutil.disk_usage(_MEMORY).free, psutil.virtual_memory().available)
    return _MEMORY if room > _ROOM else None
