"""Data sync: ads DB, Storage Repo, index tables, documents and what is served, compared and put right, in this order.

Entities come first, because documents follow from them: what is repaired in one part has arrived when the next begins.
A run that was killed goes on with the part that it was in; comparing a part again does no harm.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Any, Literal

import structlog
from pydantic import Field, JsonValue, field_validator

from argus.core import Sources
from batch_workflows._engine_choice import EngineChoice
from batch_workflows._exceptions import SyncIncomplete, UnknownSelection
from batch_workflows._sync_common import Part, Sync
from batch_workflows.base_index import open_embedded_repo
from batch_workflows.engines import Engine, InlineEngine
from batch_workflows.runner import Counts, RunContext, workflow
from batch_workflows.sync_ads import AdsSync
from batch_workflows.sync_documents import DocumentSync, ServedSync
from batch_workflows.sync_index import IndexSync
from batch_workflows.sync_lag import PATIENCE_SECONDS, Lag
from gateway import lost_rows
from gateway.lost_rows import LostRows

PartName = Literal["ads_db", "index", "documents", "served"]
ORDER: tuple[PartName, ...] = ("ads_db", "index", "documents", "served")
_sleep = time.sleep
_TOTALS = (
    "rows",
    "rows_read",
    "bytes_read",
    "ranges",
    "ranges_differing",
    "in_flight",
    "unsettled",
    "unjudged",
    "failing",
    "repaired",
)
_log = structlog.get_logger()


class SyncParameters(EngineChoice):
    """What to compare; all of it by default. The engine runs the handlers over large tables."""

    parts: tuple[PartName, ...] = ORDER
    tables: tuple[str, ...] = ()
    """Entity tables whose rows and indexes are compared; none: all."""
    repair: bool = True
    """False: only report."""
    patience_s: float = Field(default=PATIENCE_SECONDS, gt=0)
    """How long nothing may move in the pipeline before it counts as down."""
    range_rows: int = Field(default=0, ge=0)
    """Rows per checksum; 0: as the table's size allows."""

    @field_validator("tables", "parts", mode="before")
    @classmethod
    def _one(cls, value: object) -> object:
        return [name for name in value.split(",") if name] if isinstance(value, str) else value


def steps(sync: Sync, parameters: SyncParameters, documents: DocumentSync) -> Iterator[tuple[str, Callable[[], Part]]]:
    """Yield (name, what does it) in order. Raises UnknownSelection."""
    entities = {table.name: table for table in sync.catalog.entity_tables()}
    if unknown := set(parameters.tables) - set(entities):
        raise UnknownSelection(f"there is no table {', '.join(sorted(unknown))}; there are {', '.join(entities)}")
    tables = [table for name, table in entities.items() if not parameters.tables or name in parameters.tables]
    ads = AdsSync(sync, range_rows=parameters.range_rows)
    for part in (name for name in ORDER if name in parameters.parts):
        if part == "ads_db":
            for table in tables:
                yield f"ads_db:{table.name}", partial(ads.run, table)
        elif part == "index":
            for reference in sync.catalog.references():
                if reference.table in {table.name for table in tables}:
                    yield f"index:{reference.index_table}", partial(IndexSync(sync).run, reference)
        elif part == "documents":
            for root in documents.roots:
                yield f"documents:{root}", partial(documents.run, root)
        else:
            yield "served", ServedSync(sync).run


def synchronize(
    sync: Sync,
    parameters: SyncParameters,
    *,
    sources: Sources | None = None,
    done: Sequence[str] = (),
    after: Callable[[str, Part], None] | None = None,
) -> dict[str, Part]:
    """Run all steps but those `done`; `after` is called with each one's name and result. Returns what each found.

    Before each part the repairs of the one before are waited for. Raises UnknownSelection, and whatever backends raise.
    """
    results: dict[str, Part] = {}
    sync.ads_db.check_schema(sync.catalog)
    with closing(DocumentSync(sync, sources)) as documents:
        part, asked = "", False
        for name, run in steps(sync, parameters, documents):
            if name in done:
                continue
            sync.check()
            kind = name.partition(":")[0]
            if kind != part and asked:
                sync.lag.pass_by()
                asked = False
            part = kind
            results[name] = found = run()
            asked = asked or bool(found.repaired)
            if found.unsynced or found.unsettled:
                _log.warning("sync_difference", part=name, unsynced=dict(found.unsynced), examples=found.examples)
            if after is not None:
                after(name, found)
    return results


