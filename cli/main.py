"""The command line. Results go to standard output, progress and warnings to standard error; errors exit with 1 or 2."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.repo import repo_app
from cli.runtime import CommandError, open_catalog
from cli.settings import MAX_SHARDS
from cli.snapshots import snapshots_app
from cli.stack import stack_app
from cli.switches import report_app, switch_app
from cli.topics import topics_app
from cli.walproxy import walproxy_app
from cli.workflows import workflow_app
from messaging.home import Home

app = typer.Typer(
    name="adsindex",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # brackets in help texts are brackets
    help="Keep a servable, enriched document per ad in step with the ads database, within milliseconds.",
)
app.add_typer(workflow_app, name="workflow")
app.add_typer(snapshots_app, name="snapshots")
why_app = typer.Typer(no_args_is_help=True, help="Say why something does not serve, stopping at the first cause.")
app.add_typer(why_app, name="why")
app.add_typer(stack_app, name="stack")
app.add_typer(topics_app, name="topics")
app.add_typer(repo_app, name="repo")
app.add_typer(walproxy_app, name="walproxy")
app.add_typer(switch_app, name="switch")
app.add_typer(report_app, name="report")

HomeOption = Annotated[
    Path | None, typer.Option("--home", help="Where this installation keeps its state.", envvar="ADSINDEX_HOME")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]


@app.command()
def up(
    home: HomeOption = None,
    sample: Annotated[int, typer.Option(min=0, help="Generate this many ads if the ads DB is empty; 0 = none.")] = 3000,
    seed: Annotated[int, typer.Option(help="Seed of the generated sample.")] = 7,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the page; 0 = a free one.")] = 0,
    until_idle: Annotated[bool, typer.Option("--until-idle", help="Work until nothing is outstanding.")] = False,
    as_json: JsonOption = False,
    argus_workers: Annotated[int, typer.Option(min=1, max=8, help="Argus processes.")] = 1,
    wal_proxies: Annotated[int, typer.Option(min=1, max=8, help="WAL proxies of a Repo on HBase.")] = 1,
    manas_processes: Annotated[int, typer.Option(min=1, max=8, help="Manas processes behind one port.")] = 1,
    base_fallback: Annotated[
        bool, typer.Option("--base-fallback", help="With a damaged base: serve from the one before, and say so.")
    ] = False,
    shards: Annotated[
        int | None, typer.Option(min=1, max=MAX_SHARDS, help="Manas servers that share out the documents; remembered.")
    ] = None,
    catalog: Annotated[Path | None, typer.Option(help="Catalogue file; remembered for this home.")] = None,
    ads_db: Annotated[
        str | None, typer.Option("--ads-db", help="mysql+pymysql://…, sqlite:///… or embedded; remembered.")
    ] = None,
    log: Annotated[str | None, typer.Option("--log", help="kafka://HOST:PORT/PREFIX or embedded; remembered.")] = None,
    repo: Annotated[
        str | None,
        typer.Option("--repo", help="hbase://HOST:PORT?thrift2=PORT&zookeeper=HOST:PORT or embedded; remembered."),
    ] = None,
    walproxy: Annotated[
        str | None,
        typer.Option(help="HOST[:PORT] at which HBase reaches the WAL proxy, the second at PORT+1; default loopback."),
    ] = None,
    binlog_position: Annotated[
        str | None, typer.Option("--binlog-position", help="gtid or file: what a binlog is followed by; remembered.")
    ] = None,
) -> None:
    """Start every stage as a supervised process, show progress and the page's address."""
    from cli.up import run_up

    run_up(
        Home.open(home), sample=sample, seed=seed, port=port, until_idle=until_idle, as_json=as_json,
        argus_workers=argus_workers, wal_proxies=wal_proxies, catalog_file=catalog, ads_db=ads_db, log=log, repo=repo,
        walproxy=walproxy, binlog_position=binlog_position, manas_processes=manas_processes,
        base_fallback=base_fallback, shards=shards,
    )  # fmt: skip


