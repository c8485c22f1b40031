"""Reading a Kafka log without a group: from any offset, and waiting for what comes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from kafka.protocol.consumer import OffsetSpec
from kafka.structs import TopicPartition

from messaging._exceptions import LogUnavailable, OffsetTrimmed
from messaging._kafka_admin import Admin
from messaging._kafka_wire import Wire
from messaging.api import Record
from messaging.kafka_settings import KafkaSettings

_WAIT_SLICE_S = 0.5  # of a wait: after this, partitions are looked up anew


class Reader:
    """Reads partitions, with as many connections as threads read at once. Safe for threads."""

    def __init__(self, settings: KafkaSettings, admin: Admin, prefix: str) -> None:
        """Connect to nothing yet."""
        self._settings, self._admin, self._prefix = settings, admin, prefix
        self._lock = threading.Lock()
        self._idle: list[Wire] = []
        self._lent: set[Wire] = set()
        self._ahead: dict[TopicPartition, list[Record]] = {}
        self._open = True

    @property
    def connections(self) -> int:
        """Connections now open."""
        with self._lock:
            return len(self._idle) + len(self._lent)

    def forget(self, place: TopicPartition) -> None:
        """Drop records of a partition that were fetched ahead."""
        with self._lock:
            self._ahead.pop(place, None)

    def close(self) -> None:
        """Close the connections; those in use close when their reader is done."""
        with self._lock:
            self._open = False
            idle = list(self._idle)
            self._idle.clear()
        for wire in idle:
            wire.close()

    def read(self, place: TopicPartition, offset: int, max_records: int) -> list[Record]:
        """Return records from an offset on, [] only at the end. Raises OffsetTrimmed and LogUnavailable."""
        with self._lock:
            ready = self._ahead.pop(place, [])
        if not ready or ready[0].offset != offset:
            ready = self._read(place, offset)
        if len(ready) > max_records:
            with self._lock:
                self._ahead[place] = ready[max_records:]
        return ready[:max_records]

    def _read(self, place: TopicPartition, offset: int) -> list[Record]:
        deadline = time.monotonic() + self._settings.publish_timeout_ms / 1000
        with self._wire() as wire:
            while True:
                found = wire.fetch({place: offset}, 0.0).get(place)
                if found is not None and found.out_of_range:
                    oldest = self._admin.bounds([place], OffsetSpec.EARLIEST)[place]
                    if offset < oldest:
                        raise OffsetTrimmed(place.topic[len(self._prefix) :], place.partition, offset, oldest)
                    if offset >= self._admin.bounds([place], OffsetSpec.LATEST)[place]:
                        return []
                elif found is not None:
                    if found.records or found.following >= found.end:
                        return found.records
                    offset = found.following  # only markers or compacted records
                if time.monotonic() >= deadline:
                    raise LogUnavailable(
                        f"cannot read {place.topic}[{place.partition}] at {self._settings.place}: {wire.problem}"
                    )
                if found is None:
                    time.sleep(0.05)

    def wait(self, wanted: Mapping[TopicPartition, int], timeout_s: float) -> bool:
        """Block until a partition has a record at or after its offset; False after `timeout_s`.

        A negative offset stands for the oldest record. What is found is kept for the next read().
        """
        unplaced = [place for place, offset in wanted.items() if offset < 0]
        left_to_see = dict(wanted) | self._admin.bounds(unplaced, OffsetSpec.EARLIEST)
        deadline = time.monotonic() + timeout_s
        wait_s = min(timeout_s, _WAIT_SLICE_S)
        with self._wire() as wire:
            while True:
                for place, found in wire.fetch(left_to_see, wait_s).items():
                    if found.out_of_range:
                        oldest = self._admin.bounds([place], OffsetSpec.EARLIEST)[place]
                        end = self._admin.bounds([place], OffsetSpec.LATEST)[place]
                        if left_to_see[place] < oldest <= end:
                            return True  # the reader must learn that it is trimmed
                        del left_to_see[place]  # beyond the end: nothing there for now
                    elif found.records:
                        with self._lock:
                            self._ahead[place] = found.records
                        return True
                    else:
                        left_to_see[place] = found.following
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                wait_s = min(left, _WAIT_SLICE_S)

    @contextmanager
    def _wire(self) -> Iterator[Wire]:
        """Lend a connection: each is used by one thread at a time."""
        with self._lock:
            wire = self._idle.pop() if self._idle else None
        if wire is None:
            wire = Wire(self._settings, "adsindex-reader", self._prefix)
        with self._lock:
            self._lent.add(wire)
        try:
            yield wire
        finally:
            with self._lock:
                self._lent.discard(wire)
                if self._open:
                    self._idle.append(wire)
            if not self._open:
                wire.close()
