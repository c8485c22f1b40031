"""What both logs accept: names, sizes of records, positions, and which partition a key belongs to."""

from __future__ import annotations

import re
import zlib

from messaging._exceptions import LogError, RecordTooLarge
from messaging.api import OutRecord, Position

MAX_RECORD_BYTES = 8 << 20
"""Largest key and value together. A servable document has a few KiB; what is over this is an accident of the input."""
MAX_METADATA_BYTES = 4096
"""Of a position: the default of Kafka's offset.metadata.max.bytes."""

_MAX_KEY_BYTES = 0xFFFF  # its length has two bytes in the embedded log
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")  # also names of files and parts of LMDB keys (511 bytes)


def check_name(kind: str, name: str) -> str:
    """Return the name of a topic, group or member, or raise LogError if it cannot be one."""
    if not _NAME.fullmatch(name):
        raise LogError(f"{name!r} cannot name a {kind}: use up to 200 letters, digits, '.', '_' and '-', no '.' first")
    return name


def check_position(position: Position) -> None:
    """Raise LogError for a position that cannot be stored."""
    if not 0 <= position.offset < 1 << 63:
        raise LogError(f"{position} cannot be stored: an offset is 0 or more and has 63 bits")
    if len(position.metadata.encode()) > MAX_METADATA_BYTES:
        raise LogError(
            f"the metadata of {position.group} on {position.topic}[{position.partition}] has "
            f"{len(position.metadata.encode())} bytes, the limit is {MAX_METADATA_BYTES}"
        )


def encode_key(record: OutRecord) -> bytes:
    """Return the stored form of a record's key. Raises RecordTooLarge when the record is over the limit."""
    key = record.key.encode("utf-8", "surrogatepass")
    length = len(key) + len(record.value)
    if length > MAX_RECORD_BYTES or len(key) > _MAX_KEY_BYTES:
        raise RecordTooLarge(
            f"a record for {record.topic} with key {record.key[:100]!r} has {length} bytes, {len(key)} of them "
            f"key; the limits are {MAX_RECORD_BYTES} and {_MAX_KEY_BYTES}"
        )
    return key


def partition_of(key: bytes, partitions: int) -> int:
    """Return the partition of a key: CRC-32 modulo the number of partitions, on either log."""
    return zlib.crc32(key) % partitions
