"""Proof that what was published is what the ads DB holds: counts and checksums per range of keys.

The two sides are computed apart: one from rows read now, range by range, the other from the newest update of every
entity in the log. A range that differs while applications write is no fault yet: prove again when the feed is idle.

A log that has forgotten its oldest records proves nothing of entities whose updates were all among them. These are
counted apart: neither equal nor different.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass

from catalog import Catalog, Table
from catalog.keys import join_key
from gateway._mysql_rows import MysqlRowSource
from gateway.feed import Change
from gateway.materialize import Materializer
from gateway.mysql_ads_db import MysqlAdsDb
from messaging import Log
from messaging.proto import adsindex_pb2 as pb
from messaging.topics import UPDATES

RANGE_ROWS = 1_000
"""Entities per range: a page of a report, and one materialization."""

_READ = 1_000
_MODULUS = 1 << 64


@dataclass(frozen=True, slots=True)
class Published:
    """The newest state of every entity in a log."""

    rows: Mapping[tuple[str, str], int]
    """(table, row) -> checksum of the entity's columns, for every entity that is there."""
    gone: frozenset[tuple[str, str]] = frozenset()
    """Those whose newest update is a deletion."""
    forgotten: int = 0
    """Records that the log had before its oldest ones; 0 if it has all since its first."""


@dataclass(frozen=True, slots=True)
class RangeProof:
    """One range of keys of a table, both sides: how many entities, and the sum of their checksums."""

    table: str
    first: str
    last: str
    source_count: int
    published_count: int
    source_checksum: int
    published_checksum: int
    not_provable: int = 0
    """Entities of the source, in no count and no checksum, of which the log has forgotten every update."""

    @property
    def equal(self) -> bool:
        """Whether both sides hold the same."""
        return self.source_count == self.published_count and self.source_checksum == self.published_checksum


@dataclass(frozen=True, slots=True)
class Proof:
    """All ranges, and the entities that were published but are not in the ads DB."""

    ranges: tuple[RangeProof, ...]
    extra: tuple[tuple[str, str], ...]

    @property
    def differs(self) -> bool:
        """Whether published and source are not the same, as far as the log goes back."""
        return bool(self.extra) or not all(r.equal for r in self.ranges)

    @property
    def not_provable(self) -> int:
        """How many entities of the source are in the ads DB and in no update that the log still has."""
        return sum(r.not_provable for r in self.ranges)

    @property
    def ok(self) -> bool:
        """Whether published and source are the same, proved of every entity."""
        return not self.differs and not self.not_provable

    def __str__(self) -> str:
        wrong = [r for r in self.ranges if not r.equal]
        rows = sum(r.source_count for r in self.ranges)
        text = f"{rows} entities in {len(self.ranges)} ranges, {len(wrong)} ranges differ, {len(self.extra)} too many"
        if self.not_provable:
            text += f", {self.not_provable} more not provable: the log has forgotten their updates"
        return "; ".join([text, *(f"{r.table} {r.first}..{r.last}" for r in wrong[:10])])


def prove(db: MysqlAdsDb, catalog: Catalog, published: Published, *, range_rows: int = RANGE_ROWS) -> Proof:
    """Compare every entity of the ads DB with what was published. Raises AdsDbUnavailable, SchemaMismatch."""
    ranges: list[RangeProof] = []
    seen: set[tuple[str, str]] = set()
    with closing(MysqlRowSource(db, catalog)) as rows:
        for table in catalog.entity_tables():
            for found in _source_ranges(rows, catalog, table, range_rows):
                seen.update((table.name, row) for row in found)
                ids = [(table.name, row) for row in found]
                theirs = [published.rows[id_] for id_ in ids if id_ in published.rows]
                provable = [
                    checksum_
                    for id_, checksum_ in zip(ids, found.values(), strict=True)
                    if not published.forgotten or id_ in published.rows or id_ in published.gone
                ]
                ranges.append(
                    RangeProof(
                        table.name,
                        ids[0][1],
                        ids[-1][1],
                        len(provable),
                        len(theirs),
                        sum(provable) % _MODULUS,
                        sum(theirs) % _MODULUS,
                        len(found) - len(provable),
                    )
                )
    return Proof(tuple(ranges), tuple(sorted(published.rows.keys() - seen)))


def published_state(log: Log) -> Published:
    """Return the newest state of every entity in the log's update topics, from their oldest records kept."""
    forgotten = 0
    newest: dict[tuple[str, str], tuple[int, int | None]] = {}
    for topic in UPDATES.values():
        for partition, end in log.end_offsets(topic).items():
            at = log.start_offsets(topic)[partition]
            forgotten += at
            while at < end and (records := log.read(topic, partition, at, _READ)):
                at = records[-1].offset + 1
                for record in records:
                    update = pb.EntityUpdate.FromString(record.value)
                    key = update.table, update.row
                    if update.source_version >= newest.get(key, (0, None))[0]:
                        newest[key] = update.source_version, None if update.deleted else checksum(update)
    return Published(
        {key: sum_ for key, (_, sum_) in newest.items() if sum_ is not None},
        frozenset(key for key, (_, sum_) in newest.items() if sum_ is None),
        forgotten,
    )


def checksum(update: pb.EntityUpdate) -> int:
    """Return a checksum of an entity's key and columns."""
    digest = hashlib.blake2b(f"{update.table}\0{update.row}".encode(), digest_size=8)
    for column in sorted(update.columns, key=lambda c: c.name):
        digest.update(len(column.name).to_bytes(4, "big") + column.name.encode())
        digest.update(len(column.value).to_bytes(4, "big") + column.value)
    return int.from_bytes(digest.digest(), "big")


def _source_ranges(rows: MysqlRowSource, catalog: Catalog, table: Table, range_rows: int) -> Iterator[dict[str, int]]:
    """Yield row -> checksum for one range after the other, in key order."""
    if table.source is None:
        return
    materializer = Materializer(catalog)
    after = None
    while keys := rows.keys(table.source.table, table.source.key, after, range_rows):
        changes = [Change(i, table.source.table, join_key(key), 0) for i, key in enumerate(keys, 1)]
        result = materializer.materialize(changes, rows)
        found = {u.row: checksum(u) for u in result.updates if not u.deleted}
        if found:
            yield found
        after = keys[-1]
        if len(keys) < range_rows:
            return
