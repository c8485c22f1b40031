"""The workflows by name."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from cli.backends import backends
from cli.runtime import CommandError
from cli.supervisor import Supervisor
from messaging.home import Home
from storage_repo.embedded import EmbeddedRepo

WORKFLOWS = {
    "base-index": "build a base index from one snapshot, check it, publish it by moving a pointer",
    "rollback-base": "move the pointer back to the base index before the current one",
    "refresh": "run the handlers again over everything or a selection, at low priority",
    "resync": "read every row of the ads DB again, and delete what it lacks, at low priority",
    "repair-after-restore": "accept a store that was restored without its log: read and publish everything again",
    "collect-garbage": "drop cell versions, log records and old bases that nothing needs any more",
}


def run_workflow(
    home: Home, name: str, *, table: str, ids: Sequence[str], advertiser: str, stored: bool, force: bool
) -> dict[str, Any]:
    """Run a workflow to its end and return its record. Raises CommandError for an unknown name."""
    from batch_workflows.base_index import build_base_index
    from batch_workflows.refresh import refresh, resync
    from batch_workflows.repair import repair_after_restore
    from batch_workflows.retention import apply_retention
    from manas import rollback

    if name not in WORKFLOWS:
        raise CommandError(f"no workflow {name!r}; there are {', '.join(WORKFLOWS)}")
    started = time.monotonic()
    with backends(home) as opened:
        result: dict[str, Any]
        if name == "base-index":
            report = build_base_index(
                home, opened.catalog, opened.repo, opened.log, recompute=not stored, force=force, progress=_progress()
            )
            result = report.to_json()
        elif name == "rollback-base":
            result = {"base_version": rollback(home.base)}
        elif name == "refresh":
            refreshed = refresh(opened.repo, opened.log, opened.catalog, table=table, ids=ids, advertiser=advertiser)
            result = {"rows": refreshed.rows, "by_table": refreshed.by_table}
            if serving_down(home):
                result["note"] = "the service is not up; the rows run when it is"
        elif name == "resync":
            if serving_down(home):
                opened.ads_db.ensure_capture(opened.catalog)
            resynced = resync(opened.ads_db, opened.catalog, opened.log, opened.repo)
            result = {"rows": resynced.rows, "gone": resynced.gone}
        elif name == "repair-after-restore":
            if not isinstance(opened.repo, EmbeddedRepo):
                raise CommandError(
                    "repair-after-restore is for the embedded Repo; a Repo on HBase gives no timestamp twice. After a "
                    "restore of HBase run resync and refresh"
                )
            with Supervisor(home, []):  # holds the home's lock: no stage may run meanwhile
                repaired = repair_after_restore(home, opened.catalog, opened.repo, opened.ads_db, opened.log)
            result = {**repaired.to_json(), "note": "the pipeline does the rest: start the service with up"}
        else:
            trimmed = apply_retention(home, opened.log)
            result = {
                "versions_collected": opened.repo.collect_garbage(),
                "records_trimmed": trimmed.records,
                "bases_removed": trimmed.bases,
            }
    return {"workflow": name, **result, "seconds": round(time.monotonic() - started, 3)}


def serving_down(home: Home) -> bool:
    """Return whether no `up` runs on the home."""
    from cli.runtime import process_file

    return process_file(home, "up").read() is None


def _progress() -> Any:
    """Return a callback (done, total) that draws a progress bar with rate and ETA on a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        return None
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
    )
    bar.start()
    task = bar.add_task("documents", total=None)

    def update(done: int, total: int | None) -> None:
        bar.update(task, completed=done, total=total)
        if total is not None and done >= total:
            bar.stop()

    return update
