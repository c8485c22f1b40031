"""Derived columns and documents against what the handlers would produce now, and what serving has against documents.

The handlers are the pipeline's own (`argus.compute_runs`). A row whose run would change something may only wait for its
turn: it is looked at again after everything in flight has arrived, and only what a run would still change in the same
way counts. It is repaired by a notification in the low lane.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

from argus import load_registry, paused_handlers
from argus.core import Sources
from argus.stage import open_sources
from batch_workflows._sync_common import BATCH, LOOKS, STAGE, Part, Sync, chunks
from batch_workflows._sync_tasks import (
    HANDLER_FAILED,
    READ,
    Changes,
    Looked,
    LookJob,
    look,
    look_range,
    ranges_of,
    rows_of,
)
from catalog import LaneName
from catalog.model import DOCUMENT_BODY
from manas import Base, current_base
from messaging import BadMessage, Log, OutRecord
from messaging.dead_letters import parse
from messaging.headers import new_header, now_us
from messaging.proto import adsindex_pb2 as pb
from messaging.switches import Switches
from messaging.topics import DELTAS, NOTIFICATIONS
from storage_repo import Snapshot

MISSING, EXTRA, DIFFERENT, DERIVED = "missing", "extra", "different", "derived_different"
"""Of a document; the last: its body is right, but a column that handlers derive is not."""


class DocumentSync:
    """Compares the rows that handlers derive, those that others join first, the documents last."""

    def __init__(self, sync: Sync, sources: Sources | None = None) -> None:
        """`sources` are the handlers' external ones; by default those of the home."""
        self._sync = sync
        self._registry = load_registry(sync.catalog)
        self._own = open_sources(sync.home) if sources is None else {}
        self._sources: Sources = self._own if sources is None else sources
        self._switches = Switches(sync.log)

    @property
    def roots(self) -> list[str]:
        """Tables whose rows are run, in order."""
        return list(self._registry.plans)

    def close(self) -> None:
        """Close the sources opened here; safe to call twice."""
        for source in self._own.values():
            source.close()

    def run(self, root: str) -> Part:
        """Compare and repair the rows of one root. Raises RepoError, LogError."""
        part, started = Part(), time.monotonic()
        with self._sync.pinned(f"{root}-derived") as snapshot:
            suspects = self._suspects(snapshot, root, part)
            for batch in chunks(suspects, BATCH):
                self._judge(root, dict(batch), part)
        part.seconds = time.monotonic() - started
        return part

    def _suspects(self, snapshot: Snapshot, root: str, part: Part) -> Iterator[tuple[str, Changes]]:
        for looked in self._looks(snapshot, root):
            for row, sentence in looked.failing:
                part.failing += 1
                self._sync.failed("document", f"{root}/{row}", HANDLER_FAILED, sentence)
            _count(part, looked)
            part.rows += looked.rows
            yield from looked.suspects
            self._sync.step(looked.rows)

    def _looks(self, snapshot: Snapshot, root: str) -> Iterator[Looked]:
        """Look at all rows: by the sync's engine, or here where there are few or it has none."""
        ranges = ranges_of(rows_of(snapshot, self._registry, root))
        first, second = next(ranges), next(ranges, None)
        if self._sync.engine is None or self._sync.open_repo is None or second is None:
            for chunk in chunks(rows_of(snapshot, self._registry, root), READ):
                yield self._look(snapshot, root, chunk)
            return
        job = LookJob(
            self._sync.open_repo, partial(open_sources, self._sync.home), self._sync.catalog, snapshot.ts, root,
            dict(paused_handlers(self._switches)), self._sync.home.root,
        )  # fmt: skip
        yield from self._sync.engine.map(partial(look_range, job), chain((first, second), ranges), self._sync.check)

    def _look(self, snapshot: Snapshot, root: str, rows: Sequence[str]) -> Looked:
        return look(snapshot, self._registry, self._sources, rows, paused_handlers(self._switches), root)

    def _judge(self, root: str, suspects: dict[str, Changes], part: Part) -> None:
        for _ in range(LOOKS - 1):
            if not suspects:
                return
            if not self._sync.lag.pass_by():
                part.unsettled += len(suspects)
                return
            looked = self._look(self._sync.repo.snapshot(), root, list(suspects))
            _count(part, looked)
            again = dict(looked.suspects)
            confirmed = [row for row, changes in again.items() if changes == suspects[row]]
            for row in confirmed:
                part.found(f"{self._registry.plans[root].output_table}:{_kind(again[row])}", row)
            if confirmed and self._sync.repair:
                part.repaired += request_runs(self._sync.log, root, confirmed, STAGE)
            part.in_flight += len(suspects) - len(again)
            suspects = {row: changes for row, changes in again.items() if row not in confirmed}
        part.in_flight += len(suspects)


