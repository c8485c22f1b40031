"""Base index: one consistent snapshot of every servable document as immutable Manas segments.

Nothing committed around the snapshot is lost: the log positions are taken before the snapshot's timestamp, and a
document is published only after its commit, so whatever was committed after the snapshot lies in the deltas from those
positions on. What lies there and is not newer than the snapshot is in the base already; serving passes over it.
"""

from __future__ import annotations

import fcntl
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import structlog

from argus import paused_handlers
from argus.core import Sources
from argus.stage import open_sources
from batch_workflows._base_tasks import BuildJob, KeyRange, build_shard, close_world, key_ranges, read_range, shard_name
from batch_workflows._exceptions import BaseRefused
from batch_workflows._objects_errors import ObjectsError
from batch_workflows.base_gates import Freshness, GateLimits, Tally, faults, freshness, gated_fields, volume_change
from batch_workflows.base_store import BUILDING, BaseStore
from batch_workflows.engines import Engine, InlineEngine, LocalEngine
from batch_workflows.objects import Objects
from catalog import Catalog
from manas import Manifest, base_manifest, new_version
from messaging import Log
from messaging.home import Home
from messaging.switches import Switches
from messaging.topics import BUDGETS, DELTAS
from storage_repo import Repo, RepoSchema, Snapshot
from storage_repo.embedded import EmbeddedRepo

