"""Threads that commit at the same time share the round trips: some lead, the others wait for their answer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from storage_repo._exceptions import OutcomeUnknown, RepoError, StoreUnavailable
from storage_repo.api import CommitOutcome
from storage_repo.hbase._commit import Prepared

_GROUP = 256
"""Transactions in one group at most. Beyond this the cells, not the round trips, take the time."""

_LEADERS = 2
"""Groups under way at the same time: while one waits for HBase the other can wait for the TSO."""


class _Request:
    """A thread's transactions waiting for a group."""

    __slots__ = ("error", "finished", "leads", "outcomes", "prepared", "turn")

    def __init__(self, prepared: Sequence[Prepared]) -> None:
        self.prepared = prepared
        self.turn = threading.Event()
        """Set when the request is finished, or its thread is to lead."""
        self.leads = self.finished = False
        self.outcomes: list[CommitOutcome] = []
        self.error: BaseException | None = None


class GroupCommit:
    """Hands groups of requests to one function."""

    def __init__(self, apply: Callable[[Sequence[Prepared]], list[CommitOutcome]]) -> None:
        self._apply = apply
        self._lock = threading.Lock()
        self._waiting: list[_Request] = []
        self._leaders = 0

    def submit(self, prepared: Sequence[Prepared]) -> list[CommitOutcome]:
        """Commit in order. Raises StoreUnavailable, and then none is visible; what may be is an outcome."""
        request = _Request(prepared)
        with self._lock:
            self._waiting.append(request)
            if self._leaders < _LEADERS:
                self._leaders += 1
                request.leads = True
                request.turn.set()
        while not request.finished:
            request.turn.wait()
            request.turn.clear()
            if request.leads:
                request.leads = False
                self._lead(request)
        if request.leads:  # another leader's group had it before this thread came to lead; nobody else knows of it now
            self._lead(request)
        if request.error is not None:  # an exception of one's own: the leader's grows with every raise
            if isinstance(request.error, RepoError):
                raise StoreUnavailable(str(request.error)) from request.error
            raise RuntimeError(f"the group that had this commit failed: {request.error!r}") from request.error
        gone = [outcome for outcome in request.outcomes if isinstance(outcome, StoreUnavailable)]
        if gone and not any(isinstance(outcome, (int, OutcomeUnknown)) for outcome in request.outcomes):
            raise StoreUnavailable(str(gone[0])) from gone[0]
        return request.outcomes

    def _lead(self, own: _Request) -> None:
        """Commit a group of the first that wait (another leader may have taken one's own), then hand over."""
        with self._lock:
            group: list[_Request] = []
            size = 0
            while self._waiting and (not group or size + len(self._waiting[0].prepared) <= _GROUP):
                group.append(self._waiting.pop(0))
                size += len(group[-1].prepared)
        try:
            if group:
                self._commit(group)
        except BaseException as error:
            for request in group:
                request.error = error
            if own in group or not isinstance(error, Exception):
                raise
        finally:
            with self._lock:
                following = next((request for request in self._waiting if not request.leads), None)
                if following is None:
                    self._leaders -= 1
                else:
                    following.leads = True
                    following.turn.set()
            for request in group:
                request.finished = True
                request.turn.set()

    def _commit(self, group: Sequence[_Request]) -> None:
        outcomes = self._apply([prepared for request in group for prepared in request.prepared])
        at = 0
        for request in group:
            request.outcomes = outcomes[at : at + len(request.prepared)]
            at += len(request.prepared)
