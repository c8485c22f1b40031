"""The client of Apache Omid's timestamp oracle (TSO): timestamps, commits and fences over one pipelined connection.

Any number of threads share it. What they ask at the same time goes out in one write, and one thread takes the answers.
When the connection is lost, or the TSO in charge changes, everything open is asked again over a new connection:
commits as retries, which the TSO looks up before it decides.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType

import structlog

from storage_repo.omid._errors import TsoClosed, TsoError, TsoIncompatible, TsoUnavailable
from storage_repo.omid._link import Link, LinkLost
from storage_repo.omid._locate import Address, locator_of
from storage_repo.omid._open_requests import Call, OpenRequests
from storage_repo.omid.outcomes import Aborted, CommitRequest, Committed, Outcome

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0
"""Between attempts to connect: short for a restart, not so short that a dead host is hammered."""

_COUNTERS = (
    "begins", "commits", "aborts", "fences", "connections", "begins_resent", "commits_retried", "commits_unknown",
    "answers_unexpected", "responses", "reads", "pads",
)  # fmt: skip
_log = structlog.get_logger()


_BELOW_EPOCH_S = 0.02
"""Before asking again when an old TSO still answers: it has lost its lease and ends within moments."""


@dataclass(frozen=True, slots=True)
class TsoSettings:
    """Time limits in seconds."""

    request_timeout_s: float = 5.0
    """An answer that takes longer makes the client drop the connection and ask again over a new one."""
    give_up_s: float = 30.0
    """When a call fails, after all retries: a fail-over takes a lease of 10 s and some start."""
    batch: int = 8
    """The TSO's batchSizePerCTWriter, as the stack sets it. A batch that is not full waits 1 ms (the shortest
    batchPersistTimeoutInMs) for more, so requests that are fewer are filled up by timestamps that nobody uses. With
    another size in the TSO they wait as ever."""


DEFAULT_SETTINGS = TsoSettings()


class TsoClient:
    """One connection to the TSO for all threads of a process."""

    def __init__(self, url: str, settings: TsoSettings = DEFAULT_SETTINGS) -> None:
        """See `open`, which also connects."""
        self._settings = settings
        self._locator = locator_of(url)
        self._url = url
        self._lock = threading.Lock()
        self._counters = Counter(dict.fromkeys(_COUNTERS, 0))
        self._open = OpenRequests(self._counters)
        self._link: Link | None = None
        self._last_address: Address | None = None
        self._failure: TsoError | None = None
        """Why there is no connection now."""
        self._has_tried = threading.Event()
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tso-client", daemon=True)

    @classmethod
    def open(cls, url: str, settings: TsoSettings = DEFAULT_SETTINGS) -> TsoClient:
        """Connect to omid://host:port, or to the TSO that zookeeper://host:port[,host:port][/root] names.

        Waits for one to be in charge. Raises TsoUnavailable, TsoIncompatible; ValueError for other URLs.
        """
        client = cls(url, settings)
        try:
            client._locator.start(client._tso_changed, settings.give_up_s)
            client._thread.start()
            client._wait_for_connection()
        except BaseException:
            client.close()
            raise
        return client

    @property
    def epoch(self) -> int:
        """Transactions begun before this timestamp can no longer commit, so that readers may invalidate them.

        -1 with a direct connection, or while no TSO is in charge.
        """
        try:
            return self._locator.current().epoch
        except TsoUnavailable:
            return -1

    @property
    def address(self) -> str:
        """host:port of the TSO in use, or last in use."""
        return str(self._last_address or "")

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection now."""
        return self._link is not None

    @property
    def waiting(self) -> int:
        """How many requests have no answer yet."""
        with self._lock:
            return self._open.count()

    def begin(self) -> int:
        """Return a new start timestamp: all commits with a smaller one can be read. Raises TsoUnavailable."""
        return self.begin_many(1)[0]

    def begin_many(self, count: int) -> list[int]:
        """Return start timestamps, ascending, in one round trip. Raises TsoUnavailable.

        If another TSO took charge meanwhile, timestamps of the old one are thrown away and asked for again.
        """
        deadline = time.monotonic() + self._settings.give_up_s
        got: list[int] = []
        while len(got) < count:
            with self._lock:
                self._check_open()
                call, frames = self._open.begin(count - len(got))
                link = self._link
            answers = self._answers(call, link, frames, count - len(got), deadline)
            epoch = self.epoch  # only now: a timestamp of the TSO in charge is never below it
            got += [ts for ts in answers.values() if ts >= epoch]
            if len(got) < count and time.monotonic() >= deadline:
                raise TsoUnavailable(f"the TSO at {self.address} gives timestamps below the epoch {epoch} in ZooKeeper")
            if len(got) < count:
                time.sleep(_BELOW_EPOCH_S)
        return got

    def commit(self, start_ts: int, cell_ids: Sequence[int], table_ids: Sequence[int]) -> Committed | Aborted:
        """Commit a transaction whose cells are all written.

        Raises CommitUnknown if it was sent and no answer came, and TsoUnavailable if it never left: not committed.
        """
        (outcome,) = self.commit_many([CommitRequest(start_ts, cell_ids, table_ids)])
        if isinstance(outcome, TsoError):
            raise outcome
        return outcome

    def commit_many(self, requests: Sequence[CommitRequest]) -> list[Outcome]:
        """Commit transactions in one round trip; each has its outcome, in the order of the requests.

        The TSO decides in that order too: of two that write one cell, only the first can commit. Raises ValueError
        for a transaction that is given twice or is being committed, and then nothing was sent.
        """
        if not requests:
            return []
        deadline = time.monotonic() + self._settings.give_up_s
        with self._lock:
            self._check_open()
            call, frames = self._open.commit(requests, is_connected=self._link is not None)
            link = self._link
        if link is not None:
            link.send(frames, len(requests))
        if not call.wait(deadline - time.monotonic()):
            with self._lock:
                done = self._open.give_up_commits(requests, self._why())
            _wake(done)
            call.wait(0.0)
        return [call.answers[index] for index in range(len(requests))]

    def fence(self, table_id: int) -> int:
        """Return a timestamp; every transaction begun before it that writes the table is refused from now on.

        The TSO keeps fences in memory only. Raises TsoUnavailable.
        """
        deadline = time.monotonic() + self._settings.give_up_s
        with self._lock:
            self._check_open()
            call, frames = self._open.fence(table_id)
            link = self._link
        return self._answers(call, link, frames, 1, deadline)[0]

    def statistics(self) -> Mapping[str, int]:
        """Counters since open.

        begins, commits, aborts, fences: answers. connections; begins_resent, commits_retried: what was asked again
        over a later one. commits_unknown. answers_unexpected. responses, reads: how well answers are batched. pads:
        timestamps asked for only to fill the TSO's batches.
        """
        with self._lock:
            return dict(self._counters)

    def close(self) -> None:
        """Close the connection. Calls that wait end as if no TSO could be reached. Safe to call twice."""
        self._is_closed.set()
        with self._lock:
            link, waiting = self._link, self._open.give_up_all("the client was closed")
        _wake(waiting)
        if link is not None:
            link.shutdown()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()
        self._locator.close()

    def __enter__(self) -> TsoClient:
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close."""
        self.close()

    def _answers(
        self, call: Call[int], link: Link | None, frames: bytes, requests: int, deadline: float
    ) -> dict[int, int]:
        """Send, if there is a connection, and wait. Raises TsoUnavailable, TsoClosed."""
        if link is not None:
            link.send(frames, requests)
        if not call.wait(deadline - time.monotonic()):
            with self._lock:
                if call.missing:
                    self._open.give_up(call)
                    raise TsoUnavailable(self._why())
        if call.missing:
            raise TsoClosed("the TSO client was closed while a call waited")
        return call.answers

    def _check_open(self) -> None:
        if self._is_closed.is_set():
            raise TsoClosed("the TSO client is closed")

    def _why(self) -> str:
        if self._failure is not None:
            return str(self._failure)
        return f"the TSO at {self.address} did not answer within {self._settings.give_up_s} s"

    def _wait_for_connection(self) -> None:
        """Return when there is a connection. Raises TsoUnavailable when time is over, TsoIncompatible at once."""
        deadline = time.monotonic() + self._settings.give_up_s
        while self._last_address is None:
            self._has_tried.wait(max(0.0, deadline - time.monotonic()))
            self._has_tried.clear()
            failure = self._failure
            if isinstance(failure, TsoIncompatible):
                raise failure
            if self._last_address is None and time.monotonic() >= deadline:
                raise failure or TsoUnavailable(f"no TSO found at {self._url} within {self._settings.give_up_s} s")

    def _run(self) -> None:
        """Keep a connection, and give out what it answers. The client's own thread."""
        pause = FIRST_PAUSE_S
        while not self._is_closed.is_set():
            try:
                link = self._connect()
            except TsoError as error:
                self._failure = error
                self._has_tried.set()
                self._is_closed.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)
                continue
            pause = FIRST_PAUSE_S
            try:
                self._serve(link)
            except (LinkLost, TsoIncompatible) as error:
                self._failure = TsoUnavailable(f"the connection to the TSO was lost: {error}")
                if not self._is_closed.is_set():
                    _log.warning("tso_connection_lost", address=str(link.address), why=str(error))
            finally:
                with self._lock:
                    self._link = None
                link.close()

    def _connect(self) -> Link:
        """Open a connection to the TSO in charge, and ask everything open over it. Raises TsoError."""
        link = Link(self._locator.current(), self._settings.request_timeout_s, self._fill)
        with self._lock:
            frames = self._open.again()
            self._counters["connections"] += 1
            self._link, self._failure, self._last_address = link, None, link.address
        if frames:
            link.send(frames)
        self._tso_changed(self._locator.current())  # it may have changed while we connected, before we were told
        self._has_tried.set()
        _log.info("tso_connected", address=str(link.address), epoch=link.address.epoch)
        return link

    def _fill(self, link: Link, requests: int) -> bytes:
        """Return what makes the requests of a write full batches of the TSO's; b"" over a connection that is over."""
        missing = -requests % self._settings.batch
        with self._lock:
            return self._open.pad(missing) if missing and link is self._link else b""

    def _serve(self, link: Link) -> None:
        """Take responses until the connection is lost, or an answer is overdue. Raises LinkLost, TsoIncompatible."""
        while True:
            responses = link.receive()
            with self._lock:
                if responses:
                    self._counters["reads"] += 1
                    self._counters["responses"] += len(responses)
                done, more = self._open.answered(responses)
                oldest = self._open.oldest_sent_at()
            _wake(done)
            if more:
                link.send(more)
            if oldest is not None and time.monotonic() - oldest > self._settings.request_timeout_s:
                raise LinkLost(f"{link.address} left a request unanswered for {self._settings.request_timeout_s} s")

    def _tso_changed(self, address: Address) -> None:
        """Leave the present TSO if another one has taken charge. Comes on a thread of ZooKeeper's client."""
        with self._lock:
            link = self._link
        if link is not None and link.address != address:
            link.shutdown()


def _wake(calls: Sequence[Call[int] | Call[Outcome]]) -> None:
    for call in calls:
        call.wake()
