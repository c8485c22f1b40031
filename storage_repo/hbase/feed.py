"""How far the WAL proxy is behind HBase's log: what it holds open, and, asked for certainty, a probe."""

from __future__ import annotations

import time
import uuid
from dataclasses import replace

from messaging.api import Log
from messaging.headers import now_us
from messaging.topics import PENDING, PENDING_GROUP, REPO_FEED, WAL_PROXY_GROUP
from storage_repo._exceptions import Conflict
from storage_repo.api import Origin, Repo, RepoSchema, TableLayout, TableSchema
from storage_repo.feed import FeedLag

PROBE_TABLE = "_probe"
"""Watched by the WAL proxy and unknown to the catalogue: its changes pass through and give no notification."""
PROBE_COLUMN = "m:seen"
_ROW = "idle"
_PATIENCE_S = 2.0
"""HBase ships an edit after some tens of milliseconds; a proxy that is just restarting takes longer, and is asked
again."""
_POLL_S = 0.01


def with_probe(schema: RepoSchema) -> RepoSchema:
    """Return the schema with the table that probes are written to."""
    table = TableSchema(PROBE_TABLE, (PROBE_COLUMN.partition(":")[0],), TableLayout(history=False))
    return replace(schema, tables=(*schema.tables, table))


class HbaseFeed:
    """Looks at the WAL proxy's work in the log (implements RepoFeed)."""

    def __init__(self, repo: Repo, log: Log) -> None:
        self._repo, self._log = repo, log

    def lag(self) -> FeedLag:
        """Return how many row changes the proxy holds open; what HBase has not shipped, `walproxy status` shows."""
        ends, done = self._log.end_offsets(PENDING), self._log.committed(PENDING_GROUP, PENDING)
        starts = self._log.start_offsets(PENDING)
        waiting = sum(max(0, end - max(done.get(p, 0), starts.get(p, 0))) for p, end in ends.items())
        end = sum(ends.values())
        meaning = "row changes of transactions whose end the WAL proxy has not seen"
        return FeedLag(waiting, end, end - waiting, PENDING, meaning)

    def confirm(self) -> int:
        """Commit a probe and wait until the proxy has had it.

        A region server ships its log in order, so all that was logged before it has been taken too; what of that had no
        end yet is open, which is read after the answer. (With several proxies a call's edits go to them side by side,
        and with several region servers each ships its own: ask twice, and look at `walproxy status`.)
        """
        transaction = self._repo.begin(Origin("probe", origin_us=now_us()))
        transaction.put(PROBE_TABLE, _ROW, PROBE_COLUMN, uuid.uuid4().bytes)
        try:
            commit_ts = transaction.commit()
        except Conflict:
            return 1  # somebody else asks the same at this moment; the next look decides
        deadline = time.monotonic() + _PATIENCE_S
        while self._log.committed(WAL_PROXY_GROUP, REPO_FEED).get(0, 0) < commit_ts:
            if time.monotonic() > deadline:
                return 1
            time.sleep(_POLL_S)
        return self.lag().waiting
