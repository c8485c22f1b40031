"""Repair after a restore: a Storage Repo that does not belong to the log any more becomes its store again.

What was committed and lost may have been published: serving has documents that the store does not know, at versions
that the store would give out once more, and serving ignores what is not newer. So the store's clock is moved beyond
every version ever published first; then every document gets a version after that, changed or not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from batch_workflows.refresh import refresh, resync
from catalog import Catalog, LaneName
from catalog.model import DOCUMENT_BODY
from gateway import AdsDb
from manas import Base, SegmentError, list_bases
from messaging import BadMessage, Log, OutRecord, Position
from messaging.dead_letters import parse
from messaging.headers import new_header, now_us
from messaging.home import Home
from messaging.proto import adsindex_pb2 as pb
from messaging.topics import DELTAS, REPO_FEED, SIGNALS, UPDATER_GROUP, WAL_PROXY_GROUP
from storage_repo import ChangeFeedRepo, Origin, Repo
from storage_repo.wal_proxy import accept_store

_CHUNK = 500
"""Documents per transaction: a few MB at most."""


@dataclass(frozen=True, slots=True)
class Repaired:
    """What a repair has asked for; the pipeline does it when it runs."""

    versions_from: int
    """Every commit, and so every document version, from now on is at least this."""
    documents: int
    """Documents of the store that were given a new version."""
    forgotten: int
    """Documents that serving may have and the store does not: deletes were published for them."""
    rows: int
    """Rows of the ads DB that are read again."""
    gone: int
    """Rows that the store has and the ads DB does not."""
    refreshed: int
    """Rows whose handlers run again, and whose documents are published again."""

    def to_json(self) -> dict[str, Any]:
        """Return a form for JSON."""
        return asdict(self)


def repair_after_restore(home: Home, catalog: Catalog, repo: ChangeFeedRepo, ads_db: AdsDb, log: Log) -> Repaired:
    """Accept the store as it is, and have everything read, derived and published again under newer versions.

    Content signals are applied again as far as the log still has them. No stage may be running. Killed at any point,
    the WAL proxy still refuses the store, and the repair is to be run again. Raises RepoError, LogError,
    AdsDbUnavailable, SchemaMismatch.
    """
    newest, served = _published(log)
    for base in list_bases(home.base):
        if base.manifest is not None:
            newest = max(newest, base.manifest.snapshot_ts)
            served |= _documents_of(home, base.version)
    newest = max(newest, log.committed(WAL_PROXY_GROUP, REPO_FEED).get(0, 0), repo.last_commit_ts())
    repo.advance(newest + 1)
    stored = _give_new_versions(repo, catalog)
    _forget(log, served - stored, repo.last_commit_ts())
    ads_db.ensure_capture(catalog)
    resynced = resync(ads_db, catalog, log, repo)
    refreshed = refresh(repo, log, catalog)
    log.set_committed([Position(UPDATER_GROUP, SIGNALS, p, start) for p, start in log.start_offsets(SIGNALS).items()])
    accept_store(log, repo)  # last: this is what lets the service start
    return Repaired(newest + 2, len(stored), len(served - stored), resynced.rows, resynced.gone, refreshed.rows)


def _published(log: Log) -> tuple[int, set[str]]:
    """Return the highest version in the topic of deltas, and the documents whose newest delta is no delete."""
    newest: dict[str, tuple[int, bool]] = {}
    for record in _records(log, DELTAS):
        try:
            delta = parse(pb.DocumentDelta, record)
        except BadMessage:
            continue  # serving has put it aside as well, as a dead letter
        if delta.version > newest.get(delta.document_id, (0, False))[0]:
            newest[delta.document_id] = (delta.version, delta.deleted)
    highest = max((version for version, _ in newest.values()), default=0)
    return highest, {document for document, (_, deleted) in newest.items() if not deleted}


def _records(log: Log, topic: str) -> Iterator[Any]:
    ends = log.end_offsets(topic)
    for partition, start in log.start_offsets(topic).items():
        offset = start
        while offset < ends[partition] and (records := log.read(topic, partition, offset, _CHUNK)):
            yield from records
            offset = records[-1].offset + 1


def _documents_of(home: Home, version: str) -> set[str]:
    try:
        segments = Base.open(home.base / version).segments
    except SegmentError:
        return set()  # serving refuses it as well
    return {segment.document_id(internal) for segment in segments for internal in range(segment.count)}


def _give_new_versions(repo: Repo, catalog: Catalog) -> set[str]:
    """Write every document's body once more as it is, so that its version is one of now."""
    stored: set[str] = set()
    table = catalog.document_table
    rows = repo.snapshot().scan(table, columns=[DOCUMENT_BODY])
    while chunk := list(islice(rows, _CHUNK)):
        transaction = repo.begin(Origin("repair", "repair-after-restore", origin_us=now_us()))
        for row, cells in chunk:
            transaction.put(table, row, DOCUMENT_BODY, cells[DOCUMENT_BODY])
            stored.add(row)
        transaction.commit()
    return stored


def _forget(log: Log, documents: set[str], version: int) -> None:
    """Publish deletes at a version that every later one of the document exceeds."""
    waiting = iter(sorted(documents))
    while chunk := list(islice(waiting, _CHUNK)):
        deltas = (
            pb.DocumentDelta(
                header=new_header(LaneName.LOW, now_us()), document_id=document, version=version, deleted=True
            )
            for document in chunk
        )
        log.publish([OutRecord(DELTAS, delta.document_id, delta.SerializeToString()) for delta in deltas])
