"""What every log backend promises (messaging.api)."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable

import pytest

from messaging import (
    Consumer,
    Log,
    LogError,
    LogUnavailable,
    OffsetTrimmed,
    OutRecord,
    Position,
    Record,
    RecordTooLarge,
    UnknownTopic,
)
from tests.messaging.log_backends import Backend, Worker


def out(topic: str, count: int, keys: int = 1, start: int = 0) -> list[OutRecord]:
    """Return records numbered in their values, over `keys` keys."""
    return [OutRecord(topic, f"k{n % keys}", str(n).encode()) for n in range(start, start + count)]


def numbers(records: Iterable[Record]) -> list[int]:
    """Return the numbers of records made by `out`."""
    return [int(record.value) for record in records]


def one_key_per_partition(log: Log, topic: str) -> list[str]:
    """Publish until every partition has been hit, and return a key of each, by partition."""
    partitions = log.topics()[topic]
    keys: dict[int, str] = {}
    for n in range(10_000):
        before = log.end_offsets(topic)
        log.publish([OutRecord(topic, f"probe{n}", b"")])
        after = log.end_offsets(topic)
        keys.setdefault(next(p for p in after if after[p] > before[p]), f"probe{n}")
        if len(keys) == partitions:
            return [keys[p] for p in range(partitions)]
    raise AssertionError(f"10,000 keys hit only partitions {sorted(keys)} of {partitions}")


def settle(consumers: list[Consumer], expected: list[int], seconds: float = 10) -> None:
    """Let members poll without records until each holds the expected number of partitions."""
    deadline = time.monotonic() + seconds
    while True:
        for consumer in consumers:
            assert consumer.poll(1, 0.05) == []
        held = [len(consumer.assigned()) for consumer in consumers]
        if sorted(held) == sorted(expected):
            break
        assert time.monotonic() < deadline, f"members hold {held}, not {expected}"
    assigned = [pair for consumer in consumers for pair in consumer.assigned()]
    assert len(assigned) == len(set(assigned))


def test_record_comes_back_as_published(log: Log) -> None:
    """A record read has the key, value and place it was published with, and the time it was appended."""
    log.ensure_topic("t", 1)
    before = time.time_ns() // 1000
    log.publish([OutRecord("t", "schlüssel", b"\x00\xff"), OutRecord("t", "", b"")])
    first, second = log.read("t", 0, 0, 10)
    assert (first.topic, first.partition, first.offset, first.key, first.value) == ("t", 0, 0, "schlüssel", b"\x00\xff")
    assert (second.offset, second.key, second.value) == (1, "", b"")
    assert before <= first.appended_us <= time.time_ns() // 1000
    assert not first.maybe_redelivered


def test_equal_keys_stay_in_order_in_one_partition(log: Log) -> None:
    """All records of a key are in one partition, in the order published, whatever the batches."""
    log.ensure_topic("t", 4)
    for start in range(0, 300, 60):
        log.publish(out("t", 60, keys=20, start=start))
    places: dict[str, list[tuple[int, int]]] = {}
    for partition in range(4):
        records = log.read("t", partition, 0, 1000)
        assert [record.offset for record in records] == list(range(len(records)))
        for record in records:
            places.setdefault(record.key, []).append((partition, int(record.value)))
    assert sum(map(len, places.values())) == 300
    for key, found in places.items():
        assert len({partition for partition, _ in found}) == 1, key
        assert [n for _, n in found] == sorted(n for _, n in found)
    assert len({found[0][0] for found in places.values()}) > 1


def test_key_goes_to_the_same_partition_after_reopening(backend: Backend, log: Log) -> None:
    """The partition of a key does not depend on the process or handle that publishes."""
    log.ensure_topic("t", 8)
    keys = one_key_per_partition(log, "t")
    other = backend.open()
    for partition, key in enumerate(keys):
        end = other.end_offsets("t")[partition]
        other.publish([OutRecord("t", key, b"again")])
        assert other.read("t", partition, end, 1)[0].key == key
    other.close()


def test_records_survive_closing(backend: Backend) -> None:
    """Records, topics and positions are there when the log is opened again."""
    log = backend.open()
    log.ensure_topic("t", 2)
    log.publish(out("t", 10, keys=10), [Position("g", "t", 1, 3)])
    ends = log.end_offsets("t")
    log.close()
    log = backend.open()
    assert log.topics() == {"t": 2}
    assert log.end_offsets("t") == ends
    assert sum(ends.values()) == 10
    assert log.committed("g", "t") == {0: 0, 1: 3}
    assert sum(len(log.read("t", p, 0, 100)) for p in ends) == 10
    log.close()


def test_topic_is_created_once(backend: Backend, log: Log) -> None:
    """ensure_topic may be repeated, by other handles too; another number of partitions is an error that says so."""
    log.ensure_topic("t", 3)
    log.publish(out("t", 1))
    other = backend.open()
    other.ensure_topic("t", 3)
    other.ensure_topic("u", 1)
    assert log.topics() == {"t": 3, "u": 1}
    with pytest.raises(LogError, match="t has 3 partitions, not 4"):
        log.ensure_topic("t", 4)
    assert sum(log.end_offsets("t").values()) == 1
    other.close()


@pytest.mark.parametrize("name", ["", "a/b", ".hidden", "ä", "x" * 300, "a\0b"])
def test_bad_names_are_refused(log: Log, name: str) -> None:
    """A topic or group name that no backend could carry is an error."""
    log.ensure_topic("t", 1)
    with pytest.raises(LogError):
        log.ensure_topic(name, 1)
    with pytest.raises(LogError):
        log.consumer(name, ["t"])
    assert log.topics() == {"t": 1}


def test_unknown_topic_is_an_error_everywhere(log: Log) -> None:
    """A topic that was never created, or a partition that it does not have, raises UnknownTopic."""
    log.ensure_topic("t", 1)
    calls: list[Callable[[], object]] = [
        lambda: log.publish([OutRecord("nope", "k", b"")]),
        lambda: log.publish([], [Position("g", "nope", 0, 1)]),
        lambda: log.publish([], [Position("g", "t", 1, 1)]),
        lambda: log.consumer("g", ["t", "nope"]),
        lambda: log.read("nope", 0, 0, 1),
        lambda: log.read("t", 1, 0, 1),
        lambda: log.wait(["nope"], {}, 0),
        lambda: log.end_offsets("nope"),
        lambda: log.start_offsets("nope"),
        lambda: log.committed("g", "nope"),
        lambda: log.trim("nope", 0, 1),
        lambda: log.trim("t", 7, 1),
    ]
    for call in calls:
        with pytest.raises(UnknownTopic):
            call()


def test_refused_publish_leaves_nothing(log: Log) -> None:
    """When one record of a batch is refused, no record and no position of the batch is stored."""
    log.ensure_topic("t", 1)
    good, position = out("t", 3), [Position("g", "t", 0, 9)]
    with pytest.raises(UnknownTopic):
        log.publish([*good, OutRecord("nope", "k", b"")], position)
    with pytest.raises(RecordTooLarge, match=r"t .*'big'.* 8388611 bytes"):
        log.publish([*good, OutRecord("t", "big", bytes(8 << 20))], position)
    with pytest.raises(RecordTooLarge):
        log.publish([*good, OutRecord("t", "k" * 70_000, b"")], position)
    with pytest.raises(LogError):
        log.publish(good, [Position("g", "t", 0, -1)])
    assert log.end_offsets("t") == {0: 0}
    assert log.committed("g", "t") == {0: 0}


def test_record_at_the_limit_is_carried(log: Log) -> None:
    """A record of exactly 8 MiB, key included, goes through."""
    log.ensure_topic("t", 1)
    value = b"\x5a" * ((8 << 20) - 1)
    log.publish([OutRecord("t", "k", value)])
    assert log.read("t", 0, 0, 1)[0].value == value


def test_publishing_nothing_changes_nothing(log: Log) -> None:
    """An empty publish is allowed."""
    log.ensure_topic("t", 1)
    log.publish([])
    assert log.end_offsets("t") == {0: 0}


def test_poll_goes_on_without_commit(log: Log) -> None:
    """Each poll continues after the last one; the committed position stays until commit()."""
    log.ensure_topic("t", 1)
    log.publish(out("t", 5))
    consumer = log.consumer("g", ["t"])
    assert numbers(consumer.poll(3, 1)) == [0, 1, 2]
    assert numbers(consumer.poll(3, 1)) == [3, 4]
    assert consumer.poll(3, 0) == []
    assert log.committed("g", "t") == {0: 0}
    consumer.commit()
    assert log.committed("g", "t") == {0: 5}
    consumer.commit()
    assert log.committed("g", "t") == {0: 5}


def test_uncommitted_records_come_again_and_are_marked(log: Log) -> None:
    """The next member starts at the committed position; what lay in the log by then is marked, later ones are not."""
    log.ensure_topic("t", 1)
    log.publish(out("t", 4))
    first = log.consumer("g", ["t"])
    records = first.poll(4, 1)
    first.commit_upto(records[:2])
    first.close()
    second = log.consumer("g", ["t"])
    again = second.poll(10, 1)
    log.publish(out("t", 1, start=4))
    fresh = second.poll(10, 1)
    assert numbers(again) == [2, 3]
    assert [record.maybe_redelivered for record in again] == [True, True]
    assert numbers(fresh) == [4]
    assert not fresh[0].maybe_redelivered


def test_commit_upto_stores_the_highest_per_partition_and_never_goes_back(log: Log) -> None:
    """commit_upto() takes the highest offset of each partition among the records, and older records change nothing."""
    log.ensure_topic("t", 2)
    log.publish(out("t", 40, keys=20))
    consumer = log.consumer("g", ["t"])
    records = consumer.poll(100, 1)
    assert len(records) == 40
    by_partition = {p: [r for r in records if r.partition == p] for p in (0, 1)}
    assert all(len(found) > 4 for found in by_partition.values())
    consumer.commit_upto([by_partition[1][2], by_partition[0][1], by_partition[1][0]])
    assert log.committed("g", "t") == {0: 2, 1: 3}
    consumer.commit_upto([by_partition[1][0]])
    consumer.commit_upto([])
    assert log.committed("g", "t") == {0: 2, 1: 3}
    consumer.commit()
    assert log.committed("g", "t") == log.end_offsets("t")


def test_groups_do_not_disturb_each_other(log: Log) -> None:
    """Every group gets every record and has its own positions."""
    log.ensure_topic("t", 2)
    log.ensure_topic("u", 1)
    log.publish(out("t", 10, keys=10))
    a, b = log.consumer("a", ["t"]), log.consumer("b", ["t"])
    assert sorted(numbers(a.poll(100, 1))) == list(range(10))
    a.commit()
    assert sorted(numbers(b.poll(100, 1))) == list(range(10))
    assert sum(log.committed("a", "t").values()) == 10
    assert sum(log.committed("b", "t").values()) == 0
    log.set_committed([Position("c", "u", 0, 7)])
    assert log.groups() == [("a", "t"), ("c", "u")]


def test_earlier_topics_come_first(log: Log) -> None:
    """A later topic only fills what the earlier ones left free in a poll."""
    for lane in ("high", "medium", "low"):
        log.ensure_topic(lane, 2)
    log.publish(out("low", 10, keys=10) + out("medium", 4, keys=4) + out("high", 3, keys=3))
    consumer = log.consumer("g", ["high", "medium", "low"])
    assert Counter(r.topic for r in consumer.poll(5, 1)) == {"high": 3, "medium": 2}
    log.publish(out("high", 1))
    records = consumer.poll(5, 1)
    assert [r.topic for r in records] == ["high", "medium", "medium", "low", "low"]


def test_backlog_in_a_lane_stops_no_other(log: Log) -> None:
    """Under a backlog of high that never ends, low goes on at its share, and high has all the rest of every poll."""
    lanes = ("high", "medium", "low")
    for lane in lanes:
        log.ensure_topic(lane, 2)
    log.publish(out("high", 1000, keys=10) + out("medium", 40, keys=10) + out("low", 40, keys=10))
    consumer = log.consumer("g", lanes)
    seen: Counter[str] = Counter()
    for poll in range(1, 11):
        records = consumer.poll(64, 5)
        found = Counter(record.topic for record in records)
        assert len(records) == 64
        assert [r.topic for r in records] == sorted((r.topic for r in records), key=lanes.index)
        assert found["high"] == 64 - found["medium"] - found["low"] >= 56
        seen += found
        assert seen["low"] == seen["medium"] == 4 * poll
        consumer.commit()
        log.publish(out("high", 64, keys=10, start=1000))
    assert Counter(r.topic for r in consumer.poll(64, 5)) == {"high": 64}
    for n in (1, 15):  # too few for shares
        log.publish(out("low", 1))
        assert {r.topic for r in consumer.poll(n, 5)} == {"high"}


def test_poll_is_fair_over_partitions(log: Log) -> None:
    """A poll smaller than the backlog takes equally from the partitions, and what one lacks goes to the others."""
    log.ensure_topic("t", 4)
    keys = one_key_per_partition(log, "t")
    ends = log.end_offsets("t")
    log.set_committed([Position("g", "t", p, end) for p, end in ends.items()])
    for partition, count in enumerate((50, 50, 50, 2)):
        log.publish([OutRecord("t", keys[partition], b"%d" % n) for n in range(count)])
    consumer = log.consumer("g", ["t"])
    assert Counter(r.partition for r in consumer.poll(8, 1)) == {0: 2, 1: 2, 2: 2, 3: 2}
    assert Counter(r.partition for r in consumer.poll(30, 1)) == {0: 10, 1: 10, 2: 10}
    rest = [consumer.poll(1, 1)[0].partition for _ in range(6)]
    assert Counter(rest) == {0: 2, 1: 2, 2: 2}


@pytest.mark.parametrize(("partitions", "shares"), [(4, [2, 2]), (5, [3, 2]), (8, [3, 3, 2]), (1, [1, 0, 0])])
def test_partitions_are_shared_fairly(log: Log, partitions: int, shares: list[int]) -> None:
    """Members hold equal numbers of partitions, give or take one, and none twice, also as members come and go."""
    log.ensure_topic("t", partitions)
    members = [log.consumer("g", ["t"]) for _ in shares]
    settle(members[:1], [partitions])
    settle(members, shares)
    for member in members[1:]:
        member.close()
    settle(members[:1], [partitions])


def test_partition_changes_hands_only_when_all_polled_is_committed(log: Log) -> None:
    """A member with uncommitted records keeps those partitions until it commits, so no record is with two at once."""
    log.ensure_topic("t", 2)
    keys = one_key_per_partition(log, "t")
    old = log.consumer("g", ["t"])
    polled: list[Record] = []
    joined = time.monotonic() + 120
    while {record.partition for record in polled} != {0, 1}:
        assert time.monotonic() < joined, f"only {polled}"
        polled += old.poll(1000, 1)
    new = log.consumer("g", ["t"])
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline:
        assert new.poll(10, 0.1) == []
        assert old.poll(10, 0) == []
        assert len(old.assigned()) == 2
    old.commit()
    assert len(old.assigned()) == 1
    settle([old, new], [1, 1])
    log.publish([OutRecord("t", key, b"new") for key in keys])
    mine, theirs = old.poll(10, 5), new.poll(10, 5)
    assert [(r.topic, r.partition) for r in mine] == old.assigned()
    assert [(r.topic, r.partition) for r in theirs] == new.assigned()
    assert not theirs[0].maybe_redelivered


def test_positions_are_stored_with_the_records(log: Log) -> None:
    """publish() can move a consumer's position, and then the partition may change hands without a commit()."""
    log.ensure_topic("in", 2)
    log.ensure_topic("out", 1)
    one_key_per_partition(log, "in")
    consumer = log.consumer("g", ["in"])
    records = consumer.poll(1000, 1)
    ends = log.end_offsets("in")
    assert len(records) == sum(ends.values())
    log.publish(out("out", 1), [Position("g", "in", p, end) for p, end in ends.items()])
    assert log.committed("g", "in") == ends
    settle([consumer, log.consumer("g", ["in"])], [1, 1])


