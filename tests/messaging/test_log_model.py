"""The log against a model in plain lists, under random sequences of calls."""

from __future__ import annotations

import tempfile
import zlib
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from messaging import Consumer, EmbeddedLog, OffsetTrimmed, OutRecord, Position

PARTITIONS = 3
TOPICS = ("high", "low")
topics = st.sampled_from(TOPICS)
partitions = st.integers(0, PARTITIONS - 1)
Place = tuple[str, int]


class LogMachine(RuleBasedStateMachine):
    """One handle and one group member at a time, reopened now and then; the model is lists and counters."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.published = 0
        places = [(topic, partition) for topic in TOPICS for partition in range(PARTITIONS)]
        self.records: dict[Place, list[bytes]] = {place: [] for place in places}
        self.start = dict.fromkeys(places, 0)
        self.committed = dict.fromkeys(places, 0)
        self.consumer: Consumer | None = None
        self.open()
        for topic in TOPICS:
            self.log.ensure_topic(topic, PARTITIONS)

    def open(self) -> None:
        """Open the log, with no member yet."""
        root = Path(self.directory.name)
        self.log = EmbeddedLog(root / "log", root / "wake")

    def teardown(self) -> None:
        """Remove the files."""
        self.log.close()
        self.directory.cleanup()

    @rule(batch=st.lists(st.tuples(topics, st.text(max_size=3)), max_size=12), stored=st.none() | topics)
    def publish(self, batch: list[tuple[str, str]], stored: str | None) -> None:
        """Append records, perhaps with a position of another group."""
        records = []
        for topic, key in batch:
            value = b"%d" % self.published
            self.published += 1
            records.append(OutRecord(topic, key, value))
            self.records[topic, zlib.crc32(key.encode()) % PARTITIONS].append(value)
        self.log.publish(records, [Position("other", stored, 0, self.published)] if stored else [])
        if stored:
            assert self.log.committed("other", stored)[0] == self.published

    @rule(place=st.tuples(topics, partitions), before=st.integers(0, 40))
    def trim(self, place: Place, before: int) -> None:
        """Forget records."""
        new = max(self.start[place], min(before, len(self.records[place])))
        assert self.log.trim(*place, before) == new - self.start[place]
        self.start[place] = new

    @rule()
    def reopen(self) -> None:
        """Close everything, which ends the member without a commit, and open again."""
        self.log.close()
        self.consumer = None
        self.open()

    @precondition(lambda self: self.consumer is None)
    @rule()
    def join(self) -> None:
        """Make a member, which takes over all partitions at its first poll."""
        self.consumer = self.log.consumer("g", TOPICS)
        self.position = dict(self.committed)
        self.takeover: dict[Place, int] | None = None

    @precondition(lambda self: self.consumer is not None)
    @rule(count=st.integers(1, 15))
    def poll(self, count: int) -> None:
        """Poll, and check that it is the best allowed: full if there is enough, high before low, in order, marked."""
        assert self.consumer is not None
        if self.takeover is None:
            self.takeover = {place: len(records) for place, records in self.records.items()}
        for place, position in self.position.items():
            self.position[place] = max(position, self.start[place])
        left = {
            topic: sum(len(self.records[topic, p]) - self.position[topic, p] for p in range(PARTITIONS))
            for topic in TOPICS
        }
        got = self.consumer.poll(count, 0)
        high = min(count, left["high"])
        low = min(count - high, left["low"])
        assert [record.topic for record in got] == ["high"] * high + ["low"] * low
        for record in got:
            place = record.topic, record.partition
            assert record.offset == self.position[place]
            assert record.value == self.records[place][record.offset]
            assert record.maybe_redelivered == (record.offset < self.takeover[place])
            self.position[place] += 1

    @precondition(lambda self: self.consumer is not None)
    @rule()
    def commit(self) -> None:
        """Store the member's positions."""
        assert self.consumer is not None
        self.consumer.commit()
        if self.takeover is not None:
            self.committed = dict(self.position)

    @invariant()
    def agrees(self) -> None:
        """Everything that can be looked up is as in the model."""
        for topic in TOPICS:
            ends, starts = self.log.end_offsets(topic), self.log.start_offsets(topic)
            assert self.log.committed("g", topic) == {p: self.committed[topic, p] for p in range(PARTITIONS)}
            for partition in range(PARTITIONS):
                records, start = self.records[topic, partition], self.start[topic, partition]
                assert (starts[partition], ends[partition]) == (start, len(records))
                read = self.log.read(topic, partition, start, 1000)
                assert [record.value for record in read] == records[start:]
                if start:
                    with pytest.raises(OffsetTrimmed):
                        self.log.read(topic, partition, start - 1, 1)


LogMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
TestLogModel = LogMachine.TestCase
