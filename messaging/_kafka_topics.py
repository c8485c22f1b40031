"""Create and check the topics of a Kafka log: partitions, retention, compaction, and what brokers must allow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from messaging.kafka import RECORD_SETTINGS, KafkaLog
from messaging.topics import PARTITIONS, STREAM_SETTINGS, settings_of

KEPT_POSITIONS_MINUTES = 30 * 24 * 60
"""Positions of groups without members (the Gateway's in the ads DB, serving's) must outlive a month without changes."""


BROKER = "(broker)"
"""In place of a topic: a finding about the broker's own settings, which only its owner can change."""


@dataclass(frozen=True, slots=True)
class TopicFinding:
    """One difference between what a topic (or the broker) is and what it should be."""

    topic: str
    what: str
    found: str
    wanted: str
    done: bool
    """Whether `apply` has mended it; what it cannot mend is for people."""

    def __str__(self) -> str:
        return f"{self.topic}: {self.what} is {self.found}, wanted {self.wanted}" + (" (done)" if self.done else "")


def apply_topics(log: KafkaLog, wanted: Mapping[str, int]) -> list[TopicFinding]:
    """Create missing topics and correct settings; return what was found, mended or not. Safe to run twice.

    Findings of BROKER stay: topics can be used all the same.
    A topic that is not the pipeline's own is taken for a stream's.
    """
    before = check_topics(log, wanted)
    after = []
    for finding in before:
        if finding.what == "topic":
            log.admin.create(finding.topic, wanted[finding.topic], _settings(finding.topic))
    for topic in {f.topic for f in before if f.what in _settings(f.topic)}:
        log.admin.change_settings(topic, _settings(topic))
    left = {(f.topic, f.what) for f in check_topics(log, wanted)}
    for f in before:
        after.append(TopicFinding(f.topic, f.what, f.found, f.wanted, (f.topic, f.what) not in left))
    return after


def check_topics(log: KafkaLog, wanted: Mapping[str, int]) -> list[TopicFinding]:
    """Return what is missing or different; nothing is changed."""
    findings = []
    existing = log.topics()
    for topic, partitions in wanted.items():
        if topic not in existing:
            findings.append(TopicFinding(topic, "topic", "missing", f"{partitions} partitions", False))
        elif existing[topic] != partitions:
            findings.append(TopicFinding(topic, "partitions", str(existing[topic]), str(partitions), False))
    names = sorted({name for topic in wanted for name in _settings(topic)})
    for topic, values in log.admin.settings_of([t for t in wanted if t in existing], names).items():
        for name, value in _settings(topic).items():
            if values.get(name) != value:
                findings.append(TopicFinding(topic, name, values.get(name, "unset"), value, False))
    kept = log.admin.broker_setting("offsets.retention.minutes")
    if int(kept) < KEPT_POSITIONS_MINUTES:
        findings.append(
            TopicFinding(BROKER, "offsets.retention.minutes", kept, f"{KEPT_POSITIONS_MINUTES} or more", False)
        )
    return findings


def _settings(topic: str) -> dict[str, str]:
    return {**RECORD_SETTINGS, **(settings_of(topic) if topic in PARTITIONS else STREAM_SETTINGS)}
