"""The two kinds of task that a base index is built by, the same on every engine.

`read_range` derives the documents of a range of root rows at the snapshot and lays them down by shard; `build_shard`
makes a segment of all that was laid down for one shard. Both can be run again: they replace what they wrote.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import msgspec

from argus import Paused, Registry, compute_runs, load_registry
from argus._rows import DAMAGED
from argus.core import Sources
from batch_workflows.base_gates import UNREADABLE, Tally, gated_fields
from batch_workflows.objects import Address, Objects
from batch_workflows.ranges import neighbours
from catalog import Catalog
from catalog.model import DOCUMENT_BODY, SOURCE_VERSION
from manas import MANIFEST, FileEntry, InvalidDocument, Manifest, SegmentWriter, VectorBuild, file_entry, shard_of
from manas._schema import DocumentSchema
from storage_repo import Repo, Snapshot

_CHUNK = 512
"""Rows read and derived together, so that reads are batched."""
Document = tuple[str, bytes]
_encoder, _decoder = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder(list[Document])


@dataclass(frozen=True, slots=True)
class BuildJob:
    """What all tasks of one build are given; it travels as a pickle."""

    version: str
    open_repo: Callable[[], Repo]
    """Opens the Repo where the task runs: a function of a module, or a partial of one."""
    open_sources: Callable[[], Sources]
    catalog: Catalog
    snapshot_ts: int
    recompute: bool
    shards: int
    spool: Address
    """Where documents are laid down between the two kinds of task."""
    target: Address
    delta_positions: Mapping[int, int]
    budget_positions: Mapping[int, int]
    paused: Paused = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class KeyRange:
    """Root rows after `after` and before `before` ("": the end)."""

    number: int
    after: str
    before: str


@dataclass(frozen=True, slots=True)
class RangeReport:
    """What a range came to, and the documents that it laid down."""

    within: KeyRange
    tally: Tally
    digests: dict[str, str]
    """File in the spool -> checksum."""


@dataclass(frozen=True, slots=True)
class ShardReport:
    """A segment that was built."""

    name: str
    manifest: Manifest
    own: FileEntry
    """Size and checksum of the manifest's file."""


def shard_name(shard: int) -> str:
    """Return the directory of a shard in its base."""
    return f"shard-{shard:03d}"


def key_ranges(snapshot: Snapshot, catalog: Catalog, size: int) -> Iterator[KeyRange]:
    """Cut the root rows of a snapshot into ranges of about `size` rows, each given out as soon as it is known."""
    rows = (row for row, _ in snapshot.scan(catalog.root, columns=[SOURCE_VERSION]))
    for number, (after, before) in enumerate(neighbours(rows, size)):
        yield KeyRange(number, after, before)


def read_range(job: BuildJob, within: KeyRange) -> RangeReport:
    """Derive the documents of a range, lay them down by shard, and return what they came to.

    Raises RepoError, ObjectsError. A document of rows that do not parse is counted and left out, as in the pipeline.
    """
    world = _World.of(job)
    tally = Tally()
    shards: list[list[Document]] = [[] for _ in range(job.shards)]
    documents = world.recomputed(within, tally) if job.recompute else world.stored(within, tally)
    for document_id, body in documents:
        tally.documents += 1
        tally.bytes += len(body)
        shards[shard_of(document_id, job.shards)].append((document_id, body))
    spool, digests = Objects(job.spool), {}
    for shard, found in enumerate(shards):
        name, data = _spooled(within.number, shard), _encoder.encode(found)
        spool.write(name, data, durable=False)
        digests[name] = digest_of((data,))
    return RangeReport(within, tally, digests)


def build_shard(job: BuildJob, task: tuple[int, int]) -> ShardReport:
    """Make a segment of what `ranges` ranges laid down for a shard: `task` is (shard, ranges).

    In a directory it is built in place, elsewhere beside and then brought there. Raises ObjectsError, ManasError.
    """
    shard, ranges = task
    name, target = shard_name(shard), Objects(job.target)
    if target.local is not None:
        directory = target.local / name
        target.remove(name)  # of a task that was killed
        return _build(job, shard, ranges, directory)
    with tempfile.TemporaryDirectory(prefix="adsindex-shard-") as scratch:
        directory = Path(scratch) / name
        report = _build(job, shard, ranges, directory)
        for file in (*report.manifest.files, MANIFEST):
            target.put(directory / file, f"{name}/{file}")
        return report