def test_positions_of_a_pseudo_topic_carry_metadata(backend: Backend, log: Log) -> None:
    """A position may be any number and carry text, read by others too; too long a text is an error."""
    log.ensure_topic("feed", 1)
    assert log.committed_metadata("g", "feed") == {0: ""}
    log.publish([], [Position("g", "feed", 0, 1 << 60, "gtid:0-1-270,sérvér")])
    other = backend.open()
    assert other.committed("g", "feed") == {0: 1 << 60}
    assert other.committed_metadata("g", "feed") == {0: "gtid:0-1-270,sérvér"}
    other.set_committed([Position("g", "feed", 0, 7)])
    assert log.committed("g", "feed") == {0: 7}
    assert log.committed_metadata("g", "feed") == {0: ""}
    with pytest.raises(LogError, match="metadata"):
        log.publish([], [Position("g", "feed", 0, 8, "x" * 5000)])
    assert log.committed("g", "feed") == {0: 7}
    other.close()


def test_trim_forgets_old_records(log: Log) -> None:
    """Trimmed records are gone, the others keep their offsets, and reading below names the oldest left."""
    log.ensure_topic("t", 1)
    log.publish(out("t", 10))
    assert log.trim("t", 0, 4) == 4
    assert log.trim("t", 0, 4) == 0
    assert log.start_offsets("t") == {0: 4}
    assert log.end_offsets("t") == {0: 10}
    assert numbers(log.read("t", 0, 4, 3)) == [4, 5, 6]
    with pytest.raises(OffsetTrimmed, match="oldest kept is 4") as caught:
        log.read("t", 0, 3, 1)
    assert (caught.value.topic, caught.value.partition, caught.value.asked, caught.value.oldest) == ("t", 0, 3, 4)
    assert log.trim("t", 0, 99) == 6
    log.publish(out("t", 1, start=10))
    assert log.start_offsets("t") == {0: 10}
    assert [record.offset for record in log.read("t", 0, 10, 5)] == [10]


