"""Pathway's streaming join of the same five tables, in memory and in one process.

`python -m benchmarks._peer_pathway ADS_DB STEADY_PLAN WARM_UP_S STORM_PLAN` loads the tables, replays both plans and
prints figures as JSON. Latency is from next() in the connector to the callback with the last changed row. The
connectors use upsert sessions: the default one adds a second copy of a changed row.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pathway as pw

from benchmarks._peers import TABLES

_AUTOCOMMIT_MS = 20
_QUIET_S = 1.0
"""Without a callback for so long, everything that was sent has been joined."""
_LOAD_LIMIT_S = 240.0

_KEY = "key"
"""Stands for the column "id", which in Pathway is its own pointer."""

Row = dict[str, Any]


class _Source(pw.io.python.ConnectorSubject):  # type: ignore[misc]
    """Feeds one table from a queue; stamps a row when it is handed to Pathway."""

    def __init__(self) -> None:
        super().__init__(session_type="upsert")
        self.rows: SimpleQueue[tuple[Row, list[float]]] = SimpleQueue()

    def run(self) -> None:
        """Send rows for ever: the driver ends the process."""
        while True:
            row, stamp = self.rows.get()
            stamp.append(time.monotonic())
            self.next(**row)


class _Sink:
    """Sees every changed document; keeps when it was seen."""

    def __init__(self) -> None:
        self.documents: dict[int, Row] = {}
        self.seen: dict[tuple[int, str, Any], list[float]] = {}
        """(ad, column, value) -> times, for values that the plans set."""
        self.wanted: set[tuple[str, Any]] = set()
        self.last = time.monotonic()
        self.additions = 0

    def on_change(self, key: Any, row: Row, time: int, is_addition: bool) -> None:
        """Take one change."""
        now = _monotonic()
        ad = row["ad_id"]
        self.last = now
        if not is_addition:
            if self.documents.get(ad) == row:  # an addition of the same commit may have come first
                del self.documents[ad]
            return
        self.documents[ad] = row
        self.additions += 1
        for column in ("ad_status", "ad_group_status", "ad_group_bid_micros"):
            if (column, row[column]) in self.wanted:
                self.seen.setdefault((ad, column, row[column]), []).append(now)


_monotonic = time.monotonic


def _schema(table: str) -> Any:
    columns = {
        _KEY if name == "id" else name: pw.column_definition(
            dtype=kind if name.endswith("id") else kind | None, primary_key=name == "id"
        )
        for name, kind in TABLES[table][1].items()
    }
    return pw.schema_builder(columns, name=table)


def _joined(sources: dict[str, _Source]) -> Any:
    tables = {
        name: pw.io.python.read(source, schema=_schema(name), autocommit_duration_ms=_AUTOCOMMIT_MS)
        for name, source in sources.items()
    }
    ads, groups, campaigns, advertisers, pins = (
        tables[name].select(
            **{f"{TABLES[name][0]}_{c}": tables[name][_KEY if c == "id" else c] for c in TABLES[name][1]}
        )
        for name in ("ads", "ad_groups", "campaigns", "advertisers", "pins")
    )
    joined = ads.join(groups, ads.ad_ad_group_id == groups.ad_group_id).select(*pw.left, *pw.right)
    joined = joined.join(campaigns, joined.ad_group_campaign_id == campaigns.campaign_id).select(*pw.left, *pw.right)
    joined = joined.join(advertisers, joined.campaign_advertiser_id == advertisers.advertiser_id).select(
        *pw.left, *pw.right
    )
    return joined.join(pins, joined.ad_pin_id == pins.pin_id).select(*pw.left, *pw.right)


class _Driver(threading.Thread):
    """Loads, replays and measures while Pathway runs in the main thread, then ends the process."""

    def __init__(self, ads_db: Path, sources: dict[str, _Source], sink: _Sink, plans: tuple[Path, float, Path]) -> None:
        super().__init__(daemon=True)
        self._sources, self._sink, self._plans = sources, sink, plans
        with closing(sqlite3.connect(ads_db)) as connection:
            self._rows = {
                table: {
                    row[0]: dict(zip((_KEY, *list(columns)[1:]), row, strict=True))
                    for row in connection.execute(f"SELECT {', '.join(columns)} FROM {table}")  # "id" comes first
                }
                for table, (_, columns) in TABLES.items()
            }

    def run(self) -> None:
        """Measure, print and leave."""
        code = 1
        try:
            print(json.dumps(self._measure()), flush=True)
            code = 0
        finally:
            os._exit(code)

    def _measure(self) -> Row:
        steady_file, warm_up_s, storm_file = self._plans
        expected = len(self._rows["ads"])
        cpu, started = time.process_time(), time.monotonic()
        for table, rows in self._rows.items():
            for row in rows.values():
                self._sources[table].rows.put((row, []))
        while len(self._sink.documents) < expected:
            if time.monotonic() - started > _LOAD_LIMIT_S:
                raise RuntimeError(f"{len(self._sink.documents)} of {expected} documents after {_LOAD_LIMIT_S:.0f} s")
            time.sleep(0.005)
        figures: Row = {"documents": expected, "load_s": self._sink.last - started}
        self._settle()
        figures["load_cpu_s"] = time.process_time() - cpu
        steady = self._replay(steady_file)
        figures["latencies_ms"], figures["unmatched"] = self._latencies([s for s in steady if s[0] >= warm_up_s])
        before, cpu = self._sink.additions, time.process_time()
        storm = self._replay(storm_file)
        figures["storm_s"] = self._sink.last - min(stamp[0] for _, _, stamp in storm)
        figures["storm_cpu_s"] = time.process_time() - cpu
        figures["storm_documents"] = self._sink.additions - before
        if len(self._sink.documents) != expected:
            raise RuntimeError(f"{len(self._sink.documents)} documents at the end, expected {expected}")
        return figures

    def _replay(self, plan: Path) -> list[tuple[float, list[Any], list[float]]]:
        """Send a plan's updates at their times and wait until all has come out; return (at_s, update, stamps)."""
        sent = []
        transactions = json.loads(plan.read_text())
        for _, updates in transactions:
            for table, column, _, value, _ in updates:
                self._sink.wanted.add((f"{TABLES[table][0]}_{column}", value))
        started = time.monotonic()
        for at_s, updates in transactions:
            if (early := at_s - (time.monotonic() - started)) > 0:
                time.sleep(early)
            for update in updates:
                table, column, key, value, _ = update
                row = self._rows[table][key] = {**self._rows[table][key], column: value}
                stamp: list[float] = []
                self._sources[table].rows.put((row, stamp))
                sent.append((at_s, update, stamp))
        self._settle()
        return sent

    def _settle(self) -> None:
        time.sleep(_QUIET_S)
        while time.monotonic() - self._sink.last < _QUIET_S:
            time.sleep(0.01)

    def _latencies(self, sent: list[tuple[float, list[Any], list[float]]]) -> tuple[list[float], int]:
        found, unmatched = [], 0
        for _, (table, column, _, value, documents), stamp in sent:
            name = f"{TABLES[table][0]}_{column}"
            times = [
                next((at for at in self._sink.seen.get((int(d), name, value), ()) if at >= stamp[0]), None)
                for d in documents
            ]
            if None in times:
                unmatched += 1
            else:
                found.append((max(at for at in times if at is not None) - stamp[0]) * 1e3)
        return found, unmatched


def main(ads_db: Path, steady: Path, warm_up_s: float, storm: Path) -> None:
    """Run until the driver has printed its figures."""
    sources = {table: _Source() for table in TABLES}
    sink = _Sink()
    pw.io.subscribe(_joined(sources), on_change=sink.on_change)
    _Driver(ads_db, sources, sink, (steady, warm_up_s, storm)).start()
    pw.run(monitoring_level=pw.MonitoringLevel.NONE)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4]))
