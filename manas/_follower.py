"""Follow the log: deltas and budgets into the index, newer bases by a swap, all at positions of its own.

It starts at the manifest's positions, or at the log's beginning without a base; the budgets topic is always read from
its beginning. The stored positions of group "manas" only say what was answerable and reported before: records below
them are replayed without latencies and without a second dead letter.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import structlog

from manas._base import Base
from manas._exceptions import IndexIncomplete, InvalidDocument, ManasError, SegmentError
from manas._view import Outcome, View
from manas.bases import current_base, list_bases
from manas.index import Index, PreparedDelta
from messaging import dead_letters
from messaging._exceptions import BadMessage, OffsetTrimmed
from messaging.api import Log, OutRecord, Position, Record
from messaging.drops import drops_of
from messaging.headers import lane_of, stage_latencies_us
from messaging.metrics import StageMetrics
from messaging.proto import adsindex_pb2 as pb
from messaging.topics import BUDGETS, DELTAS

GROUP = "manas"
BATCH = 500
"""Deltas applied under one hold of the lock: about 20 ms, which is as long as a search may have to wait."""
_COMMIT_SECONDS = 1.0
"""A stored position costs a sync of the log; after a kill at most this much is counted twice."""
_CHECK_BASE_SECONDS = 0.5

_log = structlog.get_logger()
Positions = dict[int, int]


class Follower:
    """Keeps one index up to date. All methods belong to one thread."""

    def __init__(
        self,
        base_dir: Path,
        log: Log,
        index: Index,
        metrics: StageMetrics | None = None,
        on_applied: Callable[[Sequence[pb.Applied]], None] | None = None,
    ) -> None:
        """Without `metrics` it only reads: no dead letters, no stored positions."""
        self._base_dir, self._log, self._index = base_dir, log, index
        self._metrics, self._on_applied = metrics, on_applied
        self._positions: dict[str, Positions] = {DELTAS: {}, BUDGETS: {}}
        self._replayed_below: dict[str, Positions] = {DELTAS: {}, BUDGETS: {}}
        self._gaps: dict[int, str] = {}
        self._problem = ""
        self._refused: set[str] = set()
        self._loading: threading.Thread | None = None
        self._loaded: tuple[str, View | ManasError, Positions] | None = None
        self._committed_at = self._checked_at = time.monotonic()
        self._dirty = False
        index.describe = self.describe

    def describe(self) -> dict[str, Any]:
        """Return positions and problems, for the index's stats."""
        return {
            "positions": {topic: dict(positions) for topic, positions in self._positions.items()},
            "problem": self._problem,
            "gaps": list(self._gaps.values()),
            "loading": self._loading is not None,
        }

    def start(self) -> None:
        """Load the current base, or failing that the newest earlier one that is whole, or start without one.

        Raises IndexIncomplete when the log no longer has the deltas that are needed; call again later.
        """
        current = current_base(self._base_dir)
        versions = [] if current is None else [current]
        versions += [b.version for b in reversed(list_bases(self._base_dir)) if current and b.version < current]
        for version in versions:
            try:
                base = Base.open(self._base_dir / version)
                view = self._index.new_view(base, version)
                positions = self._first_positions(base)
            except (SegmentError, IndexIncomplete) as error:
                self._refuse(version, error)
                continue
            break
        else:
            view, positions = self._index.new_view(None), self._first_positions(None)
        self._index.swap(view)
        self._positions = {DELTAS: positions, BUDGETS: dict(self._log.start_offsets(BUDGETS))}
        self._replayed_below = {topic: dict(self._log.committed(GROUP, topic)) for topic in (DELTAS, BUDGETS)}
        if self._metrics is not None:
            _log.info("manas.started", base=view.base_version, positions=self._positions, problem=self._problem)

    def catch_up(self, go_on: Callable[[], bool] = lambda: True) -> None:
        """Apply everything that is in the log now; gives up between two batches when `go_on` returns false."""
        ends = {topic: self._log.end_offsets(topic) for topic in (BUDGETS, DELTAS)}
        while any(self._positions[t].get(p, 0) < end for t, parts in ends.items() for p, end in parts.items()):
            if not go_on() or self.step() == 0:
                return

    def step(self) -> int:
        """Apply one batch per partition and return how many records there were; look after the base now and then."""
        count = 0
        for topic, apply in ((BUDGETS, self._budgets), (DELTAS, self._deltas)):
            for partition in self._positions[topic]:
                records = self._read(topic, partition)
                if records:
                    apply(partition, records)
                    self._positions[topic][partition] = records[-1].offset + 1
                    count += len(records)
        self._dirty = self._dirty or count > 0
        now = time.monotonic()
        if now - self._committed_at >= _COMMIT_SECONDS:
            self.commit()
        if self._loaded is not None:
            self._finish_load(self._loaded)
        elif now - self._checked_at >= _CHECK_BASE_SECONDS:
            self._checked_at = now
            self._check_base()
        return count

    def wait(self, timeout_s: float) -> None:
        """Block until the log has more, or `timeout_s` passes."""
        positions = {(t, p): o for t, parts in self._positions.items() for p, o in parts.items()}
        readable = {key: offset for key, offset in positions.items() if key[0] == BUDGETS or key[1] not in self._gaps}
        self._log.wait([DELTAS, BUDGETS], readable, timeout_s)

    def commit(self) -> None:
        """Store the positions."""
        self._committed_at = time.monotonic()
        if self._dirty and self._metrics is not None:
            self._dirty = False
            # Never backwards: during a replay the positions are below what was answerable and reported before.
            self._log.set_committed(
                [
                    Position(GROUP, topic, partition, max(offset, self._replayed_below[topic].get(partition, 0)))
                    for topic, parts in self._positions.items()
                    for partition, offset in parts.items()
                ]
            )

    # ---- records ----

    def _read(self, topic: str, partition: int) -> list[Record]:
        position = self._positions[topic][partition]
        if topic == DELTAS and partition in self._gaps:
            return []
        try:
            return self._log.read(topic, partition, position, BATCH)
        except OffsetTrimmed as error:
            if topic == BUDGETS:  # compacted: the newest state of every campaign is still there
                self._positions[topic][partition] = error.oldest
                return self._log.read(topic, partition, error.oldest, BATCH)
            self._gaps[partition] = str(error)
            self._count("gap")
            _log.error("manas.gap", partition=partition, error=str(error))
            return []

    def _deltas(self, partition: int, records: list[Record]) -> None:
        below = self._replayed_below[DELTAS].get(partition, 0)
        batches: tuple[list[tuple[pb.DocumentDelta, PreparedDelta]], ...] = ([], [])
        for record in records:
            delta = pb.DocumentDelta()
            try:
                delta = dead_letters.parse(pb.DocumentDelta, record)
                batches[record.offset >= below].append((delta, self._index.prepare(delta)))
            except (BadMessage, InvalidDocument) as error:
                self._dead_letter(record, error, delta.header, delta.document_id, "DocumentDelta")
        replayed, fresh = batches
        self._index.apply((prepared for _, prepared in replayed), replay=True)
        for outcome in (outcomes := self._index.apply([prepared for _, prepared in fresh])):
            self._count("applied" if outcome is Outcome.APPLIED else f"ignored:{outcome}")
        answerable_us = self._index.last_applied_us
        self._drops(records[-1], "delta", [(d.header, d.document_id) for d, _ in fresh], outcomes)
        done = [delta for (delta, _), outcome in zip(fresh, outcomes, strict=True) if outcome is Outcome.APPLIED]
        if self._metrics is not None:
            for delta in done:
                self._measure(delta.header, answerable_us)
        if done and self._on_applied is not None:
            self._on_applied([_applied(delta, answerable_us) for delta in done])

    def _measure(self, header: pb.Header, answerable_us: int) -> None:
        if self._metrics is not None and header.origin_us > 0:
            lane = lane_of(header).value
            for stage, micros in stage_latencies_us(header, answerable_us).items():
                self._metrics.time(f"latency:{lane}:{stage}", micros)

    def _budgets(self, partition: int, records: list[Record]) -> None:
        below = self._replayed_below[BUDGETS].get(partition, 0)
        states = []
        for record in records:
            state = pb.BudgetState()
            try:
                state = dead_letters.parse(pb.BudgetState, record)
                if not state.campaign_id or state.version <= 0:
                    raise InvalidDocument(f"budget state without campaign id or version: {state.campaign_id!r}")
                states.append((record.offset >= below, state))
            except (BadMessage, InvalidDocument) as error:
                self._dead_letter(record, error, state.header, state.campaign_id, "BudgetState")
        outcomes = self._index.apply_budgets([state for _, state in states])
        for (fresh, _), outcome in zip(states, outcomes, strict=True):
            if fresh:
                self._count("budgets_applied" if outcome is Outcome.APPLIED else f"budgets_ignored:{outcome}")
        judged = [(s, outcome) for (fresh, s), outcome in zip(states, outcomes, strict=True) if fresh]
        self._drops(records[-1], "budget", [(s.header, s.campaign_id) for s, _ in judged], [o for _, o in judged])

    def _drops(
        self, last: Record, kind: str, judged: Sequence[tuple[pb.Header, str]], outcomes: Sequence[Outcome]
    ) -> None:
        """Record what was not applied because it is old; what a base covers is served and was not dropped."""
        out: list[OutRecord] = []
        for outcome in (Outcome.STALE, Outcome.DUPLICATE):
            dropped = [(h, f"{kind}/{name}") for (h, name), o in zip(judged, outcomes, strict=True) if o is outcome]
            out += drops_of("manas", f"{outcome}_{kind}", dropped, self._metrics)
        if out and self._metrics is not None:
            self._log.publish(out, [Position(GROUP, last.topic, last.partition, last.offset + 1)])

    def _dead_letter(self, record: Record, error: Exception, header: pb.Header, row: str, kind: str) -> None:
        """Put a record that cannot be applied aside, once: the position is stored in the same step."""
        if self._metrics is None or record.offset < self._replayed_below[record.topic].get(record.partition, 0):
            return
        reason = "bad_message" if isinstance(error, BadMessage) else "bad_document"
        letter = dead_letters.dead_letter(
            "manas", reason, str(error), header=header, row=row, record=record, payload_type=kind
        )
        out: OutRecord = dead_letters.out_record(letter)
        self._log.publish([out], [Position(GROUP, record.topic, record.partition, record.offset + 1)])
        self._count(f"dead_letters:{reason}")
        _log.warning("manas.dead_letter", reason=reason, error=str(error), offset=record.offset)

    def _count(self, name: str) -> None:
        if self._metrics is not None:
            self._metrics.count(name)

    # ---- bases ----

    def _first_positions(self, base: Base | None) -> Positions:
        """Return where to read from with this base. Raises IndexIncomplete when that is no longer in the log."""
        wanted = base.manifest.delta_positions if base is not None else {}
        positions = {}
        for partition, oldest in self._log.start_offsets(DELTAS).items():
            positions[partition] = wanted.get(partition, 0)
            if positions[partition] < oldest:
                raise IndexIncomplete(
                    f"{DELTAS}[{partition}]: deltas from offset {positions[partition]} are needed, the oldest kept is "
                    f"{oldest}; build a newer base index"
                )
        return positions

    def _check_base(self) -> None:
        version = current_base(self._base_dir)
        if version is None or self._loading is not None:
            return
        if version == self._index.base_version:
            self._problem = ""
            self._refused.clear()
        elif version not in self._refused:
            target = dict(self._positions[DELTAS])
            self._loading = threading.Thread(target=self._load, args=(version, target), name="manas-base", daemon=True)
            self._loading.start()

    def _load(self, version: str, target: Positions) -> None:
        """Open a base and replay the deltas after it, aside; runs in a thread of its own and hands over `_loaded`."""
        try:
            base = Base.open(self._base_dir / version)
            view = self._index.new_view(base, version)
            positions = self._first_positions(base)
            self._replay(view, positions, target)
            self._loaded = (version, view, positions)
        except OffsetTrimmed as error:
            self._loaded = (version, IndexIncomplete(str(error)), {})
        except ManasError as error:
            self._loaded = (version, error, {})
        except Exception as error:
            self._loaded = (version, ManasError(f"loading failed with {type(error).__name__}: {error}"), {})
            raise

    def _finish_load(self, loaded: tuple[str, View | ManasError, Positions]) -> None:
        """Catch up the last records and swap, or note why not; the old base then stays."""
        (version, view, positions), self._loaded, self._loading = loaded, None, None
        if isinstance(view, View):
            try:
                self._replay(view, positions, self._positions[DELTAS])
            except OffsetTrimmed as error:
                view = IndexIncomplete(str(error))
        if isinstance(view, ManasError):
            self._refuse(version, view)
            return
        before = self._index.base_version
        self._index.swap(view)
        self._positions[DELTAS] = positions
        self._gaps.clear()
        self._refused.clear()
        self._problem = ""
        self._count("base_swapped")
        _log.info("manas.base_swapped", base=version, before=before, documents=view.documents())

    def _replay(self, view: View, positions: Positions, target: Positions) -> None:
        """Apply records up to `target` to a view that is not in service; moves `positions` along."""
        for partition, end in target.items():
            while positions.setdefault(partition, 0) < end:
                records = self._log.read(DELTAS, partition, positions[partition], BATCH)
                prepared = []
                for record in (r for r in records if r.offset < end):
                    try:
                        prepared.append(self._index.prepare(dead_letters.parse(pb.DocumentDelta, record)))
                    except (BadMessage, InvalidDocument):
                        self._count("replay_skipped")  # became a dead letter when it was first read
                self._index.apply(prepared, view)
                positions[partition] = min(end, records[-1].offset + 1) if records else end

    def _refuse(self, version: str, error: ManasError) -> None:
        self._problem = f"base {version} is refused: {error}"
        if version in self._refused:  # a start that is tried again; said already
            return
        self._refused.add(version)
        self._count("base_refused")
        _log.error("manas.base_refused", base=version, error=str(error))


def _applied(delta: pb.DocumentDelta, answerable_us: int) -> pb.Applied:
    return pb.Applied(
        document_id=delta.document_id,
        version=delta.version,
        deleted=delta.deleted,
        trace_id=delta.header.trace_id,
        origin_us=delta.header.origin_us,
        answerable_us=answerable_us,
    )
