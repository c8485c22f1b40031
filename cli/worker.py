"""One stage process: `python -m cli.worker STAGE --home DIR --worker N`. Started by the supervisor."""

from __future__ import annotations

import argparse
import gc
import os
import signal
import threading
from pathlib import Path
from types import FrameType

import psutil
import structlog

from cli.logs import configure_logging
from cli.runtime import RunCatalog, code_version, die_with_parent, open_catalog, open_log, process_file
from cli.settings import stage_settings
from cli.stages import STAGES
from messaging.home import Home
from messaging.metrics import StageMetrics
from messaging.stage import StageContext

_GC_THRESHOLD = 50_000
"""New objects between two looks for cycles. A batch makes some ten thousand objects that live as long as the batch and
form no cycles; Python's default of 700 spends a sixth of the processor on looking through them again and again."""


def settle_memory() -> None:
    """Leave what has been imported out of the search for cycles, and search less often."""
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD, 20, 20)


def main(arguments: list[str] | None = None) -> None:
    """Run one stage until SIGTERM or until the supervisor is gone."""
    parser = argparse.ArgumentParser(prog="adsindex-stage")
    parser.add_argument("stage", choices=sorted(STAGES))
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--worker", type=int, default=0)
    parser.add_argument("--restarts", type=int, default=0)
    parser.add_argument("--catalog", nargs=2, type=Path, metavar=("COPY", "SOURCE"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args(arguments)
    die_with_parent()
    configure_logging(os.environ.get("ADSINDEX_LOG_LEVEL", "info"))
    stop = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the supervisor decides
    home = Home.open(options.home)
    catalog = RunCatalog(*options.catalog).load() if options.catalog else open_catalog(home)
    process = f"{options.stage}-{options.worker}"
    file = process_file(home, process)
    born = psutil.Process().create_time()
    describe = {
        "process": process,
        "stage": options.stage,
        "worker": options.worker,
        "pid": os.getpid(),
        "born": born,
        "started_at": born,
        "restarts": options.restarts,
    }
    file.write(**describe, port=0, state="starting")

    def ready(port: int) -> None:
        file.write(**describe, port=port, state="ready")

    log = open_log(home)
    settle_memory()
    context = StageContext(
        name=options.stage,
        worker=options.worker,
        home=home,
        catalog=catalog,
        log=log,
        metrics=StageMetrics(home.metrics, process),
        stop=stop,
        ready=ready,
        code_version=code_version(),
        settings=stage_settings(home) | dict(item.split("=", 1) for item in options.set),
    )
    try:
        STAGES[options.stage](context)
    except Exception:
        structlog.get_logger().exception("stage_failed", stage=options.stage, worker=options.worker)
        raise
    finally:
        context.metrics.flush(force=True)
        log.close()
    file.path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