@app.command()
def load(
    csv: Annotated[Path, typer.Argument(help="The export.")],
    mapping: Annotated[str, typer.Option(help="Mapping file, or the name of one in mappings/.")],
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Import an ads export into the ads DB. Bad rows are reported, good ones go in; twice changes nothing."""
    from batch_workflows.ads_import import load_csv
    from cli.backends import open_ads_db
    from cli.runtime import open_log

    opened = Home.open(home)
    catalog = open_catalog(opened)
    log = open_log(opened)
    report = load_csv(csv, mapping, open_ads_db(opened, catalog), opened.performance_db, log)
    if as_json:
        _print_json(report.to_json())
    else:
        typer.echo(report.to_text())
    if report.rows_read and not report.rows_good:
        raise typer.Exit(1)


@app.command()
def sql(
    statement: Annotated[str, typer.Argument(help="SQL for the ads DB.")],
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run SQL on the ads DB in one transaction, like any application would."""
    from cli.backends import open_ads_db
    from cli.show import table_of

    opened = Home.open(home)
    results = open_ads_db(opened).execute(statement)
    if as_json:
        last = results[-1]
        _print_json({"columns": last.columns, "rows": last.rows, "rowcount": last.rowcount})
        return
    for result in results:
        if result.columns:
            table_of(result.columns, result.rows)
        else:
            typer.echo("done" if result.rowcount < 0 else f"{result.rowcount} rows changed")


@app.command()
def search(
    request: Annotated[str | None, typer.Option(help="One request as a JSON object.")] = None,
    requests: Annotated[Path | None, typer.Option(help="A file with a request per line; - = standard input.")] = None,
    k: Annotated[int, typer.Option("-k", min=0, help="How many hits; 0 = all.")] = 10,
    home: HomeOption = None,
    as_json: JsonOption = False,
    explain: Annotated[bool, typer.Option("--explain", help="Show the plan and what each clause let through.")] = False,
    ad: Annotated[str, typer.Option(help="With --explain: why this ad is or is not in the answer.")] = "",
    score: Annotated[str, typer.Option(help="Order the best by an expression, like 'bid * pow(quality, 0.5)'.")] = "",
    rerank: Annotated[int, typer.Option(min=0, help="With --score: how many are scored; 0 = four for each hit.")] = 0,
    timeout_s: Annotated[
        float | None, typer.Option(min=0.0, help="Seconds for each request; what was found until then, as partial.")
    ] = None,
) -> None:
    """Say which ads fit a request."""
    from cli.search import run_search

    if (request is None) == (requests is None):
        raise CommandError("give either --request JSON or --requests FILE.jsonl")
    own: dict[str, Any] = {"score": score} if score else {}
    own |= {"rerank": rerank} if rerank else {}
    how = explain or bool(ad)
    run_search(Home.open(home), request, requests, own, k=k, as_json=as_json, explain=how, ad=ad, timeout_s=timeout_s)


@app.command()
def show(
    kind: Annotated[str, typer.Argument(help="advertiser, campaign, ad_group, ad, pin, image or document.")],
    identifier: Annotated[str, typer.Argument(metavar="ID", help="The id that the ads DB has.")],
    home: HomeOption = None,
    as_json: JsonOption = False,
    history: Annotated[bool, typer.Option("--history", help="All kept versions of every column.")] = False,
) -> None:
    """Show everything known of an entity: columns with versions and writers, and what serving has."""
    from cli.backends import backends
    from debug_ui.inspect import inspect_entity
    from debug_ui.render import render_text

    with backends(Home.open(home)) as opened:
        view = inspect_entity(
            opened, kind.replace("-", "_").replace("adgroup", "ad_group"), identifier, history=history
        )
        if as_json:
            _print_json(view.to_json())
        else:
            _console().print(render_text(view))


@why_app.command("campaign")
def why_campaign(
    identifier: Annotated[str, typer.Argument(metavar="ID")], home: HomeOption = None, as_json: JsonOption = False
) -> None:
    """Say why a campaign is not spending: an ordered chain that stops at the first cause."""
    from cli.backends import backends
    from debug_ui.diagnosis import diagnose_campaign
    from debug_ui.render import render_diagnosis

    with backends(Home.open(home)) as opened:
        diagnosis = diagnose_campaign(opened, identifier)
        if as_json:
            _print_json(diagnosis.to_json())
        else:
            _console().print(render_diagnosis(diagnosis))


@app.command()
def status(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show stages, lag, latency, conflicts, drops and the base index's age."""
    from cli.backends import backends
    from debug_ui.health import pipeline_status
    from debug_ui.render import render_status

    with backends(Home.open(home)) as opened:
        state = pipeline_status(opened)
        if as_json:
            _print_json(state.to_json())
        else:
            _console().print(render_status(state))


@app.command()
def documents(
    home: HomeOption = None,
    readable: bool = True,
    served: Annotated[bool, typer.Option("--served", help="What serving has, not what the Storage Repo has.")] = False,
) -> None:
    """Print every servable document of the Storage Repo, one JSON object a line, ordered by id; for comparing runs."""
    from catalog.documents import readable_document
    from catalog.model import DOCUMENT_BODY
    from cli.backends import backends
    from cli.serving import served_bodies

    with backends(Home.open(home)) as opened:
        table = opened.catalog.document_table
        bodies: Iterable[tuple[str, bytes]]
        if served:  # of every id that there has ever been: also of those that the Repo has no document of any more
            bodies = served_bodies(opened.serving, (row for row, _ in opened.repo.snapshot().scan(table)))
        else:
            stored = opened.repo.snapshot().scan(table, columns=[DOCUMENT_BODY])
            bodies = ((row, cells[DOCUMENT_BODY]) for row, cells in stored)
        for row, body in bodies:
            shown = readable_document(opened.catalog, body) if readable else body.hex()
            sys.stdout.write(json.dumps({"id": row, "document": shown}, sort_keys=True, ensure_ascii=False) + "\n")


@app.command()
def bench(
    name: Annotated[str, typer.Argument(help="pipeline, cdc, transactions")],
    as_json: JsonOption = False,
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes: does it run, not how fast is it.")] = False,
    stack: Annotated[bool, typer.Option("--stack", help="pipeline: over MariaDB and Kafka, started for it.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown block, for a README.")] = False,
    documents: Annotated[
        int | None, typer.Option(min=1_000, help="retrieval: how many ads, else a million (vectors: 100,000).")
    ] = None,
    part: Annotated[str | None, typer.Option(help="retrieval: boolean or vectors, else both.")] = None,
) -> None:
    """Run a benchmark: ours beside what a user could pick instead, on the same data in the same run."""
    from benchmarks import markdown_benchmark, run_benchmark

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # its servers are stopped then, as after Ctrl-C
    result = run_benchmark(name, quick=quick, stack=stack, documents=documents, part=part)
    if as_json:
        _print_json(result)
    elif markdown:
        sys.stdout.write(markdown_benchmark(result) + "\n")
    else:
        from benchmarks import render_benchmark

        _console().print(render_benchmark(result))


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, ensure_ascii=False, default=str) + "\n")


def _console() -> Any:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 140)


def main() -> None:
    """Run the command line; turn known errors into one sentence on standard error."""
    from cli.logs import configure_logging

    configure_logging("warning")
    try:
        app(prog_name="adsindex")
    except Exception as error:
        from cli.errors import known_errors  # of every package: a second of imports that a command without error saves

        if not isinstance(error, known_errors()):
            raise
        sys.stderr.write(f"adsindex: {error}\n")
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
