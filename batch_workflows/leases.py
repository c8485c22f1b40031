"""One run of a kind at a time: a lease in the Storage Repo that survives crashes, with fencing.

The lease is a row with two cells. `fence` names the run and a token, which grows with every process that takes the
lease; `beat` is written every few seconds by its holder. Who wants a lease that is held waits until it has seen no beat
for TTL_S seconds **of its own**, by a clock that nobody can set and that goes on in suspend: no two machines' clocks
are ever compared (Kubernetes' leader election and the DynamoDB lock client wait likewise). On one machine a process
that is gone is seen at once.

A holder that slept may wake up as a zombie. Its transactions read and promote `fence`, so none commits once somebody
else has written it (Gray and Cheriton, Leases, SOSP 1989; the token is that of Chubby's sequencers). Before other
effects `check` looks whether the lease may have lapsed, and renews it or raises.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog

from batch_workflows._clocks import elapsed_s, gone, wall_us
from batch_workflows._exceptions import BadParameters, LeaseLost
from batch_workflows._runs_model import Failures, Holder, Progress, Stored
from catalog.model import WORKFLOW_TABLE
from storage_repo import Conflict, Origin, Repo, RepoError, Snapshot, SnapshotTooOld, Transaction

TTL_S = 15.0
"""A holder that gives no sign of life for so long has lost the lease: some missed beats, a stalled disk, a collection
of garbage on a cluster are forgiven, and a dead run on another machine does not hold others up for long."""
BEAT_S = 3.0
MARGIN_S = 3.0
"""A holder gives up so long before others may take over: the renewal that is on its way must not come too late."""
MAX_STATE_BYTES = 256 << 10
"""A checkpoint is a position, not a result."""
_ATTEMPTS = 20
"""Each lost race means that somebody else got through; twenty in a row mean a bug."""

FENCE, BEAT = "meta:fence", "meta:beat"
RECORD, LIVE, CHECKPOINT, CANCEL = "meta:record", "meta:live", "meta:checkpoint", "meta:cancel"
ORIGIN = Origin("workflow", "runs")


class Fence(Stored):
    """Who has the lease. A number of 0 means nobody."""

    token: int = 0
    workflow: str = ""
    number: int = 0
    holder: Holder | None = None


class Beat(Stored):
    """The holder's last sign of life. The time is for people."""

    count: int = 0
    at_us: int = 0