def _count(part: Part, looked: Looked) -> None:
    part.rows_read += looked.rows
    part.bytes_read += looked.bytes_read
    part.unjudged += looked.unjudged


def _kind(changes: Changes) -> str:
    for (_, cell), data in changes.items():
        if cell == DOCUMENT_BODY:
            return EXTRA if data is None else DIFFERENT
    return DERIVED


def request_runs(log: Log, root: str, rows: Iterable[str], writer: str) -> int:
    """Have the handlers of rows run in the low lane, and documents published even if unchanged; return how many."""
    count = 0
    for chunk in chunks(rows, READ):
        records = []
        for row in chunk:
            header = new_header(LaneName.LOW, now_us())
            note = pb.Notification(header=header, table=root, row=row, writer=writer, refresh=True)
            records.append(OutRecord(NOTIFICATIONS[LaneName.LOW], f"{root}/{row}", note.SerializeToString()))
        log.publish(records)
        count += len(records)
    return count


class Served:
    """What serving has after all deltas: of the base, and of what came since."""

    def __init__(self, sync: Sync) -> None:
        """Read the base in service and all deltas since. Raises LogError, manas.SegmentError."""
        self._home, self._log = sync.home, sync.log
        self._version: str | None = None
        self._base: Base | None = None
        self._newest: dict[str, tuple[int, bytes | None]] = {}
        self._next: dict[int, int] = {}
        self._begin(current_base(self._home.base))
        self.follow()

    def follow(self) -> None:
        """Read the deltas that came since; all, if another base has been put in service. Raises as the constructor."""
        version = current_base(self._home.base)
        if version != self._version:
            self._begin(version)
        snapshot_ts = self._base.manifest.snapshot_ts if self._base is not None else 0
        ends = self._log.end_offsets(DELTAS)
        for partition, start in self._log.start_offsets(DELTAS).items():
            offset = max(start, self._next.get(partition, 0))
            while offset < ends[partition] and (records := self._log.read(DELTAS, partition, offset, READ)):
                offset = records[-1].offset + 1
                for record in records:
                    try:
                        delta = parse(pb.DocumentDelta, record)
                    except BadMessage:
                        continue  # serving has put it aside as well, as a dead letter
                    if delta.version > max(snapshot_ts, self._newest.get(delta.document_id, (0, None))[0]):
                        self._newest[delta.document_id] = delta.version, None if delta.deleted else delta.body
            self._next[partition] = offset

    def _begin(self, version: str | None) -> None:
        self._version = version
        self._base = Base.open(self._home.base / version, verify=False) if version is not None else None
        self._newest = {}
        self._next = dict(self._base.manifest.delta_positions) if self._base is not None else {}

    def look(self, document: str) -> tuple[int, bytes | None]:
        """Return the version (0: the base's) and body that a server which has read all deltas gives."""
        if document in self._newest:
            return self._newest[document]
        for segment in self._base.segments if self._base is not None else ():
            if (internal := segment.internal(document)) is not None:
                return 0, bytes(segment.body(internal))
        return 0, None

    def body(self, document: str) -> bytes | None:
        """Return the body alone."""
        return self.look(document)[1]

    def documents(self) -> Iterator[str]:
        """Yield every document that is served."""
        yield from (document for document, (_, body) in self._newest.items() if body is not None)
        for segment in self._base.segments if self._base is not None else ():
            for internal in range(segment.count):
                if (document := segment.document_id(internal)) not in self._newest:
                    yield document


