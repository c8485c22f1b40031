"""From notifications to runs: which rows of which roots a change concerns, many hints for one row made one.

A fan-out is cut into chunks. What is left goes back to the end of its lane as a continuation that carries a cursor, so
one campaign of 100,000 ads delays nobody for longer than a chunk, and a killed process loses nothing. It converges:
the scan follows key order and each chunk reads the newest snapshot, so every root row that joins the changed row all
the while is run after the change; one that came to join it meanwhile has been notified of for itself, since whoever
moves a reference changes a watched column of the row that holds it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice

from argus._fetch import is_key, roots_of
from argus._registry import Plan, Registry
from catalog import LaneName
from messaging.api import Record
from messaging.headers import lane_of
from messaging.proto import adsindex_pb2 as pb
from messaging.topics import LANE_NUMBER
from storage_repo import Snapshot

CHUNK: dict[LaneName, int] = {LaneName.HIGH: 256, LaneName.MEDIUM: 256, LaneName.LOW: 64}
"""Root rows of one fan-out run at a time. A chunk of low takes some 30 ms, which is what a high update may wait."""
BUDGET = 512
"""Root rows by fan-out of one batch; later fan-outs of the batch go back to the queue untouched."""
_ALWAYS = (1 << 63) - 1  # a notification without a commit timestamp is never covered by an earlier run


@dataclass(slots=True)
class Hint:
    """A notification as it came.

    `redelivered`: an earlier owner may have committed without publishing; `republish` of the notification says the same
    of what led to it. `deferred`: it was run before, and only waits for a source.
    """

    notification: pb.Notification
    redelivered: bool = False
    record: Record | None = None
    deferred: bool = False


@dataclass(slots=True)
class Want:
    """A root row to be run, and why."""

    root: str
    key: str
    header: pb.Header
    commit_ts: int
    concerned: bool
    """Something that a handler watches changed; otherwise only a row that has not been run yet is."""
    refresh: bool
    redelivered: bool
    deferred: bool
    """It has been run, and nothing but a source's answer is new."""

    @property
    def must_publish(self) -> bool:
        """The document is published even if it turns out unchanged."""
        return self.refresh or self.redelivered

    def absorb(self, other: Want) -> None:
        """Become the run that answers both."""
        self.header = merged(self.header, other.header)
        self.commit_ts = max(self.commit_ts, other.commit_ts)
        self.concerned |= other.concerned
        self.refresh |= other.refresh
        self.redelivered |= other.redelivered
        self.deferred &= other.deferred

    def notification(self, plan: Plan) -> pb.Notification:
        """Return the notification that leads to this run again."""
        return pb.Notification(
            header=self.header,
            table=self.root,
            row=self.key,
            columns=sorted(plan.triggers.get(self.root, ())),
            commit_ts=0 if self.commit_ts == _ALWAYS else self.commit_ts,
            writer="argus",
            refresh=self.refresh,
            republish=self.redelivered,
        )


@dataclass(slots=True)
class Expanded:
    """What a batch of hints comes to."""

    wants: dict[str, dict[str, Want]] = field(default_factory=dict)
    """Root -> key -> run."""
    continuations: list[pb.Notification] = field(default_factory=list)

    def want(self, want: Want) -> None:
        """Add a run."""
        of_root = self.wants.setdefault(want.root, {})
        if known := of_root.get(want.key):
            known.absorb(want)
        else:
            of_root[want.key] = want


def merged(one: pb.Header, other: pb.Header) -> pb.Header:
    """Return the header of the earlier origin, in the higher lane of both."""
    first = pb.Header()
    first.CopyFrom(one if one.origin_us <= other.origin_us else other)
    first.lane = min(LANE_NUMBER[lane_of(one)], LANE_NUMBER[lane_of(other)])
    return first


def fault_of(registry: Registry, notification: pb.Notification) -> str | None:
    """Return what is wrong with a notification, None if it can be worked on."""
    table, row = notification.table, notification.row
    if table not in registry.catalog.tables:
        return f"it names table {table!r}, which {registry.catalog.file} does not declare"
    if not is_key(row):
        return f"it names row {row[:80]!r} of {table}, which cannot be a row key"
    if notification.HasField("fan_out"):
        plan = registry.plans.get(notification.fan_out.root)
        if plan is None or table not in plan.routes:
            return f"it continues a fan-out from {table} to {notification.fan_out.root!r}, which do not join"
    return None


