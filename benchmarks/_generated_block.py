"""One share of a generated home: its rows of the ads DB, and its part of the Repo as the pipeline would leave it.

Cells are checked and encoded by the catalogue's own code, as the Gateway does, and derived ones come from the handlers
by Argus's own `fetch` and `execute`. What is saved is messages, one transaction for each row, and reading back what was
just written: a test holds the result against a home that the stages' cores have filled.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

from argus import Registry, load_registry
from argus._fetch import fetch
from argus._run import execute, look_up
from argus.core import Sources
from argus.sources import CachedSource, CacheSettings
from argus.sources.performance import PerformanceDb
from batch_workflows.base_index import open_embedded_repo
from batch_workflows.sample import INSERTED, Sample
from catalog import Catalog, LaneName, Table
from catalog.model import DOCUMENT_BODY, INDEX_CELL, RUN, SOURCE_VERSION, TIMELINE, signal_version_cell
from catalog.values import decode, encode, source_encoder
from messaging.headers import new_header
from messaging.home import Home
from storage_repo import INDEX_SEPARATOR, Limits, Origin, Repo, Row, RowId

SLICE = 1_000
"""Rows derived together, as in the pipeline's bulk."""
_CELLS = Limits().max_cells_per_transaction - 1_000
"""A row, with its index rows, must still fit in."""
_PATIENCE_S = 60.0
"""For the reporting database: nobody waits for a document here, and the machine may be busy."""
_PERFORMANCE = "performance"

Held = dict[RowId, Row]
SourceRows = dict[str, list[tuple[Any, ...]]]


@dataclass(frozen=True, slots=True)
class BlockJob:
    """What all blocks of a home have in common; it travels as a pickle."""

    root: Path
    catalog: Catalog
    seed: int
    day: datetime
    origin_us: int
    run: str
    """Stands for the process of Argus that ran the rows."""


@dataclass(frozen=True, slots=True)
class Block:
    """Ads `first` to `first + ads - 1` of the whole, with advertisers and pins of their own."""

    first: int
    ads: int


@dataclass(frozen=True, slots=True)
class BlockReport:
    """What a block wrote, and its rows for the ads DB."""

    rows: SourceRows
    documents: int
    """Servable ones."""
    cells: int


class HeldSnapshot:
    """The rows of a block as `fetch` reads them, before they are written."""

    ts = 0

    def __init__(self, held: Held) -> None:
        self._held = held

    def get(self, table: str, row: str, columns: Sequence[str] | None = None) -> Row:
        """Read one row."""
        return self.get_many([(table, row)], None if columns is None else {table: columns})[table, row]

    def get_many(self, rows: Sequence[RowId], columns: Mapping[str, Sequence[str]] | None = None) -> dict[RowId, Row]:
        """Read many rows, whole: who asks for columns does not mind others."""
        return {row_id: self._held.get(row_id, {}) for row_id in rows}

    def scan(
        self,
        table: str,
        *,
        prefix: str = "",
        after: str = "",
        before: str = "",
        columns: Sequence[str] | None = None,
        limit: int | None = None,
    ) -> Iterator[tuple[str, Row]]:
        """Yield (row, cells) in key order."""
        found = (
            (row, cells)
            for (of_table, row), cells in sorted(self._held.items())
            if of_table == table and row.startswith(prefix) and row > after and (not before or row < before)
        )
        return islice(found, limit)