@dataclass(frozen=True, slots=True)
class _Difference:
    """A document that is not served as it is stored."""

    kind: str
    seen: int
    """Hash of what is served, with its version, and of what is stored: the same in two looks, nothing moves there."""


class ServedSync:
    """Compares what is published, base and deltas, with the stored documents."""

    def __init__(self, sync: Sync) -> None:
        self._sync = sync
        self._table = sync.catalog.document_table

    def run(self) -> Part:
        """Compare and repair. A delta that is needed and trimmed is one lost, which is what is looked for.

        Raises RepoError, LogError, manas.SegmentError.
        """
        part, started = Part(), time.monotonic()
        # The Repo is read before the log: a document is published after its commit.
        with self._sync.pinned("served") as snapshot:
            served = Served(self._sync)
            suspects = list(self._suspects(snapshot, served, part))
        for batch in chunks(suspects, BATCH):
            self._judge(served, dict(batch), part)
        part.seconds = time.monotonic() - started
        return part

    def _suspects(self, snapshot: Snapshot, served: Served, part: Part) -> Iterator[tuple[str, _Difference]]:
        for row, cells in snapshot.scan(self._table, columns=[DOCUMENT_BODY]):
            part.rows += 1
            self._sync.step(1)
            if (found := self._compare(served, row, cells.get(DOCUMENT_BODY), part)) is not None:
                yield row, found
        for chunk in chunks(served.documents(), READ):
            self._sync.check()
            there = snapshot.get_many([(self._table, row) for row in chunk], {self._table: [DOCUMENT_BODY]})
            for row in chunk:
                if not there[self._table, row] and (found := self._compare(served, row, None, part)) is not None:
                    yield row, found

    def _compare(self, served: Served, row: str, body: bytes | None, part: Part) -> _Difference | None:
        version, have = served.look(row)
        part.rows_read += 1
        part.bytes_read += len(body or b"")
        if have == body:
            return None
        return _Difference(
            MISSING if have is None else EXTRA if body is None else DIFFERENT, hash((version, have, body))
        )

    def _judge(self, served: Served, suspects: dict[str, _Difference], part: Part) -> None:
        """Count those that differ in the same way in two looks between which all that was in flight has arrived."""
        for _ in range(LOOKS - 1):
            if not suspects:
                return
            if not self._sync.lag.pass_by():
                part.unsettled += len(suspects)
                return
            snapshot = self._sync.repo.snapshot()
            served.follow()
            found = snapshot.get_many([(self._table, row) for row in suspects], {self._table: [DOCUMENT_BODY]})
            again: dict[str, _Difference] = {}
            for row in suspects:
                if (one := self._compare(served, row, found[self._table, row].get(DOCUMENT_BODY), part)) is not None:
                    again[row] = one
            confirmed = [row for row, one in again.items() if one == suspects[row]]
            for row in confirmed:
                part.found(f"served:{again[row].kind}", row)
            if confirmed and self._sync.repair:
                self._publish(confirmed)
                part.repaired += len(confirmed)
            part.in_flight += len(suspects) - len(again)
            suspects = {row: one for row, one in again.items() if row not in confirmed}
        part.in_flight += len(suspects)

    def _publish(self, documents: Sequence[str]) -> None:
        """Publish documents as they are stored, at a version that every later one exceeds."""
        table = self._table
        snapshot = self._sync.repo.snapshot()
        found = snapshot.get_many([(table, row) for row in documents], {table: [DOCUMENT_BODY]})
        records = []
        for row in documents:
            body = found[table, row].get(DOCUMENT_BODY)
            header = new_header(LaneName.LOW, now_us())
            delta = pb.DocumentDelta(
                header=header, document_id=row, version=snapshot.ts, deleted=body is None, body=body or b""
            )
            records.append(OutRecord(DELTAS, row, delta.SerializeToString()))
        self._sync.log.publish(records)
