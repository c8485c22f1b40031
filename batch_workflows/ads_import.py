"""Import of an ads export: CSV rows become entities of the ads DB and figures of the performance database.

Bad rows are reported, good ones go in. Everything is compared before it is written: loading again changes nothing, and
after a crash it goes on where it was.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import func, select
from sqlalchemy.exc import DBAPIError

from argus.sources.performance import PerformanceDb, PerformanceRow
from batch_workflows import _ads_import_state as state
from batch_workflows._ads_import_errors import InvalidExport, InvalidMapping
from batch_workflows._ads_import_mapping import Mapping, load_mapping, resolve_mapping
from batch_workflows._ads_import_rows import BadRow, ImportedRow, RowReader
from batch_workflows._performance_signals import announce_performance
from gateway import AdsDb, AdsDbUnavailable
from gateway.models import Ad, Base
from messaging import Log
from messaging.topics import ensure_topics

__all__ = [
    "BadRow",
    "ImportReport",
    "InvalidExport",
    "InvalidMapping",
    "load_csv",
    "resolve_mapping",
]

CHUNK = 1_000
"""CSV rows per transaction: applications can write in between, and the pipeline works on the first while the next is
read."""

KEPT_BAD_ROWS = 1_000
"""Bad rows listed in a report; the rest is only counted."""

_log = structlog.get_logger()


@dataclass(slots=True)
class ImportReport:
    """What a load did. `inserted`, `updated` and `unchanged` count rows per ads DB table."""

    source: str
    file: str
    rows_read: int = 0
    rows_good: int = 0
    rows_bad: int = 0
    bad_by_reason: Counter[str] = field(default_factory=Counter)
    bad: list[BadRow] = field(default_factory=list)
    inserted: Counter[str] = field(default_factory=Counter)
    updated: Counter[str] = field(default_factory=Counter)
    unchanged: Counter[str] = field(default_factory=Counter)
    performance_changed: int = 0
    paired: int = 0
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return a form for JSON."""
        plain = {name: getattr(self, name) for name in self.__slots__ if name != "bad"}
        return {**plain, "bad": [row.to_json() for row in self.bad]}

    def to_text(self) -> str:
        """Return a form for people, a bad row per line."""
        parts = [f"{self.file}: {self.rows_read} rows read, {self.rows_good} good, {self.rows_bad} bad"]
        for what in ("inserted", "updated", "unchanged"):
            if counts := {table: n for table, n in getattr(self, what).items() if n}:
                parts.append(f"  {what}: " + ", ".join(f"{n} {table}" for table, n in counts.items()))
        parts.append(f"  performance changed: {self.performance_changed} ads; creatives paired: {self.paired} ads")
        parts += [f"  {row}" for row in self.bad]
        if self.rows_bad > len(self.bad):
            parts.append(f"  ... and {self.rows_bad - len(self.bad)} more bad rows: {dict(self.bad_by_reason)}")
        parts += [f"  warning: {text}" for text in self.warnings]
        return "\n".join(parts)

    def add_bad(self, row: BadRow) -> None:
        """Count a bad row, and list it while there is room."""
        self.rows_bad += 1
        self.bad_by_reason[row.reason] += 1
        if len(self.bad) < KEPT_BAD_ROWS:
            self.bad.append(row)


def load_csv(
    csv_path: Path, mapping_path: Path | str, ads_db: AdsDb, performance_db_path: Path, log: Log
) -> ImportReport:
    """Load an export by a mapping (a file, or the short name of one in mappings/) and report what was done.

    Raises InvalidMapping or InvalidExport before anything is written, AdsDbUnavailable, SourceUnavailable, LogError.
    Rows go in by chunks of one transaction each; whoever is killed in between loads again.
    """
    started = time.monotonic()
    mapping, lines = load_mapping(mapping_path)
    reader = RowReader(csv_path, mapping, lines)
    report = ImportReport(mapping.source, str(csv_path))
    ensure_topics(log)
    with closing(PerformanceDb(performance_db_path)) as performance:
        load = _Load(mapping, ads_db, performance, log, report)
        try:
            load.run(reader)
            load.pair()
        except DBAPIError as error:
            raise AdsDbUnavailable(f"ads DB {ads_db.name}: {error.orig}; load again, it goes on from here") from error
    report.seconds = time.monotonic() - started
    counts = {k: v for k, v in report.to_json().items() if k not in ("bad", "warnings")}
    _log.info("ads_import", **counts)
    return report


