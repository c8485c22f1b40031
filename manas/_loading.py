"""Which base is in service: opened, filled with what the log has since, swapped in, verified, refused.

A base that cannot be used is refused by name. Nothing else takes its place unless the settings say so.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from manas._base import Base
from manas._exceptions import IndexIncomplete, InvalidDocument, ManasError, SegmentCorrupt, SegmentError
from manas._fold_files import SEGMENT, SET, Fold
from manas._folder import Folder, FoldSpace, latest_folds, load_folds
from manas._serving_settings import ServingSettings
from manas._verify import Files, Verifier
from manas._view import View
from manas.bases import CURRENT, current_base, list_bases
from manas.index import Index
from manas.shards import discard_part, ensure_part
from messaging import dead_letters
from messaging._exceptions import BadMessage, MessagingError, OffsetTrimmed
from messaging.api import Log
from messaging.proto import adsindex_pb2 as pb
from messaging.topics import DELTAS

BATCH = 500
"""Deltas taken from the log at a time: about 20 ms."""
_CHECK_BASE_SECONDS = 0.5
_CHASES = 20
"""Of the positions of the base in service: each is a part as long as the one before, unless the log is faster."""
_LONGEST_RETRY_SECONDS = 60.0
"""Between attempts to load a base that nothing is wrong with; the first follows at the next look, and then later."""
_FOR_GOOD = (SegmentError, IndexIncomplete)
"""What is wrong with the base itself: it is not tried again before it is published or rolled back to."""

_log = structlog.get_logger()
Positions = dict[int, int]


@dataclass(slots=True)
class Loaded:
    """A base with what came since, ready to be put in service; `positions`: where the log goes on."""

    version: str
    view: View
    positions: Positions
    folder: Folder | None
    note: str = ""
    """What is not as it should be, but does not keep it from being served."""


class Loader:
    """Opens bases for a follower. All methods belong to the follower's thread."""

    def __init__(
        self,
        base_dir: Path,
        log: Log,
        index: Index,
        settings: ServingSettings | None,
        count: Callable[[str], None],
        beat: Callable[[], None],
    ) -> None:
        """Without `settings` it reads and writes nothing. Raises OSError when there is no room to fold in."""
        self._base_dir, self._log, self._index = base_dir, log, index
        self._settings, self._count, self._beat = settings, count, beat
        self._space = FoldSpace(base_dir, index.shard) if settings is not None and settings.fold is not None else None
        self._fallback = settings is not None and settings.base_fallback
        self._refused: dict[str, str] = {}
        """Version -> what is wrong with it, in words."""
        self._pointer: tuple[int, int] | None = None
        self._loading: threading.Thread | None = None
        self._loaded: Loaded | tuple[str, Exception] | None = None
        self._retry_after, self._retry_at = 0.0, 0.0
        self._checked_at = time.monotonic()
        self.verifier = Verifier()
        self.problem = ""

    def describe(self) -> dict[str, Any]:
        """Return what is wrong and what is going on, for stats."""
        verifier = self.verifier
        checked = {"state": verifier.state(), "bytes": verifier.verified_bytes, "pending": verifier.pending_bytes}
        return {"problem": self.problem, "loading": self._loading is not None, "verification": checked}

    # ---- opening ----

    def first(self) -> Loaded:
        """Open the base to start with. Raises SegmentError, or IndexIncomplete when the log lacks what it needs.

        Only where the settings say so an earlier base stands in for one that cannot be used. Raises OSError for what
        may go well another time.
        """
        current = current_base(self._base_dir)
        self._pointer = self._pointer_id()
        if current is None:
            return self.open("")
        failure: ManasError | None = None
        for version in (current, *self._earlier(current)):
            try:
                return self.open(version, self._beat)
            except (SegmentError, IndexIncomplete) as error:
                self._refuse(version, error)
                failure = failure or error
        raise failure or SegmentError(f"no base can be used in {self._base_dir}")

    def open(self, version: str, beat: Callable[[], None] = lambda: None) -> Loaded:
        """Map a base and the folded segments above it; the log is not read. Raises SegmentError, IndexIncomplete."""
        shard, catalog = self._index.shard, self._index.schema.catalog
        base = None
        if version:
            directory = ensure_part(self._base_dir, version, shard, catalog, beat)
            try:
                base = Base.open(directory, verify=False)
            except SegmentError as error:
                if not self._discarded(directory, error):
                    raise
                base = Base.open(ensure_part(self._base_dir, version, shard, catalog, beat), verify=False)
        view = self._index.new_view(base, version)
        folds, where, note = self._folds(version)
        positions = self._first_positions(base, folds)
        if folds:
            view.stack(folds)
        folder = None
        if self._space is not None and where is not None and self._settings is not None and self._settings.fold:
            folder = Folder(where, view, catalog, self._settings.fold, self._index)
            folder.clean()
            self._space.prune(self._base_dir)
        return Loaded(version, view, positions, folder, note)

    def _discarded(self, directory: Path, error: SegmentError) -> bool:
        """Throw a shard's own part away, as it can be made again; false for anything else."""
        if not discard_part(self._base_dir, directory):
            return False
        self._count("part_refused")
        _log.error("manas.part_refused", part=str(directory), error=str(error))
        return True

    def _folds(self, version: str) -> tuple[list[Fold], Path | None, str]:
        """Return the folded segments to use, where more are put, and what is wrong with those that are not used."""
        where = (
            self._space.of(version)
            if self._space is not None
            else latest_folds(self._base_dir, version, self._index.shard)
        )
        if where is None:
            return [], None, ""
        try:
            folds = load_folds(where, version, self._index.schema.catalog)
            if folds:
                ends = self._log.end_offsets(DELTAS)
                reach = folds[-1].segment.manifest.delta_positions
                if any(offset > ends.get(partition, 0) for partition, offset in reach.items()):
                    raise SegmentCorrupt(str(where), f"reaches to {reach}, the log ends at {ends}: it is another log")
        except SegmentError as error:
            self._folds_refused(version, error)
            note = f"folded segments above {version or 'no base'} are not used, the log is read: {error}"
            return [], where, note
        return folds, where, ""

    def _folds_refused(self, version: str, error: SegmentError) -> None:
        self._count("folds_refused")
        _log.error("manas.folds_refused", base=version, error=str(error))
        if self._space is not None:
            (self._space.of(version) / SET).unlink(missing_ok=True)

    def _first_positions(self, base: Base | None, folds: list[Fold]) -> Positions:
        """Return where to read on. Raises IndexIncomplete when that is no longer in the log, or never was."""
        wanted: Mapping[int, int] = base.manifest.delta_positions if base is not None else {}
        if folds:
            wanted = folds[-1].segment.manifest.delta_positions
        ends = self._log.end_offsets(DELTAS)
        for partition, offset in wanted.items():
            if offset > ends.get(partition, 0):
                raise IndexIncomplete(
                    f"{DELTAS}[{partition}]: the base reaches to offset {offset}, the log ends at "
                    f"{ends.get(partition, 0)}: the base is of another log; build one of this log"
                )
        positions = {}
        for partition, oldest in self._log.start_offsets(DELTAS).items():
            positions[partition] = wanted.get(partition, 0)
            if positions[partition] < oldest:
                raise IndexIncomplete(
                    f"{DELTAS}[{partition}]: deltas from offset {positions[partition]} are needed, the oldest kept is "
                    f"{oldest}; build a newer base index"
                )
        return positions

    def replay(self, loaded: Loaded, target: Positions, *, folding: bool = True) -> None:
        """Apply records up to `target` to a view that is not in service. Raises IndexIncomplete, FoldFailed.

        Without `folding` it is only waited for a folding where memory is at its limit.
        """
        index, positions = self._index, loaded.positions
        for partition, end in target.items():
            while positions.setdefault(partition, 0) < end:
                most = BATCH if loaded.folder is None else max(1, min(BATCH, loaded.folder.room()))
                try:
                    records = self._log.read(DELTAS, partition, positions[partition], most)
                except OffsetTrimmed as error:
                    raise IndexIncomplete(str(error)) from error
                prepared = []
                for record in (r for r in records if r.offset < end):
                    try:
                        delta = dead_letters.parse(pb.DocumentDelta, record)
                        if index.shard.has(delta.document_id):
                            prepared.append(index.prepare(delta))
                    except (BadMessage, InvalidDocument):
                        self._count("replay_skipped")  # became a dead letter when it was first read
                index.apply(prepared, loaded.view)
                positions[partition] = min(end, records[-1].offset + 1) if records else end
                if loaded.folder is not None and (folding or not loaded.folder.room()):
                    loaded.folder.fold_now(positions)

    # ---- while serving ----

    def in_service(self, loaded: Loaded) -> None:
        """Note what is in service now, and verify it."""
        self._refused.pop(loaded.version, None)
        self._retry_after, self._retry_at = 0.0, 0.0
        self.problem = "; ".join(self._refused.values()) or loaded.note
        self._index.refusal = ""
        if self._space is not None:  # one who only looks is gone before it would be done
            self.verifier.start(_files(loaded.view))

    def tick(self, positions: Positions) -> Loaded | None:
        """Look after the pointer and the checksums; return another base once it is loaded as far as `positions`."""
        if (done := self._loaded) is not None:
            self._loaded = self._loading = None
            if isinstance(done, Loaded):
                return done
            self._refuse(*done)
        now = time.monotonic()
        if now - self._checked_at >= _CHECK_BASE_SECONDS and self._loading is None:
            self._checked_at = now
            if self.verifier.corrupt is not None:
                self._condemn(*self.verifier.corrupt, positions)
            self._check_pointer(positions)
        return None

    def reject(self, loaded: Loaded, error: ManasError) -> None:
        """Note that a base that was loaded cannot be put in service."""
        if loaded.folder is not None:
            loaded.folder.close()
        self._refuse(loaded.version, error)

    def close(self) -> None:
        """Stop verifying and give the folding slot back; safe to call twice."""
        self.verifier.close()
        if self._space is not None:
            self._space.close()

    def _check_pointer(self, positions: Positions) -> None:
        version, pointer = current_base(self._base_dir), self._pointer_id()
        if pointer != self._pointer:  # published or rolled back to, perhaps to a base that was repaired
            self._pointer = pointer
            self._refused.clear()
            self._retry_after, self._retry_at = 0.0, 0.0
        if version is None or self._loading is not None or time.monotonic() < self._retry_at:
            return
        if version in self._refused:
            if self._index.refusal:
                self._stand_in(positions)
            return
        if version != self._index.base_version or self._index.refusal:
            self._begin(version, positions)

    def _condemn(self, directory: Path, error: SegmentCorrupt, positions: Positions) -> None:
        """Refuse to answer from files that changed under us, until something else is in service."""
        version = self._index.base_version
        base = [segment.directory for segment in self._index.view.base_layers.values()]
        self.verifier.start([])
        self._index.refusal = f"base {version} is refused: {error}"
        if directory in base:
            if self._discarded(directory, error):
                self.problem = f"the shard's part of base {version} is damaged, it is made again: {error}"
                self._begin(version, positions)
                return
            self._refuse(version, error)
            self._stand_in(positions)
            return
        self.problem = f"folded segments above {version or 'no base'} are damaged, the log is read again: {error}"
        self._folds_refused(version, error)
        self._begin(version, positions)

    def _stand_in(self, positions: Positions) -> None:
        """Load the newest earlier base that may stand in for the one that is refused."""
        for earlier in self._earlier(self._index.base_version):
            if earlier not in self._refused:
                self._begin(earlier, positions)
                return

    def _earlier(self, version: str) -> list[str]:
        """Return the bases that may stand in for one, newest first: none unless the settings say so."""
        if not self._fallback:
            return []
        return [base.version for base in reversed(list_bases(self._base_dir)) if base.version < version]

    def _begin(self, version: str, positions: Positions) -> None:
        self._loading = threading.Thread(target=self._load, args=(version, positions), name="manas-base", daemon=True)
        self._loading.start()

    def _load(self, version: str, positions: Positions) -> None:
        """Open a base and replay the deltas after it, aside; runs in a thread of its own and hands over `_loaded`.

        `positions` move on meanwhile, as the base in service is kept fresh. They are followed until what is left is
        a batch, which the follower's thread applies at the swap while searches wait for nothing.
        """
        try:
            loaded = self.open(version)
            for _ in range(_CHASES):
                target = dict(positions)
                self.replay(loaded, target)
                if sum(positions[partition] - end for partition, end in target.items()) <= BATCH:
                    break
            self._loaded = loaded
        except (ManasError, MessagingError, OSError) as error:
            self._loaded = (version, error)
        except Exception as error:  # a fault of ours: said by the thread, and tried again like the others
            self._loaded = (version, error)
            raise

    def _refuse(self, version: str, error: Exception) -> None:
        """Say what is wrong with a base; what passes (no descriptor left, no log, no folding) is tried again later."""
        if not isinstance(error, _FOR_GOOD):
            self.problem = f"base {version} cannot be loaded, it is tried again: {type(error).__name__}: {error}"
            self._retry_after = min(_LONGEST_RETRY_SECONDS, max(_CHECK_BASE_SECONDS, 2 * self._retry_after))
            self._retry_at = time.monotonic() + self._retry_after
            self._count("base_not_loaded")
            _log.warning("manas.base_not_loaded", base=version, error=str(error))
            return
        self.problem = f"base {version} is refused: {error}"
        if version in self._refused:  # said already
            return
        self._refused[version] = self.problem
        self._count("base_refused")
        _log.error("manas.base_refused", base=version, error=str(error))

    def _pointer_id(self) -> tuple[int, int] | None:
        try:
            found = (self._base_dir / CURRENT).stat()
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns


def fold_files(folds: list[Fold]) -> list[Files]:
    """Return what there is to verify of folded segments."""
    listed: list[Files] = []
    for fold in folds:
        listed.append((fold.directory, fold.manifest.files))
        listed.append((fold.directory / SEGMENT, fold.segment.manifest.files))
    return listed


def _files(view: View) -> list[Files]:
    base: list[Files] = [(segment.directory, segment.manifest.files) for segment in view.base_layers.values()]
    return base + fold_files(view.folds)
