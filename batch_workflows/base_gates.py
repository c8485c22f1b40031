"""The gates of a base index: what it must have before it may replace the one in service.

A gate that fails says what it measured, what it wanted, and on which documents to look. None changes what is built.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from dataclasses import fields as dataclass_fields
from typing import Any

from argus import HANDLER_FAILED, SOURCE_BEHIND, SOURCE_UNAVAILABLE
from batch_workflows.runner import Parameters
from catalog import Catalog
from manas import Manifest
from messaging import Log, OffsetTrimmed
from messaging.headers import now_us
from messaging.topics import SIGNALS, UPDATER_GROUP, UPDATES

SAMPLES = 5
"""Documents named per fault: enough to see what they have in common."""
MIN_FOR_SHARES = 100
"""Below this many documents one campaign that ends may halve the index, and shares say nothing."""
UNREADABLE = "unreadable"
"""Begins the reason of documents whose rows, or whose body, do not parse."""
NOT_RUN = (HANDLER_FAILED, SOURCE_UNAVAILABLE, SOURCE_BEHIND)
"""Reasons for which a handler came to nothing, so that its previous outputs were taken. A value that it refuses is no
such reason: its outputs are none then, and what must be there is looked at field by field."""
_SECOND_US = 1_000_000


class GateLimits(Parameters):
    """What the gates want. The defaults are for a service whose data changes by a few percent between two bases."""

    max_shrink: float = 0.5
    """Share of the documents of the base in service that may be gone: a bad release or lost input is likelier than
    half of all advertisers leaving."""
    max_growth: float = 10.0
    """Times as many documents as in the base in service."""
    max_lacking: float = 0.05
    """Share of otherwise servable documents that a critical field may keep out, where the catalogue's `coverage` is
    not lower. One bad ad must not stop all bases; one of twenty is a broken handler or feed."""
    max_unreadable: float = 0.001
    """Share of documents that are left out because their rows do not parse, beyond the first one."""
    max_failing: float = 0.1
    """Share of the root rows on which one handler may raise, or not reach its source, beyond the first one. Their
    previous outputs stay, so a base of them looks whole; but a release that raises is none to publish."""
    max_waiting_s: float = 6 * 3600.0
    """How long an update may have waited for the Updater: a base without it is older than it looks."""
    max_still_s: float = 20.0
    """How long the Gateway may stand still before changes of the ads DB that it has not read: what is down or held is
    waited for so long before a base is refused. A stage that died is there again within five seconds. 0: not asked."""
    max_age_s: float = 0.0
    """Seconds since the newest source change in the base; 0: no limit, as a quiet ads DB is no fault."""


@dataclass(slots=True)
class Tally:
    """What a range of documents, or all of them, came to. Adding two is exact, in whatever order."""

    rows: int = 0
    """Root rows looked at."""
    documents: int = 0
    bytes: int = 0
    differing: int = 0
    """Documents that the handlers derive otherwise than stored: updates in flight, or something that was lost."""
    differing_samples: list[str] = field(default_factory=list)
    missing: Counter[str] = field(default_factory=Counter)
    """Field with a declared coverage -> documents without it."""
    lacking: Counter[str] = field(default_factory=Counter)
    """Critical field -> documents that it alone keeps out."""
    kept_out: int = 0
    """Documents that lack a critical field and nothing else."""
    failures: Counter[str] = field(default_factory=Counter)
    """handler:reason, or unreadable:error -> documents."""
    samples: dict[str, list[str]] = field(default_factory=dict)
    """Of `missing` and `lacking` by field, of `failures` by their key."""

    def note(self, counter: Counter[str], name: str, document_id: str) -> None:
        """Count one document under a name, and keep it as a sample."""
        counter[name] += 1
        known = self.samples.setdefault(name, [])
        if len(known) < SAMPLES:
            known.append(document_id)

    def differs(self, document_id: str) -> None:
        """Count a document that the handlers derive otherwise than stored."""
        self.differing += 1
        if len(self.differing_samples) < 2 * SAMPLES:
            self.differing_samples.append(document_id)

    def add(self, other: Tally) -> None:
        """Add another tally to this one. Samples are the smallest ids, so that engines give the same."""
        for name in ("rows", "documents", "bytes", "differing", "kept_out"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.missing.update(other.missing)
        self.lacking.update(other.lacking)
        self.failures.update(other.failures)
        self.differing_samples = sorted([*self.differing_samples, *other.differing_samples])[: 2 * SAMPLES]
        for name, samples in other.samples.items():
            self.samples[name] = sorted([*self.samples.get(name, []), *samples])[:SAMPLES]

    def to_json(self) -> dict[str, Any]:
        """Return a form for JSON."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclass_fields(self)}

    @classmethod
    def from_json(cls, shown: Mapping[str, Any]) -> Tally:
        """Return the tally of `to_json`."""
        counters = {name: Counter(shown[name]) for name in ("missing", "lacking", "failures")}
        return cls(**{**shown, **counters})

    def not_run(self) -> dict[str, dict[str, int]]:
        """Return handler -> its keys in `failures` of rows on which it came to nothing, with their counts."""
        found: dict[str, dict[str, int]] = {}
        for name, count in self.failures.items():
            handler, _, reason = name.rpartition(":")
            if reason in NOT_RUN:
                found.setdefault(handler, {})[name] = count
        return found

    def coverage(self, fields: Iterable[str]) -> dict[str, float]:
        """Return the share of the documents that have each field; 1 where there are none."""
        return {name: 1.0 - self.missing[name] / self.documents if self.documents else 1.0 for name in fields}

    def reach(self, fields: Iterable[str]) -> dict[str, float]:
        """Return, per critical field, the share of otherwise servable documents that it does not keep out."""
        candidates = self.documents + self.kept_out
        return {name: 1.0 - self.lacking[name] / candidates if candidates else 1.0 for name in fields}