class _Load:
    def __init__(
        self, mapping: Mapping, ads_db: AdsDb, performance: PerformanceDb, log: Log, report: ImportReport
    ) -> None:
        self._mapping, self._ads_db, self._performance, self._log = mapping, ads_db, performance, log
        self._report = report
        self._written = state.Written(report.inserted, report.updated, report.unchanged)
        self._keys = {name: state.key_column(Base.metadata.tables[name]).name for name in mapping.entities}
        with ads_db.engine.begin() as connection:
            state.ensure_state(connection)

    def run(self, reader: RowReader) -> None:
        """Bring in all rows, chunk by chunk."""
        with closing(_Seen()) as seen:
            chunk: list[ImportedRow] = []
            for row in reader:
                self._report.rows_read += 1
                if isinstance(row, ImportedRow):
                    try:
                        chunk.append(self._new_of(row, seen))
                        self._report.rows_good += 1
                    except BadRow as bad:
                        self._report.add_bad(bad)
                else:
                    self._report.add_bad(row)
                if len(chunk) >= CHUNK:
                    self._write(chunk)
                    chunk = []
            self._write(chunk)

    def pair(self) -> None:
        """Apply the mapping's pairings to ads that have no pin, and warn about those that stay without one."""
        for pairing in self._mapping.pairings:
            with self._ads_db.engine.begin() as connection:
                ads = state.positions_of(connection, pairing.ads, "ads")
                pins = state.positions_of(connection, pairing.pins, "pins")
            for first in range(0, ads if pins else 0, CHUNK):
                with self._ads_db.engine.begin() as connection:
                    self._report.paired += state.pair(connection, pairing.ads, pairing.pins, first, CHUNK, pins)
        if "ads" in self._mapping.entities or "pins" in self._mapping.entities:
            with self._ads_db.engine.begin() as connection:
                lacking = connection.execute(select(func.count()).where(Ad.pin_id.is_(None))).scalar_one()
            if lacking:
                pins_of = next((p.pins for p in self._mapping.pairings), None)
                hint = f"--mapping {pins_of}" if pins_of else "with a mapping that fills pins"
                self._report.warnings.append(
                    f"{lacking} ads have no creative and cannot be served: load a product export, "
                    f"e.g. `./adsindex load PRODUCTS.csv {hint}`"
                )

    def _new_of(self, row: ImportedRow, seen: _Seen) -> ImportedRow:
        """Return what of a row has not been met in this load. Raises BadRow for what contradicts an earlier line."""
        new: list[tuple[str, dict[str, Any]]] = []
        for table, values in row.entities:
            if self._is_new(row.line, table, str(values[self._keys[table]]), values, seen):
                new.append((table, values))
        performance: dict[str, Any] | None = row.performance
        if performance is not None and not self._is_new(
            row.line, "performance", str(performance["ad_id"]), performance, seen
        ):
            performance = None
        for table, values in new:
            seen.add(table, str(values[self._keys[table]]), row.line, state.canonical(values))
        if performance is not None:
            seen.add("performance", str(performance["ad_id"]), row.line, state.canonical(performance))
        return ImportedRow(row.line, new, performance)

    def _is_new(self, line: int, table: str, key: str, values: dict[str, Any], seen: _Seen) -> bool:
        found = seen.get(table, key)
        if found is None:
            return True
        first, before = found
        if before == state.canonical(values):
            return False
        old, new = json.loads(before), json.loads(state.canonical(values))
        name = next((n for n in new if old.get(n) != new[n]), next(iter(new)))
        text = f"{table} {key} has {name} {str(old.get(name))[:80]!r} on line {first}, and another value here"
        raise BadRow(line, f"{table}.{name}", str(new[name]), "conflict", text)

    def _write(self, rows: list[ImportedRow]) -> None:
        by_table: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            for table, values in row.entities:
                by_table.setdefault(table, []).append(values)
        with self._ads_db.engine.begin() as connection:
            for table in self._mapping.entities:
                if by_table.get(table):
                    state.write(connection, self._mapping.source, table, by_table[table], self._written)
        figures = [PerformanceRow(**row.performance) for row in rows if row.performance is not None]
        if figures:
            self._report.performance_changed += len(self._performance.upsert(figures))
        announce_performance(self._performance, self._log)


class _Seen:
    """What this load has met: an SQLite database of its own that goes to a temporary file when it grows."""

    def __init__(self) -> None:
        self._connection = sqlite3.connect("", isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = OFF")
        self._connection.execute(
            "CREATE TABLE seen (t TEXT, k TEXT, line INTEGER, v TEXT, PRIMARY KEY (t, k)) WITHOUT ROWID"
        )
        self._connection.execute("BEGIN")

    def get(self, table: str, key: str) -> tuple[int, str] | None:
        found: tuple[int, str] | None = self._connection.execute(
            "SELECT line, v FROM seen WHERE t = ? AND k = ?", (table, key)
        ).fetchone()
        return found

    def add(self, table: str, key: str, line: int, values: str) -> None:
        self._connection.execute("INSERT OR IGNORE INTO seen VALUES (?, ?, ?, ?)", (table, key, line, values))

    def close(self) -> None:
        self._connection.close()
