"""Keeps what came since one base small in memory: full deltas become folded segments, in the background.

Sizes grow like the digits of a binary counter: a delta is merged with the youngest folded segments that are not larger
than what is merged so far, so there are about log2(all / one delta) of them, and each document is written that often.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pickle
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import structlog

from catalog import Catalog
from manas._delta import Delta
from manas._exceptions import FoldFailed, SegmentCorrupt, SegmentError
from manas._fold import FoldOrder, delta_rows, write_rows
from manas._fold_files import FOLD_FORMAT, SEGMENT, SET, Fold, FoldSet, read_set, write_set
from manas._removal import remove_tree
from manas._segment_view import SegmentView
from manas._view import View
from manas.shards import Shard

FOLDS = ".folds"
"""Below the directory of bases: FOLDS/<slot>/<base version>/<folded segment>; of a shard FOLDS/<shard>/<slot>/…"""
NO_BASE = "none"
"""Name of the directory of what is folded without a base."""
_ROWS = 200
"""Rows written at a time, about a millisecond: between two portions deltas are applied and requests answered."""
_RETRY_SECONDS, _LONGEST_RETRY_SECONDS = 5.0, 60.0
"""After a folding that failed, twice as long after each more: writing again at once would keep a full disk full."""
_SLOTS = 64
_WORDS_OF_FAILURE = 600

_log = structlog.get_logger()
_ROOT = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class FoldLimits:
    """How much a delta may hold. Together with a delta being folded no more than `most_documents` are in memory, ever,
    and no more bytes than `most_bytes` and one batch: nothing is applied beyond that until the folding is done."""

    documents: int = 8_192
    """Documents and tombstones from which on a delta is folded: half a minute at 300 a second."""
    bytes: int = 32 << 20
    """Or so many bytes of documents; what a delta needs in memory is some five times that."""
    most_documents: int = 4 * 8_192
    most_bytes: int = 128 << 20


class Adopter(Protocol):
    """Who changes what readers see: the index, under its lock."""

    def freeze(self, view: View) -> Delta:
        """Have a view go on with an empty delta and return the one so far."""

    def adopt(self, view: View, fold: Fold, prepared: SegmentView, merged: int) -> None:
        """Put a folded segment in place of the frozen delta and the youngest `merged` older ones."""


class FoldSpace:
    """The directory that one process folds into: the first slot that no other process has. Its lock dies with it."""

    def __init__(self, base_dir: Path, shard: Shard) -> None:
        """Raises OSError when no slot can be had."""
        self._lock, self.directory = self._take(_root(base_dir, shard))

    @staticmethod
    def _take(root: Path) -> tuple[IO[bytes], Path]:
        for slot in range(_SLOTS):
            directory = root / str(slot)
            directory.mkdir(parents=True, exist_ok=True)
            lock = (directory / "lock").open("ab")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                continue
            return lock, directory
        raise OSError(f"{root} has {_SLOTS} slots and other processes hold all of them")

    def of(self, base_version: str) -> Path:
        """Return where folded segments above a base are."""
        return self.directory / (base_version or NO_BASE)

    def prune(self, base_dir: Path) -> None:
        """Remove what was folded above bases that are gone."""
        for directory in self.directory.iterdir():
            if directory.is_dir() and directory.name != NO_BASE and not (base_dir / directory.name).is_dir():
                remove_tree(directory)

    def close(self) -> None:
        """Give the slot back; safe to call twice."""
        self._lock.close()


def load_folds(directory: Path, base_version: str, catalog: Catalog) -> list[Fold]:
    """Open the folded segments in use above a base, oldest first; none when nothing was folded.

    Raises SegmentError when they cannot be used: then the log has to be read from the base on.
    """
    found = read_set(directory)
    if found is None:
        return []
    if found.base_version != base_version or found.fingerprint != catalog.fingerprint:
        raise SegmentCorrupt(str(directory / SET), "was written for another base or another catalogue")
    return [Fold.open(directory / name) for name in found.folds]


def _root(base_dir: Path, shard: Shard) -> Path:
    return base_dir / FOLDS if shard.count == 1 else base_dir / FOLDS / shard.directory


def latest_folds(base_dir: Path, base_version: str, shard: Shard) -> Path | None:
    """Return the directory of the folded segments that reach furthest, for a reader that folds nothing itself."""
    best: tuple[int, Path] | None = None
    for set_file in sorted(_root(base_dir, shard).glob(f"*/{base_version or NO_BASE}/{SET}")):
        try:
            found = read_set(set_file.parent)
            if found is not None and found.folds:
                fold = Fold.open(set_file.parent / found.folds[-1])
                reach = sum(fold.segment.manifest.delta_positions.values())
                if best is None or reach > best[0]:
                    best = (reach, set_file.parent)
        except SegmentError:  # being replaced right now, or damaged: another one, or the log, will do
            continue
    return None if best is None else best[1]


class Folder:
    """Folds what came since one base. All methods belong to the thread that writes to the view."""

    def __init__(self, directory: Path, view: View, catalog: Catalog, limits: FoldLimits, adopter: Adopter) -> None:
        self._directory, self._view, self._catalog = directory, view, catalog
        self.limits, self._adopter = limits, adopter
        self._job: _Job | None = None
        self._positions: Mapping[int, int] = {}
        self._failures, self._retry_at = 0, 0.0
        self._spent: Delta | None = None
        """A delta that has been folded, being freed."""
        self.problem = ""
        self.folded = 0
        """Foldings done."""
        self.fresh: list[Fold] = []
        """Folded segments that nobody has verified yet."""

    def clean(self) -> None:
        """Remove what no set names: left by a process that was killed."""
        found = read_set(self._directory)
        names = set(found.folds) if found is not None else set()
        for path in self._directory.iterdir() if self._directory.is_dir() else ():
            if path.name not in names and path.name != SET:
                remove_tree(path) if path.is_dir() else path.unlink()

    def room(self) -> int:
        """Return how many more deltas may be applied now."""
        deltas = [d for d in (self._view.delta, self._view.frozen) if d is not None]
        if sum(d.bytes for d in deltas) > self.limits.most_bytes:
            return 0
        return max(0, self.limits.most_documents - sum(len(d.entries) for d in deltas))

    def step(self, positions: Mapping[int, int]) -> bool:
        """Go on folding for about a millisecond; `positions` say where the log goes on after what the view has.

        Returns whether there is more to do at once.
        """
        delta = self._view.delta
        if self._spent is not None and not self._spent.dismantle(_ROWS):
            self._spent = None
        try:
            if self._job is None and self._view.frozen is None:
                if len(delta.entries) < self.limits.documents and delta.bytes < self.limits.bytes:
                    return self._spent is not None
                self._adopter.freeze(self._view)
                self._positions = dict(positions)
            if self._job is None:
                if self._view.frozen is None or time.monotonic() < self._retry_at:
                    return self._spent is not None
                self._job = _Job(self._directory, self._view, self._view.frozen, self._catalog, self._positions)
            done = self._job.step()
            if done is not None:
                self._finish(self._job, done)
        except (OSError, SegmentError, FoldFailed) as error:
            self._fail(error)
            return False
        return self._spent is not None or (self._job is not None and not self._job.waiting)

    def fold_now(self, positions: Mapping[int, int]) -> None:
        """Fold if there is reason to, and wait for it. Raises FoldFailed; for a view that is filled aside."""
        self.problem = ""
        while self.step(positions) or self._job is not None:
            if self._job is not None and self._job.waiting:
                self._job.wait()
        if self.problem:
            raise FoldFailed(self.problem)

    def wait(self, timeout_s: float) -> None:
        """Wait for the process that folds, if there is one."""
        if self._job is not None:
            self._job.wait(timeout_s)

    def describe(self) -> dict[str, Any]:
        """Return what is folded, for stats."""
        folds = self._view.folds
        return {
            "segments": [{"name": f.name, "entries": len(f), "documents": f.segment.count} for f in folds],
            "running": self._view.frozen is not None,
            "done": self.folded,
            "problem": self.problem,
            "limits": {"documents": self.limits.documents, "most_documents": self.limits.most_documents},
        }

    def discard(self) -> None:
        """Forget on disk what is folded: the next view of this base starts from the base."""
        self.close()
        (self._directory / SET).unlink(missing_ok=True)

    def close(self) -> None:
        """Give up a folding that has begun; what it has written is removed at the next start or folding, or failure."""
        if self._job is not None:
            self._job.close()
            self._job = None

    def _finish(self, job: _Job, fold: Fold) -> None:
        prepared = self._view.prepare_fold(fold)
        old = self._view.folds
        kept = old[: len(old) - job.merged]
        names = (*(f.name for f in kept), fold.name)
        fingerprint = self._catalog.fingerprint
        write_set(self._directory, FoldSet(FOLD_FORMAT, self._view.base_version, fingerprint, names))
        self._spent = self._view.frozen
        self._adopter.adopt(self._view, fold, prepared, job.merged)
        self._job = None
        self.folded += 1
        self._failures, self.problem = 0, ""
        self.fresh.append(fold)
        self.clean()

    def _fail(self, error: Exception) -> None:
        self.close()
        self._retry_at = time.monotonic() + min(_LONGEST_RETRY_SECONDS, _RETRY_SECONDS * 2**self._failures)
        self._failures = min(self._failures + 1, 10)  # longer than the longest by then
        self.problem = f"folding failed: {error}"
        try:
            self.clean()  # what it has written is of no use, and may be why the disk is full
        except (OSError, SegmentError) as left:
            self.problem += f"; what it left behind stays: {left}"
        _log.error("manas.fold_failed", error=str(error))


class _Job:
    """One folding: rows to a file, then a process, then its result."""

    def __init__(
        self, directory: Path, view: View, frozen: Delta, catalog: Catalog, positions: Mapping[int, int]
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        name = uuid.uuid4().hex
        self._target = directory / name
        self._input = directory / f"{name}.rows"
        self._words = directory / f"{name}.err"
        self.merged = _merged(frozen, view.folds)
        keep = len(view.folds) - self.merged
        lower = [(name, segment.directory) for name, segment in view.base_layers.items()]
        lower += [(fold.name, fold.directory / SEGMENT) for fold in view.folds[:keep]]
        self._order = FoldOrder(
            self._target,
            self._input,
            catalog,
            tuple(fold.directory for fold in view.folds[keep:]),
            tuple(lower),
            dict(positions),
            os.getpid(),
        )
        self._rows: Iterator[Any] = delta_rows(frozen)
        self._handle = self._input.open("xb")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def waiting(self) -> bool:
        """Whether a process is at work and there is nothing to do here."""
        return self._process is not None

    def step(self) -> Fold | None:
        """Do a portion; return the folded segment at the end. Raises FoldFailed, OSError, SegmentError."""
        if self._process is None:
            rows = [row for _, row in zip(range(_ROWS), self._rows, strict=False)]
            if rows:
                write_rows(self._handle, rows)
                return None
            self._handle.close()
            self._process = start_process(self._order, self._words)
            return None
        code = self._process.poll()
        if code is None:
            return None
        if code != 0:
            raise FoldFailed(f"exit {code}: {self._words.read_text(errors='replace').strip()[-_WORDS_OF_FAILURE:]}")
        return Fold.open(self._target)

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait for the process."""
        if self._process is not None:
            try:
                self._process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                return

    def close(self) -> None:
        """Kill the process, if there is one."""
        with contextlib.suppress(OSError):  # rows that do not fit on the disk: nobody will read them
            self._handle.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def start_process(order: FoldOrder, words: Path) -> subprocess.Popen[bytes]:
    """Start the process that folds; it writes to `words` what it has to say."""
    with words.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "manas._fold"], cwd=_ROOT, stdin=subprocess.PIPE, stdout=out, stderr=out
        )
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):  # it is gone already: its exit code tells
            process.stdin.write(pickle.dumps(order))
            process.stdin.close()
    return process


def _merged(frozen: Delta, folds: list[Fold]) -> int:
    """Return how many of the youngest folded segments are merged with a delta."""
    size, count = len(frozen.entries), 0
    for fold in reversed(folds):
        if len(fold) > size:
            break
        size += len(fold)
        count += 1
    return count
