"""Streams of control updates that tell for every update which documents it must change, and when it was answerable.

An entity is changed by one kind of update only and an update changes what its documents hold, so every update must show
in every one of its documents.
"""

from __future__ import annotations

import json
import random
import sqlite3
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

SHARES = {"bid": 0.5, "ad status": 0.35, "ad group status": 0.15}
"""Of all updates, by kind."""
_GROUPS = {"bid": 0.5, "ad status": 0.35, "ad group status": 0.15}
"""Of all ad groups: those that have updates of a kind, so that an entity's turn comes round equally often."""
_TABLE = {"bid": "ad_groups", "ad status": "ads", "ad group status": "ad_groups"}
_COLUMN = {"bid": "bid_micros", "ad status": "status", "ad group status": "status"}
_CLOCK_STEP_US = 2_000
"""SQLite's clock, from which an update's origin time comes, has milliseconds."""


@dataclass(frozen=True, slots=True)
class Update:
    """One changed row, and the served documents that depend on it."""

    at_s: float
    table: str
    column: str
    key: int
    value: int | str
    documents: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Commit:
    """When an update's transaction began and when COMMIT had returned, microseconds since the epoch."""

    begun_us: int
    committed_us: int


@dataclass(slots=True)
class Latencies:
    """Milliseconds per update from commit until the last of its documents was answerable."""

    values: list[float] = field(default_factory=list)
    unmatched: int = 0
    """Updates of which a document was never seen by itself: run together with an earlier update of the same row."""

    def quantile(self, q: float) -> float | None:
        """Return the value at quantile `q` (nearest rank); None without values."""
        ordered = sorted(self.values)
        return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else None


class Planner:
    """Plans updates for one ads DB whose served documents are known; bids and states go on from plan to plan."""

    def __init__(self, ads_db: Path, served: Collection[str], seed: int, probes: int = 0) -> None:
        """Leave `probes` served ads out of all plans; they are in `probes`."""
        with closing(sqlite3.connect(ads_db)) as connection:
            rows = connection.execute("SELECT id, ad_group_id FROM ads ORDER BY id").fetchall()
            self._bids: dict[int, int] = dict(connection.execute("SELECT id, bid_micros FROM ad_groups"))
        self._random = random.Random(seed)
        by_group: dict[int, list[int]] = defaultdict(list)
        for ad, group in rows:
            if str(ad) in served:
                by_group[group].append(ad)
        groups = list(by_group)
        self._random.shuffle(groups)
        self._documents: dict[tuple[str, int], tuple[str, ...]] = {}
        self._keys: dict[str, list[int]] = {}
        start = 0.0
        for kind, share in _GROUPS.items():
            chosen = groups[int(start * len(groups)) : int((start + share) * len(groups))]
            start += share
            if kind == "ad status":
                ads = [ad for group in chosen for ad in by_group[group]]
                self.probes, ads = ads[:probes], ads[probes:]
                self._keys[kind] = ads
                self._documents |= {(kind, ad): (str(ad),) for ad in ads}
            else:
                self._keys[kind] = chosen
                self._documents |= {(kind, group): tuple(map(str, by_group[group])) for group in chosen}
        self._turns: dict[str, Iterator[int]] = {kind: cycle(keys) for kind, keys in self._keys.items()}
        self._paused: set[tuple[str, int]] = set()

    def steady(self, rate: float, seconds: float) -> list[Update]:
        """Return a plan of updates at a steady rate, each in a transaction of its own."""
        kinds = self._random.choices(list(SHARES), list(SHARES.values()), k=int(rate * seconds))
        return [self._next(kind, i / rate) for i, kind in enumerate(kinds)]

    def every_bid(self) -> list[Update]:
        """Return a plan that changes the bid of every ad group that has bid updates, all at once."""
        return [self._next("bid", 0.0) for _ in self._keys["bid"]]

    def _next(self, kind: str, at_s: float) -> Update:
        key = next(self._turns[kind])
        value: int | str
        if kind == "bid":
            value = self._bids[key] = self._bids[key] + 10_000
        else:
            self._paused ^= {(kind, key)}
            value = "PAUSED" if (kind, key) in self._paused else "ACTIVE"
        return Update(at_s, _TABLE[kind], _COLUMN[kind], key, value, self._documents[kind, key])


def write_plan(file: Path, updates: Sequence[Update], per_transaction: int = 1) -> None:
    """Write a plan for the writer and the peers: transactions of (at_s, [[table, column, key, value, documents]])."""
    rows = [[u.table, u.column, u.key, u.value, u.documents] for u in updates]
    transactions = [[updates[i].at_s, rows[i : i + per_transaction]] for i in range(0, len(updates), per_transaction)]
    file.write_text(json.dumps(transactions))


def match(
    updates: Sequence[Update],
    commits: Sequence[Commit],
    applied: Mapping[str, Sequence[tuple[int, int]]],
    after_s: float = 0.0,
) -> Latencies:
    """Match each update (planned for `after_s` or later) with what was applied: document -> (origin, answerable) times.

    The first change of a document that originates in the update or later shows it. A later one can only overstate.
    """
    found = Latencies()
    for update, commit in zip(updates, commits, strict=True):
        if update.at_s < after_s:
            continue
        shown = [
            next((at for origin, at in applied.get(d, ()) if origin >= commit.begun_us - _CLOCK_STEP_US), None)
            for d in update.documents
        ]
        if None in shown:
            found.unmatched += 1
        else:
            found.values.append((max(at for at in shown if at is not None) - commit.committed_us) / 1e3)
    return found
