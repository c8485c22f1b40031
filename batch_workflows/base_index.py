"""Base index: one consistent snapshot of every servable document as an immutable Manas segment.

Nothing committed around the snapshot is lost: the log positions are taken before the snapshot's timestamp, and a
document is published only after its commit, so whatever was committed after the snapshot lies in the deltas from those
positions on. What lies there and is not newer than the snapshot is in the segment already; serving passes over it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from argus import compute_documents, load_registry, paused_handlers
from argus.stage import open_sources
from batch_workflows._exceptions import BaseRefused
from catalog import Catalog
from catalog.documents import decode_document
from catalog.model import DOCUMENT_BODY, SOURCE_VERSION
from manas import SegmentWriter, list_bases, publish
from messaging import Log
from messaging.home import Home
from messaging.switches import Switches
from messaging.topics import BUDGETS, DELTAS
from storage_repo import Repo, Snapshot

MAX_SHRINK = 0.5
"""A base with less than half of the documents of the one before is refused: a bad release or lost input is likelier
than half of all advertisers leaving. `force` publishes it all the same."""
MIN_FOR_VOLUME_GATE = 100
"""Below this many documents a campaign that ends may halve the index, and the volume says nothing."""
_PIN = "base-index"
_PIN_SECONDS = 3600.0
_CHUNK = 500

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True, slots=True)
class BaseReport:
    """What was built, and how it differs from what the pipeline had stored."""

    base_version: str
    documents: int
    snapshot_ts: int
    coverage: dict[str, float]
    differing: int
    """Documents that the handlers derive otherwise than stored: updates in flight, or something that was lost."""
    recomputed: bool
    sample_differing: list[str]

    def to_json(self) -> dict[str, Any]:
        """Return a form for JSON."""
        return asdict(self)


class _Reader:
    """Streams the documents of a snapshot, and counts what differs from the stored ones."""

    def __init__(
        self, home: Home, log: Log, snapshot: Snapshot, catalog: Catalog, recompute: bool, progress: Progress | None
    ) -> None:
        self._home, self._switches = home, Switches(log)
        self._snapshot, self._catalog, self._recompute, self._progress = snapshot, catalog, recompute, progress
        self.done = 0
        self.differing: list[str] = []
        self.missing: dict[str, int] = dict.fromkeys((f.name for f in catalog.fields.values() if f.critical), 0)
        self.samples: dict[str, list[str]] = {}

    def documents(self) -> Iterator[tuple[str, int, bytes]]:
        for document_id, body in self._recomputed() if self._recompute else self._stored():
            self.done += 1
            fields = decode_document(body)
            for name in self.missing:
                if fields.get(name) is None:
                    self.missing[name] += 1
                    samples = self.samples.setdefault(name, [])
                    if len(samples) < 3:
                        samples.append(document_id)
            if self._progress and self.done % 256 == 0:
                self._progress(self.done, None)
            yield document_id, self._snapshot.ts, body
        if self._progress:
            self._progress(self.done, self.done)

    def _stored(self) -> Iterator[tuple[str, bytes]]:
        for row, cells in self._snapshot.scan(self._catalog.document_table, columns=[DOCUMENT_BODY]):
            yield row, cells[DOCUMENT_BODY]

    def _recomputed(self) -> Iterator[tuple[str, bytes]]:
        rows = (row for row, _ in self._snapshot.scan(self._catalog.root, columns=[SOURCE_VERSION]))
        table = self._catalog.document_table
        registry, sources = load_registry(self._catalog), open_sources(self._home)
        while chunk := list(islice(rows, _CHUNK)):
            stored = self._snapshot.get_many([(table, row) for row in chunk], {table: [DOCUMENT_BODY]})
            paused = paused_handlers(self._switches)
            for document_id, body, _ in compute_documents(self._snapshot, registry, sources, chunk, paused):
                if body != stored[(table, document_id)].get(DOCUMENT_BODY):
                    self.differing.append(document_id)
                if body is not None:
                    yield document_id, body


def build_base_index(
    home: Home,
    catalog: Catalog,
    repo: Repo,
    log: Log,
    *,
    recompute: bool = True,
    force: bool = False,
    progress: Progress | None = None,
) -> BaseReport:
    """Build a base at one snapshot, check the gates, publish it by moving the pointer, and report.

    `recompute` runs the same handlers as the pipeline over the snapshot's rows; otherwise the stored documents are
    taken. Writers go on meanwhile. A crash leaves at most a directory that nobody points to, removed by the next run.
    Raises BaseRefused with a report when a critical field's coverage or the number of documents fails its gate.
    """
    deltas, budgets = log.end_offsets(DELTAS), log.end_offsets(BUDGETS)
    snapshot = repo.snapshot()
    repo.pin(_PIN, snapshot.ts, _PIN_SECONDS)
    building = home.base / ".building"
    shutil.rmtree(building, ignore_errors=True)
    try:
        reader = _Reader(home, log, snapshot, catalog, recompute, progress)
        manifest = SegmentWriter(building, catalog).write(
            reader.documents(), snapshot_ts=snapshot.ts, delta_positions=deltas, budget_positions=budgets
        )
        coverage = {
            name: 1.0 if not reader.done else 1 - missing / reader.done for name, missing in reader.missing.items()
        }
        if not force:
            _gate(catalog, home.base, reader, coverage)
        version = publish(home.base, building)
    finally:
        repo.unpin(_PIN)
        shutil.rmtree(building, ignore_errors=True)
    return BaseReport(
        base_version=version,
        documents=manifest.documents,
        snapshot_ts=snapshot.ts,
        coverage={name: round(share, 6) for name, share in coverage.items()},
        differing=len(reader.differing),
        recomputed=recompute,
        sample_differing=reader.differing[:10],
    )


def _gate(catalog: Catalog, base: Path, reader: _Reader, coverage: dict[str, float]) -> None:
    faults = [
        f"field {name!r}: {share:.2%} of the documents have it, {catalog.fields[name].coverage:.2%} must "
        f"(for example not {', '.join(reader.samples.get(name, []))})"
        for name, share in coverage.items()
        if share < catalog.fields[name].coverage
    ]
    for info in list_bases(base):
        if not info.current or info.manifest is None:
            continue
        before, version = info.manifest.documents, info.version
        if before >= MIN_FOR_VOLUME_GATE and reader.done < before * MAX_SHRINK:
            faults.append(f"{reader.done} documents, but base {version} has {before}; use --force if that is right")
    if faults:
        raise BaseRefused("the base index was not published, the old one stays: " + "; ".join(faults))
