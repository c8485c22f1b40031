"""The workflows stage: starts what is scheduled, asked for by UI or RPC, or was interrupted, as processes."""

from __future__ import annotations

import structlog

from batch_workflows.rpc import serve
from batch_workflows.runs import RunStore
from batch_workflows.scheduler import Scheduler, Spawn
from batch_workflows.sync_requests import submit_wanted
from messaging import LogUnavailable
from messaging.stage import StageContext
from storage_repo import Repo, RepoError

LOOK_SECONDS = 1.0
"""Between two looks at queue and schedules: a person who starts a run waits no longer, and a look reads three rows."""
AWAY_SECONDS = 5.0


def run(context: StageContext, repo: Repo, spawn: Spawn) -> None:
    """Look for work until told to stop, and answer the RPC. While the Repo is away nothing is started; it says so."""
    server, port = serve(repo)
    scheduler = Scheduler(repo, spawn, context.metrics, base_dir=context.home.base)
    context.ready(port)
    wait = 0.0
    try:
        while not context.stop.wait(wait):
            context.beat()
            try:
                scheduler.tick()
                submit_wanted(context.log, RunStore(repo))
                wait = LOOK_SECONDS
            except (RepoError, LogUnavailable) as error:
                context.metrics.count("repo_away")
                structlog.get_logger().warning("workflows_cannot_look", error=str(error))
                wait = AWAY_SECONDS
    finally:
        server.stop(grace=1).wait()
        scheduler.stop()
        context.metrics.flush(force=True)
