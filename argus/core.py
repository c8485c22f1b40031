"""Argus's core, without log or process: notifications in; commits to the Repo and records to publish out.

Why it converges. Every run of a row writes `meta:run`, so of two runs that race one conflicts and reads again. The
committed runs of a row are thus in one order, each on a snapshot that has all runs before it. Every change of an input
is notified of after it is committed, and its run reads a newer snapshot. So the last run has seen the last change, and
what it writes is a function of the inputs alone. A run may be left out when `meta:run` says that a later snapshot has
been run already.

Why nothing committed stays unpublished. Records are acknowledged in one step with what they led to. A process that dies
between commit and that step leaves its records unacknowledged, and whoever gets them works on them again; but the row
may have gone elsewhere by then, and be reached by other hints only, which the dead run has covered. So `meta:run` also
says which process ran the row: only a run of one's own, published in the same step or earlier, makes a later hint
needless. Where the last run is another's, the document is published at its version even if nothing changed.
Some hint always comes later: that of the change that the dead run saw, or of the one that led the row elsewhere.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from argus._exceptions import DeclarationError
from argus._fetch import fetch
from argus._hints import Expanded, Hint, Want, expand, fault_of
from argus._registry import Plan, Registry
from argus._rows import Rows, single
from argus._run import HANDLER_PAUSED, SOURCE_BEHIND, SOURCE_UNAVAILABLE, Failure, Paused, RunResult, execute, look_up
from argus.sources import CachedSource
from catalog import LaneName
from catalog.model import DOCUMENT_BODY, RUN, TIMELINE
from catalog.values import decode, encode
from messaging import BadMessage
from messaging.api import OutRecord, Record
from messaging.dead_letters import dead_letter, out_record, parse
from messaging.headers import lane_of, leave, new_trace_id, now_us
from messaging.proto import adsindex_pb2 as pb
from messaging.topics import DEFERRED, DELTAS, LANE_NUMBER, NOTIFICATIONS
from storage_repo import Conflict, Origin, Repo, SnapshotTooOld, Transaction

STAGE = "argus"
SLICE = 256
"""Rows fetched, run and committed together: large enough that the sync costs little per row."""
MAX_ATTEMPTS = 5
"""Each lost race means that another run of the row got through. Then the row queues again behind others."""
DEFER_FOR_US = 3600 * 1_000_000
"""A row that waits for a source for longer is left to its next change or to a refresh; its error cell tells of it."""
_BACK_OFF_S = 0.001
"""First back-off, doubled each time and multiplied by a random part of 1; the longest sum is 15 ms per batch."""

Sources = Mapping[str, CachedSource[Any, Any]]


class Metrics(Protocol):
    """Where counts and times go; messaging.metrics.StageMetrics is one."""

    def count(self, name: str, amount: int = 1) -> None:
        """Add to a counter."""

    def time(self, name: str, value: float) -> None:
        """Add a value in microseconds to a histogram."""


class NoMetrics:
    """For callers that count nothing."""

    def count(self, name: str, amount: int = 1) -> None:
        """Forget a count."""

    def time(self, name: str, value: float) -> None:
        """Forget a value."""


@dataclass(slots=True)
class Outcome:
    """What a batch led to. Publish `records()`, together with the positions, before anything is acknowledged."""

    deltas: list[pb.DocumentDelta] = field(default_factory=list)
    dead_letters: list[pb.DeadLetter] = field(default_factory=list)
    notifications: list[pb.Notification] = field(default_factory=list)
    """Continuations of fan-outs, and rows that go back after too many conflicts."""
    deferred: list[pb.Notification] = field(default_factory=list)
    """Rows that wait for a source or a paused handler."""
    counts: Counter[str] = field(default_factory=Counter)
    """runs, covered, unconcerned, documents_changed, documents_unchanged, republished, conflicts, retries, returned,
    continuations, rows_written, source_unavailable, source_behind, deferred (rows that began to wait for a source),
    waiting_for_source (those that were waiting, and still are), handler_paused (runs without a paused handler)."""

    @property
    def only_waits(self) -> bool:
        """Nothing was done but to find that a source is still away."""
        return self.counts["waiting_for_source"] > 0 == self.counts["runs"]

    def records(self) -> list[OutRecord]:
        """Return everything to be published."""
        return [
            *(OutRecord(DELTAS, delta.document_id, delta.SerializeToString()) for delta in self.deltas),
            *(out_record(letter) for letter in self.dead_letters),
            *(
                OutRecord(NOTIFICATIONS[lane_of(n.header)], f"{n.table}/{n.row}", n.SerializeToString())
                for n in self.notifications
            ),
            *(OutRecord(DEFERRED, f"{n.table}/{n.row}", n.SerializeToString()) for n in self.deferred),
        ]


@dataclass(slots=True)
class Computed:
    """A slice that has been run but not committed."""

    plan: Plan
    snapshot_ts: int
    entered_us: int
    runs: list[tuple[Want, RunResult]] = field(default_factory=list)
    needless: Counter[str] = field(default_factory=Counter)
    """Runs left out: "covered" by a run on a later snapshot, or "unconcerned"."""
    strange: dict[str, bytes | None] = field(default_factory=dict)
    """Rows that another process ran last, which may have published nothing -> body of their document."""
    left_out: list[Want] = field(default_factory=list)
    """Those of `strange` that need no run."""
    waiting: list[tuple[Want, RunResult]] = field(default_factory=list)
    """Runs of deferred rows that came to nothing new: they are not committed."""


class ArgusCore:
    """Processes batches of notifications. Use one instance from one thread."""

    def __init__(
        self,
        repo: Repo,
        registry: Registry,
        sources: Sources,
        *,
        code_version: str = "",
        metrics: Metrics | None = None,
        seed: int = 0,
        sleep: Callable[[float], None] = time.sleep,
        paused: Callable[[], Paused] = dict,
    ) -> None:
        """`paused` is asked before each slice. Raises DeclarationError when a source that is used is not given."""
        used = {use.source for plan in registry.plans.values() for use in plan.sources}
        if missing := used - set(sources):
            raise DeclarationError(f"handlers use sources that are not configured: {', '.join(sorted(missing))}")
        self._repo, self._registry, self._sources = repo, registry, sources
        self._code_version = code_version
        self._metrics = metrics or NoMetrics()
        self._random = random.Random(seed)
        self._sleep = sleep
        self._paused = paused
        self.disown()

    def disown(self) -> None:
        """Count what was run so far as another's; call it when an outcome could not be published."""
        self._id = new_trace_id()

    def process(self, records: Sequence[Record]) -> Outcome:
        """Parse and process records of a notification topic. Raises RepoError if the store is away."""
        outcome = Outcome()
        hints: list[Hint] = []
        for record in records:
            try:
                notification = parse(pb.Notification, record)
                hints.append(Hint(notification, record.maybe_redelivered, record, record.topic == DEFERRED))
            except BadMessage as error:
                outcome.dead_letters.append(
                    dead_letter(STAGE, "bad_message", str(error), record=record, payload_type="Notification")
                )
        return self.process_hints(hints, outcome)

    def process_hints(self, hints: Iterable[Hint], outcome: Outcome | None = None) -> Outcome:
        """Run what the hints concern and commit it, conflicting rows again; nothing is published by this."""
        outcome = outcome or Outcome()
        entered_us = now_us()
        expanded = self.expand(hints, outcome)
        for root, plan in self._registry.plans.items():
            wants = list(expanded.wants.get(root, {}).values())
            for start in range(0, len(wants), SLICE):
                self._run_slice(plan, wants[start : start + SLICE], entered_us, outcome)
        for name, amount in outcome.counts.items():
            self._metrics.count(name, amount)
        for letter in outcome.dead_letters:
            self._metrics.count(f"dead_letters:{letter.reason}")
        return outcome

    def dry_run(self, hints: Iterable[Hint]) -> Outcome:
        """Compute what the hints concern, fan-outs to their end, and write nothing; versions are the snapshot's."""
        outcome = Outcome()
        entered_us = now_us()
        waiting = list(hints)
        while waiting:
            expanded = self.expand(waiting, outcome)
            for root, plan in self._registry.plans.items():
                wants = list(expanded.wants.get(root, {}).values())
                for want in wants:
                    want.refresh = True
                for start in range(0, len(wants), SLICE):
                    computed = self.compute(plan, wants[start : start + SLICE], entered_us)
                    for want, result in computed.runs:
                        self._report(outcome, computed, want, result, computed.snapshot_ts)
            outcome.notifications.clear()
            outcome.deferred.clear()
            waiting = [Hint(continuation) for continuation in expanded.continuations]
        return outcome

    def expand(self, hints: Iterable[Hint], outcome: Outcome) -> Expanded:
        """Find the rows that hints concern; those that cannot be understood become dead letters."""
        good: list[Hint] = []
        for hint in hints:
            if fault := fault_of(self._registry, hint.notification):
                letter = dead_letter(
                    STAGE,
                    "bad_message",
                    f"a notification cannot be worked on: {fault}",
                    header=hint.notification.header,
                    record=hint.record,
                    payload=hint.notification.SerializeToString(),
                    payload_type="Notification",
                    table=hint.notification.table,
                    row=hint.notification.row,
                )
                outcome.dead_letters.append(letter)
            else:
                good.append(hint)
        expanded = expand(self._registry, self._repo.snapshot(), good)
        outcome.notifications += expanded.continuations
        outcome.counts["continuations"] += len(expanded.continuations)
        return expanded

    def compute(self, plan: Plan, wants: Sequence[Want], entered_us: int) -> Computed:
        """Read the newest snapshot and run the handlers; writes nothing."""
        started = time.perf_counter()
        snapshot = self._repo.snapshot(transactions=len(wants))
        computed = Computed(plan, snapshot.ts, entered_us)
        by_key = {want.key: want for want in wants}

        def keep(key: str, rows: Rows) -> bool:
            want, stored = by_key[key], single(rows, plan.output_table).stored
            why = self._needless(plan, want, rows)
            computed.needless[why or "needed"] += 1
            if plan.is_document and not self._ran(stored):
                computed.strange[key] = stored.get(DOCUMENT_BODY)
                if why is not None:
                    computed.left_out.append(want)
            return why is None

        joined = fetch(snapshot, self._registry.catalog, plan, list(by_key), keep=keep)
        fetched = time.perf_counter()
        refresh = frozenset(key for key in joined if by_key[key].refresh)
        paused = self._paused()
        answers = look_up(plan, joined, self._sources, self._registry.catalog, refresh, paused)
        for key, rows in joined.items():
            want, result = by_key[key], execute(self._registry, plan, key, rows, answers, paused)
            idle = want.deferred and not want.must_publish and key not in computed.strange and not result.changes
            to = computed.waiting if idle and _waits(result) else computed.runs
            to.append((want, result))
        self._metrics.time("fetch_us", (fetched - started) * 1e6)
        self._metrics.time("handlers_us", (time.perf_counter() - fetched) * 1e6)
        return computed

    def commit(self, computed: Computed, outcome: Outcome) -> list[Want]:
        """Commit each run by itself in one durable write, report the committed, and return those that conflicted."""
        started = time.perf_counter()
        transactions = [self._transaction(computed, want, result) for want, result in computed.runs]
        conflicted: list[Want] = []
        commits = self._repo.commit_many(transactions) if transactions else []
        for (want, result), commit in zip(computed.runs, commits, strict=True):
            if isinstance(commit, int):
                outcome.counts["rows_written"] += 1
                self._report(outcome, computed, want, result, commit)
            elif isinstance(commit, Conflict | SnapshotTooOld):
                conflicted.append(want)
            else:
                raise commit
        for want in computed.left_out:
            self._publish(outcome, computed, want, computed.strange[want.key], computed.snapshot_ts)
        for want, result in computed.waiting:
            self._defer(outcome, computed.plan, want, result)
            for reason in (SOURCE_UNAVAILABLE, HANDLER_PAUSED):
                outcome.counts[reason] += sum(failure.reason == reason for failure in result.failures)
        outcome.counts["conflicts"] += len(conflicted)
        self._metrics.time("commit_us", (time.perf_counter() - started) * 1e6)
        return conflicted

    def _run_slice(self, plan: Plan, wants: Sequence[Want], entered_us: int, outcome: Outcome) -> None:
        for attempt in range(MAX_ATTEMPTS):
            computed = self.compute(plan, wants, entered_us)
            for why in ("covered", "unconcerned"):
                outcome.counts[why] += computed.needless[why]
            wants = self.commit(computed, outcome)
            if not wants:
                return
            if attempt + 1 < MAX_ATTEMPTS:
                outcome.counts["retries"] += len(wants)
                self._sleep(_BACK_OFF_S * 2**attempt * self._random.random())
        outcome.counts["returned"] += len(wants)
        outcome.notifications += [want.notification(plan) for want in wants]

    def _needless(self, plan: Plan, want: Want, rows: Rows) -> str | None:
        """Say why a run would find nothing to do, judged by the last run that is in the snapshot."""
        if want.must_publish:
            return None
        stored, exists = single(rows, plan.output_table).stored, rows[plan.root].absence is None
        last = decode(stored.get(RUN))  # present if the last run found that the row exists
        if last is None or not exists:
            return None
        if any(step.error_cell in stored for step in plan.steps):
            return None  # what failed may go well now
        if last[0] >= want.commit_ts and last[1] == self._code_version:
            return "covered"
        return None if want.concerned else "unconcerned"

    def _ran(self, stored: Mapping[str, bytes]) -> bool:
        """Whether the last run of a row was this core's own."""
        last = decode(stored.get(RUN))
        return last is not None and last[2:] == [self._id]

    def _transaction(self, computed: Computed, want: Want, result: RunResult) -> Transaction:
        header = leave(want.header, STAGE, computed.entered_us)
        passed_on = header.SerializeToString()
        transaction = self._repo.begin(
            Origin(
                stage=STAGE,
                handler=computed.plan.root,
                code_version=self._code_version,
                trace_id=header.trace_id,
                lane=header.lane,
                origin_us=header.origin_us,
                hops=passed_on,
            ),
            computed.snapshot_ts,
        )
        output = computed.plan.output_table
        for (table, cell), data in result.changes.items():
            if data is None:
                transaction.delete(table, result.key, cell)
            else:
                transaction.put(table, result.key, cell, data)
        if (output, DOCUMENT_BODY) in result.changes:
            transaction.put(output, result.key, TIMELINE, passed_on)
        if result.exists:
            transaction.put(output, result.key, RUN, encode([computed.snapshot_ts, self._code_version, self._id]))
        else:
            transaction.delete(output, result.key, RUN)  # a write like any other to the conflict check
        return transaction

    def _report(self, outcome: Outcome, computed: Computed, want: Want, result: RunResult, commit_ts: int) -> None:
        outcome.counts["runs"] += 1
        if _waits(result):
            self._defer(outcome, computed.plan, want, result)
        for failure in result.failures:
            if failure.reason in (SOURCE_UNAVAILABLE, SOURCE_BEHIND, HANDLER_PAUSED):
                outcome.counts[failure.reason] += 1  # one outage is no dead letter per document
            elif failure.is_new or want.redelivered:
                outcome.dead_letters.append(_letter(computed.plan, want, failure))
        if not computed.plan.is_document:
            return
        changed = result.body != result.body_before
        outcome.counts["documents_changed" if changed else "documents_unchanged"] += 1
        if changed:
            outcome.deltas.append(_delta(computed, want, result.body, commit_ts))
        elif want.must_publish or want.key in computed.strange:
            self._publish(outcome, computed, want, result.body, commit_ts)

    def _publish(self, outcome: Outcome, computed: Computed, want: Want, body: bytes | None, newest: int) -> None:
        """Publish a document that has not changed, at the version that it has at `newest`."""
        versions = self._repo.history(computed.plan.output_table, want.key, DOCUMENT_BODY).get(DOCUMENT_BODY, [])
        version = next((v.commit_ts for v in versions if v.commit_ts <= newest), None)
        if version is not None:  # else never published, and not servable: nobody has to forget it
            outcome.counts["republished"] += 1
            outcome.deltas.append(_delta(computed, want, body, version))

    def _defer(self, outcome: Outcome, plan: Plan, want: Want, result: RunResult) -> None:
        """Queue a row that waits for a paused handler, or for a source unless its cause is long ago."""
        held = any(failure.reason == HANDLER_PAUSED for failure in result.failures)
        if not held and now_us() - want.header.origin_us > DEFER_FOR_US:
            return
        outcome.counts["waiting_for_source" if want.deferred else "deferred"] += 1
        again = want.notification(plan)
        again.header.lane = LANE_NUMBER[LaneName.LOW]
        again.refresh = again.republish = False  # this run is published in the same step as this record
        outcome.deferred.append(again)


def _waits(result: RunResult) -> bool:
    return any(failure.reason in (SOURCE_UNAVAILABLE, HANDLER_PAUSED) for failure in result.failures)


def _delta(computed: Computed, want: Want, body: bytes | None, version: int) -> pb.DocumentDelta:
    return pb.DocumentDelta(
        header=leave(want.header, STAGE, computed.entered_us),
        document_id=want.key,
        version=version,
        deleted=body is None,
        body=body or b"",
    )


def _letter(plan: Plan, want: Want, failure: Failure) -> pb.DeadLetter:
    replay = want.notification(plan)
    replay.refresh = True
    letter = dead_letter(
        STAGE,
        failure.reason,
        f"{want.root} {want.key}: {failure.sentence}",
        header=want.header,
        table=want.root,
        row=want.key,
        handler=failure.handler,
        detail=failure.detail,
        payload=replay.SerializeToString(),
        payload_type="Notification",
    )
    letter.topic = NOTIFICATIONS[lane_of(want.header)]
    return letter
