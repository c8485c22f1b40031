"""What a crash left below the directory of bases, and what was made of bases that are gone."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from manas._folder import FOLDS, NO_BASE
from manas._removal import REMOVED, hide, sweep
from manas.shards import PARTS

INCOMING = ".incoming-"
_COPYING, _LOCK = ".copying", "lock"


@contextmanager
def copying(base_dir: Path) -> Iterator[None]:
    """Be the only one who copies a base into a directory; what an earlier one left unfinished is removed."""
    with (base_dir / _COPYING).open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _remove_incoming(base_dir)
        yield


def sweep_bases(base_dir: Path) -> None:
    """Remove what nobody will finish or use: half copies, half removals, parts and folded segments of bases gone.

    What belongs to a process that is at work is left alone: it holds a lock.
    """
    sweep(base_dir)
    if any(base_dir.glob(f"{INCOMING}*")):
        with _free(base_dir / _COPYING) as free:
            if free:
                _remove_incoming(base_dir)
    parts, folds = base_dir / PARTS, base_dir / FOLDS
    for lock in (*parts.glob(f"*/{_LOCK}"), *folds.glob(f"*/{_LOCK}"), *folds.glob(f"*/*/{_LOCK}")):
        if _unused(lock.parent, base_dir):  # a lock that is held for nothing would have a server take another slot
            with _free(lock) as free:
                for made in _unused(lock.parent, base_dir) if free else ():
                    hide(made)
        sweep(lock.parent)


def _remove_incoming(base_dir: Path) -> None:
    for left in base_dir.glob(f"{INCOMING}*"):
        shutil.rmtree(left)


def _unused(shelf: Path, base_dir: Path) -> list[Path]:
    """Return what was made of bases that are gone, hidden beginnings included."""
    made = (path for path in shelf.iterdir() if path.is_dir() and not path.name.startswith(REMOVED))
    return [path for path in made if path.name != NO_BASE and not (base_dir / path.name).is_dir()]


@contextmanager
def _free(file: Path) -> Iterator[bool]:
    """Hold a lock if nobody else does, and tell."""
    with file.open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
