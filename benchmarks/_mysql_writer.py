"""The application on a real server: commits planned updates to a MySQL ads DB, knowing nothing of the service.

`python -m benchmarks._mysql_writer URL PLAN OUT` writes [[begun_us, committed_us], ...] per transaction to OUT.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import closing
from pathlib import Path

import pymysql
from sqlalchemy.engine import make_url


def main(url: str, plan: Path, out: Path) -> None:
    """Commit every transaction at its time, or as soon as possible after it."""
    at = make_url(url)
    transactions = json.loads(plan.read_text())
    times: list[tuple[int, int]] = []
    connection = pymysql.connect(
        host=at.host or "127.0.0.1",
        port=at.port or 3306,
        user=at.username or "",
        password=at.password or "",
        database=at.database,
        charset="utf8mb4",
    )
    with closing(connection), connection.cursor() as cursor:
        started = time.monotonic()
        for at_s, rows in transactions:
            if (early := at_s - (time.monotonic() - started)) > 0:
                time.sleep(early)
            begun = time.time_ns() // 1000
            for table, column, key, value, _ in rows:
                cursor.execute(f"UPDATE {table} SET {column} = %s WHERE id = %s", (value, key))
            connection.commit()
            times.append((begun, time.time_ns() // 1000))
    part = out.with_suffix(".part")
    part.write_text(json.dumps(times))
    part.replace(out)


if __name__ == "__main__":
    main(sys.argv[1], *map(Path, sys.argv[2:4]))
