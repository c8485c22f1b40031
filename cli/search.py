"""`adsindex search`: one request or a file of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from catalog.documents import decode_document
from cli.backends import backends
from cli.runtime import CommandError
from debug_ui.backends import Backends
from manas import InvalidRequest
from messaging.home import Home


def run_search(
    home: Home,
    request: str | None,
    file: Path | None,
    own: Mapping[str, Any],
    *,
    k: int,
    as_json: bool,
    explain: bool,
    ad: str,
    timeout_s: float | None,
) -> None:
    """Answer each request in order, with the keys of `own` put in; a bad one in a file names its line.

    `timeout_s` is for each of them: what is found, or explained, until then, which says what was cut.
    """
    with backends(home) as opened:
        for number, text in _requests(request, file):
            where = f"{file}:{number}" if file else "--request"
            try:
                wanted = json.loads(text)
                if isinstance(wanted, dict):
                    wanted |= own
                answer: Any = (
                    opened.serving.explain(wanted, k, ad or None, timeout_s=timeout_s)
                    if explain
                    else opened.serving.search(wanted, k, timeout_s=timeout_s)
                )
            except json.JSONDecodeError as error:
                raise CommandError(f"{where}: not JSON: {error}") from error
            except RecursionError as error:
                raise CommandError(f"{where}: nested too deeply; a request has a few levels") from error
            except InvalidRequest as error:
                raise CommandError(f"{where}: {error}") from error
            if as_json:
                sys.stdout.write(json.dumps({**answer, "hits": list(answer["hits"])}, ensure_ascii=False) + "\n")
            else:
                _print(opened, wanted, answer)


def _requests(request: str | None, file: Path | None) -> Iterator[tuple[int, str]]:
    if request is not None:
        yield 1, request
        return
    if file is None:
        return
    if str(file) == "-":
        lines = sys.stdin.read().splitlines()
    elif file.is_file():
        lines = file.read_text(encoding="utf-8").splitlines()
    else:
        raise CommandError(f"no file {file}; give one JSON request per line")
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, line


def _warnings(answer: Mapping[str, Any]) -> Iterator[str]:
    """Yield what keeps an answer from being whole."""
    missing = answer.get("missing_shards", {})
    for name, why in missing.items():
        yield f"partial: shard {name} is missing: {why}"
    if answer["partial"] and not missing:
        yield "partial: the deadline came first"
    if "problem" in answer:
        yield f"problem: {answer['problem']}"
    plan = answer.get("plan", {})
    for name, own in {"": plan, **plan.get("shards", {})}.items():
        if cut := own.get("cut"):
            yield f"the deadline cut{f' in shard {name}' if name else ''}: {', '.join(cut)}"


def _print(opened: Backends, wanted: Any, answer: dict[str, Any]) -> None:
    console = Console(width=None if sys.stdout.isatty() else 140)
    shown = answer["hits"][:200]
    table = Table("ad", "score", "title", "bid", "price", "category", title=f"{answer['total']} ads fit")
    found = opened.serving.get([str(hit["ad_id"]) for hit in shown])
    for hit, served in zip(shown, found, strict=True):
        fields = decode_document(served.body) if served.body else {}
        price = fields.get("price_micros")
        table.add_row(
            str(hit["ad_id"]),
            f"{hit['score']:.4f}",
            str(fields.get("title", ""))[:60],
            f"{fields.get('bid_micros', 0) / 1e6:.2f} {fields.get('bid_currency', '')}",
            "" if price is None else f"{price / 1e6:.2f} {fields.get('currency', '')}",
            str(fields.get("category", ""))[:30],
        )
    console.print(table)
    for line in _warnings(answer):
        console.print(line, highlight=False)
    if len(shown) < len(answer["hits"]):
        console.print(f"... and {len(answer['hits']) - len(shown)} more; --json prints all")
    if not answer["total"] and isinstance(wanted, dict):
        unknown = [name for name in opened.catalog.dimensions if name not in wanted]
        if unknown:
            console.print(
                f"hint: the request does not say {', '.join(unknown)}: ads that target any of these are left out; "
                'say it, or browse with the value "*"',
                highlight=False,
            )
    if explained := {key: answer[key] for key in ("plan", "ad") if key in answer}:
        console.print_json(data=explained)
