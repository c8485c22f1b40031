"""Base index: one consistent snapshot of every servable document as immutable Manas segments.

Nothing committed around the snapshot is lost: the log positions are taken before the snapshot's timestamp, and a
document is published only after its commit, so whatever was committed after the snapshot lies in the deltas from those
positions on. What lies there and is not newer than the snapshot is in the base already; serving passes over it.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial

import structlog

from argus import paused_handlers
from argus.core import Sources
from argus.stage import open_sources
from batch_workflows._base_checkpoint import Checkpoint, NotKept, State, left_behind
from batch_workflows._base_gateway import GatewayWatch
from batch_workflows._base_options import BASES_KEPT, RANGE_ROWS, BaseReport, BuildOptions, Hooks
from batch_workflows._base_tasks import BuildJob, KeyRange, build_shard, close_world, key_ranges, read_range, shard_name
from batch_workflows._exceptions import BaseRefused
from batch_workflows._objects_errors import ObjectsError
from batch_workflows.base_gates import Freshness, Tally, faults, freshness, gated_fields, volume_change
from batch_workflows.base_store import BUILDING, BaseStore, remember_kept, spared, spool_of
from batch_workflows.engines import Engine, InlineEngine, LocalEngine
from batch_workflows.objects import Objects
from catalog import Catalog
from gateway import AdsDb
from manas import Manifest, base_manifest, new_version
from messaging import Log
from messaging.headers import now_us
from messaging.home import Home
from messaging.switches import Switches
from messaging.topics import BUDGETS, DELTAS
from storage_repo import Repo, RepoSchema, Snapshot
from storage_repo.embedded import EmbeddedRepo

__all__ = [
    "BASES_KEPT",
    "RANGE_ROWS",
    "SHARD_DOCUMENTS",
    "BaseReport",
    "BuildOptions",
    "Hooks",
    "build_base_index",
    "open_embedded_repo",
    "opened_sources",
]

SHARD_DOCUMENTS = 100_000
"""With fewer documents per shard, a search pays for asking many shards more than building gains."""
_PIN = "base-index"
_PIN_SECONDS = 900.0
"""Renewed with every finished task; how long a killed build keeps old versions from being collected."""
_PIN_AGAIN_SECONDS = 60.0

Progress = Callable[[int, int | None], None]


def build_base_index(
    home: Home,
    catalog: Catalog,
    repo: Repo,
    log: Log,
    *,
    options: BuildOptions | None = None,
    engine: Engine | None = None,
    hooks: Hooks | None = None,
    open_repo: Callable[[], Repo] | None = None,
    ads_db: AdsDb | None = None,
    recompute: bool = True,
    force: bool = False,
    progress: Progress | None = None,
) -> BaseReport:
    """Build a base at one snapshot, check the gates, publish it by moving the pointer, and report.

    `recompute`, `force` and `progress` are for callers without options and hooks. `engine` runs the tasks (default:
    a pool of processes, or this one for few rows), `open_repo` opens the Repo where they run (default: the home's
    embedded one) and must travel as a pickle. With an `ads_db` a gate asks what the Gateway has not read. Writers go
    on meanwhile. A crash leaves what nobody points to, removed by the next run. Raises BaseRefused with a report when
    a gate fails or another build runs; ObjectsError.
    """
    if open_repo is None and not isinstance(repo, EmbeddedRepo):
        raise ValueError("build_base_index needs open_repo for a Repo that is not the home's embedded one")
    chosen = options or BuildOptions(recompute=recompute, force=force)
    told = hooks or (Hooks() if progress is None else Hooks(lambda done, total, _unit: progress(done, total)))
    store = BaseStore.of(home, chosen.address)
    with _alone(home):
        return _Build(home, catalog, repo, log, store, chosen, told, engine, open_repo, ads_db).run()


class _Build:
    """One run of the builder."""

    def __init__(
        self,
        home: Home,
        catalog: Catalog,
        repo: Repo,
        log: Log,
        store: BaseStore,
        options: BuildOptions,
        hooks: Hooks,
        engine: Engine | None,
        open_repo: Callable[[], Repo] | None,
        ads_db: AdsDb | None,
    ) -> None:
        self._home, self._catalog, self._repo, self._log = home, catalog, repo, log
        self._store, self._options, self._hooks, self._engine = store, options, hooks, engine
        self._open_repo = open_repo or partial(open_embedded_repo, home, catalog)
        self._gateway = None if ads_db is None or not options.limits.max_still_s else GatewayWatch(ads_db, log)
        self._tally, self._pinned = Tally(), 0.0
        self._seconds: dict[str, float] = {}
        self._kept_ranges = self._kept_shards = 0
        self._begun_anew = ""

    def run(self) -> BaseReport:
        """Build, judge and publish."""
        own: Engine | None = None
        snapshot, checkpoint = self._begin()
        state = checkpoint.state
        built, spool = self._store.building(state.version), self._spool(state.version)
        keep = False
        try:
            if self._hooks.begun is not None:
                self._hooks.begun(state.version)
            ranges, few = _look_ahead(key_ranges(snapshot, self._catalog, self._options.range_rows))
            engine = self._engine or (own := InlineEngine() if few else LocalEngine())
            state.shards = state.shards or self._shards(engine, few)
            checkpoint.begin()
            job = BuildJob(
                state.version, self._open_repo, partial(opened_sources, self._home), self._catalog, snapshot.ts,
                self._options.recompute, state.shards, spool.address, built.address, state.delta_positions,
                state.budget_positions, dict(paused_handlers(Switches(self._log))),
            )  # fmt: skip
            with nullcontext() if few else self._repo.bulk_read():
                manifest = self._built(engine, job, ranges, snapshot, checkpoint)
            return self._judged(state.version, manifest, state.fresh)
        except BaseException as error:
            keep = self._hooks.begun is not None and not isinstance(error, BaseRefused)
            if keep:
                checkpoint.leave()
            else:
                _drop(built)
            raise
        finally:
            close_world()
            if own is not None:
                own.close()
            if not keep:
                self._repo.unpin(_PIN)
                _drop(spool)

    def _begin(self) -> tuple[Snapshot, Checkpoint]:
        """Open the snapshot of an unfinished build to go on with, or a new one; remove what else is left."""
        rules, version = self._rules(), self._options.resume
        if version:
            checkpoint, self._begun_anew = left_behind(self._spool(version), rules, self._log)
            if checkpoint is not None:
                try:
                    snapshot = checkpoint.snapshot(self._repo, _PIN, _PIN_SECONDS)
                except NotKept as reason:
                    self._begun_anew = str(reason)
                else:
                    self._clean(version)
                    return snapshot, checkpoint
            structlog.get_logger().warning("base_index.begun_anew", version=version, why=self._begun_anew)
        self._clean()
        fresh = freshness(self._log)
        # In this order: see the module's first lines.
        positions = self._log.end_offsets(DELTAS), self._log.end_offsets(BUDGETS)
        snapshot = self._repo.snapshot()
        self._pin(snapshot)
        version = new_version(snapshot.ts)
        state = State(version, rules, snapshot.ts, 0, *positions, fresh, now_us())
        return snapshot, Checkpoint(self._spool(version), state)

    def _clean(self, spare: str = "") -> None:
        self._store.clean(spare)
        for left in self._home.base.glob(f"{BUILDING}*"):
            if not spare or left.name not in spared(spare):
                shutil.rmtree(left)

    def _rules(self) -> dict[str, str]:
        options, paused = self._options, paused_handlers(Switches(self._log))
        return {
            "the catalogue": self._catalog.fingerprint,
            "the code": options.code_version,
            "the paused handlers": json.dumps(dict(paused), sort_keys=True),
            "the parameters": json.dumps([options.recompute, options.range_rows, options.shards]),
            "the address": str(self._store.objects.address),
        }

    def _built(
        self, engine: Engine, job: BuildJob, ranges: Iterator[KeyRange], snapshot: Snapshot, checkpoint: Checkpoint
    ) -> Manifest:
        """Read all ranges, then build all shards."""
        started, count = time.monotonic(), 0

        def take(tally: Tally) -> None:
            self._tally.add(tally)
            self._hooks.read(tally)
            self._hooks.progress(self._tally.rows, None, "documents")
            self._between(snapshot)

        idle = partial(self._between, snapshot)

        def to_read() -> Iterator[KeyRange]:
            nonlocal count
            for within in ranges:
                count += 1
                if (tally := checkpoint.kept_range(within)) is None:
                    yield within
                else:
                    self._kept_ranges += 1
                    take(tally)

        for read in engine.map(partial(read_range, job), to_read(), idle):
            checkpoint.range_done(read)
            take(read.tally)
        self._hooks.progress(self._tally.rows, self._tally.rows, "documents")
        reading, target = time.monotonic(), Objects(job.target)
        kept = [report for shard in range(job.shards) if (report := checkpoint.kept_shard(shard, target)) is not None]
        self._kept_shards = len(kept)
        reports = {report.name: (report.manifest, report.own) for report in kept}
        tasks = [(shard, count) for shard in range(job.shards) if shard_name(shard) not in reports]
        for report in engine.map(partial(build_shard, job), tasks, idle):
            checkpoint.shard_done(report)
            reports[report.name] = report.manifest, report.own
            self._hooks.progress(len(reports), job.shards, "shards")
            self._between(snapshot)
        self._seconds |= {"read": reading - started, "build": time.monotonic() - reading}
        return base_manifest({name: reports[name] for name in map(shard_name, range(job.shards))})

    def _judged(self, version: str, manifest: Manifest, fresh: Freshness) -> BaseReport:
        """Refuse the base if a gate does; otherwise publish it, and let old ones go."""
        tally, options = self._tally, self._options
        before = next(((b.version, b.manifest) for b in self._store.bases() if b.current and b.manifest), None)
        found = faults(self._catalog, tally, options.limits, fresh, before)
        if self._gateway is not None and (why := self._gateway.fault(options.limits.max_still_s, self._hooks.check)):
            found.append(why)
        report = BaseReport(
            base_version="",
            documents=manifest.documents,
            snapshot_ts=manifest.snapshot_ts,
            coverage={n: round(share, 6) for n, share in tally.coverage(gated_fields(self._catalog)).items()},
            differing=tally.differing,
            recomputed=options.recompute,
            sample_differing=tally.differing_samples,
            address=str(self._store.objects.address),
            shards=len(manifest.shards),
            bytes=sum(entry.bytes for entry in manifest.files.values()),
            rows=tally.rows,
            kept_out=tally.kept_out,
            volume_change=round(volume_change(tally.documents, before[1].documents if before else 0), 6),
            newest_source_us=fresh.newest_us,
            waiting_since_us=fresh.waiting_since_us,
            failures=dict(tally.failures),
            samples=dict(tally.samples),
            faults=found,
            kept_ranges=self._kept_ranges,
            kept_shards=self._kept_shards,
            begun_anew=self._begun_anew,
        )
        if found and not options.force:
            raise BaseRefused(
                "the base index was not published, the old one stays: " + "; ".join(found), report.to_json()
            )
        started = time.monotonic()
        self._hooks.check()
        published = self._store.publish(version, manifest)
        remember_kept(self._home, self._store, options.keep)  # before anything goes
        removed = self._store.prune(options.keep)
        self._seconds["publish"] = time.monotonic() - started
        return replace(
            report,
            base_version=published,
            removed=removed,
            seconds={name: round(seconds, 3) for name, seconds in self._seconds.items()},
        )

    def _shards(self, engine: Engine, few: bool) -> int:
        if self._options.shards:
            return self._options.shards
        if few:
            return 1
        before = next((b.manifest.documents for b in reversed(self._store.bases()) if b.manifest), 0)
        return engine.parallel if before == 0 else max(1, min(engine.parallel, before // SHARD_DOCUMENTS))

    def _spool(self, version: str) -> Objects:
        """Return where tasks leave documents for each other: a directory here, if they all see it."""
        shared = self._engine is None or self._engine.shares_files
        return (Objects(self._home.base) if shared else self._store.objects).below(spool_of(version))

    def _between(self, snapshot: Snapshot) -> None:
        self._hooks.check()
        if time.monotonic() - self._pinned > _PIN_AGAIN_SECONDS:
            self._pin(snapshot)

    def _pin(self, snapshot: Snapshot) -> None:
        self._repo.pin(_PIN, snapshot.ts, _PIN_SECONDS)
        self._pinned = time.monotonic()


def _drop(place: Objects) -> None:
    """Remove what is of no use any more; what cannot be removed now, the next build removes."""
    try:
        place.remove("")
    except ObjectsError as error:
        structlog.get_logger().warning("base_index.left_over", place=str(place.address), error=str(error))


def _look_ahead(ranges: Iterator[KeyRange]) -> tuple[Iterator[KeyRange], bool]:
    """Return the ranges, and whether there is only one: then a pool of processes would cost more than it gains."""
    first, second = next(ranges), next(ranges, None)

    def all_of_them() -> Iterator[KeyRange]:
        yield first
        if second is not None:
            yield second
        yield from ranges

    return all_of_them(), second is None


def open_embedded_repo(home: Home, catalog: Catalog) -> EmbeddedRepo:
    """Open the home's embedded Repo, in whatever process."""
    return EmbeddedRepo.open(home.store, RepoSchema.of(catalog.repo_tables()), wake_dir=home.wake)


def opened_sources(home: Home) -> Sources:
    """Open the home's external sources, in whatever process."""
    return open_sources(home)


@contextmanager
def _alone(home: Home) -> Iterator[None]:
    """Hold the home's lock of building, which the kernel frees when this process ends. Raises BaseRefused."""
    with (home.base / ".building.lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BaseRefused(f"another process builds a base index of {home.root} at this moment") from None
        yield
