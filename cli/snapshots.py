"""`adsindex snapshots`: which days there are as Parquet, and which files hold the state as of a day."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from cli.show import table_of
from messaging.home import Home

snapshots_app = typer.Typer(no_args_is_help=True, help="Snapshots of the Repo as Parquet, one state per day.")
_HomeOption = Annotated[
    Path | None, typer.Option("--home", help="Where this installation keeps its state.", envvar="ADSINDEX_HOME")
]
_JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
_FromOption = Annotated[str, typer.Option("--from", help="Directory or s3://BUCKET/PREFIX; default: in the home.")]


@snapshots_app.command("list")
def snapshots_list(home: _HomeOption = None, as_json: _JsonOption = False, source: _FromOption = "") -> None:
    """List the days that are complete, with rows and columns."""
    from batch_workflows.objects import Objects
    from batch_workflows.parquet_snapshot import days, read_day

    objects = Objects(source or Home.open(home).root / "snapshots")
    found = [read_day(objects, day) for day in days(objects)]
    if as_json:
        sys.stdout.write(json.dumps({"days": [day.to_json() for day in found]}) + "\n")
    else:
        table_of(
            ["day", "tables", "rows", "documents", "Repo timestamp"],
            [
                [day.day, len(day.tables), sum(t.rows for t in day.tables),
                 day.documents.rows if day.documents else "", day.snapshot_ts]
                for day in found
            ],
        )  # fmt: skip


@snapshots_app.command("files")
def snapshots_files(
    table: Annotated[str, typer.Argument(help="A table of the Repo, or documents.")],
    home: _HomeOption = None,
    as_of: Annotated[str, typer.Option("--as-of", help="The newest day at or before this one; default: now.")] = "",
    source: _FromOption = "",
) -> None:
    """Print the Parquet files of a table as of a day, one a line, for DuckDB, Spark or pandas."""
    from batch_workflows.objects import Objects
    from batch_workflows.parquet_snapshot import read_day

    objects = Objects(source or Home.open(home).root / "snapshots")
    for name in read_day(objects, as_of).files(table):
        typer.echo(f"{'s3://' if objects.local is None else ''}{objects.address.path}/{name}")
