"""Where a binlog feed begins: after the stored position, else where the binlog ended when a resync was asked for."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace

import msgspec
import structlog

from gateway import _gtid_set
from gateway._exceptions import AdsDbUnavailable, PositionLost
from gateway._gtid_set import GtidSets
from gateway._kept_texts import LongStates
from gateway._mysql import Address
from gateway._mysql_server import MYSQL, Server
from gateway.binlog_position import BinlogPosition, FeedState, file_order
from messaging import Log, Position
from messaging.topics import CHANGE_FEED, GATEWAY_GROUP, UPDATES

RESYNC_GROUP = "gateway-resync"
"""Its position on CHANGE_FEED counts requests for a resync: durable, and seen by a Gateway wherever it runs. With it
goes where the binlog ended when the newest one was made: rows that go after that are in the binlog after it, and those
that had gone before it are found by the resync."""

LAG_SECONDS = 120.0
"""How long a server may lack transactions that were read: a replica applies the last ones it has received meanwhile."""

_lagging: dict[tuple[str, str, str], float] = {}
"""(ads DB, server, GTID set) -> since when it was seen to lack some: every attempt to connect is a feed of its own."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Request:
    """The newest request for a resync; number 0 for none, and no state for one of a version that stored none."""

    number: int
    state: FeedState | None = None


def ask(log: Log, end: BinlogPosition, database: str) -> None:
    """Request a resync. `end` is the binlog's end before any row was looked at. Raises LogError."""
    stored = log.committed_metadata(GATEWAY_GROUP, CHANGE_FEED).get(0, "")
    try:
        taken = _taken(stored) if stored else 0
    except PositionLost:
        taken = 0  # nobody can read it: the Gateway says so
    # A broker forgets positions that are long not stored anew, the Gateway's own and this one each for itself.
    number = max(log.committed(RESYNC_GROUP, CHANGE_FEED).get(0, 0), taken) + 1
    at = msgspec.structs.replace(end, gtid=GtidSets(log, keys="resync-").shortened(end.gtid))
    state = FeedState(at, resync=number, database=database)
    log.set_committed([Position(RESYNC_GROUP, CHANGE_FEED, 0, number, state.to_json())])


def newest_request(log: Log) -> Request:
    """Return the newest request. Raises LogUnavailable, PositionLost for one that cannot be read."""
    text = log.committed_metadata(RESYNC_GROUP, CHANGE_FEED).get(0, "")
    if not text:
        return Request(log.committed(RESYNC_GROUP, CHANGE_FEED).get(0, 0))
    state = FeedState.from_json(text)
    return Request(state.resync, state)


