"""What is Kafka's own: topics, positions of pseudo-topics, URLs, and a broker that is killed."""

from __future__ import annotations

import random
import signal
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from kafka import KafkaAdminClient
from kafka.admin import MemberToRemove

from compose import ServerInfo, Stack
from messaging import Log, LogError, LogUnavailable, OutRecord, Position, Record, UnknownTopic
from messaging._kafka_topics import apply_topics, check_topics
from messaging.kafka import KafkaLog, open_kafka_log
from messaging.kafka_settings import KafkaSettings
from messaging.switches import PUBLISHING, Switches, set_switch
from messaging.topics import BUDGETS, PARTITIONS, SWITCHES, ensure_topics
from tests.messaging.conftest import FAST_SESSIONS
from tests.messaging.log_backends import KafkaBackend, Worker
from tests.messaging.test_log_contract import numbers, out, settle
from tests.messaging.test_log_stress import lines
from tests.stack_support import up_or_skip


@pytest.fixture
def url(kafka_server: ServerInfo) -> str:
    """Return the URL of a log that nobody else uses."""
    return f"{kafka_server.url}/t{uuid.uuid4().hex[:10]}-{FAST_SESSIONS}"


@pytest.fixture
def kafka(url: str) -> Iterator[KafkaLog]:
    """Return an open, empty log."""
    log = open_kafka_log(url)
    assert isinstance(log, KafkaLog)
    yield log
    log.close()


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("kafka://", "host:port"),
        ("mysql://h:1", "host:port"),
        ("kafka://h", "no port"),
        ("kafka://h:9092?nope=1", "nope"),
        ("kafka://h:9092?session_timeout_ms=-1", "session_timeout_ms"),
        ("kafka://user:secret@h:9092", "sasl_mechanism"),
        ("kafka://h:9092?ssl_cafile=/no/such/file", "ssl_cafile"),
        ("kafka://h:9092/a/b", "prefix"),
    ],
)
def test_half_set_url_is_refused(url: str, why: str) -> None:
    """A URL that cannot work is an error that says what is missing, and never shows the password."""
    with pytest.raises(LogError, match=why) as caught:
        KafkaSettings.parse(url)
    assert "secret" not in str(caught.value)


def test_no_broker_is_unavailable() -> None:
    """Where nothing listens, opening ends with LogUnavailable after publish_timeout_ms."""
    began = time.monotonic()
    with pytest.raises(LogUnavailable, match=r"127\.0\.0\.1:9"):
        open_kafka_log("kafka://127.0.0.1:9?publish_timeout_ms=500")
    assert time.monotonic() - began < 10


def test_stages_never_create_topics(url: str) -> None:
    """Opened as the stages open it, a missing topic is an error that names the command, and nothing is created."""
    with open_kafka_log(url, create_topics=False) as log:
        with pytest.raises(UnknownTopic, match="topics apply"):
            ensure_topics(log)
        assert log.topics() == {}


def test_apply_creates_checks_and_mends(kafka: KafkaLog) -> None:
    """`topics apply` makes every topic with its settings; a changed setting is found by check and mended by apply."""
    made = apply_topics(kafka, PARTITIONS)
    assert {finding.topic for finding in made if finding.done} == set(PARTITIONS)
    assert kafka.topics() == dict(sorted(PARTITIONS.items()))
    ensure_topics(kafka)
    assert check_topics(kafka, PARTITIONS) == []
    assert apply_topics(kafka, PARTITIONS) == []
    for topic in (BUDGETS, SWITCHES):
        assert kafka.admin.settings_of([topic], ["cleanup.policy"])[topic] == {"cleanup.policy": "compact"}
    kafka.admin.change_settings(BUDGETS, {"cleanup.policy": "delete"})
    (found,) = check_topics(kafka, PARTITIONS)
    assert (found.topic, found.what, found.found, found.wanted) == (BUDGETS, "cleanup.policy", "delete", "compact")
    (mended,) = apply_topics(kafka, PARTITIONS)
    assert mended.done
    assert check_topics(kafka, PARTITIONS) == []


