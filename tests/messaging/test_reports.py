"""The report of what was dropped, on every log backend, against an independent recount of the topics."""

from __future__ import annotations

import json
import random
from collections import Counter
from datetime import UTC, date, datetime, timedelta

import pytest

from catalog import LaneName
from messaging import Log, LogError, OutRecord
from messaging.dead_letters import dead_letter, out_record
from messaging.drops import drops_of
from messaging.headers import new_header, now_us
from messaging.proto import adsindex_pb2 as pb
from messaging.reports import EXAMPLES, KEPT_DAYS, UNREADABLE, expired, load_counts, report_drops, tally
from messaging.topics import DEAD_LETTERS, DROP_COUNTS, DROPS, LANE_NUMBER, LANE_OF, LANES, ensure_topics

DAY_US = 24 * 3600 * 1_000_000
Counted = dict[tuple[date, str, str, str, str], int]


@pytest.fixture
def topics(log: Log) -> Log:
    """Return a log with all topics."""
    ensure_topics(log)
    return log


def some_records(chance: random.Random, number: int) -> list[OutRecord]:
    """Return drops and dead letters of several stages, reasons, lanes and days."""
    records = []
    for _ in range(number):
        at_us = now_us() - chance.randrange(3) * DAY_US
        lane = chance.choice(LANES)
        if chance.random() < 0.5:
            drop = pb.Drop(
                stage=chance.choice(["gateway", "updater"]), reason=chance.choice(["too_old", "stale_update"])
            )
            drop.lane, drop.at_us, drop.count = LANE_NUMBER[lane], at_us, chance.randrange(1, 300)
            records.append(OutRecord(DROPS, drop.stage, drop.SerializeToString()))
        else:
            header = new_header(lane, at_us)
            letter = dead_letter("argus", chance.choice(["bad_type", "bad_key"]), "why", header=header, row="7")
            letter.at_us = at_us
            records.append(out_record(letter))
    return records


def recount(log: Log) -> Counted:
    """Count the topics from their first record to their last, sharing nothing with the report but the messages."""
    found: Counted = Counter()
    for record in log.read(DROPS, 0, 0, 100_000):
        drop = pb.Drop.FromString(record.value)
        day = datetime.fromtimestamp(drop.at_us / 1e6, UTC).date()
        found[day, "dropped", drop.stage, drop.reason, LANE_OF[drop.lane].value] += drop.count
    for record in log.read(DEAD_LETTERS, 0, 0, 100_000):
        letter = pb.DeadLetter.FromString(record.value)
        day = datetime.fromtimestamp(letter.at_us / 1e6, UTC).date()
        found[day, "dead_letter", letter.stage, letter.reason, LANE_OF[letter.header.lane].value] += 1
    return dict(found)


def reported(log: Log, day: date | None = None) -> Counted:
    """Return what the report says, in the form of `recount`."""
    return {(x.day, x.kind, x.stage, x.reason, x.lane): x.count for x in report_drops(log, day)}


def test_report_equals_a_recount(topics: Log) -> None:
    """By day, kind, stage, reason and lane, with and without a day given, the numbers are those of the topics."""
    topics.publish(some_records(random.Random(1), 700))
    wanted = recount(topics)
    assert len({key[0] for key in wanted}) == 3
    assert reported(topics) == wanted
    today = datetime.now(UTC).date()
    assert reported(topics, today) == {key: count for key, count in wanted.items() if key[0] == today}


@pytest.mark.parametrize("stored", [0, 1, 40, 120, 200])
def test_what_is_counted_already_counts_once(topics: Log, stored: int) -> None:
    """Wherever the stage was killed, and however often records came twice, the report is the recount."""
    topics.publish(some_records(random.Random(stored), 200))
    chance = random.Random(7)
    counts: dict[bytes, bytes] = {}
    records = sorted(
        (r for topic in (DROPS, DEAD_LETTERS) for r in topics.read(topic, 0, 0, 1_000)),
        key=lambda r: (r.offset, r.topic),
    )
    changelog = []
    for record in records[:stored]:
        for _ in range(chance.randrange(1, 3)):  # some come twice
            if (counted := tally(counts, record)) is not None:
                counts[counted[0]] = counted[1]
                changelog.append(OutRecord(DROP_COUNTS, counted[0].decode(), counted[1]))
    topics.publish(changelog)
    assert len(changelog) == stored
    assert load_counts(topics) == counts
    assert reported(topics) == recount(topics)


def test_counts_outlive_the_records(topics: Log) -> None:
    """Once counted, a day stays in the report although its dead letters are no longer kept."""
    topics.publish(some_records(random.Random(3), 50))
    wanted = recount(topics)
    counts: dict[bytes, bytes] = {}
    for topic in (DROPS, DEAD_LETTERS):
        for record in topics.read(topic, 0, 0, 1_000):
            counted = tally(counts, record)
            assert counted is not None
            counts[counted[0]] = counted[1]
        topics.trim(topic, 0, topics.end_offsets(topic)[0])
    topics.publish([OutRecord(DROP_COUNTS, key.decode(), value) for key, value in counts.items()])
    assert reported(topics) == wanted


def test_counts_of_another_topic_of_that_name_are_refused(topics: Log) -> None:
    """Counts beyond the end of a topic are an error that says what to delete, not a report that misses what is new."""
    key = json.dumps(["2026-01-01", "dropped", "updater", "too_old", "low"])
    topics.publish([OutRecord(DROP_COUNTS, key, b"[7, 12, []]")])
    with pytest.raises(LogError, match=f"delete the topic {DROP_COUNTS}"):
        report_drops(topics)


def test_unreadable_records_are_counted(topics: Log) -> None:
    """A record that is no drop and no dead letter is in the report as such; the others count."""
    header = new_header(LaneName.LOW, now_us())
    topics.publish([OutRecord(DROPS, "x", b"\xff\xff"), OutRecord(DEAD_LETTERS, "y", b"\xff")])
    topics.publish(drops_of("updater", "too_old", [(header, "ad/1")], None))
    lines = {(line.kind, line.reason): line.count for line in report_drops(topics)}
    assert lines == {("dropped", UNREADABLE): 1, ("dead_letter", UNREADABLE): 1, ("dropped", "too_old"): 1}


def test_examples_are_the_newest(topics: Log) -> None:
    """A line names the newest entities, each once, and the hint says whether anything was lost."""
    header = new_header(LaneName.LOW, now_us())
    for n in range(2 * EXAMPLES):
        topics.publish(drops_of("updater", "stale_update", [(header, f"ad/{n}"), (header, "ad/0")], None))
    (line,) = report_drops(topics)
    assert line.count == 4 * EXAMPLES
    assert line.entities == (f"ad/{2 * EXAMPLES - 1}", "ad/0", *(f"ad/{2 * EXAMPLES - n}" for n in range(2, EXAMPLES)))
    assert "no loss" in line.hint


def test_old_days_go() -> None:
    """Counts of days more than KEPT_DAYS ago are given up, and no others."""
    today = date(2026, 11, 22)
    keys = [json.dumps([(today - timedelta(days=n)).isoformat(), "dropped"]).encode() for n in (0, KEPT_DAYS, 401, 900)]
    assert expired(keys, today) == keys[2:]
