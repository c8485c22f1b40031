"""Requests that wait for their answers, and whose answer a response is. Not thread-safe: its owner locks."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

from storage_repo.omid import protocol
from storage_repo.omid._errors import CommitUnknown, TsoUnavailable
from storage_repo.omid.outcomes import Aborted, CommitRequest, Committed, Outcome
from storage_repo.omid.proto import omid_pb2 as pb

Answer = TypeVar("Answer")


class Call(Generic[Answer]):
    """One blocked caller, who asked one or many things at once; all answers wake it once."""

    __slots__ = ("_done", "answers", "missing")

    def __init__(self, count: int) -> None:
        self.missing = count
        self.answers: dict[int, Answer] = {}
        self._done = threading.Lock()  # half the price of an Event
        self._done.acquire()

    def take(self, index: int, answer: Answer) -> bool:
        """Keep an answer; return whether it was the last one missing."""
        self.answers[index] = answer
        self.missing -= 1
        return self.missing == 0

    def wake(self) -> None:
        """Let the caller go on."""
        self._done.release()

    def wait(self, seconds: float) -> bool:
        """Block until all answers are there; False when the time is over."""
        return self._done.acquire(timeout=max(0.0, seconds))


class _Open:
    """A request that has been sent, or will be when there is a connection."""

    __slots__ = ("sent_at",)

    def __init__(self) -> None:
        self.sent_at = time.monotonic()

    def frames(self) -> bytes:
        """Return what is to be sent now."""
        raise NotImplementedError


class _Begin(_Open):
    """Timestamps that one call still waits for."""

    __slots__ = ("call", "left")

    def __init__(self, call: Call[int], left: int) -> None:
        super().__init__()
        self.call, self.left = call, left

    def frames(self) -> bytes:
        """Return what is to be sent now."""
        self.sent_at = time.monotonic()
        return protocol.BEGIN * self.left


class _Commit(_Open):
    """One commit without an answer."""

    __slots__ = ("call", "index", "request", "sends")

    def __init__(self, call: Call[Outcome], index: int, request: CommitRequest) -> None:
        super().__init__()
        self.call, self.index, self.request = call, index, request
        self.sends = 0

    def frames(self) -> bytes:
        """Return what is to be sent now; from the second time on it says that it is a retry."""
        self.sends += 1
        self.sent_at = time.monotonic()
        return protocol.commit_frame(self.request, is_retry=self.sends > 1)

    def lost(self, why: str) -> Outcome:
        """Return the outcome when no answer will come."""
        if self.sends:
            return CommitUnknown(self.request.start_ts, why)
        return TsoUnavailable(f"transaction {self.request.start_ts} is not committed: {why}")


class _Fence(_Open):
    """One fence without an answer."""

    __slots__ = ("call", "table_id")

    def __init__(self, call: Call[int], table_id: int) -> None:
        super().__init__()
        self.call, self.table_id = call, table_id

    def frames(self) -> bytes:
        """Return what is to be sent now."""
        self.sent_at = time.monotonic()
        return protocol.fence_frame(self.table_id)


class OpenRequests:
    """Everything that has been asked and not answered."""

    def __init__(self, counters: Counter[str]) -> None:
        self._counters = counters
        self._begins: deque[_Begin] = deque()
        self._commits: dict[int, _Commit] = {}
        self._retries: deque[int] = deque()
        """Commits to be asked again, one after the other: Omid 1.1's TSO looks retries up in a thread for each of its
        commit-table writers, and two that do it at the same time can end it (their queue takes one producer only)."""
        self._retrying: _Commit | None = None
        self._fences: dict[int, deque[_Fence]] = {}
        """By table. Only the first of each is on its way: answers of one table could not be told apart."""

    def begin(self, count: int) -> tuple[Call[int], bytes]:
        """Open `count` requests for timestamps; return the call and what to send."""
        call: Call[int] = Call(count)
        begin = _Begin(call, count)
        self._begins.append(begin)
        return call, begin.frames()

    def pad(self, count: int) -> bytes:
        """Return `count` requests for timestamps that nobody waits for, to be sent after all that is open."""
        call: Call[int] = Call(0)
        begin = _Begin(call, count)
        self._begins.append(begin)
        self._counters["pads"] += count
        return begin.frames()

    def commit(self, requests: Sequence[CommitRequest], *, is_connected: bool) -> tuple[Call[Outcome], bytes]:
        """Open commits; return the call and what to send if there is a connection.

        Raises ValueError if a transaction is there twice or cannot be sent; then nothing is open.
        """
        starts = {request.start_ts for request in requests}
        if len(starts) < len(requests) or not starts.isdisjoint(self._commits):
            raise ValueError("a transaction can be committed once only")
        call: Call[Outcome] = Call(len(requests))
        commits = [_Commit(call, index, request) for index, request in enumerate(requests)]
        frames = b"".join([commit.frames() for commit in commits])  # in any case, because it checks the requests
        if not is_connected:
            for commit in commits:
                commit.sends = 0
        self._commits.update((commit.request.start_ts, commit) for commit in commits)
        return call, frames

    def fence(self, table_id: int) -> tuple[Call[int], bytes]:
        """Open a fence; return the call and what to send, which is nothing while the table has another open."""
        fence = _Fence(Call(1), table_id)
        frames = fence.frames()
        waiting = self._fences.setdefault(table_id, deque())
        waiting.append(fence)
        return fence.call, frames if len(waiting) == 1 else b""

    def answered(self, responses: Iterable[pb.Response]) -> tuple[list[Call[int] | Call[Outcome]], bytes]:
        """Take responses; return the calls that have all their answers now, and what is to be sent next."""
        done: list[Call[int] | Call[Outcome]] = []
        more = b""
        for response in responses:
            kind = response.WhichOneof("kind")
            if kind == "timestamp":
                self._take_timestamp(response.timestamp.start_ts, done)
            elif kind == "commit":
                self._take_commit(response.commit, done)
                if self._retrying is not None and response.commit.start_ts == self._retrying.request.start_ts:
                    more += self._next_retry()
            elif kind == "fence":
                more += self._take_fence(response.fence, done)
        return done, more

    def again(self) -> bytes:
        """Return what is to be sent over a new connection of all that is open.

        Commits that had been sent before are retries, each to be sent when the one before it has its answer.
        """
        self._begins = deque(begin for begin in self._begins if begin.call.missing)
        fences = {table: deque(f for f in waiting if f.call.missing) for table, waiting in self._fences.items()}
        self._fences = {table: waiting for table, waiting in fences.items() if waiting}
        self._counters["begins_resent"] += sum(begin.left for begin in self._begins)
        self._retries = deque(start for start, commit in self._commits.items() if commit.sends)
        unsent = [commit for commit in self._commits.values() if not commit.sends]
        firsts = [waiting[0] for waiting in self._fences.values()]
        return b"".join([open_.frames() for open_ in (*self._begins, *unsent, *firsts)]) + self._next_retry()

    def oldest_sent_at(self) -> float | None:
        """Return when the request was sent that waits longest; None if none is open."""
        firsts: list[_Open] = [fences[0] for fences in self._fences.values()]
        firsts += itertools.islice(self._begins, 1)
        firsts += [self._retrying] if self._retrying is not None else ()
        firsts += itertools.islice(self._commits.values(), 1)  # never one that waits for its turn: they are in order
        return min((first.sent_at for first in firsts), default=None)

    def count(self) -> int:
        """Return how many answers somebody waits for."""
        begins = sum(begin.left for begin in self._begins if begin.call.missing)
        fences = sum(bool(fence.call.missing) for waiting in self._fences.values() for fence in waiting)
        return begins + len(self._commits) + fences

    def give_up(self, call: Call[int]) -> None:
        """Forget a call for timestamps or a fence.

        Its place in the queue stays while the connection does, for the answers that may still come.
        """
        call.missing = 0

    def give_up_commits(self, requests: Iterable[CommitRequest], why: str) -> list[Call[Outcome]]:
        """Forget commits, and give the outcome that is known: refused, or unknown."""
        done = []
        for request in requests:
            commit = self._commits.pop(request.start_ts, None)
            if commit is not None:
                self._counters["commits_unknown"] += commit.sends > 0
                if commit.call.take(commit.index, commit.lost(why)):
                    done.append(commit.call)
        return done

    def give_up_all(self, why: str) -> list[Call[int] | Call[Outcome]]:
        """Forget everything; return the calls to wake, of which those for timestamps and fences lack answers."""
        done: list[Call[int] | Call[Outcome]] = [begin.call for begin in self._begins if begin.call.missing]
        done += [fence.call for waiting in self._fences.values() for fence in waiting if fence.call.missing]
        self._begins.clear()
        self._fences.clear()
        return done + self.give_up_commits([commit.request for commit in self._commits.values()], why)

    def _next_retry(self) -> bytes:
        """Return the next commit that is to be asked again and that somebody still waits for; b"" if there is none."""
        self._retrying = None
        while self._retries:
            self._retrying = self._commits.get(self._retries.popleft())
            if self._retrying is not None:
                self._counters["commits_retried"] += 1
                return self._retrying.frames()
        return b""

    def _take_timestamp(self, ts: int, done: list[Call[int] | Call[Outcome]]) -> None:
        if not self._begins:
            self._counters["answers_unexpected"] += 1
            return
        begin = self._begins[0]
        begin.left -= 1
        if not begin.left:
            self._begins.popleft()
        if begin.call.missing:
            self._counters["begins"] += 1
            if begin.call.take(len(begin.call.answers), ts):
                done.append(begin.call)

    def _take_commit(self, response: pb.CommitResponse, done: list[Call[int] | Call[Outcome]]) -> None:
        commit = self._commits.pop(response.start_ts, None)
        if commit is None:
            self._counters["answers_unexpected"] += 1
            return
        outcome: Outcome
        if response.aborted:
            self._counters["aborts"] += 1
            outcome = Aborted(after_retry=commit.sends > 1)
        else:
            self._counters["commits"] += 1
            outcome = Committed(response.commit_ts)
        if commit.call.take(commit.index, outcome):
            done.append(commit.call)

    def _take_fence(self, response: pb.FenceResponse, done: list[Call[int] | Call[Outcome]]) -> bytes:
        waiting = self._fences.get(response.table_id)
        if waiting is None:
            self._counters["answers_unexpected"] += 1
            return b""
        fence = waiting.popleft()
        if fence.call.missing:
            self._counters["fences"] += 1
            fence.call.take(0, response.fence_ts)
            done.append(fence.call)
        if not waiting:
            del self._fences[response.table_id]
            return b""
        return waiting[0].frames()