def test_consumer_behind_the_oldest_record_goes_on_there(log: Log) -> None:
    """A group whose position was trimmed continues at the oldest record kept and can commit."""
    log.ensure_topic("t", 1)
    log.publish(out("t", 10))
    log.trim("t", 0, 6)
    consumer = log.consumer("g", ["t"])
    assert numbers(consumer.poll(10, 1)) == [6, 7, 8, 9]
    consumer.commit()
    assert log.committed("g", "t") == {0: 10}


def test_read_ends_at_the_end(log: Log) -> None:
    """Reading at or beyond the end gives nothing, and a read never runs into another partition or topic."""
    log.ensure_topic("t", 2)
    log.ensure_topic("u", 1)
    log.publish(out("t", 20, keys=10) + out("u", 5))
    for partition, end in log.end_offsets("t").items():
        assert {r.partition for r in log.read("t", partition, 0, 1000)} <= {partition}
        assert len(log.read("t", partition, 0, 1000)) == end
        assert log.read("t", partition, end, 10) == []
        assert log.read("t", partition, end + 5, 10) == []
        assert log.read("t", partition, 0, 0) == []


def test_wait_answers_for_positions(log: Log) -> None:
    """wait() is true at once when there is a record at or after a position, else false after its time."""
    log.ensure_topic("t", 2)
    log.publish(out("t", 1))
    ends = {("t", p): end for p, end in log.end_offsets("t").items()}
    assert log.wait(["t"], {}, 0)
    assert not log.wait(["t"], ends, 0.05)
    log.publish(out("t", 1))
    assert log.wait(["t"], ends, 0)


