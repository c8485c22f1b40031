"""A generated home of any size: ads DB, reporting database and Repo as a pipeline that has caught up would leave them.

The pipeline would take half an hour for a million ads. Here blocks of ads are made by a pool of processes that write
straight through the Repo's transactions (`_generated_block` says what that leaves out); this one fills the ads DB.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

from batch_workflows.engines import Engine, InlineEngine, LocalEngine
from batch_workflows.sample import FIRST_AD, INSERTED
from benchmarks._generated_block import Block, BlockJob, BlockReport, SourceRows, fill_block
from catalog import Catalog
from gateway import AdsDb
from messaging import Log, Position
from messaging.headers import new_trace_id, now_us
from messaging.home import Home
from messaging.topics import CHANGE_FEED, GATEWAY_GROUP, REPO_FEED, WAL_PROXY_GROUP, ensure_topics
from storage_repo.embedded import EmbeddedRepo

_BLOCK_ADS = 5_000
"""Some seconds of work for a process, and some 20 MB of rows."""
_IN_PROCESS = 2 * _BLOCK_ADS
"""Up to so many ads a pool of processes would take longer to start than it saves."""


@dataclass(slots=True)
class Filled:
    """What was generated."""

    ads: int = 0
    rows: int = 0
    """Of the ads DB."""
    documents: int = 0
    """Servable ones."""
    cells: int = 0
    seconds: float = 0.0


def fill(home: Home, catalog: Catalog, repo: EmbeddedRepo, log: Log, ads: int, seed: int) -> Filled:
    """Fill an empty home with `ads` ads and all that they join; `seed` decides every row but for schedules,
    which begin and end around today.

    Killed inside, it goes on where it was when it is called again with the same numbers; what it returns counts what
    this call did. Raises RepoError, LogError, AdsDbUnavailable, SourceUnavailable.
    """
    filled, started = Filled(ads), time.perf_counter()
    ensure_topics(log)
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
    job = BlockJob(home.root, catalog, seed, today, now_us(), new_trace_id())
    engine: Engine = InlineEngine() if ads <= _IN_PROCESS else LocalEngine()
    with AdsDb.open(home.ads_db) as ads_db, closing(engine):
        ads_db.ensure_capture(catalog, 0)
        for report in engine.map(partial(fill_block, job), _blocks(ads_db, ads)):
            _add(filled, report)
            _insert(ads_db, report.rows)
        last = repo.last_commit_ts()
        repo.trim_changes(last)  # the WAL proxy has taken them, and they led to nothing that is still to be done
        log.set_committed(
            [
                Position(GATEWAY_GROUP, CHANGE_FEED, 0, ads_db.last_change() + 1),
                Position(WAL_PROXY_GROUP, REPO_FEED, 0, last),
            ]
        )
    filled.seconds = time.perf_counter() - started
    return filled


def _blocks(ads_db: AdsDb, ads: int) -> Iterator[Block]:
    """Yield the blocks of which the ads DB has nothing yet."""
    for first in range(0, ads, _BLOCK_ADS):
        if not ads_db.select("SELECT id FROM ads WHERE id = :id", {"id": FIRST_AD + first}):
            yield Block(first, min(_BLOCK_ADS, ads - first))


def _add(filled: Filled, report: BlockReport) -> None:
    filled.rows += sum(map(len, report.rows.values()))
    filled.documents += report.documents
    filled.cells += report.cells


def _insert(ads_db: AdsDb, rows: SourceRows) -> None:
    with ads_db.engine.begin() as connection:
        for table, columns in INSERTED.items():
            marks = ", ".join("?" * len(columns.split(",")))
            if rows[table]:
                connection.exec_driver_sql(f"INSERT INTO {table} ({columns}) VALUES ({marks})", rows[table])