class Live(Stored):
    """What a run that goes on says of itself."""

    progress: Progress | None = None
    failures: tuple[Failures, ...] = ()
    counts: dict[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Held:
    """A lease as read at one moment."""

    fence: Fence
    beat: Beat

    @property
    def free(self) -> bool:
        """Return whether nobody has it, or its holder is certainly gone."""
        return self.fence.number == 0 or (self.fence.holder is not None and gone(self.fence.holder))


def lease_row(name: str) -> str:
    """Return the row of a lease."""
    return f"lease/{name}"


def run_row(workflow: str, number: int) -> str:
    """Return the row of a run; rows of a workflow sort by number."""
    return f"run/{workflow}/{number:012d}"


def read_lease(snapshot: Snapshot, name: str) -> Held:
    """Read a lease; one that was never taken is free. Raises RepoError, BadRunRecord."""
    row = lease_row(name)
    cells = snapshot.get(WORKFLOW_TABLE, row, [FENCE, BEAT])
    return Held(
        Fence.of_cell(f"{row} {FENCE}", cells[FENCE]) if FENCE in cells else Fence(),
        Beat.of_cell(f"{row} {BEAT}", cells[BEAT]) if BEAT in cells else Beat(),
    )


def silent(repo: Repo, name: str, held: Held, wait: Callable[[float], object], ttl_s: float = TTL_S) -> bool:
    """Watch a lease for `ttl_s` seconds and return whether its holder gave no sign of life.

    `wait(seconds)` returns true when we are to stop watching.
    """
    begun = elapsed_s()
    while (left := begun + ttl_s - elapsed_s()) > 0:
        if wait(min(left, BEAT_S / 3)):
            return False
        if read_lease(repo.snapshot(), name) != held:
            return False
    return True


@dataclass(frozen=True, slots=True)
class Binding:
    """What binds a transaction to a lease, in whatever process; it travels as a pickle."""

    name: str
    fence: Fence
    ttl_s: float

    def bind(self, transaction: Transaction) -> None:
        """See `Lease.fence`."""
        row = lease_row(self.name)
        cells = transaction.get(WORKFLOW_TABLE, row, [FENCE])
        current = Fence.of_cell(f"{row} {FENCE}", cells[FENCE]) if FENCE in cells else Fence()
        if current.token < self.fence.token:
            raise ValueError(f"a transaction at {transaction.ts} is from before the lease was taken; begin a newer one")
        if (current.token, current.number) != (self.fence.token, self.fence.number):
            by = current.holder
            said = "nobody" if current.number == 0 or by is None else f"{by.host} (process {by.pid})"
            raise LeaseLost(
                f"run {self.fence.workflow}-{self.fence.number} has lost its lease to {said}: it gave no sign of "
                f"life for {self.ttl_s:.0f} s; this process must not go on"
            )
        transaction.promote(WORKFLOW_TABLE, row, FENCE)


class Lease:
    """The holder's side. Safe for threads; `start` begins the beats, `stop` ends them."""

    def __init__(self, repo: Repo, name: str, fence: Fence, *, ttl_s: float = TTL_S) -> None:
        self._repo, self._name, self._fence, self._ttl = repo, name, fence, ttl_s
        self._row = run_row(fence.workflow, fence.number)
        self._lock = threading.Lock()
        self._renewed = elapsed_s()
        self._beats = 0
        self._shown = Live()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._lost = ""
        self.cancelled = ""
        """Who asked for the run to be cancelled, and why; empty while nobody has."""
        self.failures: Callable[[], Sequence[Failures]] = tuple
        self.counts: Callable[[], dict[str, Any]] = dict

    @property
    def name(self) -> str:
        """Name of the lease."""
        return self._name

    @property
    def token(self) -> int:
        """Grows with every process that takes the lease."""
        return self._fence.token

    @property
    def fence_cell(self) -> Fence:
        """What the lease's cell has while it is ours."""
        return self._fence

    def start(self) -> None:
        """Renew the lease every BEAT_S seconds from now on, and look whether somebody cancels the run."""
        self._thread = threading.Thread(target=self._beat, name="workflow-lease", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the beats; the lease stays until it is released or others see that it lapsed."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def show(self, progress: Progress) -> None:
        """Have the next beat store how far the run is."""
        self._shown = Live(progress=progress)

    def live(self) -> Live:
        """Return what the next beat stores."""
        return Live(progress=self._shown.progress, failures=tuple(self.failures()), counts=dict(self.counts()))

    def check(self) -> None:
        """Return if the lease is certainly ours still; renew it if it may have lapsed. Raises LeaseLost, RepoError."""
        if self._lost:
            raise LeaseLost(self._lost)
        if self._thread is not None and elapsed_s() - self._renewed > self._ttl - MARGIN_S:
            self.renew()

    def fence(self, transaction: Transaction) -> None:
        """Bind a transaction to the lease: it conflicts if another process takes it. Raises LeaseLost, RepoError.

        The transaction must not be older than the lease.
        """
        try:
            self.binding.bind(transaction)
        except LeaseLost as error:
            self._lost = str(error)
            raise

    @property
    def binding(self) -> Binding:
        """What binds transactions of other processes that work for this one."""
        return Binding(self._name, self._fence, self._ttl)

    def renew(self) -> None:
        """Give a sign of life, and take in whether the run is cancelled. Raises LeaseLost, RepoError."""
        with self._lock:
            begun = elapsed_s()
            self._beats += 1
            beat = Beat(count=self._beats, at_us=wall_us()).to_cell()
            live = self.live().to_cell()

            def write(transaction: Transaction) -> None:
                cells = transaction.get(WORKFLOW_TABLE, self._row, [CANCEL])
                transaction.put(WORKFLOW_TABLE, lease_row(self._name), BEAT, beat)
                transaction.put(WORKFLOW_TABLE, self._row, LIVE, live)
                self.cancelled = cells.get(CANCEL, b"").decode()

            self.write(write)
            self._renewed = begun

    def write(self, fill: Callable[[Transaction], None]) -> int:
        """Commit a fenced transaction that `fill` writes; again on a conflict. Raises LeaseLost, RepoError."""
        for attempt in range(_ATTEMPTS):
            transaction = self._repo.begin(ORIGIN)
            try:
                self.fence(transaction)
                fill(transaction)
                return transaction.commit()
            except (Conflict, SnapshotTooOld):
                transaction.abort()
                if attempt == _ATTEMPTS - 1:
                    raise
        raise AssertionError("unreachable")

    def checkpoint(self, state: Any) -> None:
        """Store from where a later attempt goes on. Raises LeaseLost, RepoError, BadParameters if it is too large."""
        live = self.live()
        cell = msgspec.msgpack.encode([state, live.model_dump(mode="json")])
        if len(cell) > MAX_STATE_BYTES:
            raise BadParameters(f"{self._row}: a checkpoint of {len(cell)} bytes; {MAX_STATE_BYTES} are allowed")
        self.write(lambda transaction: transaction.put(WORKFLOW_TABLE, self._row, CHECKPOINT, cell))

    def _beat(self) -> None:
        wait = 0.0
        while not self._stop.wait(wait):
            try:
                self.renew()
            except LeaseLost as error:
                structlog.get_logger().error("workflow_lease_lost", error=str(error))
                return
            except RepoError as error:  # `check` raises it to the run once the lease may have lapsed
                structlog.get_logger().warning("workflow_lease_not_renewed", error=str(error))
            wait = min(BEAT_S, self._ttl / 4)


def read_checkpoint(cell: bytes) -> tuple[Any, Live]:
    """Return a checkpoint's state, and what had failed and been counted until then."""
    state, live = msgspec.msgpack.decode(cell)
    return state, Live.model_validate(live)
