"""A pool whose two processes say that they are there and then sit: `engine_sleeper FOLDER`."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from batch_workflows.engines import LocalEngine


def sit(folder: str) -> None:
    """A task that would take ten minutes."""
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(600)


if __name__ == "__main__":
    list(LocalEngine(2).map(sit, [sys.argv[1]] * 2))
