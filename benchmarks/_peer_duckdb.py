"""A DuckDB rebuild with difference: join everything in memory, hash each document, fetch those whose hash changed.

`python -m benchmarks._peer_duckdb ADS_DB PLAN ROUNDS` applies a part of the plan before every rebuild and prints
figures as JSON. Loading the tables and taking in the changes are not in the timings, and nothing is durable.
"""

from __future__ import annotations

import csv
import json
import sqlite3
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any

import duckdb

from benchmarks._peers import TABLES

_CHANGES = 200
"""Applied before every rebuild: a second of the steady load."""
_SQL_TYPES = {int: "BIGINT", str: "VARCHAR"}

_JOIN = """FROM ads JOIN ad_groups ON ad_groups.id = ads.ad_group_id JOIN campaigns ON campaigns.id = campaign_id
JOIN advertisers ON advertisers.id = advertiser_id JOIN pins ON pins.id = ads.pin_id"""
_COLUMNS = [f"{table}.{column}" for table, (_, columns) in TABLES.items() for column in columns]
_HASHES = f"SELECT ads.id AS id, hash({', '.join(_COLUMNS)}) AS hash {_JOIN}"
_CHANGED = f"""SELECT {", ".join(_COLUMNS)} {_JOIN} WHERE ads.id IN (
SELECT id FROM fresh LEFT JOIN known USING (id) WHERE known.hash IS DISTINCT FROM fresh.hash)"""


def main(ads_db: Path, plan: Path, rounds: int) -> None:
    """Print {"documents", "rebuild_s", "rebuilds", "changed", "cpu_s"}."""
    connection = duckdb.connect()
    with closing(sqlite3.connect(ads_db)) as source, tempfile.TemporaryDirectory() as directory:
        for table, (_, columns) in TABLES.items():
            file = Path(directory) / f"{table}.csv"
            with file.open("w", newline="") as out:
                csv.writer(out).writerows(source.execute(f"SELECT {', '.join(columns)} FROM {table}"))
            types = {name: _SQL_TYPES[kind] for name, kind in columns.items()}
            connection.execute(
                f"CREATE TABLE {table} AS SELECT * FROM read_csv(?, header=false, columns={types})", [str(file)]
            )
    updates = [row for _, rows in json.loads(plan.read_text()) for row in rows]
    connection.execute(f"CREATE TABLE known AS {_HASHES}")
    took, used, changed = [], [], 0
    for number in range(rounds + 1):
        for table, column, key, value, _ in updates[number * _CHANGES : (number + 1) * _CHANGES]:
            connection.execute(f"UPDATE {table} SET {column} = ? WHERE id = ?", [value, key])
        started, cpu = time.perf_counter(), time.process_time()
        connection.execute(f"CREATE TABLE fresh AS {_HASHES}")
        rows: list[Any] = connection.execute(_CHANGED).fetchall()
        connection.execute("DROP TABLE known")
        connection.execute("ALTER TABLE fresh RENAME TO known")
        if number:  # the first one warms up
            took.append(time.perf_counter() - started)
            used.append(time.process_time() - cpu)
            changed += len(rows)
    counted = connection.execute("SELECT count(*) FROM known").fetchone()
    figures = {"rebuild_s": median(took), "cpu_s": median(used), "rebuilds": rounds, "changed": changed}
    print(json.dumps({"documents": counted[0] if counted else 0, **figures}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