def expand(registry: Registry, snapshot: Snapshot, hints: Iterable[Hint]) -> Expanded:
    """Turn hints (checked by `fault_of`) into runs, one per root row, and into continuations for what is too much."""
    expanded, left = Expanded(), BUDGET
    for hint in collapse(hints):
        left -= _expand(registry, snapshot, hint, left, expanded)
    return expanded


def collapse(hints: Iterable[Hint]) -> list[Hint]:
    """Merge hints for the same row (and the same place of a fan-out), keeping the order of the first of each."""
    kept: dict[tuple[str, str, str, str], Hint] = {}
    for hint in hints:
        new = hint.notification
        key = (new.table, new.row, new.fan_out.root, new.fan_out.cursor)
        if (known := kept.get(key)) is None:
            copy = pb.Notification()
            copy.CopyFrom(new)
            kept[key] = Hint(copy, hint.redelivered or new.republish, hint.record, hint.deferred)
            continue
        old = known.notification
        old.header.CopyFrom(merged(old.header, new.header))
        old.columns.extend(set(new.columns) - set(old.columns))
        old.commit_ts = max(old.commit_ts, new.commit_ts) if old.commit_ts and new.commit_ts else 0
        old.refresh |= new.refresh
        known.redelivered |= hint.redelivered or new.republish
        known.deferred &= hint.deferred
    return list(kept.values())


def _expand(registry: Registry, snapshot: Snapshot, hint: Hint, budget: int, expanded: Expanded) -> int:
    """Add the runs of one hint; return how many came by fan-out."""
    notification, spent = hint.notification, 0
    table, changed = notification.table, set(notification.columns)
    if notification.HasField("fan_out"):
        return _fan_out(registry.plans[notification.fan_out.root], snapshot, hint, budget, expanded)
    for plan in registry.plans.values():
        if table == plan.root:
            if notification.refresh or changed - plan.own:
                watched = plan.triggers.get(table, frozenset())
                expanded.want(_want(plan, hint, notification.row, bool(changed & watched)))
        elif table == plan.output_table:
            if notification.refresh:  # its other changes are this stage's own doing
                expanded.want(_want(plan, hint, notification.row, True))
        elif changed & plan.triggers.get(table, frozenset()) or (
            notification.refresh and table in plan.routes and table not in registry.plans
        ):
            spent += _fan_out(plan, snapshot, hint, budget - spent, expanded)
    return spent


def _fan_out(plan: Plan, snapshot: Snapshot, hint: Hint, budget: int, expanded: Expanded) -> int:
    notification = hint.notification
    size = min(CHUNK[lane_of(notification.header)], budget)
    last = notification.fan_out.cursor
    more, taken = size <= 0, 0
    if size > 0:
        found = list(islice(roots_of(snapshot, plan.routes[notification.table], notification.row, last), size + 1))
        more = len(found) > size
        for key, cursor in found[:size]:
            expanded.want(_want(plan, hint, key, True))
            last = cursor
        taken = min(len(found), size)
    if more:
        following = pb.Notification()
        following.CopyFrom(notification)
        following.fan_out.root, following.fan_out.cursor = plan.root, last
        following.fan_out.chunks_done += 1 if taken else 0
        following.republish = hint.redelivered  # the dead may have come further than this chunk
        expanded.continuations.append(following)
    return taken


def _want(plan: Plan, hint: Hint, key: str, concerned: bool) -> Want:
    notification = hint.notification
    header = pb.Header()
    header.CopyFrom(notification.header)
    return Want(
        root=plan.root,
        key=key,
        header=header,
        commit_ts=notification.commit_ts or _ALWAYS,
        concerned=concerned or notification.refresh,
        refresh=notification.refresh,
        redelivered=hint.redelivered,
        deferred=hint.deferred,
    )
