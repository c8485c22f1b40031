"""Names of all topics, their partitions and lanes, and the consumer groups, in one place."""

from __future__ import annotations

from catalog import LaneName
from messaging.api import Log
from messaging.proto import adsindex_pb2 as pb

LANES: tuple[LaneName, ...] = (LaneName.HIGH, LaneName.MEDIUM, LaneName.LOW)
"""In order of priority."""

LANE_NUMBER: dict[LaneName, pb.Lane] = {
    LaneName.HIGH: pb.LANE_HIGH,
    LaneName.MEDIUM: pb.LANE_MEDIUM,
    LaneName.LOW: pb.LANE_LOW,
}
LANE_OF: dict[int, LaneName] = {number: name for name, number in LANE_NUMBER.items()}

UPDATES: dict[LaneName, str] = {lane: f"updates.{lane.value}" for lane in LANES}
NOTIFICATIONS: dict[LaneName, str] = {lane: f"notifications.{lane.value}" for lane in LANES}
DEFERRED = "notifications.deferred"
"""Rows that wait for an external source; Argus tries them again at a slow pace."""
SIGNALS = "signals"
"""Content signals: EntityUpdate messages that need no materializing."""
DELTAS = "serving.deltas"
BUDGETS = "serving.budgets"
DEAD_LETTERS = "dead_letters"
SWITCHES = "switches"
"""Switches and their audit: the newest record of a name is its value; every process follows it."""
DROPS = "drops"
"""What was dropped by a switch or left out on purpose, counted by reason and lane per unit of work."""
REPORTS_GROUP = "reports"
COUNTS_TABLE = "drops"
DROP_COUNTS = f"{REPORTS_GROUP}-{COUNTS_TABLE}-changelog"
"""Counts of DROPS and DEAD_LETTERS, kept by the reports stage; the name is the one that Faust gives to a changelog."""

GATEWAY_GROUP = "gateway"
CHANGE_FEED = "ads_db.changes"
"""Pseudo-topic: the Gateway's position in the ads DB's change table, stored in one step with what it published."""
GTID_SETS = "ads_db.gtid_sets"
"""What is too long to be stored with the Gateway's position, GTID sets and tables; empty where nothing is."""
REPO_FEED = "repo.changes"
"""Pseudo-topic: the WAL proxy's position in the Repo's change feed."""
PENDING = "walproxy.pending"
"""On HBase: row changes of transactions whose end the WAL proxy has not seen; it trims the topic itself."""
UPDATER_GROUP = "updater"
WAL_PROXY_GROUP = "wal-proxy"
PENDING_GROUP = "wal-proxy-pending"
ARGUS_GROUP = "argus"
DEFERRED_GROUP = "argus-deferred"
"""Of its own: on Kafka the members of a group that share anew wait for each other, and Argus polls both in turn."""

PARTITIONS: dict[str, int] = {
    **dict.fromkeys(UPDATES.values(), 4),
    # More partitions than Argus workers on one machine: shares stay even when a worker dies.
    **dict.fromkeys((*NOTIFICATIONS.values(), DEFERRED), 8),
    SIGNALS: 4,
    DELTAS: 4,
    BUDGETS: 1,
    DEAD_LETTERS: 1,
    SWITCHES: 1,
    DROPS: 1,
    DROP_COUNTS: 1,
    CHANGE_FEED: 1,
    GTID_SETS: 1,
    REPO_FEED: 1,
    PENDING: 4,
}


_DAY_MS = 24 * 3600 * 1000
_COMPACTED = {"cleanup.policy": "compact", "segment.ms": str(_DAY_MS), "min.compaction.lag.ms": str(_DAY_MS)}
"""The newest record of every key stays for ever; the history of the last day stays whole."""

STREAM_SETTINGS = _COMPACTED
"""Of topics that a catalogue's own streams publish to: read by key, they have exactly the entities of the stream."""

SETTINGS: dict[str, dict[str, str]] = {
    # A week: longer than any outage that is worth waiting for; the resync workflow repairs what is older.
    **{
        topic: {"retention.ms": str(7 * _DAY_MS)}
        for topic in (*UPDATES.values(), *NOTIFICATIONS.values(), DEFERRED, SIGNALS)
    },
    # Serving starts from the base index and needs the deltas since: bases are to be built daily (OPERATIONS.md), the
    # health view warns after four days, and a week of failures is safe.
    DELTAS: {"retention.ms": str(7 * _DAY_MS)},
    BUDGETS: _COMPACTED,
    SWITCHES: _COMPACTED,
    GTID_SETS: _COMPACTED,
    DEAD_LETTERS: {"retention.ms": str(30 * _DAY_MS)},
    DROPS: {"retention.ms": str(30 * _DAY_MS)},
    # Only the newest value of a count is ever asked for: compacted each hour, so that a report reads little.
    DROP_COUNTS: {"cleanup.policy": "compact", "segment.ms": str(_DAY_MS // 24), "min.cleanable.dirty.ratio": "0.1"},
    # The newest record is the mark that the position is checked with; the WAL proxy trims the others.
    REPO_FEED: {"retention.ms": "-1"},
    # What an outage of weeks has left open must still be there; the WAL proxy trims what is settled.
    PENDING: {"retention.ms": "-1"},
}
"""Kafka's settings of topics; the embedded log keeps everything until it is trimmed."""


def settings_of(topic: str) -> dict[str, str]:
    """Return Kafka's settings of a topic; empty for one that is not in the table."""
    return SETTINGS.get(topic, {})


def ensure_topics(log: Log) -> None:
    """Create every topic that is missing, or only check, as the log was opened. Raises UnknownTopic and LogError."""
    for topic, partitions in PARTITIONS.items():
        log.ensure_topic(topic, partitions)
