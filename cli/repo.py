"""`adsindex repo`: create and check the tables of a Storage Repo on HBase. No stage ever creates one by accident."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.runtime import CommandError, hbase_schema, open_catalog
from cli.settings import EMBEDDED, Settings, choose
from messaging.home import Home

if TYPE_CHECKING:
    from storage_repo.hbase import Difference

repo_app = typer.Typer(no_args_is_help=True, help="Tables of a Storage Repo on HBase: create and check.")

_HomeOption = Annotated[
    Path | None, typer.Option("--home", help="Where this installation keeps its state.", envvar="ADSINDEX_HOME")
]
_RepoOption = Annotated[
    str | None,
    typer.Option("--repo", help="hbase://HOST:PORT?thrift2=PORT&zookeeper=HOST:PORT; remembered for this home."),
]
_JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]


@repo_app.command()
def apply(home: _HomeOption = None, repo: _RepoOption = None, as_json: _JsonOption = False) -> None:
    """Create missing tables and families and correct what can be. Safe to run twice; no data is removed."""
    from storage_repo.hbase import apply_schema

    opened = Home.open(home)
    done = apply_schema(hbase_url(opened, repo), hbase_schema(open_catalog(opened)))
    _report(done, left=False, as_json=as_json)


@repo_app.command()
def check(home: _HomeOption = None, repo: _RepoOption = None, as_json: _JsonOption = False) -> None:
    """Say what is missing or different, changing nothing; exit code 1 if there is anything."""
    from storage_repo.hbase import check_schema

    opened = Home.open(home)
    _report(check_schema(hbase_url(opened, repo), hbase_schema(open_catalog(opened))), left=True, as_json=as_json)


def hbase_url(home: Home, given: str | None = None) -> str:
    """Return the URL of the home's Repo, the given one remembered. Raises CommandError if it is not on HBase."""
    url = (choose(home, repo=given) if given else Settings.load(home)).repo
    if url == EMBEDDED:
        raise CommandError(f"{home.root} uses the embedded Repo, which makes its tables itself; give --repo hbase://…")
    return url


def _report(differences: Sequence[Difference], *, left: bool, as_json: bool) -> None:
    wrong = left and bool(differences)
    if as_json:
        sys.stdout.write(json.dumps({"ok": not wrong, "differences": [asdict(d) for d in differences]}) + "\n")
    else:
        for difference in differences:
            typer.echo(f"{difference}{'' if left else ' (put right)'}")
        typer.echo(f"{len(differences)} differences" if wrong else "all tables are as they should be")
    if wrong:
        raise typer.Exit(1)
