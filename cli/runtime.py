"""The composition root: which backends a command or a stage process gets for a home."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import psutil

from catalog import DEFAULT_CATALOG, Catalog, DependencyGraph, InvalidCatalog, load_catalog
from cli.settings import EMBEDDED, Settings
from messaging import Log, LogError, open_embedded_log
from messaging.home import Home
from messaging.topics import ensure_topics
from storage_repo import Repo, RepoSchema, TableLayout
from storage_repo.embedded import EmbeddedRepo
from storage_repo.feed import RepoFeed, StoredFeed

ROOT = Path(__file__).resolve().parent.parent


class CommandError(Exception):
    """A command cannot do what was asked; the text says what, where and what to do."""


def resolve_catalog_file(home: Home, explicit: Path | None = None) -> Path | None:
    """Return the catalogue file of a home: the explicit one, the remembered one, or None = built in."""
    if explicit is not None:
        if not explicit.is_file():
            raise CommandError(f"no catalogue at {explicit}; give the path of a YAML file like catalog/ads.yaml")
        return explicit
    if home.catalog_pointer.exists():
        remembered = Path(home.catalog_pointer.read_text().strip())
        if not remembered.is_file():
            raise CommandError(
                f"{home.root} was started with the catalogue {remembered}, which is gone; put it back, "
                f"or start with --catalog FILE, or remove {home.catalog_pointer} to use the built-in one"
            )
        return remembered
    return None


@dataclass(frozen=True, slots=True)
class RunCatalog:
    """The catalogue that all processes of one run use, even if the person's file is edited meanwhile."""

    copy: Path
    """In the home: what was validated when the run began."""
    source: Path
    """The person's file, which errors name."""

    def load(self) -> Catalog:
        """Load the copy; faults name the person's file. Raises InvalidCatalog."""
        try:
            return replace(load_catalog(self.copy), file=str(self.source))
        except InvalidCatalog as error:
            raise InvalidCatalog([replace(fault, file=str(self.source)) for fault in error.faults]) from None


def open_catalog(home: Home) -> Catalog:
    """Load the catalogue of a home: the one that the running service uses, else the file as it is now."""
    up = process_file(home, "up").read()
    if up is not None and "catalog" in up:
        return RunCatalog(Path(up["catalog"]), Path(up["catalog_source"])).load()
    return load_catalog(resolve_catalog_file(home))


def freeze_catalog(home: Home, explicit: Path | None = None) -> tuple[Catalog, RunCatalog]:
    """Copy the catalogue into the home for one run, and check it and that the handlers fit it.

    For who holds the home's lock; copies of earlier runs go. Raises CatalogError, CommandError, and then nothing of a
    catalogue given by `explicit` is remembered.
    """
    source = (resolve_catalog_file(home, explicit) or DEFAULT_CATALOG).resolve()
    part = home.run / "catalog.part"
    try:
        part.write_bytes(source.read_bytes())
    except OSError as error:
        raise CommandError(f"cannot copy the catalogue {source} to {part}: {error.strerror}") from error
    catalog = RunCatalog(part, source).load()
    dependency_graph(catalog)
    frozen = RunCatalog(home.run / f"catalog-{catalog.fingerprint}.yaml", source)
    part.replace(frozen.copy)
    for other in home.run.glob("catalog-*.yaml"):
        if other != frozen.copy:
            other.unlink()
    return catalog, frozen


def remember_catalog(home: Home, explicit: Path | None) -> None:
    """Make a catalogue that was given, and found to be good, the home's."""
    if explicit is not None:
        part = home.catalog_pointer.with_suffix(".part")
        part.write_text(str(explicit.resolve()))
        part.replace(home.catalog_pointer)


def open_log(home: Home) -> Log:
    """Open the message log of a home, its topics made (embedded) or checked (Kafka).

    Raises SettingsError, LogUnavailable, and UnknownTopic naming `topics apply`.
    """
    url = Settings.load(home).log
    if url == EMBEDDED:
        log = open_embedded_log(home.log, home.wake)
    else:
        from messaging.kafka import open_kafka_log  # kafka-python takes a second to import

        log = open_kafka_log(url, create_topics=False)
    try:
        ensure_topics(log)
    except LogError:
        log.close()
        raise
    return log


def open_repo(home: Home, catalog: Catalog) -> Repo:
    """Open the Storage Repo of a home with the catalogue's tables. Raises SettingsError, StoreUnavailable."""
    return repo_opener(home, catalog)()