RANGE_ROWS = 4_000
"""Root rows per task: some seconds of work, so that progress moves and a lost task costs little."""
SHARD_DOCUMENTS = 100_000
"""With fewer documents per shard, a search pays for asking many shards more than building gains."""
BASES_KEPT = 3
"""The one in service, the one to roll back to, and one more in case that one is bad as well."""
_PIN = "base-index"
_PIN_SECONDS = 900.0
"""Renewed with every finished task; how long a killed build keeps old versions from being collected."""
_PIN_AGAIN_SECONDS = 60.0

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True, slots=True)
class BaseReport:
    """What was built, and how it differs from what the pipeline had stored."""

    base_version: str
    documents: int
    snapshot_ts: int
    coverage: dict[str, float]
    differing: int
    """Documents that the handlers derive otherwise than stored: updates in flight, or something that was lost."""
    recomputed: bool
    sample_differing: list[str]
    address: str = ""
    """Where it was published."""
    shards: int = 0
    bytes: int = 0
    rows: int = 0
    """Root rows in the snapshot; those without a servable document are in no base."""
    kept_out: int = 0
    """Documents that lack a critical field and nothing else."""
    volume_change: float = 0.0
    """Against the base that was in service, -1..; 0 without one."""
    newest_source_us: int = 0
    waiting_since_us: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    """handler:reason -> documents; of those the handler's previous outputs were taken."""
    samples: dict[str, list[str]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    """Gates that did not pass, and were overruled by `force` or refused the base."""
    removed: list[str] = field(default_factory=list)
    """Older bases that went."""
    seconds: dict[str, float] = field(default_factory=dict)
    """By step: read, build, publish."""

    def to_json(self) -> dict[str, Any]:
        """Return a form for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How a base is built. The defaults suit one machine."""

    recompute: bool = True
    """Run the handlers over the snapshot's rows; otherwise take the stored documents."""
    force: bool = False
    """Publish although a gate refuses."""
    address: str = ""
    """Where to publish; "": where the home says."""
    keep: int = BASES_KEPT
    shards: int = 0
    """0: by the number of documents and of the engine's processes."""
    range_rows: int = RANGE_ROWS
    limits: GateLimits = field(default_factory=GateLimits)


@dataclass(frozen=True, slots=True)
class Hooks:
    """What a run is told while it goes on. Each may raise, and the build then ends and publishes nothing."""

    progress: Callable[[int, int | None, str], None] = lambda _done, _total, _unit: None
    check: Callable[[], None] = lambda: None
    """Called between tasks and right before the base is published."""
    read: Callable[[Tally], None] = lambda _tally: None
    """Called with what each range of rows came to."""


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
    recompute: bool = True,
    force: bool = False,
    progress: Progress | None = None,
) -> BaseReport:
    """Build a base at one snapshot, check the gates, publish it by moving the pointer, and report.

    `recompute`, `force` and `progress` are for callers without options and hooks. `engine` runs the tasks (default:
    a pool of processes, or this one for few rows), `open_repo` opens the Repo where they run (default: the home's
    embedded one) and must travel as a pickle. Writers go on meanwhile. A crash leaves what nobody points to, removed
    by the next run. Raises BaseRefused with a report when a gate fails or another build runs; ObjectsError.
    """
    if open_repo is None and not isinstance(repo, EmbeddedRepo):
        raise ValueError("build_base_index needs open_repo for a Repo that is not the home's embedded one")
    chosen = options or BuildOptions(recompute=recompute, force=force)
    told = hooks or (Hooks() if progress is None else Hooks(lambda done, total, _unit: progress(done, total)))
    store = BaseStore.of(home, chosen.address)
    with _alone(home):
        store.clean()
        for left in home.base.glob(f"{BUILDING}*"):
            shutil.rmtree(left)
        return _Build(home, catalog, repo, log, store, chosen, told, engine, open_repo).run()


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
    ) -> None:
        self._home, self._catalog, self._repo, self._log = home, catalog, repo, log
        self._store, self._options, self._hooks, self._engine = store, options, hooks, engine
        self._open_repo = open_repo or partial(open_embedded_repo, home, catalog)
        self._tally, self._pinned = Tally(), 0.0
        self._seconds: dict[str, float] = {}

    def run(self) -> BaseReport:
        """Build, judge and publish."""
        fresh = freshness(self._log)
        # In this order: see the module's first lines.
        positions = self._log.end_offsets(DELTAS), self._log.end_offsets(BUDGETS)
        snapshot = self._repo.snapshot()
        self._pin(snapshot)
        own: Engine | None = None
        version = new_version(snapshot.ts)
        built, spool = self._store.building(version), None
        try:
            ranges, few = _look_ahead(key_ranges(snapshot, self._catalog, self._options.range_rows))
            engine = self._engine or (own := InlineEngine() if few else LocalEngine())
            spool = self._spool(engine, version)
            job = BuildJob(
                version, self._open_repo, partial(opened_sources, self._home), self._catalog, snapshot.ts,
                self._options.recompute, self._shards(engine, few), spool.address, built.address, *positions,
                dict(paused_handlers(Switches(self._log))),
            )  # fmt: skip
            manifest = self._built(engine, job, ranges, snapshot)
            return self._judged(version, manifest, fresh)
        except BaseException:
            _drop(built)
            raise
        finally:
            close_world()
            if own is not None:
                own.close()
            self._repo.unpin(_PIN)
            if spool is not None:
                _drop(spool)

    def _built(self, engine: Engine, job: BuildJob, ranges: Iterator[KeyRange], snapshot: Snapshot) -> Manifest:
        """Read all ranges, then build all shards."""
        started, count = time.monotonic(), 0

        def counted() -> Iterator[KeyRange]:
            nonlocal count
            for within in ranges:
                count += 1
                yield within

        for tally in engine.map(partial(read_range, job), counted()):
            self._tally.add(tally)
            self._hooks.read(tally)
            self._hooks.progress(self._tally.rows, None, "documents")
            self._between(snapshot)
        self._hooks.progress(self._tally.rows, self._tally.rows, "documents")
        reading = time.monotonic()
        tasks = [(shard, count) for shard in range(job.shards)]
        reports = {}
        for report in engine.map(partial(build_shard, job), tasks):
            reports[report.name] = report.manifest, report.own
            self._hooks.progress(len(reports), len(tasks), "shards")
            self._between(snapshot)
        self._seconds |= {"read": reading - started, "build": time.monotonic() - reading}
        return base_manifest({name: reports[name] for name in map(shard_name, range(job.shards))})

    def _judged(self, version: str, manifest: Manifest, fresh: Freshness) -> BaseReport:
        """Refuse the base if a gate does; otherwise publish it, and let old ones go."""
        tally, options = self._tally, self._options
        before = next(((b.version, b.manifest) for b in self._store.bases() if b.current and b.manifest), None)
        found = faults(self._catalog, tally, options.limits, fresh, before)
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
        )
        if found and not options.force:
            raise BaseRefused(
                "the base index was not published, the old one stays: " + "; ".join(found), report.to_json()
            )
        started = time.monotonic()
        self._hooks.check()
        published = self._store.publish(version, manifest)
        removed = self._store.prune(options.keep)
        self._seconds["publish"] = time.monotonic() - started
        return _with(
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

    def _spool(self, engine: Engine, version: str) -> Objects:
        """Return where tasks leave documents for each other: a directory here, if they all see it."""
        here = Objects(self._home.base) if engine.shares_files else self._store.objects
        return here.below(f"{BUILDING}{version}-spool")

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


def _with(report: BaseReport, **changes: Any) -> BaseReport:
    values: Mapping[str, Any] = {**asdict(report), **changes}
    return BaseReport(**values)


def _look_ahead(ranges: Iterator[KeyRange]) -> tuple[Iterator[KeyRange], bool]:
    """Return the ranges, and whether there is only one: then a pool of processes would cost more than it gains."""
    first, second = next(ranges), next(ranges, None)

    def all_of_them() -> Iterator[KeyRange]:
        yield first
        if second is not None:
            yield second
        yield from ranges

    return all_of_them(), second is None


def open_embedded_repo(home: Home, catalog: Catalog) -> Repo:
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
