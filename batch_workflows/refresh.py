"""Refresh: run the same handlers again over everything or a selection, at low priority.

A refresh sends notifications that say "run all handlers of this row"; the pipeline does the rest, at the low lane.
`resync` makes the Gateway read rows of the ads DB again, and look for those that only the Storage Repo still has.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field, field_validator

from argus import Registry, load_registry
from batch_workflows.refresh_selection import PAGE, Selection, selection_of
from batch_workflows.runner import Counts, Parameters, RunContext, workflow
from catalog import Catalog, LaneName, Table, ValueType
from catalog.model import DELETED, SOURCE_VERSION
from gateway import AdsDb, request_missing, request_resync
from messaging import Log, OutRecord
from messaging.headers import new_header, now_us
from messaging.proto import adsindex_pb2 as pb
from messaging.switches import Switches
from messaging.topics import ARGUS_GROUP, NOTIFICATIONS
from storage_repo import Repo

WORKFLOW = "refresh"
_BATCH = 1000
_PER_SECOND = 5
"""Batches per second where the rate is limited, so that it is kept within a second, too."""
_LOOK_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Refreshed:
    """How many rows were asked to run again, per table."""

    by_table: dict[str, int]

    @property
    def rows(self) -> int:
        """All of them."""
        return sum(self.by_table.values())


def _nothing() -> None:
    return None


@dataclass(slots=True)
class Pace:
    """How fast rows are asked to run; by default as fast as they are found."""

    rows_per_second: float = 0.0
    """0: no limit."""
    max_waiting: int = 0
    """Rows that may wait in the low lane before no more are added; 0: any number, whether or not anybody takes them."""
    check: Callable[[], None] = _nothing
    """Called while waiting and between batches; raises to end the refresh."""
    paused: Callable[[], bool] = lambda: False
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    _due: float = 0.0

    @property
    def batch(self) -> int:
        """Rows to publish at once."""
        size = max(1, int(self.rows_per_second / _PER_SECOND)) if self.rows_per_second else _BATCH
        return min(size, _BATCH, self.max_waiting or _BATCH)

    def wait(self, log: Log, count: int) -> None:
        """Return when so many more rows may be asked for."""
        self.check()
        while self.paused() or (self.max_waiting and waiting(log) + count > self.max_waiting):
            self.sleep(_LOOK_SECONDS)
            self.check()
        while (left := self._due - self.clock()) > 0:
            self.sleep(min(left, _LOOK_SECONDS))
            self.check()
        if self.rows_per_second:
            self._due = max(self._due, self.clock()) + count / self.rows_per_second


def waiting(log: Log) -> int:
    """Return how many notifications wait in the low lane."""
    topic = NOTIFICATIONS[LaneName.LOW]
    done = log.committed(ARGUS_GROUP, topic)
    return sum(max(0, end - done.get(partition, 0)) for partition, end in log.end_offsets(topic).items())


def refresh(
    repo: Repo,
    log: Log,
    catalog: Catalog,
    *,
    table: str = "",
    ids: Sequence[str] = (),
    advertiser: str = "",
) -> Refreshed:
    """Ask for a run of all handlers of the selected rows (default: every row of every root, parents first).

    Safe to run twice and to kill: what was asked for stays asked for. Raises UnknownSelection.
    """
    selection = selection_of(catalog, load_registry(catalog), table=table, ids=ids, advertiser=advertiser)
    return request(repo, log, catalog, selection)


@dataclass(slots=True)
class Place:
    """How far a refresh is: all before is asked for. Kept as a run's checkpoint."""

    table: int = 0
    after: str = ""
    counts: dict[str, int] = field(default_factory=dict)

    def to_state(self) -> dict[str, Any]:
        """Return plain values."""
        return {"table": self.table, "after": self.after, "counts": dict(self.counts)}

    @classmethod
    def of_state(cls, state: Mapping[str, Any] | None) -> Place:
        """Return what was stored, or the beginning."""
        return cls(state["table"], state["after"], dict(state["counts"])) if state else cls()


def request(
    repo: Repo,
    log: Log,
    catalog: Catalog,
    selection: Selection,
    *,
    pace: Pace | None = None,
    place: Place | None = None,
    reached: Callable[[Place], None] = lambda _: None,
) -> Refreshed:
    """Ask for runs of the rows of a selection, from a place on; `reached` is called when some more are asked for.

    Killed in between, a batch is asked for twice at most. Raises UnknownSelection, RepoError, LogError.
    """
    pace, place = pace or Pace(), place or Place()
    for number, table in enumerate(selection.tables):
        if number < place.table:
            continue
        if number > place.table:
            place.table, place.after = number, ""
        place.counts.setdefault(table, 0)
        rows: list[str] = []
        looked, last = 0, place.after
        for row, chosen in selection.rows(repo, catalog, table, place.after):
            if chosen:
                rows.append(row)
            looked, last = looked + 1, row
            if len(rows) >= pace.batch or looked >= 10 * PAGE:
                _publish(log, table, rows, repo.snapshot().ts, pace)
                place.after, place.counts[table] = last, place.counts[table] + len(rows)
                reached(place)
                rows, looked = [], 0
        _publish(log, table, rows, repo.snapshot().ts, pace)
        place.after, place.counts[table] = last, place.counts[table] + len(rows)
        reached(place)
    return Refreshed(dict(place.counts))


