"""Dead letters: what could not be processed, with what is needed to understand and replay it."""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from messaging._exceptions import BadMessage
from messaging.api import OutRecord, Record
from messaging.headers import now_us
from messaging.proto import adsindex_pb2 as pb
from messaging.topics import DEAD_LETTERS

MAX_TEXT = 2_048
"""Characters of `error`; `table` and `row` come from the sender as well, and a row key is also the record's key."""
MAX_NAME = 512
MAX_HEADER = 16_384
"""Bytes: hundreds of hops. Of a larger header only trace, lane and origin are kept."""
MAX_DETAIL = 8_192
MAX_PAYLOAD = 262_144
"""A larger payload is cut: its origin (topic, partition, offset, or the ads DB row) still names the whole."""


def dead_letter(
    stage: str,
    reason: str,
    error: str,
    *,
    header: pb.Header | None = None,
    table: str = "",
    row: str = "",
    handler: str = "",
    detail: str = "",
    record: Record | None = None,
    payload: bytes = b"",
    payload_type: str = "",
) -> pb.DeadLetter:
    """Make a dead letter. `reason` is a stable code that is counted; `error` a sentence: what, where, what to do.

    Every part is bounded, so that a letter about an oversized message always fits into the log.
    """
    letter = pb.DeadLetter(
        stage=stage,
        handler=handler,
        reason=reason,
        error=error[:MAX_TEXT],
        detail=detail[:MAX_DETAIL],
        payload=(record.value if record is not None and not payload else payload)[:MAX_PAYLOAD],
        payload_type=payload_type,
        at_us=now_us(),
        table=table[:MAX_NAME],
        row=row[:MAX_NAME],
    )
    if header is not None and header.ByteSize() <= MAX_HEADER:
        letter.header.CopyFrom(header)
    elif header is not None:
        letter.header.trace_id = header.trace_id[:MAX_NAME]
        letter.header.lane, letter.header.origin_us = header.lane, header.origin_us
    if record is not None:
        letter.topic, letter.partition, letter.offset = record.topic, record.partition, record.offset
    return letter


def out_record(letter: pb.DeadLetter) -> OutRecord:
    """Return the record that puts a dead letter into the log."""
    return OutRecord(DEAD_LETTERS, letter.row or letter.stage, letter.SerializeToString())


M = TypeVar("M", bound=Message)


def parse(message_type: type[M], record: Record) -> M:
    """Parse a record's value. Raises BadMessage naming topic, partition and offset."""
    message = message_type()
    try:
        message.ParseFromString(record.value)
    except DecodeError as error:
        raise BadMessage(
            f"{record.topic}[{record.partition}]@{record.offset} is not a {message_type.DESCRIPTOR.name}: {error}"
        ) from error
    return message
