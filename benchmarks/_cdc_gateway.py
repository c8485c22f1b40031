"""The Gateway as a tail of `bench cdc`: the stage itself, in a process that says when rows are dealt with.

`python -m benchmarks._cdc_gateway HOME` with the backends that HOME's settings name; see `_cdc_tail.Tail`.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

from benchmarks._cdc_rows import HELD_S
from cli.logs import configure_logging
from cli.runtime import open_catalog, open_log
from cli.settings import stage_settings
from cli.worker import settle_memory
from gateway import _binlog_reader
from gateway.stage import run
from messaging.home import Home
from messaging.metrics import StageMetrics
from messaging.stage import StageContext


class CountingMetrics(StageMetrics):
    """Metrics of a stage that also answer when enough changes were published."""

    def __init__(self, home: Home) -> None:
        super().__init__(home.metrics, "gateway-0")
        self._answering = threading.Lock()
        self._changes = 0
        self._wanted: int | None = None

    def expect(self, rows: int) -> None:
        """Answer on standard output once that many more changes were published."""
        with self._answering:
            self._wanted = rows
            self._answer()

    def count(self, name: str, amount: int = 1) -> None:
        """Add to a counter; "changes" counts changes whose messages the log has acknowledged."""
        super().count(name, amount)
        if name == "changes":
            with self._answering:
                self._changes += amount
                self._answer()

    def _answer(self) -> None:
        if self._wanted is not None and self._changes >= self._wanted:
            sys.stdout.write(json.dumps({"rows": self._changes}) + "\n")
            sys.stdout.flush()
            self._changes, self._wanted = 0, None


def main(directory: Path) -> None:
    """Run the Gateway until standard input ends."""
    # This process is held while rows are written: its watchdog would take that for a dead connection.
    _binlog_reader.SILENT_SECONDS = HELD_S  # type: ignore[attr-defined]
    configure_logging(os.environ.get("ADSINDEX_LOG_LEVEL", "info"))
    home = Home.open(directory)
    stop = threading.Event()
    log = open_log(home)
    settle_memory()  # as every stage's process does
    metrics = CountingMetrics(home)

    def follow_requests() -> None:
        for line in sys.stdin:
            metrics.expect(int(line))
        stop.set()

    threading.Thread(target=follow_requests, daemon=True).start()
    try:
        run(
            StageContext(
                name="gateway",
                worker=0,
                home=home,
                catalog=open_catalog(home),
                log=log,
                metrics=metrics,
                stop=stop,
                ready=lambda port: None,
                settings=stage_settings(home),
            )
        )
    finally:
        log.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
