"""Events in, transactions out: which entities each one touched, and where the reader may go on after it."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

import msgspec

from catalog import Catalog
from catalog.keys import key_columns
from gateway import binlog_events as ev
from gateway._binlog_rows import ROWS, STATEMENT_END, TABLE_MAP, RowsEvent, TableMap, table_of
from gateway._exceptions import BinlogFormat
from gateway.binlog_events import Event
from gateway.binlog_position import BinlogPosition

PIECE = 5_000
"""Changes handed on at a time of a transaction that has more: its rows are never all in memory."""

MAX_SEEN = 200_000
"""Entities of one transaction remembered so that each gives one change: some 30 MB. Beyond, one may give several."""

_SECOND_US = 1_000_000
_OPENS = re.compile(r"\s*(BEGIN|START\s+TRANSACTION|XA\s+(START|BEGIN))\b", re.I)
_ENDS = re.compile(r"\s*(COMMIT|ROLLBACK)\s*$", re.I)
_XA = re.compile(r"\s*XA\s+(COMMIT|ROLLBACK)\s+(.*?)\s*(ONE\s+PHASE)?\s*$", re.I | re.S)
_ROWLESS = re.compile(
    r"\s*(/\*.*?\*/\s*)*(INSERT|UPDATE|DELETE|REPLACE|LOAD|TRUNCATE|WITH|CALL"
    r"|ALTER\s+TABLE.*\b(TRUNCATE|DROP|EXCHANGE|DISCARD|IMPORT)\b.*\b(PARTITION|TABLESPACE)\b)",
    re.I | re.S,
)
_REPLACES = re.compile(r"\b(RENAME\s+(TABLE|TO)|DROP\s+(TABLE|PARTITION)|OR\s+REPLACE)\b", re.I)
_ALTERS = re.compile(
    r"\s*(/\*.*?\*/\s*)*ALTER\b.*\b(DROP|ADD|CHANGE|MODIFY|RENAME|CONVERT)\b"
    r"(?!\s+(INDEX|KEY|UNIQUE|FULLTEXT|SPATIAL|FOREIGN|CONSTRAINT))",
    re.I | re.S,
)
_DDL = re.compile(r"\s*(/\*.*?\*/\s*)*(ALTER|CREATE|DROP|RENAME|TRUNCATE)\b", re.I | re.S)


class Piece(msgspec.Struct):
    """A transaction, or a part of a large one, or several plain ones (`_binlog_plain`).

    `changes` are ads DB tables, keys, and when each was committed, in microseconds. `end` is the position after the
    last transaction; a part that is not the last one of its transaction has none.
    `read_at` is a position that the database must have reached before the rows are read. `rewritten` are mapped tables
    of which rows changed without row events, `altered` ones of which a mapped column may have got other values; `ddl`
    says that the schema may have changed.
    """

    changes: list[tuple[str, object, int]]
    read_at: BinlogPosition
    end: BinlogPosition | None
    ddl: bool = False
    rewritten: dict[str, str] = {}
    altered: set[str] = set()


class Transactions:
    """Groups a server's events into pieces; pure but for the clock. For one thread."""

    def __init__(
        self, catalog: Catalog, schema: str, start: BinlogPosition, flavour: str, *, case_blind: bool = False
    ) -> None:
        """Follow the catalogue's tables of one schema from a position on."""
        self._schema, self.flavour, self._case_blind = schema, flavour, case_blind
        self._tables = {
            self._folded(name): (name, table.name, key_columns(key))
            for name, (table, key) in catalog.source_tables().items()
        }
        self._columns = {
            self._folded(name): {str(c.source_column).lower() for c in table.columns.values() if c.source_table == name}
            | {column.lower() for column in key_columns(key)}
            for name, (table, key) in catalog.source_tables().items()
        }
        self.position = start
        self._by_gtid = bool(start.gtid)
        self._file = start.file
        self._maps: dict[int, TableMap] = {}
        self._prepared: dict[str, tuple[list[tuple[str, object]], dict[str, str]]] = {}
        self._begin("", 0)

    @property
    def prepared(self) -> bool:
        """Whether there are XA transactions of which it is not known whether they will be committed."""
        return bool(self._prepared)

    def target(self, table: TableMap) -> tuple[str, str, Sequence[str]] | None:
        """Return the ads DB's table, its entity's table and its key columns; None if its rows are nobody's."""
        return self._tables.get(self._folded(table.table)) if table.schema == self._schema else None

    def passed(self, changes: list[tuple[str, object, int]], end: int, gtids: Sequence[str]) -> Piece:
        """Return the piece of whole transactions that end at an offset of the file and were not given to `add`."""
        known = self.position
        for gtid in gtids if self._by_gtid else ():
            known = known.after(self._file, end, gtid, self.flavour)
        self.position = known.after(self._file, end, "", self.flavour)
        return Piece(changes, BinlogPosition(self._file, end, gtids[-1], known.server), self.position)

    def add(self, event: Event) -> Sequence[Piece]:
        """Take the next event; return the pieces that are ready. Raises BinlogFormat."""
        kind = event.kind
        if kind in ROWS:
            return self._rows(event)
        if kind == TABLE_MAP:
            self._maps[int.from_bytes(event.body[:6], "little")] = table_of(event.body[6:], self.flavour)
        elif kind == ev.XID:
            return (self._end(event),)
        elif kind == ev.MARIADB_GTID:
            gtid, standalone = ev.mariadb_gtid(event)
            self._begin(gtid, 0, opened=not standalone)
        elif kind in (ev.GTID, ev.ANONYMOUS_GTID):
            gtid, committed_us = ev.mysql_gtid(event)
            self._begin(gtid, committed_us)
        elif kind in (ev.QUERY, ev.MARIADB_QUERY_COMPRESSED):
            return self._query(event)
        elif kind == ev.ROTATE:
            self._file, _ = ev.rotate_of(event)
            if event.timestamp:
                self._maps.clear()
        elif kind == ev.XA_PREPARE:
            return (self._prepare(event),)
        elif kind == ev.INCIDENT:
            self._rewritten.update(dict.fromkeys(self._mapped(), "the server lost events (an incident event)"))
            return (self._end(event),)
        elif kind == ev.TRANSACTION_PAYLOAD:
            raise BinlogFormat(
                f"{self._where(event)}: the transaction is compressed, which is not read; "
                "SET GLOBAL binlog_transaction_compression = OFF, then run the resync workflow"
            )
        elif kind == ev.TAGGED_GTID:
            raise BinlogFormat(
                f"{self._where(event)}: the transaction's GTID has a tag, which is not read; let nobody set gtid_next "
                "to a tag, and use a server that has no such transactions"
            )
        elif kind == ev.PARTIAL_UPDATE:
            self._partial(event)
        elif kind not in ev.HARMLESS and not event.flags & ev.IGNORABLE:
            raise BinlogFormat(f"{self._where(event)}: events of type {kind} are not known; upgrade adsindex")
        return ()

    def _begin(self, gtid: str, committed_us: int, *, opened: bool = False) -> None:
        self._gtid, self._committed_us, self._open = gtid, committed_us, opened
        self._changes: list[tuple[str, object]] = []
        self._seen: set[tuple[str, str]] = set()
        self._rewritten: dict[str, str] = {}
        self._altered: set[str] = set()
        self._ddl = False

    def _rows(self, event: Event) -> Sequence[Piece]:
        rows = RowsEvent(event.kind, event.body)
        table = self._maps.get(rows.table_id)
        if rows.flags & STATEMENT_END:
            self._maps.clear()
        found = None if table is None else self.target(table)
        return () if table is None or found is None else self._keys(event, rows, table, *found)

    def _partial(self, event: Event) -> None:
        """Take rows whose JSON a session logs in pieces: their table is sent again. Its head is that of a row event."""
        table = self._maps.get(int.from_bytes(event.body[:6], "little"))
        if event.body[6] & STATEMENT_END:
            self._maps.clear()
        if table is not None and (found := self.target(table)) is not None:
            self._rewritten[found[0]] = "the session's binlog_row_value_options is PARTIAL_JSON"

    def _keys(
        self, event: Event, rows: RowsEvent, table: TableMap, source_table: str, entity: str, key: Sequence[str]
    ) -> Sequence[Piece]:
        scan = table.key_scan(key) if table.named else None
        if scan is None or not rows.full:
            why = (
                "the session's binlog_row_image is not FULL"
                if scan is not None
                else "binlog_row_metadata was not FULL"
                if not table.named
                else f"there was no column {', '.join(key)}"
            )
            self._rewritten[source_table] = why
            return ()
        if rows.count != len(table.columns):
            raise BinlogFormat(
                f"{self._where(event)}: {rows.count} columns, but {table.table} has {len(table.columns)}"
            )
        seen, changes, full = self._seen, self._changes, list[Piece]()
        # An update gives its row's key before and after: the same one, unless the key itself was changed.
        for whole in scan.keys(rows.data, rows.start, len(rows.data)):
            mark = (entity, str(whole))
            if mark in seen:
                continue
            if len(seen) >= MAX_SEEN:
                seen.clear()
            seen.add(mark)
            changes.append((source_table, whole))
            if len(changes) >= PIECE:
                full.append(self._piece(event, None))
                changes = self._changes
        return full

    def _query(self, event: Event) -> Sequence[Piece]:
        schema, text = ev.query_of(event)
        if _ENDS.match(text):
            return (self._end(event),)
        xa = _XA.match(text)
        if xa is not None:
            return (self._resolve(event, xa.group(1).upper(), "".join(xa.group(2).split())),)
        if _OPENS.match(text):
            self._open = True
            return ()
        if schema == self._schema or self._schema.lower() in text.lower():
            self._statement(text)
        return () if self._open else (self._end(event),)

    def _statement(self, text: str) -> None:
        """Note what a statement did to mapped tables, which are told by their names in it: rather too many than few."""
        words = {self._folded(word) for word in re.findall(r"[\w$]+", text)}
        named = {key: name for key, (name, *_) in self._tables.items() if key in words}
        ddl = _DDL.match(text) is not None
        if _ROWLESS.match(text) or (ddl and _REPLACES.search(text)):
            reason = f"a statement changed rows without row events: {text[:120]!r}"
            self._rewritten.update(dict.fromkeys(named.values(), reason))
        elif _ALTERS.match(text):
            columns = {word.lower() for word in words}
            self._altered.update(name for key, name in named.items() if self._columns[key] & columns)
        self._ddl = self._ddl or ddl

    def _prepare(self, event: Event) -> Piece:
        """An XA transaction's rows become visible when it is committed: its changes are kept until then."""
        if event.body[0]:  # one phase: prepared and committed at once
            return self._end(event)
        self._prepared[ev.xa_of(event)] = (self._changes, self._rewritten)
        self._changes, self._rewritten = [], {}
        return self._end(event)

    def _resolve(self, event: Event, verdict: str, name: str) -> Piece:
        if verdict == "COMMIT" and name not in self._prepared:
            why = f"the XA transaction {name} was prepared before the Gateway began"
            self._rewritten.update(dict.fromkeys(self._mapped(), why))
        changes, rewritten = self._prepared.pop(name, ([], {}))
        if verdict == "COMMIT":
            self._changes.extend(changes)
            self._rewritten.update(rewritten)
        return self._end(event)

    def _end(self, event: Event) -> Piece:
        self.position = self.position.after(self._file, event.end, self._gtid if self._by_gtid else "", self.flavour)
        # While an XA transaction is prepared its rows come again after a restart: nothing later may be stored.
        piece = self._piece(event, None if self._prepared else self.position)
        self._begin("", 0)
        return piece

    def _piece(self, event: Event, end: BinlogPosition | None) -> Piece:
        read_at = BinlogPosition(self._file, event.end, self._gtid, self.position.server)
        at_us = self._time(event)
        changes = [(table, key, at_us) for table, key in self._changes]
        piece = Piece(changes, read_at, end, self._ddl, self._rewritten, self._altered)
        self._changes, self._rewritten, self._altered = [], {}, set()
        return piece

    def _time(self, event: Event) -> int:
        """Commit time. MariaDB sends whole seconds only: the arrival, or the second's end if that is earlier."""
        if self._committed_us:
            return self._committed_us
        return min(time.time_ns() // 1000, (event.timestamp + 1) * _SECOND_US)

    def _mapped(self) -> list[str]:
        return [name for name, *_ in self._tables.values()]

    def _folded(self, name: str) -> str:
        return name.lower() if self._case_blind else name

    def _where(self, event: Event) -> str:
        return f"binlog {self._file} before offset {event.end}"