def _publish(log: Log, table: str, rows: Sequence[str], ts: int, pace: Pace) -> None:
    if not rows:
        pace.check()
        return
    pace.wait(log, len(rows))
    records = []
    for row in rows:
        header = new_header(LaneName.LOW, now_us())
        note = pb.Notification(header=header, table=table, row=row, commit_ts=ts, writer=WORKFLOW, refresh=True)
        records.append(OutRecord(NOTIFICATIONS[LaneName.LOW], f"{table}/{row}", note.SerializeToString()))
    log.publish(records)


class RefreshParameters(Parameters):
    """Everything, or a selection; and how fast."""

    table: str = ""
    ids: tuple[str, ...] = ()
    advertiser: str = Field(default="", max_length=400)
    below: str = Field(default="", max_length=400)
    """TABLE/ROW: rows that lead to this one by their references."""
    handler: str = ""
    field: str = ""
    where: tuple[str, ...] = ()
    """Conditions on the table's columns, all of which must hold: "status=ACTIVE", "price_micros>=1000"."""
    changed_since: str = ""
    """An age (2h) or a time: rows of which an update or signal was stored since."""
    rows_per_second: float = Field(default=0.0, ge=0)
    max_waiting: int = Field(default=0, ge=0)

    @field_validator("ids", "where", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return [one for one in value.split(",") if one] if isinstance(value, str) else value

    def selection(self, catalog: Catalog, registry: Registry) -> Selection:
        """Return what is asked for. Raises UnknownSelection."""
        names = ("table", "ids", "advertiser", "below", "handler", "field", "where", "changed_since")
        return selection_of(catalog, registry, **{name: getattr(self, name) for name in names})


@workflow(
    WORKFLOW,
    "run the handlers again over everything or a selection, at low priority",
    RefreshParameters,
    resumable=True,
)
def run_refresh(context: RunContext[RefreshParameters]) -> Counts:
    """Ask for runs of handlers; held by the switch pause_workflow.refresh, and resumed from its place."""
    chosen, switches = context.parameters, Switches(context.log)
    selection = chosen.selection(context.catalog, load_registry(context.catalog))

    def paused() -> bool:
        return switches.paused_workflow(WORKFLOW) is not None

    def reached(place: Place) -> None:
        context.checkpoint(place.to_state())
        context.progress(sum(place.counts.values()), unit="rows")

    pace = Pace(chosen.rows_per_second, chosen.max_waiting, context.check, paused)
    done = request(
        context.repo,
        context.log,
        context.catalog,
        selection,
        pace=pace,
        place=Place.of_state(context.state),
        reached=reached,
    )
    return {"rows": done.rows, "by_table": {**done.by_table}}


@dataclass(frozen=True, slots=True)
class Resynced:
    """How many rows of the ads DB are read again, and how many it lacks that the Storage Repo has."""

    rows: int
    gone: int


def resync(
    ads_db: AdsDb,
    catalog: Catalog,
    log: Log,
    repo: Repo,
    *,
    check: Callable[[], None] = _nothing,
    progress: Callable[[int], None] = lambda _looked: None,
) -> Resynced:
    """Have every row of the ads DB read again, and every row that only the Repo has deleted, in the low lane.

    The Gateway looks at each when its turn comes: what is not in the ads DB then is sent as deleted. Safe to run twice
    and to kill. Capture must be installed. `check` is called between pages and may raise; `progress` with the rows of
    the Repo looked at. Raises AdsDbUnavailable, SchemaMismatch, LogError, RepoError.
    """
    rows = request_resync(ads_db, catalog, log)
    gone = looked = 0
    for table in catalog.entity_tables():
        after, columns = "", [SOURCE_VERSION, DELETED]
        # Each page at its own snapshot: one for all of a large table would be too old before its end.
        while page := list(repo.snapshot().scan(table.name, after=after, columns=columns, limit=_BATCH)):
            check()
            after, looked = page[-1][0], looked + len(page)
            alive = [row for row, cells in page if SOURCE_VERSION in cells and DELETED not in cells]
            gone += request_missing(ads_db, catalog, log, table, [source_key(table, row) for row in alive])
            progress(looked)
    return Resynced(rows, gone)


def source_key(table: Table, row: str) -> int | str:
    """Return a row's key as the ads DB holds it; one that cannot be there stays text."""
    if table.key_type is ValueType.INT and row.removeprefix("-").isdecimal() and -(1 << 63) <= int(row) < 1 << 63:
        return int(row)
    return row