def test_wrong_number_of_partitions_is_for_people(kafka: KafkaLog) -> None:
    """apply reports a topic with another number of partitions and leaves it alone."""
    kafka.ensure_topic("serving.deltas", 3)
    left = [finding for finding in apply_topics(kafka, {"serving.deltas": 4}) if not finding.done]
    assert [(f.topic, f.what, f.found, f.wanted) for f in left] == [("serving.deltas", "partitions", "3", "4")]


def test_group_with_members_elsewhere_cannot_be_moved(url: str, kafka: KafkaLog) -> None:
    """Positions of a group that another process works for are refused with a sentence, and stay."""
    kafka.ensure_topic("t", 1)
    kafka.publish(out("t", 3))
    member = kafka.consumer("g", ["t"])
    assert len(member.poll(10, 5)) == 3
    with open_kafka_log(url) as other, pytest.raises(LogError, match="has members in another process"):
        other.set_committed([Position("g", "t", 0, 2)])
    assert kafka.committed("g", "t") == {0: 0}


def test_expelled_member_goes_on(kafka: KafkaLog) -> None:
    """A member that the group has thrown out, as one that hung is, commits without effect and gets its records again,
    marked."""
    kafka.ensure_topic("t", 1)
    kafka.publish(out("t", 3))
    hung = kafka.consumer("g", ["t"])
    assert numbers(hung.poll(10, 5)) == [0, 1, 2]
    with closing(KafkaAdminClient(bootstrap_servers=list(kafka.settings.servers))) as admin:
        group = kafka.admin.group_name("g")
        members = [MemberToRemove(member_id=m["member_id"]) for m in admin.describe_groups([group])[group]["members"]]
        assert len(members) == 1
        admin.remove_group_members(group, members)
    hung.commit()
    assert kafka.committed("g", "t") == {0: 0}
    again = hung.poll(10, 10)
    assert numbers(again) == [0, 1, 2]
    assert all(record.maybe_redelivered for record in again)
    hung.commit()
    assert kafka.committed("g", "t") == {0: 3}


def test_member_that_missed_a_generation_marks_what_others_polled(url: str, kafka: KafkaLog, tmp_path: Path) -> None:
    """A member that hung goes on where it was, but others have had its partitions meanwhile: it says "repeated"."""
    kafka.ensure_topic("t", 1)
    effects = tmp_path / "effects"
    hung = Worker(KafkaBackend(url, ""), "consume", group="g", topics=["t"], effects=str(effects), max_records=50)
    kafka.publish(out("t", 5))
    _wait_for(lambda: kafka.committed("g", "t") == {0: 5}, 30)
    hung.process.send_signal(signal.SIGSTOP)
    kafka.publish(out("t", 5, start=5))
    other = Worker(KafkaBackend(url, ""), "poll", group="g", topics=["t"])
    assert other.line().startswith("t 0 5 ")
    other.kill()
    hung.process.send_signal(signal.SIGCONT)
    _wait_for(lambda: kafka.committed("g", "t") == {0: 10}, 30)
    hung.finish()
    assert [mark for _, offset, mark, *_ in lines(effects)[0] if int(offset) >= 5] == ["1"] * 5


def test_member_that_has_to_drain_waits_without_spinning(kafka: KafkaLog) -> None:
    """A member that the group waits for, with records polled and not committed, costs next to no processor time."""
    kafka.ensure_topic("t", 2)
    kafka.publish(out("t", 10, keys=10))
    first, second = kafka.consumer("g", ["t"]), kafka.consumer("g", ["t"])
    polled = first.poll(100, 5)
    deadline = time.monotonic() + 120
    while not first._membership.wants_to_share:
        assert time.monotonic() < deadline
        assert second.poll(10, 0.1) == []
    began, used = time.monotonic(), time.thread_time()
    assert first.poll(10, 1.0) == []
    assert time.monotonic() - began >= 1.0
    assert time.thread_time() - used < 0.1
    kafka.publish([], [Position("g", "t", p, end) for p, end in kafka.end_offsets("t").items()])
    assert len(polled) == 10
    settle([first, second], [1, 1])