def counts_of(parts: dict[str, Part], before: Mapping[str, Any] | None = None) -> dict[str, JsonValue]:
    """Return what a run's record keeps: unsynced by kind, and what comparing cost; `before`: of earlier attempts."""
    earlier = before or {}
    unsynced: Counter[str] = Counter(earlier.get("unsynced", {}))
    examples: dict[str, JsonValue] = dict(earlier.get("examples", {}))
    for found in parts.values():
        unsynced.update(found.unsynced)
        examples |= {kind: list[JsonValue](rows) for kind, rows in found.examples.items()}
    total: dict[str, Any] = {
        name: earlier.get(name, 0) + sum(getattr(found, name) for found in parts.values()) for name in _TOTALS
    }
    seconds = earlier.get("seconds", 0.0) + sum(found.seconds for found in parts.values())
    return {
        "unsynced": dict[str, JsonValue](unsynced),
        "examples": examples,
        **total,
        "seconds": round(seconds, 3),
        "rows_per_second": round(total["rows"] / seconds) if seconds else 0,
        "parts": earlier.get("parts", {}) | {name: round(found.seconds, 3) for name, found in parts.items()},
    }


@workflow("sync", "compare ads DB, Repo, indexes, documents and serving; repair at low priority", SyncParameters,
          resumable=True)  # fmt: skip
def run_sync(context: RunContext[SyncParameters]) -> Counts:
    """Compare and repair everything. Raises SyncIncomplete where what is in flight did not arrive."""
    with closing(context.parameters.open_engine()) as engine, context.repo.bulk_read():
        return _run(context, engine)


def _run(context: RunContext[SyncParameters], engine: Engine) -> Counts:
    parameters = context.parameters

    def pause(seconds: float) -> None:
        sync.check()  # also renews the pin of the snapshot that is in use
        _sleep(seconds)

    sync = Sync(
        home=context.home,
        catalog=context.catalog,
        repo=context.repo,
        log=context.log,
        ads_db=context.ads_db,
        lag=Lag(context.ads_db, context.log, context.repo_feed, pause, parameters.patience_s),
        repair=parameters.repair,
        on_check=context.check,
        failed=context.failed,
        progress=lambda done: context.progress(done, unit="rows"),
        begin=context.begin,
        engine=None if isinstance(engine, InlineEngine) else engine,
        open_repo=context.opened.open_repo or partial(open_embedded_repo, context.home, context.catalog),
    )
    wanted = lost_rows.pending(context.log)
    state = context.state or {"done": [], "wanted": 0 if wanted is None else wanted.number}
    done: list[str] = list(state["done"])
    found: dict[str, Part] = {}
    before = dict(context.counts)  # of earlier attempts, as of their last part

    def after(name: str, part: Part) -> None:
        found[name] = part
        context.counts.update(counts_of(found, before))
        if not part.unsettled:
            done.append(name)
            context.checkpoint({"done": done, "wanted": state["wanted"]})

    synchronize(sync, parameters, done=tuple(done), after=after)
    if unsettled := sum(part.unsettled for part in found.values()):
        raise SyncIncomplete(
            f"{unsettled} rows differ, and may be in flight: nothing moved in the pipeline for "
            f"{parameters.patience_s:g} s. Start the service, or set back the switch that holds it, and run it again"
        )
    if wanted is not None and wanted.number == state["wanted"] and _covers(parameters, wanted):
        lost_rows.done(context.log, wanted)
    return counts_of(found, before)


def _covers(parameters: SyncParameters, wanted: LostRows) -> bool:
    """Return whether a sync looks for all the rows that the Gateway asks for."""
    if not parameters.repair or "ads_db" not in parameters.parts:
        return False
    return not parameters.tables or (bool(wanted.tables) and wanted.tables <= {*parameters.tables})
