"""The application: commits planned updates to the ads DB from a process of its own, knowing nothing of the service.

`python -m benchmarks._writer ADS_DB PLAN OUT` writes [[begun_us, committed_us], ...] per transaction to OUT.
"""

from __future__ import annotations

import json
import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path


def main(ads_db: Path, plan: Path, out: Path) -> None:
    """Commit every transaction at its time, or as soon as possible after it; each is synced when COMMIT returns."""
    transactions = json.loads(plan.read_text())
    times: list[tuple[int, int]] = []
    with closing(sqlite3.connect(ads_db, timeout=30.0, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous=FULL")
        started = time.monotonic()
        for at_s, rows in transactions:
            if (early := at_s - (time.monotonic() - started)) > 0:
                time.sleep(early)
            begun = time.time_ns() // 1000
            connection.execute("BEGIN IMMEDIATE")
            for table, column, key, value, _ in rows:
                connection.execute(f"UPDATE {table} SET {column} = ? WHERE id = ?", (value, key))
            connection.execute("COMMIT")
            times.append((begun, time.time_ns() // 1000))
    part = out.with_suffix(".part")
    part.write_text(json.dumps(times))
    part.replace(out)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