def test_restarted_worker_takes_its_place_at_once(kafka: KafkaLog, url: str) -> None:
    """A named member that was killed and started again has its partitions back long before the session would end."""
    kafka.ensure_topic("t", 2)
    kafka.publish(out("t", 4, keys=4))
    slow = url.replace(FAST_SESSIONS, "?session_timeout_ms=30000")
    backend = KafkaBackend(slow, "")
    victim = Worker(backend, "hold", group="g", topics=["t"], member="updater-0")
    assert victim.line() == "4"
    victim.kill()
    began = time.monotonic()
    with open_kafka_log(slow) as log:
        again = log.consumer("g", ["t"], member="updater-0")
        assert sorted(numbers(again.poll(10, 10))) == [0, 1, 2, 3]
        assert time.monotonic() - began < 5
        again.commit()


@pytest.mark.parametrize("wait_s", [0.0, 0.05, 0.1, 0.5])
def test_two_groups_polled_in_turn_both_join(kafka: KafkaLog, wait_s: float) -> None:
    """One thread polls a member of one group for a moment and one of another not waiting at all, as Argus does: both
    are in their groups within seconds, though no poll is as long as a join takes."""
    topics = ["high", "medium", "low"]
    for topic in (*topics, "deferred"):
        kafka.ensure_topic(topic, 8)
    kafka.publish(out("high", 20, keys=20) + out("deferred", 5, keys=5))
    first, second = kafka.consumer("g", topics, member="a-0"), kafka.consumer("g-deferred", ["deferred"], member="a-0")
    deadline = time.monotonic() + 120
    got: dict[str, set[int]] = {"high": set(), "deferred": set()}
    while (len(got["high"]), len(got["deferred"])) != (20, 5):
        assert time.monotonic() < deadline, f"not in the group: {[topic for topic, seen in got.items() if not seen]}"
        for record in (*first.poll(10, wait_s), *second.poll(10, 0.0)):
            got[record.topic].add(int(record.value))
        time.sleep(0.02)  # the work between two polls, in which a join may end
    for consumer in (first, second):
        consumer.commit()
        consumer.close()
    assert kafka.committed("g", "high") == kafka.end_offsets("high")


def test_broker_killed_and_restarted(own_stack: Stack) -> None:
    """With the broker killed in mid-run, publishers wait, pollers get nothing, and both go on: nothing is lost."""
    url = up_or_skip(own_stack, ["kafka"])["kafka"].url + FAST_SESSIONS
    with open_kafka_log(url) as log, open_kafka_log(url + "&publish_timeout_ms=500") as impatient:
        log.ensure_topic("t", 2)
        log.ensure_topic(SWITCHES, 1)
        set_switch(log, PUBLISHING, "off", who="anna", why="test")
        known, unread = Switches(impatient), Switches(impatient)
        assert not known.publishing()
        consumer = log.consumer("g", ["t"])
        consumer.poll(1, 1)
        acknowledged: list[int] = []
        stop = threading.Event()

        def publish() -> None:
            n = 0
            while not stop.is_set():
                log.publish([OutRecord("t", f"k{n % 5}", str(n).encode())], [Position("p", "t", 0, n + 1)])
                acknowledged.append(n)
                n += 1

        publisher = threading.Thread(target=publish)
        publisher.start()
        seen: dict[int, int] = {}

        def consume(seconds: float, until: int = 1 << 60) -> None:
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline and len(seen) < until:
                for record in consumer.poll(100, 0.2):
                    seen.setdefault(int(record.value), record.partition)
                consumer.commit()

        consume(20, until=50)
        assert len(seen) >= 50
        own_stack.kill("kafka")
        killed_at = len(acknowledged)
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            consumer.poll(100, 0.2)  # returns by itself, raises nothing
        for _ in range(2):  # what is off or too old nobody knows: a stage that begins now must not take the defaults
            with pytest.raises(LogUnavailable):
                unread.publishing()
        assert not known.publishing(), "what was read holds while the broker is away"
        own_stack.restart("kafka")
        deadline = time.monotonic() + 120
        while len(acknowledged) < killed_at + 50:
            assert time.monotonic() < deadline, f"{len(acknowledged)} acknowledged, {killed_at} before the kill"
            consume(0.5)
        stop.set()
        publisher.join(120)
        assert not publisher.is_alive()
        consume(30, until=len(acknowledged))
        in_log = [
            int(record.value)
            for partition, end in log.end_offsets("t").items()
            for record in _all(log, "t", partition, end)
        ]
        assert set(acknowledged) <= set(in_log)
        assert len(in_log) == len(set(in_log)), "the idempotent producer appended something twice"
        assert log.committed("p", "t")[0] == acknowledged[-1] + 1
        assert not unread.publishing(), "it reads them when the broker is back"