def _build(job: BuildJob, shard: int, ranges: int, directory: Path) -> ShardReport:
    spool = Objects(job.spool)

    def documents() -> Iterator[tuple[str, int, bytes]]:
        for number in range(ranges):
            for document_id, body in _decoder.decode(spool.read(_spooled(number, shard))):
                yield document_id, job.snapshot_ts, body

    # One thread: the same documents then give the same files on every engine; the shards keep the processors busy.
    try:
        manifest = SegmentWriter(directory, job.catalog, vectors=VectorBuild(threads=1)).write(
            documents(), job.snapshot_ts, job.delta_positions, job.budget_positions
        )
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(directory)) from error  # a write does not say where
    return ShardReport(shard_name(shard), manifest, file_entry(directory / MANIFEST))


def digest_of(parts: Iterable[bytes]) -> str:
    """Return the BLAKE2b-128 of what comes in parts."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _spooled(number: int, shard: int) -> str:
    return f"{number:06d}-{shard:03d}"


class _World:
    """What a process needs for the tasks of one build, opened once."""

    _current: _World | None = None

    def __init__(self, job: BuildJob) -> None:
        self.version, self._catalog, self._paused = job.version, job.catalog, job.paused
        self._repo = job.open_repo()
        self._snapshot = self._repo.snapshot(job.snapshot_ts)
        self._sources = job.open_sources()
        self._registry: Registry = load_registry(job.catalog)
        self._schema = DocumentSchema(job.catalog)
        self._gated = gated_fields(job.catalog)

    @classmethod
    def of(cls, job: BuildJob) -> _World:
        """Return this process's world for a build, and close that of an earlier build."""
        if cls._current is None or cls._current.version != job.version:
            cls.close()
            cls._current = cls(job)
        return cls._current

    @classmethod
    def close(cls) -> None:
        """Close what is open in this process."""
        world, cls._current = cls._current, None
        if world is not None:
            world._repo.close()
            for source in world._sources.values():
                source.close()

    def stored(self, within: KeyRange, tally: Tally) -> Iterator[Document]:
        """Yield the stored documents of a range."""
        scan = self._snapshot.scan(
            self._catalog.document_table, after=within.after, before=within.before, columns=[DOCUMENT_BODY]
        )
        for row, cells in scan:
            tally.rows += 1
            if self._accepts(row, cells[DOCUMENT_BODY], tally):
                yield row, cells[DOCUMENT_BODY]

    def recomputed(self, within: KeyRange, tally: Tally) -> Iterator[Document]:
        """Yield the documents of a range as the handlers make them now."""
        scan = self._snapshot.scan(
            self._catalog.root, after=within.after, before=within.before, columns=[SOURCE_VERSION]
        )
        rows = (row for row, _ in scan)
        while chunk := list(islice(rows, _CHUNK)):
            tally.rows += len(chunk)
            yield from self._derived(chunk, tally)

    def _derived(self, rows: list[str], tally: Tally) -> Iterator[Document]:
        for result in compute_runs(self._snapshot, self._registry, self._sources, rows, self._paused):
            for failure in (*result.failures, *result.joined_failures):
                tally.note(tally.failures, f"{failure.handler}:{failure.reason}", result.key)
            if result.body != result.body_before:
                tally.differs(result.key)
            if result.lacking:
                tally.kept_out += 1
                for name in result.lacking:
                    tally.note(tally.lacking, name, result.key)
            if any(DAMAGED in why for why in result.blocked):
                tally.note(tally.failures, f"{UNREADABLE}:{DAMAGED}", result.key)
            if result.body is not None and self._accepts(result.key, result.body, tally):
                yield result.key, result.body

    def _accepts(self, document_id: str, body: bytes, tally: Tally) -> bool:
        """Say whether a document can be indexed, and count the fields that it has not."""
        try:
            present = self._schema.prepare(document_id, 1, body).present
        except InvalidDocument as error:
            tally.note(tally.failures, f"{UNREADABLE}:{type(error).__name__}", document_id)
            return False
        for name in self._gated:
            if name not in present:
                tally.note(tally.missing, name, document_id)
        return True


def close_world() -> None:
    """Close what the tasks of a build opened in this process."""
    _World.close()
