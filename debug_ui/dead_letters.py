"""Dead letters: listed newest first, explained one by one, and published again."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

import structlog
from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message

from debug_ui._exceptions import BadInput, NotReplayable
from debug_ui._values import MAX_SHOWN
from debug_ui.views import DeadLetterView, View
from messaging import OutRecord, Record
from messaging.api import Log
from messaging.dead_letters import MAX_PAYLOAD
from messaging.headers import lane_of
from messaging.proto import adsindex_pb2 as pb
from messaging.topics import DEAD_LETTERS, DEFERRED, NOTIFICATIONS, SIGNALS, UPDATES

_MESSAGES: dict[str, type[Message]] = {
    "Change": pb.Change,
    "EntityUpdate": pb.EntityUpdate,
    "Notification": pb.Notification,
    "DocumentDelta": pb.DocumentDelta,
    "BudgetState": pb.BudgetState,
}
REPLAYABLE: dict[str, type[Message]] = {
    **dict.fromkeys(UPDATES.values(), pb.EntityUpdate),
    **dict.fromkeys((*NOTIFICATIONS.values(), DEFERRED), pb.Notification),
    SIGNALS: pb.EntityUpdate,
}
"""Topics whose consumers judge messages by version, so that publishing one twice does no harm."""
_CHUNK = 500
SCANNED = 20_000
"""Newest dead letters that a list or count looks at: bounds the time of a page when millions have piled up."""

_log = structlog.get_logger()


def newest_first(log: Log, limit: int = SCANNED) -> Iterator[tuple[Record, pb.DeadLetter | None]]:
    """Yield up to `limit` records of the dead letter topic, newest first; None stands for one that does not parse."""
    if DEAD_LETTERS not in log.topics():
        return
    starts = log.start_offsets(DEAD_LETTERS)
    left = limit
    for partition, newest in log.end_offsets(DEAD_LETTERS).items():
        end = newest
        while end > starts.get(partition, 0) and left > 0:
            begin = max(starts.get(partition, 0), end - min(_CHUNK, left))
            records = [r for r in log.read(DEAD_LETTERS, partition, begin, end - begin) if r.offset < end]
            for record in reversed(records):
                yield record, _parsed(record)
            left -= end - begin
            end = begin


def _parsed(record: Record) -> pb.DeadLetter | None:
    try:
        return pb.DeadLetter.FromString(record.value)
    except DecodeError:
        return None


def list_dead_letters(
    log: Log,
    *,
    stage: str = "",
    reason: str = "",
    table: str = "",
    row: str = "",
    limit: int = 100,
) -> list[DeadLetterView]:
    """Return the newest dead letters that fit every given filter."""
    found: list[DeadLetterView] = []
    for record, parsed in newest_first(log):
        letter = parsed if parsed is not None else _unreadable(record)
        if (
            (not stage or letter.stage == stage)
            and (not reason or letter.reason == reason)
            and (not table or letter.table == table)
            and (not row or letter.row == row)
        ):
            found.append(_view(record, letter))
            if len(found) >= limit:
                break
    return found


class DeadLetterCount(View):
    """How many dead letters one stage wrote for one reason."""

    stage: str
    reason: str
    count: int


def count_dead_letters(log: Log) -> list[DeadLetterCount]:
    """Return counts by stage and reason over the newest `SCANNED` dead letters, most frequent first."""
    counts = Counter(
        (letter.stage, letter.reason) if letter is not None else ("?", "unreadable") for _, letter in newest_first(log)
    )
    return [DeadLetterCount(stage=s, reason=r, count=n) for (s, r), n in counts.most_common()]


def read_dead_letter(log: Log, partition: int, offset: int) -> DeadLetterView:
    """Return one dead letter with its payload made readable. Raises BadInput, OffsetTrimmed."""
    record, letter = _read(log, partition, offset)
    return _view(record, letter, payload=True)


def replay(log: Log, partition: int, offset: int) -> OutRecord:
    """Publish a dead letter's payload to the topic that it came from and return what was published.

    The dead letter stays in its topic. Doing it twice is safe: the stages judge messages by their version.
    Raises BadInput, NotReplayable, LogError.
    """
    _, letter = _read(log, partition, offset)
    if hint := _why_not(letter):
        raise NotReplayable(hint)
    topic = _target(letter)
    out = OutRecord(topic, _key(log, letter), letter.payload)
    log.publish([out])
    _log.info("dead_letter.replayed", offset=offset, topic=topic, key=out.key, reason=letter.reason, stage=letter.stage)
    return out


def _target(letter: pb.DeadLetter) -> str:
    """Return the topic that a replay goes to: the origin, or what the stage would have read its payload from."""
    if letter.topic in REPLAYABLE:
        return letter.topic
    if letter.topic or not letter.payload:
        return ""
    lane = lane_of(letter.header)
    if letter.payload_type == "Notification":
        return NOTIFICATIONS[lane]
    if letter.payload_type == "EntityUpdate":
        try:
            update = pb.EntityUpdate.FromString(letter.payload)
        except DecodeError:
            return ""
        return UPDATES[lane] if update.source == "ads_db" else SIGNALS
    return ""


def _key(log: Log, letter: pb.DeadLetter) -> str:
    """Return the key of the record that became this letter, so that the replay keeps its order with its row."""
    if letter.topic in REPLAYABLE:
        kept = log.start_offsets(letter.topic).get(letter.partition, 0)
        end = log.end_offsets(letter.topic).get(letter.partition, 0)
        if kept <= letter.offset < end:
            for original in log.read(letter.topic, letter.partition, letter.offset, 1):
                if original.offset == letter.offset:
                    return original.key
    return letter.row


def _read(log: Log, partition: int, offset: int) -> tuple[Record, pb.DeadLetter]:
    if DEAD_LETTERS in log.topics():
        end = log.end_offsets(DEAD_LETTERS).get(partition, 0)
        if 0 <= offset < end:
            for record in log.read(DEAD_LETTERS, partition, offset, 1):
                if record.offset == offset:
                    return record, _parsed(record) or _unreadable(record)
    raise BadInput(f"there is no dead letter at {partition}/{offset}")


def _unreadable(record: Record) -> pb.DeadLetter:
    return pb.DeadLetter(
        stage="?",
        reason="unreadable",
        error=f"{record.topic}[{record.partition}]@{record.offset} is not a DeadLetter message",
        detail=record.value[:400].hex(),
        at_us=record.appended_us,
    )


def _why_not(letter: pb.DeadLetter) -> str:
    """Return why a dead letter cannot be replayed and what to do instead, "" if it can be."""
    if letter.payload and len(letter.payload) >= MAX_PAYLOAD:
        return f"its payload was cut at {MAX_PAYLOAD} bytes; correct {letter.table} {letter.row} in the ads DB instead"
    topic = _target(letter)
    if not topic:
        where = f"{letter.table} {letter.row}" if letter.table else "the row"
        return (
            f"it did not come from a topic that can take it again (origin: {letter.topic or 'the ads DB'}); correct "
            f"{where} in the ads DB, and the change goes through the pipeline by itself"
        )
    if not letter.payload:
        return "it holds no payload"
    try:
        REPLAYABLE[topic].FromString(letter.payload)
    except DecodeError:
        return f"its payload is no message of topic {topic}, and would become a dead letter again"
    return ""


def _view(record: Record, letter: pb.DeadLetter, *, payload: bool = False) -> DeadLetterView:
    hint = _why_not(letter)
    return DeadLetterView(
        partition=record.partition,
        offset=record.offset,
        at_us=letter.at_us or record.appended_us,
        stage=letter.stage,
        handler=letter.handler,
        reason=letter.reason,
        error=letter.error,
        detail=letter.detail,
        table=letter.table,
        row=letter.row,
        lane=lane_of(letter.header).value,
        trace_id=letter.header.trace_id,
        topic=letter.topic,
        source_partition=letter.partition,
        source_offset=letter.offset,
        payload_type=letter.payload_type,
        payload_bytes=len(letter.payload),
        payload=_readable(letter) if payload else "",
        replayable=not hint,
        replay_hint=hint,
    )


def _readable(letter: pb.DeadLetter) -> str:
    kind = _MESSAGES.get(letter.payload_type) or REPLAYABLE.get(letter.topic)
    if kind is not None:
        try:
            text = json_format.MessageToJson(kind.FromString(letter.payload), preserving_proto_field_name=True)
            return text[:MAX_SHOWN]
        except (DecodeError, ValueError):
            pass  # Not that message after all: the bytes themselves are the best that can be shown.
    return re.sub(r"(.{64})", r"\1\n", letter.payload[: MAX_SHOWN // 2].hex())
