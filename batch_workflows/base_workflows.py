"""The workflows around base indexes: build, list, verify, roll back."""

from __future__ import annotations

from pydantic import Field, JsonValue

from batch_workflows._engine_choice import EngineChoice
from batch_workflows._exceptions import BaseRefused
from batch_workflows.base_gates import NOT_RUN, UNREADABLE, GateLimits, Tally
from batch_workflows.base_index import BASES_KEPT, RANGE_ROWS, BuildOptions, Hooks, build_base_index
from batch_workflows.base_store import BaseStore, remember_address
from batch_workflows.engines import Engine
from batch_workflows.runner import Counts, Parameters, RunContext, workflow

LOCK = "base-index"
"""Of all that moves the pointer or removes bases."""


class BaseIndexParameters(GateLimits, EngineChoice):
    """Of base-index: how to build, where to publish, and what the gates want."""

    stored: bool = False
    """Take the stored documents instead of running the handlers."""
    force: bool = False
    """Publish although a gate refuses."""
    to: str = ""
    """Address to publish at: a directory, or s3://BUCKET/PREFIX[?endpoint=URL]; "": what `base-address` remembered."""
    keep: int = Field(BASES_KEPT, ge=1)
    """Bases that stay, the new one included."""
    shards: int = Field(0, ge=0, le=1_000)
    """0: by the number of documents and of the engine's processes."""
    range_rows: int = Field(RANGE_ROWS, ge=100)
    """Rows per task."""


class BaseParameters(Parameters):
    """Of workflows on published bases."""

    at: str = ""
    """Address; "": the home's."""
    version: str = ""
    """"": the base in service, or of rollback the one before it."""


class AddressParameters(Parameters):
    """Of base-address."""

    to: str = ""


@workflow(
    "base-index",
    "build a base index from one snapshot, check it, publish it by moving a pointer",
    BaseIndexParameters,
    resumable=True,
)
def base_index(context: RunContext[BaseIndexParameters]) -> Counts:
    """Build and publish a base index; resumed, it goes on from the same snapshot with what was finished and is whole.

    Where that snapshot can be read no more, or rules have changed, it begins anew and says why (`begun_anew`).
    """
    chosen = context.parameters

    def read(tally: Tally) -> None:
        for name, count in tally.failures.items():
            if name.startswith(UNREADABLE) or name.endswith(NOT_RUN):
                samples = tally.samples.get(name, [])
                for place in range(count):
                    context.failed("document", samples[place] if place < len(samples) else "(more)", name)

    rows = None if context.last is None else context.last.counts.get("rows")

    def progress(done: int, total: int | None, unit: str) -> None:
        context.progress(done, total, unit, about=rows if isinstance(rows, int) else 0)

    options = BuildOptions(
        recompute=not chosen.stored, force=chosen.force, address=chosen.to, keep=chosen.keep, shards=chosen.shards,
        range_rows=chosen.range_rows,
        limits=GateLimits(**{name: getattr(chosen, name) for name in GateLimits.model_fields}),
        resume=str(context.state or ""), code_version=context.code_version,
    )  # fmt: skip
    engine: Engine | None = None
    if chosen.engine != "local" or chosen.processes:
        engine = chosen.open_engine()
    try:
        report = build_base_index(
            context.home, context.catalog, context.repo, context.log, options=options, engine=engine,
            hooks=Hooks(progress, context.check, read, context.checkpoint), open_repo=context.opened.open_repo,
            ads_db=context.ads_db,
        )  # fmt: skip
    except BaseRefused as refused:
        context.counts.update(refused.report)
        raise
    finally:
        if engine is not None:
            engine.close()
    return report.to_json()


@workflow("rollback-base", "move the pointer back to the base index before the current one", BaseParameters, lock=LOCK)
def rollback_base(context: RunContext[BaseParameters]) -> Counts:
    """Put an earlier base, if it is whole, back in service."""
    chosen = context.parameters
    return {"base_version": BaseStore.of(context.home, chosen.at).rollback(chosen.version or None)}


@workflow("verify-base", "read a published base index again and recompute checksums and counts", BaseParameters)
def verify_base(context: RunContext[BaseParameters]) -> Counts:
    """Name whatever is damaged; a clean base is reported with its size."""
    chosen = context.parameters

    def reached(done: int, total: int) -> None:
        context.progress(done, total, "bytes")
        context.check()

    return BaseStore.of(context.home, chosen.at).verify(chosen.version or None, reached).to_json()


@workflow("list-bases", "list the published base indexes", BaseParameters)
def list_bases(context: RunContext[BaseParameters]) -> Counts:
    """Return version, documents and time of every base, oldest first."""
    store = BaseStore.of(context.home, context.parameters.at)
    bases: list[JsonValue] = []
    for base in store.bases():
        shown: dict[str, JsonValue] = {"version": base.version, "current": base.current, "problem": base.problem}
        if (manifest := base.manifest) is not None:
            size = sum(entry.bytes for entry in manifest.files.values())
            shown |= {"documents": manifest.documents, "snapshot_ts": manifest.snapshot_ts, "bytes": size}
            shown |= {"created_at": manifest.created_at, "shards": max(1, len(manifest.shards))}
        bases.append(shown)
    return {"address": str(store.objects.address), "bases": bases}


@workflow("base-address", "publish base indexes at an address from now on; servers follow it", AddressParameters)
def base_address(context: RunContext[AddressParameters]) -> Counts:
    """Remember the address; "" is the home itself. A running service follows it from its next start on."""
    remember_address(context.home, context.parameters.to)
    return {"address": str(BaseStore.of(context.home).objects.address)}
