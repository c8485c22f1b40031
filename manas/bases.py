"""Life cycle of base indexes: published into `base/<version>/`, put in service by moving one pointer file.

A version's name is its publication time (UTC) and its snapshot timestamp, so names sort by age. Every step is atomic: a
crash leaves the pointer where it was, or moved to a complete base; never in between.
"""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from manas._base import Base
from manas._exceptions import SegmentError, SegmentMissing
from manas._manifest import Manifest, read_manifest

CURRENT = "CURRENT"


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
    _point(base_dir, version)
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
    for directory in sorted(p for p in base_dir.iterdir() if p.is_dir() and not p.name.startswith(".")):
        try:
            bases.append(BaseInfo(directory.name, directory.name == current, read_manifest(directory)))
        except SegmentError as error:
            bases.append(BaseInfo(directory.name, directory.name == current, None, str(error)))
    return bases


def rollback(base_dir: Path, version: str | None = None) -> str:
    """Put an earlier base (default: the one before the current) back in service; return its version.

    Raises SegmentError when there is none or it is not whole; the pointer then stays.
    """
    names = [b.version for b in list_bases(base_dir)]
    if version is None:
        current = current_base(base_dir)
        earlier = [name for name in names if current is not None and name < current]
        if not earlier:
            raise SegmentMissing(f"{base_dir} has no base before {current}; name a version out of {names}")
        version = earlier[-1]
    elif version not in names:
        raise SegmentMissing(f"{base_dir} has no base {version!r}; there are {names}")
    Base.open(base_dir / version, verify=True)
    _point(base_dir, version)
    return version


def prune_bases(base_dir: Path, keep: int) -> list[str]:
    """Remove all but the newest `keep` bases, never the one in service; return the versions removed.

    A server that has one of them mapped goes on with it. A crash leaves a base without manifest, which nobody loads.
    """
    names = [base.version for base in list_bases(base_dir)]
    current = current_base(base_dir)
    removed = [name for name in names[: max(0, len(names) - keep)] if name != current]
    for name in removed:
        hidden = base_dir / f".removed-{uuid.uuid4().hex}"
        (base_dir / name).rename(hidden)
        shutil.rmtree(hidden)
    return removed


def _point(base_dir: Path, version: str) -> None:
    part = base_dir / f".{CURRENT}-{uuid.uuid4().hex}"
    with part.open("w") as handle:
        handle.write(version + "\n")
        handle.flush()
        os.fsync(handle.fileno())
    part.replace(base_dir / CURRENT)
    _sync(base_dir)


def _copy(built: Path, target: Path) -> None:
    """Bring a segment over from another file system: copied and verified under a hidden name first."""
    incoming = target.with_name(f".incoming-{uuid.uuid4().hex}")
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
