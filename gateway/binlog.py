"""The change feed of a MySQL-protocol server: its binlog, interleaved with the snapshot of what was there before.

Numbering. A change's number is made here: every connection takes a new session number and stores it in the log before
it uses it, so numbers only grow whatever server answers and whatever was published but not stored before a crash.

Snapshot. The binlog is followed from its present end; then keys are read chunk by chunk in key order and enqueued among
the live changes. Rows are read (materialized) after their change got its number, in that order, so a later number never
carries an older state: the chunk's own place among the live changes is its watermark (compare DBLog, section 3, whose
chunks carry values and so have to be cleaned of keys that changed meanwhile).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TypeVar

import msgspec
import structlog

from catalog import Catalog
from catalog.keys import join_key
from gateway import _mysql, lost_rows
from gateway._binlog_reader import BinlogReader
from gateway._binlog_resume import Resume, newest_request
from gateway._binlog_transactions import Piece
from gateway._exceptions import AdsDbUnavailable, BinlogFormat, PositionLost
from gateway._gtid_set import GtidSets
from gateway._kept_texts import LongStates
from gateway._mysql_rows import MysqlRowSource
from gateway._mysql_schema import cascades, digests
from gateway._mysql_server import MYSQL, check_server, describe_server, end_position
from gateway.binlog_position import BinlogPosition, FeedState
from gateway.feed import Change
from gateway.mysql_ads_db import MysqlAdsDb
from messaging import Log, Position
from messaging.topics import CHANGE_FEED, GATEWAY_GROUP

CHUNK = 200
"""Keys of the snapshot enqueued at a time: a live change waits for one chunk at most, some 20 ms."""

FAIR = 4
"""Batches of live changes after which the snapshot gets a chunk although more live changes wait."""

SESSION_BITS = 32
"""A number is a session's number and a counter of so many bits; with seconds as sessions 63 bits last until 2092."""

STORE_AGAIN_SECONDS = 24 * 3600.0
"""A broker forgets positions of groups without members that are not stored anew, MSK and others after 7 days."""

_SESSIONS_SINCE = 1_704_067_200  # 2024-01-01
_LOOK_SECONDS = 1.0  # how often to look for a request for a resync

_T = TypeVar("_T")

_log = structlog.get_logger()