class Resume:
    """Decides where to begin on the server and database that answer now."""

    def __init__(
        self, log: Log, address: Address, server: Server, end: BinlogPosition, *, by_file: bool = False
    ) -> None:
        """`end` is the server's present end; `by_file`: GTIDs are not used."""
        self._log, self._server, self._end, self._by_file = log, server, end, by_file
        self._name, self._database = address.name, address.database

    def begin(self, stored: str, states: LongStates, sets: GtidSets) -> tuple[FeedState, BinlogPosition | None]:
        """Return the state to go on with, and where to go on if the server refuses its position (None: nowhere).

        Raises PositionLost, AdsDbUnavailable while the server lacks transactions that were read.
        """
        request = newest_request(self._log)
        fresh = FeedState(self._moded(self._end), resync=request.number, database=self._database)
        if not stored:
            asked_at = self._asked_at(request)
            if asked_at is None:
                self._say_if_missing()
            return replace(fresh, position=asked_at or fresh.position), None
        asked = request.number > _taken(stored)
        asked_at = self._asked_at(request) if asked else None
        try:
            state = FeedState.from_json(states.whole(stored))
            at = self._usable(state, sets)
        except PositionLost as error:
            if asked_at is None:
                raise
            _log.error("binlog_resync", why=str(error), now=asked_at.file)
            return replace(fresh, position=asked_at), None
        if asked:  # what is published and not yet in the Repo is nothing that the request could find missing
            _log.warning("binlog_resync", why="a person asked for it", at=at.file)
            return replace(fresh, position=at), asked_at
        asked_at = self._asked_at(request) if self._pending(state.position, request) else None
        return replace(state, position=at, database=self._database), asked_at

    def lost(self, why: str) -> PositionLost:
        """Return the error that says so."""
        return PositionLost(
            f"ads DB {self._name}: the stored position is of no use: {why}. Run the resync workflow: the Gateway "
            "then follows the binlog from that moment on and sends every row again"
        )

    def _pending(self, at: BinlogPosition, request: Request) -> bool:
        """Return whether a request was taken up by a feed that ended before it came so far: its rows are enqueued."""
        wanted = None if request.state is None else request.state.position
        return bool(wanted and at.file and at.server == wanted.server == self._end.server and not at.reached(wanted))

    def _asked_at(self, request: Request) -> BinlogPosition | None:
        if request.state is None:
            return None
        try:
            # Sets of its own: what the request needs is not what the next stored position needs.
            return self._usable(request.state, GtidSets(self._log))
        except PositionLost as error:
            _log.info("binlog_request_of_no_use", why=str(error))  # of another server or database
            return None

    def _usable(self, state: FeedState, sets: GtidSets) -> BinlogPosition:
        if state.database and self._folded(state.database) != self._folded(self._database):
            raise self.lost(f"it is one of the database {state.database}, and this one is {self._database}")
        at, end = msgspec.structs.replace(state.position, gtid=sets.whole(state.position.gtid)), self._end
        if at.server == end.server:
            if file_order(at.file, at.offset) > file_order(end.file, end.offset):
                raise self.lost(f"it is at {at.file}:{at.offset}, but the binlog ends at {end.file}:{end.offset}")
            self._check_complete(at)
            return self._moded(at)
        if not at.gtid:
            raise self.lost(
                f"it is {at.file}:{at.offset} of server {at.server}, without GTIDs, but {end.server} answers"
            )
        self._check_complete(at)
        _log.warning("binlog_failover", left=at.server, now=end.server, gtid=at.gtid)
        # Files and offsets of another server mean nothing: the first transaction read brings this server's own.
        return msgspec.structs.replace(at, file="", offset=0, server=end.server)

    def _check_complete(self, at: BinlogPosition) -> None:
        """MySQL sends what a reader lacks and does not say that it lacks what the reader has; MariaDB does."""
        if self._server.flavour != MYSQL or not self._server.gtids or self._by_file:
            return
        lag = self._name, self._end.server, at.gtid
        missing = _gtid_set.difference(at.gtid, self._end.gtid)
        if not missing:
            _lagging.pop(lag, None)
            return
        since = _lagging.setdefault(lag, time.monotonic())
        if time.monotonic() - since < LAG_SECONDS:
            raise AdsDbUnavailable(
                f"ads DB {self._name}: {self._end.server} lags: it lacks {missing[:200]}, which was read before; it is "
                "waited for"
            )
        raise self.lost(f"{self._end.server} lacks {missing[:200]}, which was read from {at.server} and published")

    def _say_if_missing(self) -> None:
        number = self._log.committed(GATEWAY_GROUP, CHANGE_FEED).get(0, 0)
        if number or any(any(self._log.end_offsets(topic).values()) for topic in UPDATES.values()):
            _log.error(
                "binlog_position_missing",
                why="updates were published, but no position of a binlog is stored: another ads DB, or it has expired",
                todo="every row is sent again; rows deleted meanwhile are served: ./adsindex workflow run resync",
            )

    def _moded(self, at: BinlogPosition) -> BinlogPosition:
        return msgspec.structs.replace(at, gtid="") if self._by_file else at

    def _folded(self, database: str) -> str:
        return database.lower() if self._server.case_blind else database


def _taken(stored: str) -> int:
    """Return the number of the last request taken up, also where parts of the state are lost. Raises PositionLost."""
    try:
        return int(json.loads(stored)["resync"])
    except (ValueError, KeyError, TypeError):
        return FeedState.from_json(stored).resync  # which says what is wrong
