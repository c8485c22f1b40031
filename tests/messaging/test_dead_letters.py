"""Dead letters: bounded in every part, readable again, and storable whatever the input was."""

from __future__ import annotations

from pathlib import Path

import pytest

from catalog import LaneName
from messaging import BadMessage, Record, open_embedded_log
from messaging.dead_letters import MAX_DETAIL, MAX_NAME, MAX_PAYLOAD, MAX_TEXT, dead_letter, out_record, parse
from messaging.headers import leave, new_header
from messaging.proto import adsindex_pb2 as pb
from messaging.topics import DEAD_LETTERS, ensure_topics

HUGE = "é" * 5_000_000


def record(value: bytes = b"payload") -> Record:
    """Make a record read from a topic."""
    return Record("updates.high", 3, 17, "k", value, 1)


def test_a_letter_holds_what_is_needed_to_understand_and_replay_it() -> None:
    """Origin, cause, place, payload and header are all in it."""
    header = leave(new_header(LaneName.HIGH, 5, "trace"), "gateway", 6, 7)
    letter = dead_letter(
        "updater", "bad_type", "t.c: no number", header=header, table="ad", row="7", handler="h", detail="d",
        record=record(), payload_type="EntityUpdate",
    )  # fmt: skip
    assert (letter.stage, letter.reason, letter.error) == ("updater", "bad_type", "t.c: no number")
    assert (letter.topic, letter.partition, letter.offset) == ("updates.high", 3, 17)
    assert (letter.table, letter.row, letter.handler, letter.detail) == ("ad", "7", "h", "d")
    assert (letter.payload, letter.payload_type) == (b"payload", "EntityUpdate")
    assert letter.header == header
    assert letter.at_us > 0


def test_a_payload_given_comes_before_the_records() -> None:
    """A stage that unpacked a record may keep just the part that failed."""
    assert dead_letter("s", "r", "e", record=record(), payload=b"part").payload == b"part"


def test_every_part_is_bounded(tmp_path: Path) -> None:
    """A letter about megabytes of anything fits into the log, and comes out as it went in."""
    header = new_header(LaneName.HIGH, 5, HUGE)
    letter = dead_letter(
        "updater", "too_large", HUGE, header=header, table=HUGE, row=HUGE, detail=HUGE, payload=HUGE.encode(),
    )  # fmt: skip
    assert len(letter.error) == MAX_TEXT
    assert len(letter.table) == len(letter.row) == len(letter.header.trace_id) == MAX_NAME
    assert len(letter.detail) == MAX_DETAIL
    assert len(letter.payload) == MAX_PAYLOAD
    assert (letter.header.lane, letter.header.origin_us) == (pb.LANE_HIGH, 5)
    log = open_embedded_log(tmp_path / "log", tmp_path / "wake")
    ensure_topics(log)
    log.publish([out_record(letter)])
    (stored,) = log.read(DEAD_LETTERS, 0, 0, 10)
    log.close()
    assert parse(pb.DeadLetter, stored) == letter


def test_letters_of_a_row_stay_together() -> None:
    """The record's key is the row, or the stage where there is no row."""
    assert out_record(dead_letter("updater", "r", "e", row="7")).key == "7"
    assert out_record(dead_letter("updater", "r", "e")).key == "updater"


@pytest.mark.parametrize("value", [b"\xff\xff", b"\x0a\x05a", b"\x12\x02\xff\xfe"])
def test_bytes_that_are_no_message_name_their_place(value: bytes) -> None:
    """Garbage, truncation and invalid UTF-8 are one error that names topic, partition and offset."""
    with pytest.raises(BadMessage, match=r"updates\.high\[3\]@17 is not a EntityUpdate"):
        parse(pb.EntityUpdate, record(value))


def test_a_good_record_is_parsed() -> None:
    """What was serialized comes back."""
    update = pb.EntityUpdate(table="ad", row="7", source_version=3)
    assert parse(pb.EntityUpdate, record(update.SerializeToString())) == update