class BinlogChangeFeed:
    """Changes of a MySQL or MariaDB ads DB in commit order (implements ChangeFeed). For one thread and a reader's."""

    hold_s = 0.1
    """Storing a position in Kafka costs the broker and the Gateway as much as publishing a change, 100 times a second.
    Changes published again after a crash have new numbers and are whole entities as they are by then: they do no harm.
    """

    def __init__(self, db: MysqlAdsDb, catalog: Catalog, log: Log, *, by_file: bool = False) -> None:
        """Go on after the position stored in the log; without one, begin now with a snapshot of all rows.

        `by_file` follows by file and offset where GTIDs could be used. Raises ServerUnsuitable, PositionLost,
        SchemaMismatch, AdsDbUnavailable.
        """
        self._db, self._catalog, self._log, self._by_file = db, catalog, log, by_file
        self._reader: BinlogReader | None = None
        self._gtid_sets, self._long_states = GtidSets(log), LongStates(log)
        self._control = db.connect()
        try:
            with _mysql.translated(db.name):
                check_server(self._control, db.address)
                self.server = describe_server(self._control)
                end = end_position(self._control)
                self._digests = digests(self._control, db.address.database, catalog)
                hidden = cascades(self._control, db.address.database, catalog)
            if hidden:
                _log.error(
                    "binlog_cascades",
                    foreign_keys=hidden,
                    todo="rows that these change are not logged: use RESTRICT, or run ./adsindex workflow run resync",
                )
            self._keys = MysqlRowSource(
                db,
                catalog,
                expect=self.server.identity,
                need=self._snapshot_point,
                locking=by_file and self.server.flavour == MYSQL,
            )
        except BaseException:
            self._control.close()
            raise
        try:
            self._begin(end)
        except BaseException:
            self.close()
            raise

    def _begin(self, end: BinlogPosition) -> None:
        offset = self._log.committed(GATEWAY_GROUP, CHANGE_FEED).get(0, 0)
        stored = self._log.committed_metadata(GATEWAY_GROUP, CHANGE_FEED).get(0, "")
        resume = Resume(self._log, self._db.address, self.server, end, by_file=self._by_file)
        self._state, self._way_out = resume.begin(stored, self._long_states, self._gtid_sets)
        self._positions: deque[tuple[int, BinlogPosition]] = deque()
        self._states: deque[tuple[int, FeedState]] = deque()
        self._pieces: deque[Piece] = deque()
        self._live: deque[tuple[str, object, int]] = deque()
        self._live_reads = 0
        self._seq = 0
        self._need: BinlogPosition | None = None
        self._redeclare()
        self._states.clear()
        session = max((offset >> SESSION_BITS) + 1, int(time.time()) - _SESSIONS_SINCE)
        self._base = self._seq = session << SESSION_BITS
        # Before any number of this session is used: a crash after publishing may not bring it back.
        self._log.set_committed([Position(GATEWAY_GROUP, CHANGE_FEED, 0, self._seq + 1, self._text(self._state))])
        self._storable, self._stored_at = self._state, time.monotonic()
        self._looked = time.monotonic()
        self.rows_enqueued = 0
        self._schema_changes = 0
        at = self._began = self._state.position
        self._reader = BinlogReader(self._db.address, self._catalog, self.server, at)
        _log.info(
            "binlog_start",
            server=self.server.version,
            file=at.file,
            offset=at.offset,
            gtid=at.gtid,
            first=self._seq + 1,
            snapshot_of=list(self._state.todo),
        )

    def begin(self, committed: int) -> int:
        """Return the number before the first one of this connection's session."""
        return self._base

    def gap(self, after: int, changes: Sequence[Change]) -> str:
        """Return "": where the binlog does not go on, reading it raises PositionLost."""
        return ""

    @property
    def snapshot_pending(self) -> bool:
        """Whether rows from before the feed began still have to be enqueued."""
        return bool(self._state.todo)

    def read(self, after: int, limit: int) -> list[Change]:
        """Return up to `limit` changes, oldest first; live ones before the snapshot's, which get their turn too.

        Numbers go on from the last ones given: changes are handed out once. Raises AdsDbUnavailable when the server is
        away or silent, PositionLost, BinlogFormat.
        """
        self._look_for_requests()
        self._take_pieces(limit)
        if self._live and (not self._state.todo or self._live_reads < FAIR):
            self._live_reads += 1
            return self._live_changes(limit)
        self._live_reads = 0
        if self._state.todo and (chunk := self._snapshot_chunk(min(limit, CHUNK))):
            return chunk
        return self._live_changes(limit)

    def wait(self, after: int, timeout_s: float) -> bool:
        """Block until there is something to read; False after `timeout_s`. Raises what `read` raises."""
        return bool(self._live or self._pieces or self._state.todo) or self._wait(timeout_s)

    def stored(self, upto: int) -> Position | None:
        """Return the position to store once everything up to a number is published; None if it is no new one.

        Binlog positions are those of transaction ends; the snapshot's progress goes with them.
        """
        position, state = _newest(self._positions, upto), _newest(self._states, upto)
        now = time.monotonic()
        if position is None and state is None and now - self._stored_at < STORE_AGAIN_SECONDS:
            return None
        self._stored_at = now
        self._storable = replace(state or self._storable, position=position or self._storable.position)
        return Position(GATEWAY_GROUP, CHANGE_FEED, 0, upto + 1, self._text(self._storable))

    def read_point(self) -> BinlogPosition | None:
        """Return the position that the database must have reached before the changes read are materialized."""
        return self._need

    def _snapshot_point(self) -> BinlogPosition:
        """Rows committed before the feed began must be seen by the snapshot; later ones come in the binlog."""
        return msgspec.structs.replace(self._began, gtid="")

    def start(self) -> int:
        """Return the oldest number kept: the next one, for what was read is not kept here."""
        return self._seq + 1

    def end(self) -> int:
        """Return the newest number given, and what is known to wait; 0 is never returned."""
        return self._seq + len(self._live) + (self._reader.waiting if self._reader is not None else 0)

    def trim(self, upto: int) -> int:
        """Forget nothing: the server keeps its binlog as long as it is told to."""
        return 0

    def resync(self, next_seq: int) -> int:
        """Enqueue every row again, among the live changes; return how many tables.

        Rows that were deleted while changes were missed are not noticed by this: see `backends.request_missing`.
        """
        self._add_todo([table for table, digest in self._digests.items() if digest], "resync")
        return len(self._state.todo)

    def schema_version(self) -> int:
        """Return how many statements that may have changed the schema were read."""
        return self._schema_changes

    def close(self) -> None:
        """Release connections and the reader's thread; safe to call twice."""
        if self._reader is not None:
            self._reader.close()
        self._keys.close()
        if self._control.open:
            self._control.close()

    def _text(self, state: FeedState) -> str:
        """Return a state as it is stored; a GTID set of MySQL, and many tables, may be too long to go with it."""
        if self.server.flavour == MYSQL:
            short = self._gtid_sets.shortened(state.position.gtid)
            state = replace(state, position=msgspec.structs.replace(state.position, gtid=short))
        return self._long_states.shortened(state.to_json())

    # Live changes

    def _take_pieces(self, limit: int) -> None:
        while len(self._live) < limit:
            if not self._pieces:
                self._pieces.extend(self._take(limit - len(self._live)))
                if not self._pieces:
                    return
            self._add(self._pieces.popleft())

    def _take(self, limit: int) -> list[Piece]:
        try:
            return self._running().take(limit)
        except (PositionLost, BinlogFormat) as error:
            self._leave(error)
            return []

    def _wait(self, timeout_s: float) -> bool:
        try:
            return self._running().wait(timeout_s)
        except (PositionLost, BinlogFormat) as error:
            self._leave(error)
            return False

    def _leave(self, error: PositionLost | BinlogFormat) -> None:
        """Go on where a resync was asked for: all rows are enqueued, and those that had gone by then were looked for.

        Raises the error when none was asked for after the position.
        """
        at, self._way_out = self._way_out, None
        if at is None:
            raise error
        _log.error("binlog_skipped", why=str(error), to=f"{at.file}:{at.offset}", gtid=at.gtid)
        self._running().close()
        self._reader = BinlogReader(self._db.address, self._catalog, self.server, at)
        _mark(self._positions, self._seq + len(self._live), at)
        self._schema_changed()

    def _add(self, piece: Piece) -> None:
        self._live.extend(piece.changes)
        self._need = piece.read_at
        if piece.ddl:
            self._schema_changed()
        if piece.rewritten:
            self._rewritten(piece.rewritten)
        if piece.altered:
            self._send_again(piece.altered, "altered")
        if piece.end is not None:
            _mark(self._positions, self._seq + len(self._live), piece.end)
            if self._way_out is not None and piece.end.reached(self._way_out):
                self._way_out = None

    def _live_changes(self, limit: int) -> list[Change]:
        changes: list[Change] = []
        while self._live and len(changes) < limit:
            table, key, at_us = self._live.popleft()
            self._seq += 1
            changes.append(Change(self._seq, table, key, at_us))
        return changes

    def _change_state(self, state: FeedState) -> None:
        self._state = state
        _mark(self._states, self._seq, state)

    def _schema_changed(self) -> None:
        self._schema_changes += 1
        with _mysql.translated(self._db.name):
            self._digests = digests(self._control, self._db.address.database, self._catalog)
        self._redeclare()

    def _redeclare(self) -> None:
        """Enqueue tables whose rows were last enqueued for another declaration or schema, once they are complete."""
        declared = self._state.declared
        changed = [table for table, digest in self._digests.items() if digest and declared.get(table) != digest]
        # One that lacks a column now is not remembered: its rows are due when it is complete again.
        kept = {table: digest for table, digest in declared.items() if self._digests.get(table)}
        self._change_state(replace(self._state, declared=kept | {t: self._digests[t] for t in changed}))
        if changed:
            self._add_todo(changed, "declared or altered")

    def _rewritten(self, tables: dict[str, str]) -> None:
        for table, why in tables.items():
            _log.error(
                "binlog_rows_missing",
                table=table,
                why=why,
                todo="its rows are sent again; the workflows stage starts a sync that finds those that are gone",
            )
        entities = self._catalog.source_tables()
        lost_rows.ask(self._log, {entities[table][0].name for table in tables})
        self._send_again(tables, "changed without row events")

    def _send_again(self, source_tables: Collection[str], why: str) -> None:
        entities = self._catalog.source_tables()
        names = dict.fromkeys(entities[table][0].name for table in source_tables)
        if complete := [name for name in names if self._digests.get(name)]:
            self._add_todo(complete, why)

    # The snapshot

    def _add_todo(self, tables: Sequence[str], why: str) -> None:
        """Enqueue tables as a whole. One that is under way begins again after its end, as a table of its own turn."""
        todo, after = list(self._state.todo), self._state.after
        running = todo[0] if todo and after is not None else None
        for table in tables:
            if table == running:
                if table not in todo[1:]:
                    todo.append(table)
            elif table not in todo:
                todo.append(table)
        self._change_state(replace(self._state, todo=tuple(todo)))
        _log.info("snapshot_enqueued", tables=list(tables), why=why)

    def _snapshot_chunk(self, limit: int) -> list[Change]:
        """Return the next chunk of keys; live changes that were read and wait get their numbers after it."""
        table = self._catalog.tables.get(self._state.todo[0])
        if table is None or table.source is None:  # taken out of the catalogue meanwhile
            self._change_state(replace(self._state, todo=self._state.todo[1:], after=None))
            return []
        keys = self._keys.keys(table.source.table, table.source.key, self._state.after, limit)
        now_us = time.time_ns() // 1000
        changes = [
            Change(self._seq + i, table.source.table, join_key(key), now_us, backfill=True)
            for i, key in enumerate(keys, 1)
        ]
        self._positions = deque(
            (seq + len(keys) if seq > self._seq else seq, position) for seq, position in self._positions
        )
        self._seq += len(keys)
        self.rows_enqueued += len(keys)
        if len(keys) < limit:
            self._change_state(replace(self._state, todo=self._state.todo[1:], after=None))
            _log.info("snapshot_table_done", table=table.name, left=list(self._state.todo))
        else:
            self._change_state(replace(self._state, after=tuple(keys[-1])))
        return changes

    def _look_for_requests(self) -> None:
        if time.monotonic() - self._looked < _LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        requested = newest_request(self._log).number
        if requested > self._state.resync:
            self._change_state(replace(self._state, resync=requested))
            self.resync(0)

    def _running(self) -> BinlogReader:
        if self._reader is None:
            raise AdsDbUnavailable(f"ads DB {self._db.name}: the feed is closed")
        return self._reader


def _mark(marks: deque[tuple[int, _T]], seq: int, value: _T) -> None:
    if marks and marks[-1][0] == seq:
        marks.pop()
    marks.append((seq, value))


def _newest(marks: deque[tuple[int, _T]], upto: int) -> _T | None:
    found: _T | None = None
    while marks and marks[0][0] <= upto:
        found = marks.popleft()[1]
    return found
