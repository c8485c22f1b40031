"""Directories that others may be reading are removed in one step: under their name they are whole, or gone."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any

REMOVED = ".removed-"


def remove_tree(directory: Path) -> None:
    """Remove a directory; one that is gone already is no error. A crash leaves it hidden, for `sweep`."""
    if (hidden := hide(directory)) is not None:
        shutil.rmtree(hidden, onerror=_unless_gone)


def hide(directory: Path) -> Path | None:
    """Give a directory the name by which `sweep` finds it, and return that; None where it is gone already."""
    hidden = directory.with_name(f"{REMOVED}{uuid.uuid4().hex}")
    try:
        return directory.rename(hidden)
    except FileNotFoundError:
        return None


def sweep(directory: Path) -> None:
    """Finish what `remove_tree` began in a directory and a crash left there."""
    for hidden in directory.glob(f"{REMOVED}*"):
        shutil.rmtree(hidden, onerror=_unless_gone)


def _unless_gone(
    function: Any, path: str, raised: tuple[type[BaseException], BaseException, TracebackType | None]
) -> None:
    """Pass over what another process has removed meanwhile."""
    if not isinstance(raised[1], FileNotFoundError):
        raise raised[1]
