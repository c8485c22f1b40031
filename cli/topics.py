"""`adsindex topics`: create and check the topics of a Kafka log. No stage ever creates one by accident."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from catalog import load_catalog
from cli.runtime import CommandError, resolve_catalog_file
from cli.settings import EMBEDDED, Settings, choose
from messaging.home import Home
from messaging.topics import PARTITIONS

if TYPE_CHECKING:
    from messaging._kafka_topics import TopicFinding
    from messaging.kafka import KafkaLog

topics_app = typer.Typer(no_args_is_help=True, help="Topics of a Kafka log: create and check.")

_HomeOption = Annotated[
    Path | None, typer.Option("--home", help="Where this installation keeps its state.", envvar="ADSINDEX_HOME")
]
_LogOption = Annotated[str | None, typer.Option("--log", help="kafka://HOST:PORT/PREFIX; remembered for this home.")]
_CatalogOption = Annotated[
    Path | None, typer.Option("--catalog", help="Catalogue whose streams have topics; default: this home's.")
]
_JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]


@topics_app.command()
def apply(
    home: _HomeOption = None, log: _LogOption = None, catalog: _CatalogOption = None, as_json: _JsonOption = False
) -> None:
    """Create missing topics and correct their settings; report what only people can mend. Safe to run twice.

    A setting of the broker that should be another one is a warning; exit code 1 if a topic is not as it should be.
    """
    from messaging._kafka_topics import BROKER, apply_topics

    opened = Home.open(home)
    with _open(opened, log) as kafka:
        findings = apply_topics(kafka, wanted_topics(opened, catalog))
    _report(findings, as_json, tolerated=BROKER)


@topics_app.command()
def check(
    home: _HomeOption = None, log: _LogOption = None, catalog: _CatalogOption = None, as_json: _JsonOption = False
) -> None:
    """Say what is missing or different, changing nothing; exit code 1 if there is anything."""
    from messaging._kafka_topics import check_topics

    opened = Home.open(home)
    with _open(opened, log) as kafka:
        findings = check_topics(kafka, wanted_topics(opened, catalog))
    _report(findings, as_json)


def wanted_topics(home: Home, catalog_file: Path | None = None) -> Mapping[str, int]:
    """Return topic -> partitions of everything that the stages use, the streams of the catalogue included.

    The catalogue is the file as it is now, also while a service runs on an earlier one: the next start needs them.
    """
    streams = load_catalog(resolve_catalog_file(home, catalog_file)).streams.values()
    return {**PARTITIONS, **{stream.topic: PARTITIONS.get(stream.topic, stream.partitions) for stream in streams}}


def _open(home: Home, url: str | None) -> KafkaLog:
    from messaging.kafka import KafkaLog, KafkaSettings

    chosen = choose(home, log=url) if url else Settings.load(home)
    if chosen.log == EMBEDDED:
        raise CommandError(
            f"{home.root} uses the embedded log, whose topics make themselves; give --log kafka://HOST:PORT"
        )
    settings = KafkaSettings.parse(chosen.log)
    return KafkaLog(settings, prefix=settings.prefix)


def _report(findings: Sequence[TopicFinding], as_json: bool, *, tolerated: str = "") -> None:
    left = [finding for finding in findings if not finding.done and finding.topic != tolerated]
    if as_json:
        sys.stdout.write(json.dumps({"ok": not left, "findings": [asdict(f) for f in findings]}) + "\n")
    else:
        for finding in findings:
            typer.echo(f"warning: {finding}" if finding.topic == tolerated else str(finding))
        typer.echo("all topics are as they should be" if not left else f"{len(left)} differences are left")
    if left:
        raise typer.Exit(1)
