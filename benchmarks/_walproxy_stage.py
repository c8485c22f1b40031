"""The WAL proxy as a process of `bench walproxy`: `python -m benchmarks._walproxy_stage HOME REPO_URL LOG_URL`.

Prints "ready" when HBase can ship to it, and runs until its standard input ends.
"""

from __future__ import annotations

import os
import sys
import threading
from contextlib import closing
from pathlib import Path

from benchmarks._walproxy_load import PEER_ID, TABLE, catalog_of, columns_of, schema_of
from cli.logs import configure_logging
from messaging.home import Home
from messaging.kafka import open_kafka_log
from messaging.metrics import StageMetrics
from messaging.stage import StageContext
from storage_repo.hbase import HbaseAddress
from storage_repo.hbase.names import HbaseNames
from storage_repo.hbase.wal import WalProxySettings, run


def main(directory: Path, repo_url: str, log_url: str) -> None:
    """Run the stage."""
    configure_logging(os.environ.get("ADSINDEX_LOG_LEVEL", "info"))
    catalog, home, stop = catalog_of(), Home.open(directory), threading.Event()

    def follow_input() -> None:
        sys.stdin.read()
        stop.set()

    threading.Thread(target=follow_input, daemon=True).start()
    with closing(open_kafka_log(log_url)) as log:
        context = StageContext(
            "wal_proxy", 0, home, catalog, log, StageMetrics(home.metrics, "wal_proxy-0"), stop,
            lambda port: print("ready", flush=True),
        )  # fmt: skip
        names = HbaseNames(schema_of(catalog), HbaseAddress.parse(repo_url).prefix)
        settings = WalProxySettings(peer_id=PEER_ID)
        run(context, repo_url, names, {TABLE: frozenset(columns_of(catalog))}, settings)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
