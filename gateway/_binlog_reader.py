"""The thread that receives and decodes the binlog ahead of publishing, within bounds, and is watched for silence."""

from __future__ import annotations

import random
import struct
import threading
import time
import zlib
from collections import deque
from collections.abc import Sequence

from catalog import Catalog
from gateway._binlog_plain import PlainTransactions
from gateway._binlog_stream import SILENT_SECONDS, BinlogStream
from gateway._binlog_transactions import PIECE, Piece, Transactions
from gateway._exceptions import AdsDbUnavailable, BinlogFormat, GatewayError
from gateway._mysql import Address
from gateway._mysql_packets import PacketCutter
from gateway._mysql_server import Server
from gateway.binlog_position import BinlogPosition

MAX_BUFFERED = 20_000
"""Changes read ahead of publishing: keys only, some 3 MB."""

_JOIN_SECONDS = 10.0
_READER_IDS = (1 << 31, (1 << 32) - 1)
"""Replicas' ids are small numbers; a random one of the upper half collides with nobody's."""


class BinlogReader:
    """Pieces of transactions in commit order, read ahead by a thread of its own."""

    def __init__(self, address: Address, catalog: Catalog, server: Server, after: BinlogPosition) -> None:
        """Begin to read after a position. Raises AdsDbUnavailable."""
        self._name = address.name
        self._transactions = Transactions(
            catalog, address.database, after, server.flavour, case_blind=server.case_blind
        )
        self._stream = BinlogStream(address, server, after, random.randrange(*_READER_IDS))
        self._plain = PlainTransactions(self._transactions, self._stream.decoder)
        self._changed = threading.Condition()
        self._pieces: deque[Piece] = deque()
        self._failure: GatewayError | None = None
        self._closed = False
        self.waiting = 0
        """Changes that were read and not taken."""
        self._thread = threading.Thread(target=self._run, name="binlog-reader", daemon=True)
        self._thread.start()

    def take(self, limit: int) -> list[Piece]:
        """Return the next pieces, up to the first with which they have `limit` changes; [] if there is none now.

        Raises what ended the reading, after the last piece.
        """
        with self._changed:
            if not self._pieces:
                self._check()
            taken, changes = list[Piece](), 0
            while self._pieces and changes < limit:
                taken.append(self._pieces.popleft())
                changes += len(taken[-1].changes)
            self.waiting -= changes
            self._changed.notify_all()
            return taken

    def wait(self, timeout_s: float) -> bool:
        """Block until there is a piece; False after `timeout_s`. Raises what ended the reading."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._pieces or self._failure), timeout_s)
            if not self._pieces:
                self._check()
            return bool(self._pieces)

    def close(self) -> None:
        """End the thread and its connection; safe to call twice."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._stream.close()
        self._thread.join(_JOIN_SECONDS)

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure
        silent = time.monotonic() - self._stream.heard_at
        if silent > SILENT_SECONDS:
            raise AdsDbUnavailable(
                f"ads DB {self._name}: the binlog reader has heard nothing for {silent:.0f} s, not even a heartbeat; "
                "it is connected again"
            )

    def _run(self) -> None:
        try:
            for packets in self._stream.received():
                self._add(packets)
                if self._closed:
                    return
        except GatewayError as error:
            self._fail(error)
        except (LookupError, ValueError, struct.error, zlib.error) as error:
            self._fail(self._unreadable(error))
        except BaseException as error:  # a fault of the program: its traceback goes to the log as well
            self._fail(self._unreadable(error))
            raise

    def _unreadable(self, cause: BaseException) -> BinlogFormat:
        at = self._transactions.position
        failure = BinlogFormat(
            f"ads DB {self._name}: an event after {at.file}:{at.offset} cannot be read: {cause!r}; "
            "upgrade adsindex, or run the resync workflow to go on from the binlog's end"
        )
        failure.__cause__ = cause
        return failure

    def _add(self, packets: PacketCutter) -> None:
        """Hand on what has come: together, but never more than PIECE changes and one piece more."""
        ready, changes = list[Piece](), 0
        try:
            while not self._plain.read(packets, ready):
                event = self._stream.next_of(packets)
                if event is None:
                    return
                for piece in self._transactions.add(event):
                    ready.append(piece)
                    changes += len(piece.changes)
                    if changes >= PIECE:
                        self._put(ready)
                        ready, changes = [], 0
        finally:  # what came before an event that cannot be read is handed on all the same
            self._put(ready)

    def _put(self, pieces: Sequence[Piece]) -> None:
        with self._changed:
            if self.waiting >= MAX_BUFFERED:
                # Until half of it is taken: the two threads shall not wake each other for every piece.
                self._changed.wait_for(lambda: self._closed or self.waiting <= MAX_BUFFERED // 2)
            if self._closed:
                return
            for piece in pieces:
                if self._pieces and not (_content(piece) or _content(self._pieces[-1])):
                    self._pieces.pop()  # only the newer position matters
                self._pieces.append(piece)
                self.waiting += len(piece.changes)
            self._stream.heard_at = time.monotonic()  # it may have waited here for long
            self._changed.notify_all()

    def _fail(self, error: GatewayError) -> None:
        with self._changed:
            self._failure = error
            self._changed.notify_all()


def _content(piece: Piece) -> bool:
    return bool(piece.changes or piece.ddl or piece.rewritten or piece.altered or piece.end is None)
