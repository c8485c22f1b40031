"""Threads that read at the same time share calls, as those that commit do: some lead, the others wait for their rows.

A call of fifty rows costs hardly more than one of five, for HBase's Thrift server above all. Nobody waits when there is
nobody to share with, and nobody waits long behind calls that hang.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

from storage_repo._exceptions import StoreUnavailable
from storage_repo.hbase.connections import HbaseConnections

_CALLS = 2
"""Calls under way for the same table and columns: while HBase works on one, the rows of the other are taken apart."""

_ROWS = 500
"""Rows in one call."""

_MANY = 100
"""Rows that make a call of their own: the rows take the time then, not the call."""

_PATIENCE_S = 0.1
"""How long to wait for a call to begin. Those under way hang for seconds when one of their regions is away; rows of
other regions need not."""

_Place = tuple[bytes, tuple[bytes, ...]]
"""HBase's table and the columns."""


class _Request:
    """A thread's rows."""

    __slots__ = ("before_ts", "error", "keys", "leads", "results", "turn")

    def __init__(self, keys: Sequence[bytes], before_ts: int) -> None:
        self.keys, self.before_ts = keys, before_ts
        self.turn = threading.Event()
        """Set when the request is answered, or its thread is to lead."""
        self.leads = False
        self.results: Sequence[Any] = ()
        self.error: BaseException | None = None


class _Line:
    """Who waits for the rows of one table and columns. Somebody waits only while all calls are under way."""

    __slots__ = ("under_way", "waiting")

    def __init__(self) -> None:
        self.under_way = 0
        self.waiting: deque[_Request] = deque()

    def take(self, rows: int) -> list[_Request]:
        """Take the first that wait and have so many rows together at most."""
        taken: list[_Request] = []
        while self.waiting and len(self.waiting[0].keys) <= rows:
            rows -= len(self.waiting[0].keys)
            taken.append(self.waiting.popleft())
        return taken


class SharedReads:
    """Reads rows in calls that threads share."""

    def __init__(self, connections: HbaseConnections) -> None:
        self._connections = connections
        self._lock = threading.Lock()
        self._lines: dict[_Place, _Line] = {}

    def rows(self, table: bytes, keys: Sequence[bytes], columns: Sequence[bytes], before_ts: int) -> Sequence[Any]:
        """Return the newest version of the columns of those rows that have one; of a cell, the newest below a bound.

        The bound is `before_ts` or later, so versions may come that are too new. Raises StoreUnavailable.
        """
        if len(keys) > _MANY:
            return self._read((table, tuple(columns)), keys, before_ts)
        place, request = (table, tuple(columns)), _Request(keys, before_ts)
        with self._lock:
            line = self._lines.setdefault(place, _Line())
            if line.under_way < _CALLS:
                line.under_way += 1
                request.leads = True
            else:
                line.waiting.append(request)
        if not request.leads and not request.turn.wait(_PATIENCE_S):
            with self._lock:
                alone = request in line.waiting
                if alone:
                    line.waiting.remove(request)
            if alone:
                return self._read(place, keys, before_ts)
            request.turn.wait()
        if request.leads:
            self._lead(place, line, request)
        elif isinstance(request.error, StoreUnavailable):  # an exception of one's own: a shared one grows
            raise type(request.error)(str(request.error)) from request.error
        elif request.error is not None:
            raise RuntimeError(f"the thread that read these rows failed: {request.error!r}") from request.error
        return request.results

    def _lead(self, place: _Place, line: _Line, own: _Request) -> None:
        """Read one's own rows and those of the first that wait, then hand over."""
        with self._lock:
            group = [own, *line.take(_ROWS - len(own.keys))]
        try:
            self._answer(place, group)
        except BaseException as error:
            for request in group:
                request.error = error
            raise
        finally:
            with self._lock:
                following = line.waiting.popleft() if line.waiting else None
                if following is not None:
                    following.leads = True
                else:
                    line.under_way -= 1
                    if not line.under_way:
                        del self._lines[place]
            if following is not None:
                following.turn.set()
            for request in group[1:]:
                request.turn.set()

    def _answer(self, place: _Place, group: Sequence[_Request]) -> None:
        if len(group) == 1:
            group[0].results = self._read(place, group[0].keys, group[0].before_ts)
            return
        keys = list(dict.fromkeys(key for request in group for key in request.keys))
        found = {result.row: result for result in self._read(place, keys, max(r.before_ts for r in group))}
        for request in group:
            request.results = [found[key] for key in request.keys if key in found]

    def _read(self, place: _Place, keys: Sequence[bytes], before_ts: int) -> Sequence[Any]:
        results: Sequence[Any] = self._connections.rows(place[0], keys, place[1], before_ts)
        return results
