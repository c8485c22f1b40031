"""How far the WAL proxy is behind HBase's log: what it holds open, and, asked for certainty, a probe."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable

from messaging.api import Log
from messaging.headers import now_us
from messaging.topics import PENDING, PENDING_GROUP, REPO_FEED, WAL_PROXY_GROUP
from storage_repo._exceptions import Conflict, FeedStuck
from storage_repo.api import Origin, Repo, RepoSchema
from storage_repo.feed import FeedLag
from storage_repo.hbase.address import HbaseAddress
from storage_repo.hbase.connections import HbaseConnections
from storage_repo.hbase.names import ORIGIN_FAMILY, ORIGIN_QUALIFIER, HbaseNames
from storage_repo.hbase.probe import PROBE_COLUMN, PROBE_TABLE
from storage_repo.hbase.wal._cells import RowKey, TableColumns
from storage_repo.hbase.wal._pending import decode_pending
from storage_repo.hbase.wal._rows import Rows
from storage_repo.hbase.wal.status import PeerStatus, walproxy_status

_ROW = "idle"
_PATIENCE_S = 2.0
"""HBase ships an edit after some tens of milliseconds; a proxy that is just restarting takes longer, and is asked
again."""
_POLL_S = 0.01
_NOBODY_S = 60.0
"""A peer is set up, and a WAL proxy back, long before."""
_STUCK_S = 240.0
"""After a crash HBase recovers a region server's log in less, also on a busy machine."""
_CHUNK = 2_000


class HbaseFeed:
    """Looks at the WAL proxy's work in the log, and at HBase (implements RepoFeed)."""

    def __init__(
        self,
        repo: Repo,
        log: Log,
        url: str,
        schema: RepoSchema,
        peer_id: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open nothing yet; `peer_id` is the WAL proxy's replication peer."""
        self._repo, self._log, self._url, self._peer_id, self._clock = repo, log, url, peer_id, clock
        self._unanswered_since: float | None = None
        names = HbaseNames(schema, HbaseAddress.parse(url).prefix)
        origin = (ORIGIN_FAMILY, ORIGIN_QUALIFIER)
        self._tables = {names.hbase_table(t.name): TableColumns(frozenset(), origin) for t in schema.tables}

    def lag(self) -> FeedLag:
        """Return how many row changes the proxy holds open; what HBase has not shipped, `walproxy status` shows."""
        waiting = open_rows(self._log)
        end = sum(self._log.end_offsets(PENDING).values())
        meaning = "row changes of transactions whose end the WAL proxy has not seen"
        return FeedLag(waiting, end, end - waiting, PENDING, meaning)

    def confirm(self) -> int:
        """Commit a probe and wait until the proxy has had it; return how many commits it has still to notify.

        A region server ships its log in order, so of all that was logged before the probe the proxy has notified what
        was committed, and holds open the rest. Of that, what is committed by now waits; what is not is of writers that
        are gone, and may stay open for an hour. (With several proxies a call's edits go to them side by side, and with
        several region servers each ships its own log: ask twice, and look at `walproxy status`.) Raises FeedStuck when
        no probe has arrived for long.
        """
        before, _ = self._committed()
        transaction = self._repo.begin(Origin("probe", origin_us=now_us()))
        transaction.put(PROBE_TABLE, _ROW, PROBE_COLUMN, uuid.uuid4().bytes)
        try:
            commit_ts = transaction.commit()
        except Conflict:
            return 1  # somebody else asks the same at this moment; the next look decides
        deadline = time.monotonic() + _PATIENCE_S
        while self._log.committed(WAL_PROXY_GROUP, REPO_FEED).get(0, 0) < commit_ts:
            if time.monotonic() > deadline:
                self._unanswered()
                return 1
            time.sleep(_POLL_S)
        self._unanswered_since = None
        complete, unfinished = self._committed()
        return len(complete - before) + len(unfinished)

    def _unanswered(self) -> None:
        now = self._clock()
        self._unanswered_since = self._unanswered_since or now
        waited = now - self._unanswered_since
        if waited < _NOBODY_S:
            return
        peer = next((peer for peer in walproxy_status(self._url).peers if peer.id == self._peer_id), None)
        if why := _why(peer, waited):
            raise FeedStuck(f"nothing committed in the last {waited:.0f} s has become a notification: {why}")

    def _committed(self) -> tuple[set[RowKey], set[RowKey]]:
        """Return what is open and committed: with all its shadow cells, and without some."""
        keys = self._open()
        if not keys:
            return set(), set()
        connections = HbaseConnections(HbaseAddress.parse(self._url))
        try:
            rows = Rows(connections, self._tables)
            found = rows.read(keys)
            undecided = {key[2] for key, row in found.items() if row.cells and row.commit_ts is None}
            entries = rows.commits(undecided) if undecided else {}
        finally:
            connections.close()
        complete, unfinished = set[RowKey](), set[RowKey]()
        for key, row in found.items():
            if row.commit_ts is not None:
                (complete if row.cells <= row.shadows.keys() else unfinished).add(key)
            elif row.cells and (entry := entries.get(key[2])) is not None and entry.commit_ts is not None:
                unfinished.add(key)
        return complete, unfinished

    def _open(self) -> set[RowKey]:
        """Return the row changes that the proxy has put into the log and not taken back."""
        found: set[RowKey] = set()
        firsts = _firsts(self._log)
        for partition, end in self._log.end_offsets(PENDING).items():
            offset = firsts.get(partition, 0)
            while offset < end and (records := self._log.read(PENDING, partition, offset, _CHUNK)):
                for record in records:
                    pending = decode_pending(record.value)
                    if pending.settled:
                        found.discard(pending.key)
                    elif pending.table in self._tables:
                        found.add(pending.key)
                offset = records[-1].offset + 1
        return found


def open_rows(log: Log) -> int:
    """Return how many row changes the WAL proxies hold open, or have not yet been taken out of the log."""
    firsts = _firsts(log)
    return sum(max(0, end - firsts.get(partition, 0)) for partition, end in log.end_offsets(PENDING).items())


def _firsts(log: Log) -> dict[int, int]:
    starts, done = log.start_offsets(PENDING), log.committed(PENDING_GROUP, PENDING)
    return {partition: max(start, done.get(partition, 0)) for partition, start in starts.items()}


def _why(peer: PeerStatus | None, waited: float) -> str:
    """Return what keeps edits from the WAL proxy, and what to do; "" while it may pass."""
    if peer is None:
        return "HBase has no replication peer for the WAL proxy, which adds it at its start; see the log of wal_proxy"
    if not peer.enabled:
        return f"HBase's replication peer {peer.id} is disabled; ./adsindex walproxy enable"
    if not peer.instances:
        return f"no WAL proxy is registered for the replication peer {peer.id}; see the log of wal_proxy"
    if waited < _STUCK_S:
        return ""
    return (
        f"a WAL proxy is registered, but HBase ships nothing to it over the peer {peer.id}; look at ./adsindex "
        "walproxy status, and if nothing moves there, ./adsindex walproxy unstick"
    )