@dataclass(frozen=True, slots=True)
class Freshness:
    """How far the Repo is behind what was published to it; microseconds since the epoch, 0: there is none."""

    newest_us: int = 0
    """The newest update that the Updater has taken."""
    waiting_since_us: int = 0
    """The oldest that it has not."""
    waiting_in: str = ""


def freshness(log: Log) -> Freshness:
    """Look at the Updater's topics; to be called before the snapshot, so that it has at least what is counted."""
    newest, waiting, where = 0, 0, ""
    for topic in (*UPDATES.values(), SIGNALS):
        done = log.committed(UPDATER_GROUP, topic)
        starts = log.start_offsets(topic)
        for partition, end in log.end_offsets(topic).items():
            position = max(done.get(partition, 0), starts.get(partition, 0))
            try:
                if position > starts.get(partition, 0):
                    for record in log.read(topic, partition, position - 1, 1):
                        newest = max(newest, record.appended_us)
                if position < end:
                    for record in log.read(topic, partition, position, 1):
                        if not waiting or record.appended_us < waiting:
                            waiting, where = record.appended_us, topic
            except OffsetTrimmed:
                continue  # trimmed since we looked, so it was done long ago
    return Freshness(newest, waiting, where)


def gated_fields(catalog: Catalog) -> list[str]:
    """Return the fields that must be there: critical ones, and those with a declared coverage."""
    return [f.name for f in catalog.fields.values() if f.critical or f.coverage > 0]


def faults(
    catalog: Catalog,
    tally: Tally,
    limits: GateLimits,
    fresh: Freshness,
    before: tuple[str, Manifest] | None,
    at_us: int | None = None,
) -> list[str]:
    """Return a sentence for every gate that a base does not pass; `before` is the base in service and its version."""
    now = now_us() if at_us is None else at_us
    found = []
    fields = gated_fields(catalog)
    for name, share in tally.coverage(fields).items():
        if share < (wanted := catalog.fields[name].coverage):
            found.append(
                f"field {name!r}: {share:.2%} of the documents have it, {wanted:.2%} must{_look(tally.samples, name)}"
            )
    critical = [name for name in fields if catalog.fields[name].critical]
    if tally.documents + tally.kept_out >= MIN_FOR_SHARES:
        for name, share in tally.reach(critical).items():
            wanted = min(catalog.fields[name].coverage or 1.0, 1.0 - limits.max_lacking)
            if share < wanted:
                column = catalog.fields[name].column
                found.append(
                    f"field {name!r} ({column.ref} from {column.source}): {tally.lacking[name]} documents are not "
                    f"servable for want of it alone; {share:.2%} have it, {wanted:.2%} must{_look(tally.samples, name)}"
                )
    unreadable = {name: count for name, count in tally.failures.items() if name.startswith(UNREADABLE)}
    if (count := sum(unreadable.values())) > max(1, tally.rows * limits.max_unreadable):
        named = ", ".join(sorted({sample for name in unreadable for sample in tally.samples.get(name, [])})[:SAMPLES])
        found.append(f"{count} of {tally.rows} documents cannot be read ({named}): run data sync, which repairs rows")
    for handler, counts in sorted(tally.not_run().items()):
        if (count := sum(counts.values())) > max(1, tally.rows * limits.max_failing):
            named = ", ".join(sorted({sample for name in counts for sample in tally.samples.get(name, [])})[:SAMPLES])
            reasons = ", ".join(sorted(name.rpartition(":")[2] for name in counts))
            found.append(
                f"handler {handler!r} came to nothing on {count} of {tally.rows} rows ({reasons}; for example {named}"
                "): mend it or its source, pause it, or go back to the release before"
            )
    if before is not None and before[1].documents >= MIN_FOR_SHARES:
        version, count = before[0], before[1].documents
        if tally.documents < count * (1.0 - limits.max_shrink) or tally.documents > count * limits.max_growth:
            found.append(
                f"{tally.documents} documents, but base {version} has {count} "
                f"({volume_change(tally.documents, count):+.1%}); from -{limits.max_shrink:.0%} to "
                f"{limits.max_growth - 1:+.0%} would do; use --force if that is right"
            )
    if fresh.waiting_since_us and (waited := (now - fresh.waiting_since_us) / _SECOND_US) > limits.max_waiting_s:
        found.append(
            f"updates in {fresh.waiting_in} have waited for {_hours(waited)}, {_hours(limits.max_waiting_s)} are "
            "allowed: is the Updater running, or the lane paused?"
        )
    if limits.max_age_s and (age := (now - fresh.newest_us) / _SECOND_US) > limits.max_age_s:
        said = f"is {_hours(age)} old" if fresh.newest_us else "is unknown"
        found.append(f"the newest source change in it {said}, {_hours(limits.max_age_s)} are allowed")
    return found


def volume_change(documents: int, before: int) -> float:
    """Return by what share the number of documents has changed; 0 where there were none."""
    return documents / before - 1.0 if before else 0.0


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Counter) else value


def _look(samples: Mapping[str, list[str]], name: str) -> str:
    return f" (for example not {', '.join(samples[name])})" if samples.get(name) else ""


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds:.0f} s"
