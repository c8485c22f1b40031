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

GATEWAY_GROUP = "gateway"
CHANGE_FEED = "ads_db.changes"
"""Pseudo-topic: the Gateway's position in the ads DB's change table, stored in one step with what it published."""
REPO_FEED = "repo.changes"
"""Pseudo-topic: the WAL proxy's position in the Repo's change feed."""
UPDATER_GROUP = "updater"
WAL_PROXY_GROUP = "wal-proxy"
ARGUS_GROUP = "argus"

PARTITIONS: dict[str, int] = {
    **dict.fromkeys(UPDATES.values(), 4),
    # More partitions than Argus workers on one machine: shares stay even when a worker dies.
    **dict.fromkeys((*NOTIFICATIONS.values(), DEFERRED), 8),
    SIGNALS: 4,
    DELTAS: 4,
    BUDGETS: 1,
    DEAD_LETTERS: 1,
    CHANGE_FEED: 1,
    REPO_FEED: 1,
}


def ensure_topics(log: Log) -> None:
    """Create every topic that is missing."""
    for topic, partitions in PARTITIONS.items():
        log.ensure_topic(topic, partitions)
