"""One queued run: `python -m cli.workflow_process --home DIR --workflow NAME`. Started by the workflows stage."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import structlog

from cli.errors import known_errors
from cli.logs import configure_logging
from cli.runtime import die_with_parent
from cli.workflow_runs import run_workflow
from messaging.home import Home


def main(arguments: list[str] | None = None) -> None:
    """Take the workflow's run from the queue and run it to its end; SIGTERM ends it after its present unit of work."""
    parser = argparse.ArgumentParser(prog="adsindex-workflow")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--workflow", required=True)
    options = parser.parse_args(arguments)
    die_with_parent()
    configure_logging(os.environ.get("ADSINDEX_LOG_LEVEL", "info"))
    try:
        result = run_workflow(Home.open(options.home), options.workflow, queued=True)
    except known_errors() as error:
        structlog.get_logger().error("workflow_ended", workflow=options.workflow, error=str(error))
        raise SystemExit(1) from error
    structlog.get_logger().info("workflow_ended", **result)


if __name__ == "__main__":
    main()
