"""A process that syncs a home, and does the pipeline's work while it waits: `python sync_worker.py HOME`."""

from __future__ import annotations

import sys
from pathlib import Path

from batch_workflows import sync
from batch_workflows._runs_model import RunRequest
from batch_workflows.execution import execute
from batch_workflows.runs import RunStore
from tests.batch_workflows.sync_support import work
from tests.debug_ui.pipeline import Pipeline


def main() -> None:
    """Go on with the run that was killed, or begin one; say when it has begun and when it is done."""
    pipeline = Pipeline.open(Path(sys.argv[1]), capture=False)
    sync._sleep = lambda _: work(pipeline)
    last = next(iter(RunStore(pipeline.backends.repo).runs("sync", 1)), None)
    resume = last.number if last is not None and last.resumable else None
    print("begun", flush=True)
    record = execute(pipeline.backends, RunRequest(workflow="sync", resume=resume))
    work(pipeline)
    print("done", record.id, flush=True)
    pipeline.close()


if __name__ == "__main__":
    main()
