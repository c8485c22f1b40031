"""Follow the log: deltas and budgets into the index, newer bases by a swap, all at positions of its own.

It starts at the manifest's positions, or at the log's beginning without a base; the budgets topic is always read from
its beginning. The stored positions of group "manas" (of shards from the second on "manas-1", "manas-2", ...) only say
what was answerable and reported before: records below them are replayed without latencies and without a second dead
letter. What every shard reads alike (budgets, messages that no shard can read) the first one reports.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import structlog

from manas._exceptions import FoldFailed, IndexIncomplete, InvalidDocument
from manas._folder import Folder
from manas._loading import BATCH, Loaded, Loader, Positions, fold_files
from manas._serving_settings import ServingSettings
from manas._view import Outcome
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
_GROUPS = re.compile(rf"{GROUP}-(\d+)")
_COMMIT_SECONDS = 1.0
"""A stored position costs a sync of the log; after a kill at most this much is counted twice."""
_HOLD_SECONDS = 0.05
_PORTION = 16
"""Deltas applied under one hold of the lock, half a millisecond: a search waits for no more than these."""

_log = structlog.get_logger()
_Read = tuple[pb.DocumentDelta, PreparedDelta]


class Follower:
    """Keeps one index up to date. All methods belong to one thread."""

    def __init__(
        self,
        base_dir: Path,
        log: Log,
        index: Index,
        metrics: StageMetrics | None = None,
        on_applied: Callable[[Sequence[pb.Applied]], None] | None = None,
        *,
        settings: ServingSettings | None = None,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        """Without `metrics` it only reads: no dead letters, no stored positions. Without `settings` nothing is folded.

        `beat` is called now and then while a start takes long.
        """
        self._log, self._index = log, index
        self._metrics, self._on_applied = metrics, on_applied
        self._positions: dict[str, Positions] = {DELTAS: {}, BUDGETS: {}}
        self._replayed_below: dict[str, Positions] = {DELTAS: {}, BUDGETS: {}}
        self._gaps: dict[int, str] = {}
        self._loader = Loader(base_dir, log, index, settings, self._count, beat)
        self._folder: Folder | None = None
        self._committed_at = time.monotonic()
        self._dirty = False
        self._first = index.shard.number == 0
        self._groups = [_group(index.shard.number)]
        """The own one, then those of shards that there were before and that now move along with the first."""
        index.describe = self.describe

    def describe(self) -> dict[str, Any]:
        """Return positions and problems, for the index's stats."""
        return {
            "positions": {topic: dict(positions) for topic, positions in self._positions.items()},
            "gaps": list(self._gaps.values()),
            "folding": self._folder.describe() if self._folder is not None else None,
            **self._loader.describe(),
        }

    def start(self) -> None:
        """Put the current base in service with the folded segments above it, or start without one.

        Raises IndexIncomplete when the log no longer has the deltas that are needed, SegmentError when the base cannot
        be used and the settings name no stand-in; call again later.
        """
        self._positions[BUDGETS] = dict(self._log.start_offsets(BUDGETS))
        self._put(self._loader.first())
        self._replayed_below = {topic: self._committed(topic) for topic in (DELTAS, BUDGETS)}
        if self._first and self._metrics is not None:
            self._groups[1:] = _retired(self._log, self._index.shard.count)
        if self._metrics is not None:
            base, problem = self._index.base_version, self._loader.problem
            _log.info("manas.started", base=base, positions=self._positions, problem=problem)

    def catch_up(self, go_on: Callable[[], bool] = lambda: True) -> None:
        """Apply everything that is in the log now; gives up between two batches when `go_on` returns false."""
        ends = {topic: self._log.end_offsets(topic) for topic in (BUDGETS, DELTAS)}
        while any(self._positions[t].get(p, 0) < end for t, parts in ends.items() for p, end in parts.items()):
            if not go_on() or self.step() == 0:
                return

    def step(self) -> int:
        """Apply one batch per partition and return how many records there were, at least 1 while there is other work;
        look after folding and the base."""
        count = 0
        for topic, apply in ((BUDGETS, self._budgets), (DELTAS, self._deltas)):
            for partition in self._positions[topic]:
                most = BATCH
                if topic == DELTAS and self._folder is not None and (most := min(BATCH, self._folder.room())) == 0:
                    count += self._hold()
                    break
                records = self._read(topic, partition, most)
                if records:
                    apply(partition, records)
                    self._positions[topic][partition] = records[-1].offset + 1
                    count += len(records)
        self._dirty = self._dirty or count > 0
        if self._fold():
            count = max(count, 1)
        if time.monotonic() - self._committed_at >= _COMMIT_SECONDS:
            self.commit()
        loaded = self._loader.tick(self._positions[DELTAS])
        if loaded is not None:
            self._finish_load(loaded)
        return count

    def _hold(self) -> int:
        """Let a folding get on instead of applying more than memory is declared for."""
        if self._folder is None or self._index.refusal:
            return 0
        self._count("held_for_folding")
        self._folder.wait(_HOLD_SECONDS)
        return 1

    def close(self) -> None:
        """Stop folding and verifying; safe to call twice."""
        if self._folder is not None:
            self._folder.close()
        self._loader.close()

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
                    Position(group, topic, partition, max(offset, self._replayed_below[topic].get(partition, 0)))
                    for group in self._groups
                    for topic, parts in self._positions.items()
                    for partition, offset in parts.items()
                ]
            )

    def _committed(self, topic: str) -> Positions:
        """Return what was reported before; a shard that is new goes on where the whole, or the first shard, was."""
        own = self._log.committed(self._groups[0], topic)
        return dict(own if any(own.values()) else self._log.committed(GROUP, topic))

    # ---- records ----

    def _read(self, topic: str, partition: int, most: int) -> list[Record]:
        position = self._positions[topic][partition]
        if topic == DELTAS and partition in self._gaps:
            return []
        try:
            return self._log.read(topic, partition, position, most)
        except OffsetTrimmed as error:
            if topic == BUDGETS:  # compacted: the newest state of every campaign is still there
                self._positions[topic][partition] = error.oldest
                return self._log.read(topic, partition, error.oldest, most)
            self._gaps[partition] = str(error)
            gaps = "; ".join(self._gaps.values())
            self._index.caveat = f"deltas are missing until a newer base is published: {gaps}"
            self._count("gap")
            _log.error("manas.gap", partition=partition, error=str(error))
            return []

    def _deltas(self, partition: int, records: list[Record]) -> None:
        below = self._replayed_below[DELTAS].get(partition, 0)
        batches: tuple[list[_Read], list[_Read]] = ([], [])
        for record in records:
            delta = pb.DocumentDelta()
            try:
                delta = dead_letters.parse(pb.DocumentDelta, record)
                if not self._index.shard.has(delta.document_id):
                    continue
                batches[record.offset >= below].append((delta, self._index.prepare(delta)))
            except BadMessage as error:
                if self._first:
                    self._dead_letter(record, error, delta.header, delta.document_id, "DocumentDelta")
            except InvalidDocument as error:
                self._dead_letter(record, error, delta.header, delta.document_id, "DocumentDelta")
        replayed, fresh = batches
        for part in _portions(replayed):
            self._index.apply((prepared for _, prepared in part), replay=True)
        outcomes: list[Outcome] = []
        answerable: list[int] = []
        for part in _portions(fresh):
            outcomes += self._index.apply([prepared for _, prepared in part])
            answerable += [self._index.last_applied_us] * len(part)
        for outcome in outcomes:
            self._count("applied" if outcome is Outcome.APPLIED else f"ignored:{outcome}")
        self._drops(records[-1], "delta", [(d.header, d.document_id) for d, _ in fresh], outcomes)
        applied = zip(fresh, outcomes, answerable, strict=True)
        done = [(delta, since_us) for (delta, _), outcome, since_us in applied if outcome is Outcome.APPLIED]
        if self._metrics is not None:
            for delta, since_us in done:
                self._measure(delta.header, since_us)
        if done and self._on_applied is not None:
            self._on_applied([_applied(delta, since_us) for delta, since_us in done])

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
                if self._first:
                    self._dead_letter(record, error, state.header, state.campaign_id, "BudgetState")
        outcomes = self._index.apply_budgets([state for _, state in states])
        if not self._first:
            return
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
            self._log.publish(out, [Position(self._groups[0], last.topic, last.partition, last.offset + 1)])

    def _dead_letter(self, record: Record, error: Exception, header: pb.Header, row: str, kind: str) -> None:
        """Put a record that cannot be applied aside, once: the position is stored in the same step."""
        if self._metrics is None or record.offset < self._replayed_below[record.topic].get(record.partition, 0):
            return
        reason = "bad_message" if isinstance(error, BadMessage) else "bad_document"
        letter = dead_letters.dead_letter(
            "manas", reason, str(error), header=header, row=row, record=record, payload_type=kind
        )
        out: OutRecord = dead_letters.out_record(letter)
        self._log.publish([out], [Position(self._groups[0], record.topic, record.partition, record.offset + 1)])
        self._count(f"dead_letters:{reason}")
        _log.warning("manas.dead_letter", reason=reason, error=str(error), offset=record.offset)

    def _count(self, name: str) -> None:
        if self._metrics is not None:
            self._metrics.count(name)

    # ---- bases ----

    def _put(self, loaded: Loaded) -> None:
        """Put a base in service with what came since."""
        if self._folder is not None:
            self._folder.close()
        self._index.swap(loaded.view)
        self._positions[DELTAS] = loaded.positions
        self._folder = loaded.folder
        self._gaps.clear()
        self._index.caveat = ""
        self._loader.in_service(loaded)

    def _finish_load(self, loaded: Loaded) -> None:
        """Catch up the last records and swap, or note why not; the old base then stays."""
        try:
            self._loader.replay(loaded, self._positions[DELTAS], folding=False)
        except (IndexIncomplete, FoldFailed) as error:
            self._loader.reject(loaded, error)
            return
        before = self._index.base_version
        self._put(loaded)
        self._count("base_swapped")
        _log.info("manas.base_swapped", base=loaded.version, before=before, documents=loaded.view.documents())

    def _fold(self) -> bool:
        """Go on with a folding; return whether there is more to do at once."""
        folder = self._folder
        if folder is None:
            return False
        if self._index.refusal:  # nothing more is made of files that may be damaged
            folder.close()
            return False
        more = folder.step(self._positions[DELTAS])
        if folder.fresh:
            self._loader.verifier.add(fold_files(folder.fresh))
            folder.fresh.clear()
            self._count("folded")
        return more


def _portions(deltas: Sequence[_Read]) -> Iterator[Sequence[_Read]]:
    for first in range(0, len(deltas), _PORTION):
        yield deltas[first : first + _PORTION]


def _group(number: int) -> str:
    return GROUP if number == 0 else f"{GROUP}-{number}"


def _retired(log: Log, count: int) -> list[str]:
    """Return the groups of shards that are no more: left where they are they would keep the log from being trimmed."""
    found = {group for group, _ in log.groups()}
    return sorted(group for group in found if (named := _GROUPS.fullmatch(group)) and int(named[1]) >= count)


def _applied(delta: pb.DocumentDelta, answerable_us: int) -> pb.Applied:
    return pb.Applied(
        document_id=delta.document_id,
        version=delta.version,
        deleted=delta.deleted,
        trace_id=delta.header.trace_id,
        origin_us=delta.header.origin_us,
        answerable_us=answerable_us,
    )
