"""Retention: what of the log and of old base indexes nobody needs any more.

Nothing is dropped that a reader may still ask for: stage topics keep what a group has not done, and some more to look
at; deltas are kept from the oldest base kept on; the budget topic always holds the newest state of every campaign.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from batch_workflows.base_store import Kept, kept_by
from manas import list_bases, prune_bases
from messaging import EmbeddedLog, Log, OutRecord
from messaging.dead_letters import parse
from messaging.home import Home
from messaging.proto import adsindex_pb2 as pb
from messaging.topics import BUDGETS, CHANGE_FEED, DEAD_LETTERS, DELTAS, PARTITIONS, REPO_FEED

RECORDS_KEPT = 10_000
"""Records per partition kept behind the slowest group, so that somebody can look at what went through lately."""
COMPACT_FROM = 10_000
"""Budget records before the topic is compacted: fewer are read in a fraction of a second when Manas starts."""
COMPACT_RATIO = 4
"""And only when at most a quarter of them is the newest of its campaign: compacting writes those again."""
SERVING_GROUP = "manas"
_CHUNK = 2_000
_KEPT_WHOLE = {DELTAS, BUDGETS, DEAD_LETTERS, CHANGE_FEED, REPO_FEED}


@dataclass(frozen=True, slots=True)
class Trimmed:
    """How many records went per topic, and which bases."""

    records: dict[str, int] = field(default_factory=dict)
    bases: list[str] = field(default_factory=list)


def apply_retention(home: Home, log: Log) -> Trimmed:
    """Trim the embedded log and old bases; safe to run at any time beside everything else, and to be killed.

    As many bases stay as the last build was asked to keep, or BASES_KEPT; where they are published elsewhere, the
    deltas of those there stay too.
    """
    kept = kept_by(home)
    trimmed = Trimmed(bases=prune_bases(home.base, kept.keep))
    if not isinstance(log, EmbeddedLog):
        return trimmed  # brokers keep what the topics' settings say
    groups: dict[str, list[str]] = {}
    for group, topic in log.groups():
        groups.setdefault(topic, []).append(group)
    for topic in PARTITIONS:
        if topic not in _KEPT_WHOLE and topic in groups:
            done = [log.committed(group, topic) for group in groups[topic]]
            floor = {p: min(d.get(p, 0) for d in done) - RECORDS_KEPT for p in log.end_offsets(topic)}
            _trim(log, topic, floor, trimmed)
    _trim(log, DELTAS, _delta_floor(home, log, kept), trimmed)
    _compact_budgets(log, trimmed)
    return trimmed


def _trim(log: Log, topic: str, floor: dict[int, int], trimmed: Trimmed) -> None:
    starts = log.start_offsets(topic)
    for partition, offset in floor.items():
        if offset > starts.get(partition, 0):
            trimmed.records[topic] = trimmed.records.get(topic, 0) + log.trim(topic, partition, offset)


def _delta_floor(home: Home, log: Log, kept: Kept) -> dict[int, int]:
    """Return the first offset still needed per partition: by every base kept, and by a server that is behind."""
    manifests = [base.manifest for base in list_bases(home.base)]
    if not manifests and kept.floor is None:
        return {}
    served = [log.committed(group, DELTAS) for group in _serving_groups(log)]
    if kept.floor is not None:
        served.append(kept.floor)
    return {
        partition: min(
            *(positions.get(partition, 0) for positions in served),
            *(0 if manifest is None else manifest.delta_positions.get(partition, 0) for manifest in manifests),
        )
        for partition in log.end_offsets(DELTAS)
    }


def _serving_groups(log: Log) -> list[str]:
    """Return the groups of serving: that of the whole or of the first shard, and those of further shards."""
    shards = {group for group, topic in log.groups() if topic == DELTAS and group.startswith(f"{SERVING_GROUP}-")}
    return [SERVING_GROUP, *sorted(shards)]


def _compact_budgets(log: Log, trimmed: Trimmed) -> None:
    """Write the newest state of every campaign again, then forget all before; versions make the repetition harmless."""
    for partition, end in log.end_offsets(BUDGETS).items():
        offset = log.start_offsets(BUDGETS).get(partition, 0)
        if end - offset < COMPACT_FROM:
            continue
        newest: dict[str, tuple[int, OutRecord]] = {}
        while offset < end:
            records = [r for r in log.read(BUDGETS, partition, offset, _CHUNK) if r.offset < end]
            if not records:
                break
            for record in records:
                state = parse(pb.BudgetState, record)
                if state.campaign_id not in newest or newest[state.campaign_id][0] <= state.version:
                    newest[state.campaign_id] = (state.version, OutRecord(BUDGETS, record.key, record.value))
            offset = records[-1].offset + 1
        if len(newest) * COMPACT_RATIO <= end - log.start_offsets(BUDGETS).get(partition, 0):
            log.publish([record for _, record in newest.values()])
            _trim(log, BUDGETS, {partition: end}, trimmed)
