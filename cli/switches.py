"""`adsindex switch` and `adsindex report`: what operations may turn off, and what was dropped because of it."""

from __future__ import annotations

import getpass
import json
import socket
import sys
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated

import typer

from cli.runtime import CommandError, open_catalog, open_log
from cli.show import table_of
from messaging.home import Home
from messaging.reports import report_drops
from messaging.switches import PAUSE_HANDLER, Switches, set_switch

switch_app = typer.Typer(
    no_args_is_help=True, help="Switches: stop publishing, drop what is old, pause a lane or handler."
)
report_app = typer.Typer(no_args_is_help=True, help="Reports.")

_HomeOption = Annotated[
    Path | None, typer.Option("--home", help="Where this installation keeps its state.", envvar="ADSINDEX_HOME")
]
_JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
_NOT_PROVABLE = 3
"""Exit code of `report snapshot`; 2 is that of a command line that is wrong."""


@switch_app.command("list")
def list_switches(
    home: _HomeOption = None,
    as_json: _JsonOption = False,
    history: Annotated[bool, typer.Option("--history", help="Every setting that is still kept, oldest first.")] = False,
) -> None:
    """Show every switch: value, who set it, when and why."""
    with open_log(Home.open(home)) as log:
        switches = Switches(log)
        switches.refresh(force=True)
        shown = switches.history if history else switches.all()
    if as_json:
        sys.stdout.write(json.dumps({"switches": [asdict(setting) for setting in shown]}) + "\n")
    else:
        table_of(
            ["switch", "value", "who", "when", "why"], [[s.name, s.value, s.who, _time(s.at_us), s.why] for s in shown]
        )


@switch_app.command("set")
def set_one(
    name: Annotated[
        str,
        typer.Argument(help="publishing, drop_older.LANE, pause.LANE, pause_handler.HANDLER or pause_workflow.NAME."),
    ],
    value: Annotated[str, typer.Argument(help="on, off, or an age: 30s, 10m, 2h, 1d.")],
    why: Annotated[str, typer.Option("--why", help="For whoever is on call next.")],
    who: Annotated[str | None, typer.Option("--who", help="Default: the user and host that run this.")] = None,
    home: _HomeOption = None,
    as_json: _JsonOption = False,
) -> None:
    """Set a switch for every process, effective within seconds; who, when and why are kept."""
    opened = Home.open(home)
    if name.startswith(PAUSE_HANDLER) and value != "off":  # off: also for a handler that is no more
        from argus import check_pausable, load_registry

        check_pausable(load_registry(open_catalog(opened)), name)
    with open_log(opened) as log:
        setting = set_switch(log, name, value, who=who or f"{getpass.getuser()}@{socket.gethostname()}", why=why)
    if as_json:
        sys.stdout.write(json.dumps(asdict(setting)) + "\n")
    else:
        typer.echo(f"{setting.name} is {setting.value} from now on")


@report_app.command("drops")
def drops(
    home: _HomeOption = None,
    as_json: _JsonOption = False,
    day: Annotated[
        str | None, typer.Option("--day", help="YYYY-MM-DD (UTC) or today; default: all that is kept.")
    ] = None,
) -> None:
    """List what was dropped or dead-lettered, by day, reason and lane, and how to send it again."""
    with open_log(Home.open(home)) as log:
        lines = report_drops(log, _day(day))
    if as_json:
        shown = [asdict(line) | {"day": line.day.isoformat()} for line in lines]
        sys.stdout.write(json.dumps({"total": sum(line.count for line in lines), "drops": shown}) + "\n")
        return
    if not lines:
        typer.echo("nothing was dropped")
        return
    table_of(
        ["day (UTC)", "what", "stage", "reason", "lane", "count", "for example"],
        [
            [line.day, line.kind, line.stage, line.reason, line.lane, line.count, ", ".join(line.entities[:3])]
            for line in lines
        ],
    )
    for hint in dict.fromkeys(line.hint for line in lines):
        typer.echo(hint)


@report_app.command("snapshot")
def snapshot(home: _HomeOption = None, as_json: _JsonOption = False) -> None:
    """Prove that the log holds what the MySQL ads DB holds: counts and checksums per range of keys.

    Exit code 1 when they differ, 3 when nothing differs but older rows cannot be proved: the log forgets updates (Kafka
    after a week, the embedded one all but 10,000 per partition); after a `resync` it has them all. Changes that are
    still on their way count as differences: run it while writes rest, or again.
    """
    from cli.backends import open_ads_db
    from gateway.mysql_ads_db import MysqlAdsDb
    from gateway.snapshot_proof import prove, published_state

    opened = Home.open(home)
    catalog = open_catalog(opened)
    with closing(open_ads_db(opened)) as ads_db, open_log(opened) as log:
        if not isinstance(ads_db, MysqlAdsDb):
            raise CommandError("this proof reads a MySQL ads DB; this home has the embedded one, see `resync`")
        proof = prove(ads_db, catalog, published_state(log))
    if as_json:
        wrong = [asdict(found) for found in proof.ranges if not found.equal]
        shown = {"equal": proof.ok, "ranges": len(proof.ranges), "differ": wrong, "too_many": proof.extra}
        sys.stdout.write(json.dumps({**shown, "not_provable": proof.not_provable}) + "\n")
    else:
        said = "equal" if proof.ok else "DIFFERENT" if proof.differs else "NOT PROVABLE for older rows"
        typer.echo(f"{said}: {proof}")
    if not proof.ok:
        raise typer.Exit(1 if proof.differs else _NOT_PROVABLE)


def _day(text: str | None) -> date | None:
    if text is None:
        return None
    if text == "today":
        return datetime.now(UTC).date()
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise CommandError(f"--day {text!r} is no day; write it as 2026-01-31, or today") from error


def _time(at_us: int) -> str:
    return datetime.fromtimestamp(at_us / 1e6, UTC).isoformat(sep=" ", timespec="seconds") if at_us else ""
