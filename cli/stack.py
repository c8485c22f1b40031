"""`adsindex stack`: the servers that the service rests on, for machines without Docker."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from messaging.home import Home

if TYPE_CHECKING:
    from compose import ServerInfo, Stack

stack_app = typer.Typer(no_args_is_help=True, help="Real servers on this machine, without Docker.")

_Names = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[NAME]...",
        help="mysql (MariaDB), kafka, hbase, thrift, thrift2, omid (default: all of these), mysql8 (Oracle's), omid2 "
        "(a second TSO, to stand by), regionserver, regionserver2 (beside hbase's own), s3. `up` starts what they need "
        "too.",
    ),
]
_HomeOption = Annotated[
    Path | None, typer.Option("--home", help="Where this installation keeps its state.", envvar="ADSINDEX_HOME")
]
_JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]


@stack_app.command()
def up(
    names: _Names = None,
    home: _HomeOption = None,
    as_json: _JsonOption = False,
    install: Annotated[
        bool, typer.Option("--install", help="Install missing Debian packages with apt-get (as root).")
    ] = False,
) -> None:
    """Start servers on free ports of loopback and wait until they answer; what runs already is left alone."""
    from compose import MAIN_SERVERS

    stack = open_stack(Home.open(home))
    wanted = names or MAIN_SERVERS
    if install:
        stack.prepare(wanted, may_apt=True)
    _print(stack.up(wanted), as_json=as_json)


@stack_app.command()
def down(names: _Names = None, home: _HomeOption = None, as_json: _JsonOption = False) -> None:
    """Stop servers and wait until their processes are gone; data and ports stay."""
    stack = open_stack(Home.open(home))
    stack.down(names or None)
    _print(stack.status(names or None), as_json=as_json)


@stack_app.command()
def status(names: _Names = None, home: _HomeOption = None, as_json: _JsonOption = False) -> None:
    """Show state, address, process and log of servers."""
    _print(open_stack(Home.open(home)).status(names or None), as_json=as_json)


def open_stack(home: Home) -> Stack:
    """Return the stack of a home."""
    from compose import Stack

    return Stack(home.root / "stack")


def _print(servers: Mapping[str, ServerInfo], *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps({name: server.to_json() for name, server in servers.items()}) + "\n")
        return
    for server in servers.values():
        typer.echo(f"{server.name:7} {server.state:12} {server.url or '-'}")
        typer.echo(f"{'':7} {f'pid {server.pid}' if server.pid else '':12} {server.log_file}")
