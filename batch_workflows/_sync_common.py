"""What the parts of the data sync share: what they work on, what they found, and how they ask a person's patience."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

from batch_workflows.engines import Engine
from batch_workflows.sync_lag import Lag
from catalog import Catalog
from gateway import AdsDb
from messaging import Log
from messaging.home import Home
from storage_repo import Origin, Repo, Snapshot, Transaction

STAGE = "sync"
BATCH = 1_000
"""Differences that are waited for, looked at again and repaired together: one lag of the pipeline each time, which also
keeps the queue of repairs short."""
LOOKS = 3
"""Looks at a row that changes between them before it is left to the pipeline, which is evidently at work on it."""
PIN_SECONDS = 3600.0
_EXAMPLES = 10
_T = TypeVar("_T")


def _nothing(*_: object) -> None:
    return None


@dataclass(slots=True)
class Part:
    """What one comparison read and found, by kind of difference."""

    rows: int = 0
    """Rows compared, those of the side that has more."""
    rows_read: int = 0
    """Rows read on both sides, also in later looks."""
    bytes_read: int = 0
    ranges: int = 0
    ranges_differing: int = 0
    seconds: float = 0.0
    unsynced: Counter[str] = field(default_factory=Counter)
    """Kind -> rows that differed in two looks between which everything in flight had arrived."""
    in_flight: int = 0
    """Rows that differed at the first look only, or differently at each."""
    unsettled: int = 0
    """Rows that differ, but what is in flight did not arrive: the pipeline is down, or held by a switch."""
    unjudged: int = 0
    """Rows that cannot be told now: a source is away, or a handler paused."""
    failing: int = 0
    """Rows at which a handler fails: what it derived before counts, as in the pipeline."""
    repaired: int = 0
    examples: dict[str, list[str]] = field(default_factory=dict)

    def found(self, kind: str, row: str) -> None:
        """Count a difference."""
        self.unsynced[kind] += 1
        if len(examples := self.examples.setdefault(kind, [])) < _EXAMPLES:
            examples.append(row)


@dataclass(slots=True)
class Sync:
    """What a sync works on; the callbacks are those of a run, and do nothing by default."""

    home: Home
    catalog: Catalog
    repo: Repo
    log: Log
    ads_db: AdsDb
    lag: Lag
    repair: bool = True
    on_check: Callable[[], None] = _nothing
    """Called between units; raises to end the sync."""
    failed: Callable[[str, str, str, str], None] = _nothing
    """Called with (kind, key, reason, detail) of what cannot be worked out; raises if the policy is to stop."""
    progress: Callable[[int], None] = _nothing
    """Called with the number of rows compared in all."""
    begin: Callable[[int | None], Transaction] | None = None
    engine: Engine | None = None
    """Runs the first look at derived rows, which costs most; None: this process does."""
    open_repo: Callable[[], Repo] | None = None
    """Opens the Repo where the engine's tasks run; it travels as a pickle."""
    done: int = 0
    _pin: tuple[str, int] | None = None
    _pinned_at: float = 0.0

    def check(self) -> None:
        """Call between units of work: it keeps the snapshot in use readable, and may raise to end the sync."""
        if self._pin is not None and time.monotonic() - self._pinned_at > PIN_SECONDS / 4:
            self._hold(*self._pin)
        self.on_check()

    @contextmanager
    def pinned(self, name: str) -> Iterator[Snapshot]:
        """Give the newest snapshot, readable until left as long as `check` is called. Raises RepoError."""
        snapshot = self.repo.snapshot()
        self._hold(f"sync-{name}", snapshot.ts)
        try:
            yield snapshot
        finally:
            self._pin = None
            self.repo.unpin(f"sync-{name}")

    def _hold(self, name: str, ts: int) -> None:
        self.repo.pin(name, ts, PIN_SECONDS)
        self._pin, self._pinned_at = (name, ts), time.monotonic()

    def transaction(self, ts: int) -> Transaction:
        """Begin a transaction on a snapshot."""
        return self.begin(ts) if self.begin is not None else self.repo.begin(Origin(STAGE), ts)

    def step(self, rows: int) -> None:
        """Say that some more rows were compared."""
        self.check()
        self.done += rows
        self.progress(self.done)


def chunks(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    """Yield lists of `size` items, the last one shorter."""
    waiting = iter(items)
    while chunk := list(islice(waiting, size)):
        yield chunk
