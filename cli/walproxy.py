"""`adsindex walproxy`: what HBase and ZooKeeper know of the WAL proxy, and the switch between them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.repo import hbase_url
from cli.runtime import CommandError, open_log, peer_id, process_file
from cli.show import table_of
from messaging import LogUnavailable
from messaging.home import Home

if TYPE_CHECKING:
    from storage_repo.hbase.wal import PeerStatus

walproxy_app = typer.Typer(no_args_is_help=True, help="The WAL proxy of a Storage Repo on HBase.")

_HomeOption = Annotated[
    Path | None, typer.Option("--home", help="Where this installation keeps its state.", envvar="ADSINDEX_HOME")
]
_JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]


@walproxy_app.command()
def status(home: _HomeOption = None, as_json: _JsonOption = False) -> None:
    """Show HBase's replication peers, the WAL proxies that serve them, and what waits in each queue."""
    from storage_repo.hbase.wal import walproxy_status

    opened = Home.open(home)
    url = hbase_url(opened)
    found = walproxy_status(url)
    pending = _pending(opened)
    if as_json:
        sys.stdout.write(json.dumps(found.to_json() | {"pending": pending}) + "\n")
        return
    for peer in found.peers:
        _print_peer(peer, own=peer.id == peer_id(url))
    shown = "unknown, the log does not answer" if pending is None else pending
    typer.echo(f"row changes of transactions whose end the WAL proxy has not seen: {shown}")
    if all(peer.id != peer_id(url) for peer in found.peers):
        typer.echo(f"HBase has no peer {peer_id(url)} yet: the WAL proxy adds it when it starts first")


@walproxy_app.command()
def enable(home: _HomeOption = None) -> None:
    """Let HBase ship its log to the WAL proxy again; what came meanwhile follows."""
    _switch(home, on=True)


@walproxy_app.command()
def disable(home: _HomeOption = None) -> None:
    """Have HBase keep its log instead of shipping it: no notifications until `enable`."""
    _switch(home, on=False)


@walproxy_app.command()
def unstick(home: _HomeOption = None) -> None:
    """Get a peer going that stands still though it is enabled and a WAL proxy registered. Loses nothing."""
    from storage_repo.hbase.wal import unstick_peer

    url = hbase_url(Home.open(home))
    unstick_peer(url, peer_id(url))
    typer.echo(f"peer {peer_id(url)} has forgotten how far it was and begins anew; some changes may be notified again")


@walproxy_app.command()
def remove(home: _HomeOption = None) -> None:
    """Remove the peer with all that it has not been sent, for ever. For an installation that is given up."""
    from storage_repo.hbase.wal import remove_peer

    opened = Home.open(home)
    if process_file(opened, "up").read():
        raise CommandError(f"the service is up on {opened.root}; stop it before removing its replication peer")
    url = hbase_url(opened)
    remove_peer(url, peer_id(url))
    typer.echo(f"peer {peer_id(url)} is removed; changes from now on are notified by nobody until `up` adds it again")


def _switch(home: Path | None, *, on: bool) -> None:
    from storage_repo.hbase.wal import set_peer_enabled

    url = hbase_url(Home.open(home))
    set_peer_enabled(url, on, peer_id(url))
    typer.echo(f"peer {peer_id(url)} is {'enabled' if on else 'disabled'}")


def _pending(home: Home) -> int | None:
    """Return how many row changes the WAL proxies hold open; None while the log is away: the rest is still known."""
    from storage_repo.hbase.feed import open_rows

    try:
        log = open_log(home)
        try:
            return open_rows(log)
        finally:
            log.close()
    except LogUnavailable:
        return None


def _print_peer(peer: PeerStatus, *, own: bool) -> None:
    kind = "this installation" if own else "another WAL proxy" if peer.ours else "another cluster"
    traits = [kind, "enabled" if peer.enabled else "DISABLED", "serial" if peer.serial else "not serial"]
    where = f"{len(peer.tables)} tables to {peer.cluster_key}"
    typer.echo(f"peer {peer.id} ({', '.join(traits)}), {peer.lag_s:.1f} s behind: {where}")
    if peer.ours:
        instances = [f"{i.host}:{i.port} (up {i.up_s:.0f} s)" for i in peer.instances]
        typer.echo(f"  instances: {', '.join(instances) or 'none: nobody takes the changes'}")
    columns = ("region server", "queue", "logs", "lag s", "entries read", "cells shipped")
    table_of(columns, [
        (q.server, f"{q.queue_id}{' (recovered)' if q.recovered else ''}", q.logs, f"{q.lag_s:.1f}", q.entries_read,
         q.cells_shipped) for q in peer.queues
    ])  # fmt: skip