def repo_opener(home: Home, catalog: Catalog) -> Callable[[], Repo]:
    """Return what opens the home's Storage Repo in another process; one on HBase also where there is no such home.

    It can be pickled. Raises SettingsError.
    """
    url = Settings.load(home).repo
    if url == EMBEDDED:
        return partial(open_embedded_repo, home, catalog)
    return partial(open_hbase_repo, url, catalog)


def open_hbase_repo(url: str, catalog: Catalog) -> Repo:
    """Open a Storage Repo on HBase. Raises StoreUnavailable."""
    from storage_repo.hbase import HbaseRepo  # its clients take half a second to import

    return HbaseRepo.open(url, hbase_schema(catalog))


def open_embedded_repo(home: Home, catalog: Catalog) -> EmbeddedRepo:
    """Open the Storage Repo inside a home. Raises StoreUnavailable."""
    return EmbeddedRepo.open(home.store, repo_schema(catalog), wake_dir=home.wake)


def repo_schema(catalog: Catalog) -> RepoSchema:
    """Return the tables that the catalogue wants."""
    layouts = {
        table: TableLayout(x.salts, x.splits, x.history, x.family_deletes)
        for table, x in catalog.repo_layouts().items()
    }
    return RepoSchema.of(catalog.repo_tables(), layouts=layouts)


def hbase_schema(catalog: Catalog) -> RepoSchema:
    """Return the tables that an installation has on HBase: the catalogue's, and the one for probes."""
    from storage_repo.hbase.probe import with_probe

    return with_probe(repo_schema(catalog))


def peer_id(url: str) -> str:
    """Return the id of an installation's replication peer: two on one HBase have tables with different prefixes."""
    from storage_repo.hbase.address import HbaseAddress
    from storage_repo.hbase.wal import PEER_ID

    prefix = HbaseAddress.parse(url).prefix
    return f"{PEER_ID}_{re.sub(r'[^A-Za-z0-9]', '_', prefix)}" if prefix else PEER_ID


def repo_feed(home: Home, catalog: Catalog, repo: Repo, log: Log) -> RepoFeed:
    """Return what looks at the WAL proxy's lag behind the home's Repo."""
    if isinstance(repo, EmbeddedRepo):
        return StoredFeed(repo, log)
    from storage_repo.hbase.feed import HbaseFeed

    url = Settings.load(home).repo
    return HbaseFeed(repo, log, url, hbase_schema(catalog), peer_id(url))


def dependency_graph(catalog: Catalog) -> DependencyGraph:
    """Check the handlers against the catalogue and return the graph."""
    from argus import load_registry

    return load_registry(catalog).graph


@cache
def code_version() -> str:
    """Return the git revision of the checkout, or a hash of the sources where there is no git."""
    done = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return done.stdout.strip()
    digest = hashlib.blake2b(digest_size=6)
    for file in sorted(ROOT.glob("*/**/*.py")):
        if ".venv" not in file.parts and "tests" not in file.parts:
            digest.update(file.read_bytes())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class ProcessFile:
    """run/<process>.json: what is known of a running process. A file whose pid is dead means nothing."""

    path: Path

    def write(self, **values: Any) -> None:
        """Replace the file atomically."""
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(values))
        part.replace(self.path)

    def read(self) -> Mapping[str, Any] | None:
        """Return the values if the process lives, else None."""
        try:
            values: dict[str, Any] = json.loads(self.path.read_text())
        except FileNotFoundError:
            return None
        return values if alive(int(values["pid"]), float(values.get("born", 0))) else None


def alive(pid: int, born: float) -> bool:
    """Return whether the process lives and is the one that was born at that time (pids are used again)."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and (not born or abs(process.create_time() - born) < 1.0)
    except psutil.NoSuchProcess:
        return False


def process_file(home: Home, process: str) -> ProcessFile:
    """Return the file of a process, for example "argus-0" or "up"."""
    return ProcessFile(home.run / f"{process}.json")


def serving_port(home: Home) -> int | None:
    """Return the port of who answers searches if it runs and is ready: the Manas server, with shards their broker."""
    found = ready_server(home, "broker-0" if Settings.load(home).shards > 1 else "manas-0")
    return None if found is None else found[1]


def ready_server(home: Home, process: str) -> tuple[int, int] | None:
    """Return process id and port of a server that is ready."""
    values = process_file(home, process).read()
    return (int(values["pid"]), int(values["port"])) if values and values.get("state") == "ready" else None


def die_with_parent() -> None:
    """Ask Linux to send SIGTERM when the parent dies, so that kill -9 of `up` leaves no stage behind."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if os.getppid() == 1:
            raise SystemExit("the supervisor is gone")
