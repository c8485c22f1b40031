"""Run the Manas stage of a home as a process of its own, with settings as key=value; print the port once ready."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path

from catalog import load_catalog
from manas.server import run
from messaging.embedded import open_embedded_log
from messaging.home import Home
from messaging.metrics import StageMetrics
from messaging.stage import StageContext


def main(root: str, *settings: str) -> None:
    """Serve until SIGTERM."""
    home = Home.open(Path(root))
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    log = open_embedded_log(home.log, home.wake)
    metrics = StageMetrics(home.metrics, "manas")
    context = StageContext("manas", 0, home, load_catalog(), log, metrics, stop, lambda port: print(port, flush=True))
    for setting in settings:
        name, _, value = setting.partition("=")
        context.settings[name] = value
    run(context)
    log.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