def _all(log: Log, topic: str, partition: int, end: int) -> Iterator[Record]:
    position = 0
    while position < end:
        records = log.read(topic, partition, position, 500)
        yield from records
        position = records[-1].offset + 1


@pytest.mark.stress
def test_workers_and_broker_killed_at_random(own_stack: Stack, tmp_path: Path) -> None:
    """With producers, consumers and the broker killed -9: every acknowledged record is in the log and is processed;
    a stored position never passes a record that is not in the log or not processed; a partition is processed in order,
    with repeats only below what was processed before."""
    chance = random.Random(4)
    url = up_or_skip(own_stack, ["kafka"])["kafka"].url + FAST_SESSIONS
    backend = KafkaBackend(url, "s-")
    effects = tmp_path / "effects"
    incarnations: list[str] = []
    workers: list[Worker] = []

    def producer() -> Worker:
        incarnations.append(f"p{len(incarnations)}")
        acks = str(tmp_path / f"acks-{incarnations[-1]}")
        return Worker(backend, "publish", topic="t", incarnation=incarnations[-1], acks=acks, keys=3, batch=7)

    def consumer() -> Worker:
        return Worker(backend, "consume", group="g", topics=["t"], effects=str(effects), max_records=50)

    with backend.open() as log:
        log.ensure_topic("t", 4)
        makers = [producer, consumer, consumer]
        workers = [make() for make in makers]
        try:
            for turn in range(8):
                time.sleep(chance.uniform(0.5, 1.5))
                if turn in (2, 5):
                    own_stack.kill("kafka")
                    own_stack.restart("kafka")
                victim = chance.randrange(3)
                workers[victim].kill()
                workers[victim] = makers[victim]()
            workers[0].kill()
            _wait_for(lambda: log.committed("g", "t") == log.end_offsets("t"), 60)
        finally:
            for worker in workers:
                if worker.process.poll() is None:
                    worker.kill()
        found = {p: [r.value.decode() for r in _all(log, "t", p, end)] for p, end in log.end_offsets("t").items()}
        _check_log(found, incarnations, tmp_path)
        done: dict[int, int] = defaultdict(int)
        for partition_word, offset_word, marked, *value in lines(effects)[0]:
            partition, offset = int(partition_word), int(offset_word)
            assert found[partition][offset] == " ".join(value)
            assert offset <= done[partition], f"{partition} skipped {done[partition]}"
            assert offset == done[partition] or marked == "1"
            done[partition] = max(done[partition], offset + 1)
        assert dict(done) == {p: len(values) for p, values in found.items() if values}


def _check_log(found: dict[int, list[str]], incarnations: list[str], acks: Path) -> None:
    everything = {value for values in found.values() for value in values}
    acknowledged = 0
    for incarnation in incarnations:
        for words in lines(acks / f"acks-{incarnation}")[0]:
            assert " ".join(words) in everything
            acknowledged += 1
    assert acknowledged > 100
    for values in found.values():
        newest: dict[str, int] = {}
        for value in values:
            incarnation, number = value.split()
            assert int(number) >= newest.get(incarnation, 0), "out of order"
            newest[incarnation] = int(number)


def _wait_for(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not within time"
        time.sleep(0.1)
