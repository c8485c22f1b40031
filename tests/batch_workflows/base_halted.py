"""Builders that halt after so many units of work, to be killed there: a line of standard input is UNITS HOME.

Each is forked from this process, which has imported all and opened nothing. It says its pid and the version that it
builds, then "halted", and waits for ever; this process waits for its end, and says "ended".
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from batch_workflows import _base_checkpoint
from batch_workflows.base_index import BuildOptions, Hooks, build_base_index, open_embedded_repo
from batch_workflows.engines import InlineEngine
from catalog import load_catalog
from messaging import open_embedded_log
from messaging.home import Home
from tests.batch_workflows.base_support import CHECKED


def main() -> None:
    """Start a builder per line."""
    _base_checkpoint._SAVE_EVERY_S = 0.0
    for line in sys.stdin:
        units, _, root = line.strip().partition(" ")
        pid = os.fork()
        if pid == 0:
            build(Home.open(Path(root)), int(units))
            os._exit(1)
        os.waitpid(pid, 0)
        print("ended", flush=True)


def build(home: Home, left: int) -> None:
    """Build until it is time to halt."""

    def check() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            print("halted", flush=True)
            signal.pause()

    catalog = load_catalog()
    log, repo = open_embedded_log(home.log, home.wake), open_embedded_repo(home, catalog)
    hooks = Hooks(check=check, begun=lambda version: print(f"{os.getpid()} {version}", flush=True))
    build_base_index(home, catalog, repo, log, options=BuildOptions(**CHECKED), engine=InlineEngine(), hooks=hooks)


if __name__ == "__main__":
    main()
