"""The workflows that need no module of their own: what each takes, and which function does it."""

from __future__ import annotations

from batch_workflows._exceptions import UnknownSelection
from batch_workflows.refresh import resync
from batch_workflows.repair import repair_after_restore
from batch_workflows.retention import apply_retention
from batch_workflows.runner import Counts, NoParameters, RunContext, workflow
from storage_repo.embedded import EmbeddedRepo


@workflow("resync", "read every row of the ads DB again, and delete what it lacks, at low priority", NoParameters)
def resync_rows(context: RunContext[NoParameters]) -> Counts:
    """Ask for all rows to be read again."""
    done = resync(
        context.ads_db, context.catalog, context.log, context.repo,
        check=context.check, progress=lambda looked: context.progress(looked, unit="rows"),
    )  # fmt: skip
    return {"rows": done.rows, "gone": done.gone}


@workflow(
    "repair-after-restore",
    "accept a store that was restored without its log: read and publish everything again",
    NoParameters,
    needs_rest=True,
)
def repair(context: RunContext[NoParameters]) -> Counts:
    """Accept the store and have everything published again."""
    if not isinstance(context.repo, EmbeddedRepo):
        raise UnknownSelection(
            "repair-after-restore is for the embedded Repo; a Repo on HBase gives no timestamp twice. After a restore "
            "of HBase run resync and refresh"
        )
    repaired = repair_after_restore(context.home, context.catalog, context.repo, context.ads_db, context.log)
    return {**repaired.to_json(), "note": "the pipeline does the rest: start the service with up"}


@workflow("collect-garbage", "drop cell versions, log records and old bases that nothing needs any more", NoParameters)
def collect_garbage(context: RunContext[NoParameters]) -> Counts:
    """Drop what nothing needs."""
    trimmed = apply_retention(context.home, context.log)
    return {
        "versions_collected": context.repo.collect_garbage(),
        "records_trimmed": {**trimmed.records},
        "bases_removed": [*trimmed.bases],
    }