def test_blocked_wait_and_poll_return_when_another_process_publishes(log: Log, start: Callable[..., Worker]) -> None:
    """A process that waits, and one that polls, get the record which this process publishes later."""
    log.ensure_topic("t", 1)
    waiting = start("wait", topics=["t"], positions=[["t", 0, 0]])
    polling = start("poll", group="g", topics=["t"])
    began = time.monotonic()
    log.publish([OutRecord("t", "k", b"hello")])
    waiting.expect("True")
    polling.expect("t 0 0 hello")
    assert time.monotonic() - began < 5


def test_dead_members_partitions_are_taken_over(log: Log, start: Callable[..., Worker]) -> None:
    """After kill -9 of a member that had not committed, the others get its records again, marked."""
    log.ensure_topic("t", 2)
    keys = one_key_per_partition(log, "t")
    log.set_committed([Position("g", "t", p, end) for p, end in log.end_offsets("t").items()])
    survivor = log.consumer("g", ["t"])
    settle([survivor], [2])
    victim = start("poll", group="g", topics=["t"])
    settle([survivor], [1], 40)  # a process starts meanwhile, on a busy machine
    ((_, mine),) = survivor.assigned()
    log.publish([OutRecord("t", key, b"x") for key in keys])
    assert [r.partition for r in survivor.poll(10, 5)] == [mine]
    survivor.commit()
    victim.expect(f"t {1 - mine} {log.end_offsets('t')[1 - mine] - 1} x")
    victim.kill()
    began = time.monotonic()
    (again,) = survivor.poll(10, 10)
    assert time.monotonic() - began < 2
    assert (again.partition, again.value, again.maybe_redelivered) == (1 - mine, b"x", True)