def fill_block(job: BlockJob, block: Block) -> BlockReport:
    """Generate a block, write its part of the Repo and of the reporting database. Raises RepoError, SourceUnavailable.

    Killed inside, it leaves a part of its rows; run again, it writes them again.
    """
    sample = Sample(random.Random(f"{job.seed}/{block.first}"), job.day, block.first)
    sample.fill(block.ads)
    home = Home.open(job.root)
    with (
        closing(PerformanceDb(home.performance_db)) as performance,
        closing(open_embedded_repo(home, job.catalog)) as repo,
    ):
        performance.upsert(sample.performance)
        known = performance.lookup([row.ad_id for row in sample.performance])
        versions = {ad: version for ad, (version, _) in known.items()}
        performance.announced(versions)
        held = _entities(job.catalog, sample.rows, block.first)
        for ad, version in versions.items():
            column = job.catalog.column("ad.performance_version")
            held["ad", str(ad)][column.cell] = held["ad", str(ad)][signal_version_cell(_PERFORMANCE)] = encode(version)
        sources: Sources = {_PERFORMANCE: CachedSource(_PERFORMANCE, performance, CacheSettings(timeout_s=_PATIENCE_S))}
        documents = _derive(job, load_registry(job.catalog), sources, held, repo.last_commit_ts())
        for source in sources.values():
            source.close()
        cells = _write(job.catalog, repo, held)
    return BlockReport(sample.rows, documents, cells)


def _entities(catalog: Catalog, rows: SourceRows, first: int) -> Held:
    """Return the cells that the Gateway and the Updater make of the ads DB's rows."""
    held: Held = {}
    for table in catalog.entity_tables():
        if table.source is None:
            continue
        version = first  # below what change capture counts, or a later change would pass for an old one
        for source_table, key in table.source.tables().items():
            names = INSERTED[source_table].split(", ")
            place = names.index(key)
            encoders = _encoders(table, source_table, names)
            for values in rows[source_table]:
                version += 1
                cells = held.setdefault((table.name, str(values[place])), {})
                cells.setdefault(SOURCE_VERSION, encode(version))
                for at, cell, encoder in encoders:
                    if data := encoder(values[at]):
                        cells[cell] = data
    return held


def _encoders(table: Table, source_table: str, names: list[str]) -> list[tuple[int, str, Callable[[Any], bytes]]]:
    return [
        (names.index(str(column.source_column)), column.cell, source_encoder(column))
        for column in table.columns.values()
        if column.source_table == source_table and column.source_column in names
    ]


def _derive(job: BlockJob, registry: Registry, sources: Sources, held: Held, ts: int) -> int:
    """Run all handlers over the block, joined rows first; return how many documents can be served."""
    snapshot, ran = HeldSnapshot(held), encode([ts, "", job.run])
    timeline = new_header(LaneName.LOW, job.origin_us, job.run).SerializeToString()
    documents = 0
    for root, plan in registry.plans.items():
        keys = [key for table, key in held if table == root]
        for start in range(0, len(keys), SLICE):
            joined = fetch(snapshot, job.catalog, plan, keys[start : start + SLICE])
            answers = look_up(plan, joined, sources, job.catalog)
            for key, rows in joined.items():
                result = execute(registry, plan, key, rows, answers)
                for (table, cell), data in result.changes.items():
                    if data is not None:
                        held.setdefault((table, key), {})[cell] = data
                output = held.setdefault((plan.output_table, key), {})
                output[RUN] = ran
                if result.body is not None:
                    output[TIMELINE] = timeline
                    documents += DOCUMENT_BODY in output
    return documents


def _write(catalog: Catalog, repo: Repo, held: Held) -> int:
    """Write all rows with the index rows that turn their references round; return how many cells there are."""
    references = {
        table.name: [(table.columns[r.column].cell, r.index_table) for r in table.references]
        for table in catalog.tables.values()
    }
    written = size = 0
    transaction = repo.begin(Origin("bench"))
    for (table, row), cells in sorted(held.items()):
        if size + len(cells) + len(references[table]) > _CELLS:
            transaction.commit()
            written, size, transaction = written + size, 0, repo.begin(Origin("bench"))
        for cell, data in cells.items():
            transaction.put(table, row, cell, data)
        size += len(cells)
        for cell, index_table in references[table]:
            if (target := decode(cells.get(cell))) is not None:
                transaction.put(index_table, f"{target}{INDEX_SEPARATOR}{row}", INDEX_CELL, b"")
                size += 1
    transaction.commit()
    return written + size
