"""Life cycle of base indexes: published into `base/<version>/`, put in service by moving one pointer file.

A base that was rolled back from is on record in `ROLLED-BACK`: rolling back again passes over it, and it takes no place
of those that are kept.

A version's name is its publication time (UTC) and its snapshot timestamp, so names sort by age. Every step is atomic: a
crash leaves the pointer where it was, or moved to a complete base; never in between.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from manas._base import Base
from manas._exceptions import SegmentError, SegmentMissing
from manas._leftovers import INCOMING, copying, sweep_bases
from manas._manifest import Manifest, read_manifest
from manas._removal import hide

CURRENT = "CURRENT"
ROLLED_BACK = "ROLLED-BACK"
"""Lines of versions that were rolled back from."""
_VERSION = re.compile(r"\d{8}T\d{6}\.\d{6}Z-\d+")
"""What `new_version` makes. Anything else beside bases is somebody else's: it is neither listed nor removed."""


@dataclass(frozen=True, slots=True)
class BaseInfo:
    """A published base."""

    version: str
    current: bool
    manifest: Manifest | None
    problem: str = ""
    """Why the manifest cannot be read."""


def new_version(snapshot_ts: int) -> str:
    """Return a name for a base that is published now."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{snapshot_ts}"


def begun_us(version: str) -> int:
    """Return when a base was begun, in microseconds since the epoch: what was committed later is not in it."""
    begun = datetime.strptime(version.partition("-")[0], "%Y%m%dT%H%M%S.%fZ").replace(tzinfo=UTC)
    return round(begun.timestamp() * 1e6)


def is_version(name: str) -> bool:
    """Say whether a name is of the form that bases have."""
    return _VERSION.fullmatch(name) is not None


def publish(base_dir: Path, built_dir: Path, *, version: str = "") -> str:
    """Move a built base into `base_dir` and put it in service; return its version, made now unless given.

    The segment is verified first: a corrupt or incomplete one raises a SegmentError, and the old base stays.
    """
    manifest = Base.open(built_dir, verify=True).manifest
    base_dir.mkdir(parents=True, exist_ok=True)
    while not version or (base_dir / version).exists():  # within the same microsecond the next one is free
        version = new_version(manifest.snapshot_ts)
    try:
        built_dir.rename(base_dir / version)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _copy(built_dir, base_dir / version)
    _sync(base_dir)
    _write(base_dir, CURRENT, version + "\n")
    return version


def current_base(base_dir: Path) -> str | None:
    """Return the version in service, None before the first publication."""
    try:
        return (base_dir / CURRENT).read_text().strip() or None
    except FileNotFoundError:
        return None


def list_bases(base_dir: Path) -> list[BaseInfo]:
    """Return all published bases, oldest first, unreadable ones with their problem."""
    if not base_dir.is_dir():
        return []
    current = current_base(base_dir)
    bases = []
    for directory in sorted(p for p in base_dir.iterdir() if is_version(p.name) and p.is_dir()):
        try:
            bases.append(BaseInfo(directory.name, directory.name == current, read_manifest(directory)))
        except SegmentError as error:
            bases.append(BaseInfo(directory.name, directory.name == current, None, str(error)))
    return bases


def rollback(base_dir: Path, version: str | None = None) -> str:
    """Put an earlier base back in service (default: the newest before the current one that was not rolled back from).

    Return its version; the one that was in service, if newer, counts as rolled back from.
    Raises SegmentError when there is none or it is not whole; the pointer then stays.
    """
    with _alone(base_dir):
        names, current, bad = [b.version for b in list_bases(base_dir)], current_base(base_dir), rolled_back(base_dir)
        version = rollback_target(names, current, bad, version, str(base_dir))
        Base.open(base_dir / version, verify=True)
        # Before the pointer: killed in between, the base in service is one that a rollback from it would leave anyway.
        left = rolled_back_after(names, current, bad, version)
        _write(base_dir, ROLLED_BACK, "".join(f"{name}\n" for name in left))
        _write(base_dir, CURRENT, version + "\n")
    return version


def rolled_back(base_dir: Path) -> frozenset[str]:
    """Return the versions that were rolled back from."""
    try:
        return frozenset((base_dir / ROLLED_BACK).read_text().split())
    except FileNotFoundError:
        return frozenset()


def rollback_target(
    names: Sequence[str], current: str | None, bad: frozenset[str], version: str | None, where: str
) -> str:
    """Return which base a rollback takes: the one asked for, or the newest before the current one that nobody rolled
    back from. Raises SegmentMissing."""
    if version is None:
        earlier = [name for name in names if current is not None and name < current and name not in bad]
        if not earlier:
            but = f"; {', '.join(sorted(bad))} were rolled back from" if bad else ""
            raise SegmentMissing(f"{where} has no base before {current}{but}; name a version out of {[*names]}")
        return earlier[-1]
    if version not in names:
        raise SegmentMissing(f"{where} has no base {version!r}; there are {[*names]}")
    return version


def rolled_back_after(names: Sequence[str], current: str | None, bad: frozenset[str], version: str) -> list[str]:
    """Return which of the bases there are have been rolled back from once the pointer is at `version`: all between it
    and the one that was in service too, since whoever steps over them does not want them."""
    left = {name for name in names if current is not None and version < name <= current}
    return sorted((left | bad & {*names}) - {version})


def to_prune(names: Sequence[str], current: str | None, bad: frozenset[str], keep: int) -> list[str]:
    """Return which bases go: all but the newest `keep` that nobody rolled back from, the one in service, and the last
    one that somebody did, to look at."""
    good = [name for name in names if name not in bad]
    kept = {*good[max(0, len(good) - keep) :], current, *[name for name in names if name in bad][-1:]}
    return [name for name in names if name not in kept]


def prune_bases(base_dir: Path, keep: int) -> list[str]:
    """Remove the bases that `to_prune` says, never the one in service; return the versions removed.

    A server that has one of them mapped goes on with it. A crash leaves hidden directories, which the next call removes
    with all that was made of bases that are gone.
    """
    if not base_dir.is_dir():
        return []
    with _alone(base_dir):
        names = [base.version for base in list_bases(base_dir)]
        removed = to_prune(names, current_base(base_dir), rolled_back(base_dir), keep)
        for name in removed:
            hide(base_dir / name)
    sweep_bases(base_dir)
    return removed


@contextmanager
def _alone(base_dir: Path) -> Iterator[None]:
    """Keep a base from being removed while the pointer is moved to it: one of both at a time, until this block ends or
    its process does."""
    with (base_dir / ".pointer.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _write(base_dir: Path, name: str, text: str) -> None:
    part = base_dir / f".{name}-{uuid.uuid4().hex}"
    with part.open("w") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    part.replace(base_dir / name)
    _sync(base_dir)


def _copy(built: Path, target: Path) -> None:
    """Bring a segment over from another file system: copied and verified under a hidden name first."""
    with copying(target.parent):
        incoming = target.with_name(f"{INCOMING}{uuid.uuid4().hex}")
        shutil.copytree(built, incoming)
        Base.open(incoming, verify=True)
        for file in (*incoming.rglob("*"), incoming):
            _sync(file)
        incoming.rename(target)
    shutil.rmtree(built)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