def test_threads_publish_at_once(log: Log) -> None:
    """Records that many threads publish at once are all there, each thread's in order."""
    log.ensure_topic("t", 3)

    def publish(thread: int) -> None:
        for n in range(50):
            log.publish([OutRecord("t", f"{thread}", str(n).encode())])

    threads = [threading.Thread(target=publish, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found: dict[str, list[int]] = {}
    for partition in range(3):
        for record in log.read("t", partition, 0, 1000):
            found.setdefault(record.key, []).append(int(record.value))
    assert found == {str(thread): list(range(50)) for thread in range(6)}


def test_statistics_count(log: Log) -> None:
    """statistics() counts what went through this handle."""
    log.ensure_topic("t", 1)
    log.publish(out("t", 3))
    log.publish(out("t", 2))
    consumer = log.consumer("g", ["t"])
    consumer.poll(4, 1)
    assert log.statistics()["consumers"] == 1
    consumer.close()
    counted = log.statistics()
    assert counted["publishes"] == 2
    assert counted["published_records"] == 5
    assert counted["published_bytes"] == 15
    assert counted["polled_records"] == 4
    assert counted["consumers"] == 0
    assert counted["file_bytes"] > 0


def test_closed_objects_say_so(backend: Backend) -> None:
    """A closed log or consumer raises, and closing again is harmless."""
    log = backend.open()
    log.ensure_topic("t", 1)
    consumer, other = log.consumer("g", ["t"]), log.consumer("g", ["t"])
    consumer.close()
    consumer.close()
    with pytest.raises(LogError, match="closed"):
        consumer.poll(1, 0)
    with pytest.raises(LogError, match="closed"):
        consumer.commit()
    log.close()
    log.close()
    with pytest.raises(LogError, match="closed"):
        other.poll(1, 0)
    with pytest.raises(LogUnavailable, match="closed"):
        log.publish([OutRecord("t", "k", b"")])
    with pytest.raises(LogUnavailable, match="closed"):
        log.topics()


def test_poll_needs_room_for_a_record(log: Log) -> None:
    """Asking for no records is a mistake of the caller."""
    log.ensure_topic("t", 1)
    with pytest.raises(ValueError, match="at least 1"):
        log.consumer("g", ["t"]).poll(0, 0)
