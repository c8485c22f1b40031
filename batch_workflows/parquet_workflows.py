"""Snapshot to Parquet and its import, as workflows."""

from __future__ import annotations

from contextlib import closing, nullcontext

from pydantic import Field

from batch_workflows._engine_choice import EngineChoice
from batch_workflows.objects import Objects
from batch_workflows.runner import Counts, Parameters, RunContext, workflow


class SnapshotParameters(EngineChoice):
    """Of snapshot."""

    to: str = Field(default="", max_length=1_000)
    """Directory or s3://BUCKET/PREFIX; default: `snapshots` in the home."""
    day: str = ""
    """Under which day it is kept; default: today, UTC."""
    documents: bool = True
    """Also the servable documents, a column per field."""


class ImportParameters(Parameters):
    """Of snapshot-import."""

    source: str = Field(default="", max_length=1_000)
    """Directory or s3://BUCKET/PREFIX; default: `snapshots` in the home."""
    as_of: str = ""
    """The newest day at or before this one; default: the newest."""
    processes: int = Field(default=0, ge=0)
    """That write and check rows; 0: one per processor, and none for few rows or on HBase; 1: this one."""


@workflow(
    "snapshot", "write the Repo's tables and the documents to Parquet, one state per day", SnapshotParameters,
    resumable=True,
)  # fmt: skip
def snapshot(context: RunContext[SnapshotParameters]) -> Counts:
    """Take a snapshot."""
    from batch_workflows.parquet_snapshot import take_snapshot  # pyarrow takes its time and memory to import

    chosen = context.parameters
    objects = Objects(chosen.to or context.home.root / "snapshots")
    with closing(chosen.open_engine()) if chosen.engine != "local" else nullcontext() as engine:
        day = take_snapshot(context, objects, chosen.day, chosen.documents, chosen.processes, engine)
    return {"day": day.day, "to": str(objects.address), "rows": sum(table.rows for table in day.tables)}


@workflow(
    "snapshot-import", "write a day of a snapshot into an empty Repo, and check that it is the same", ImportParameters,
    resumable=True,
)  # fmt: skip
def snapshot_import(context: RunContext[ImportParameters]) -> Counts:
    """Import a snapshot."""
    from batch_workflows.parquet_import import import_day
    from batch_workflows.parquet_snapshot import read_day

    objects = Objects(context.parameters.source or context.home.root / "snapshots")
    day = read_day(objects, context.parameters.as_of if context.state is None else context.state["day"])
    rows = import_day(context, objects, day, context.parameters.processes)
    note = "documents reach serving with `workflow run base-index`, or `workflow run refresh` once the service is up"
    return {"day": day.day, "tables": {**rows}, "rows": sum(rows.values()), "note": note}
