"""A process that runs the Updater on a home until its input ends: `python -m tests.updater.worker HOME`."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from tests.updater.stages import stage_context
from updater.stage import run


def main() -> None:
    """Run the stage on the home given."""
    context, repo = stage_context(Path(sys.argv[1]), f"updater-{os.getpid()}")

    def stop_at_end_of_input() -> None:
        sys.stdin.read()
        context.stop.set()

    threading.Thread(target=stop_at_end_of_input, daemon=True).start()
    run(context, repo)
    repo.close()
    context.log.close()


if __name__ == "__main__":
    main()
