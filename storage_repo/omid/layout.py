"""How Apache Omid 1.1 keeps transactions in HBase, byte for byte: data, shadow cells, commit table. Pure functions.

A transaction writes its cells at the version of its start timestamp. Its commit shows in the commit table first, then
in a shadow cell beside every cell, which holds the commit timestamp; the entry in the commit table then goes.
Versions start .. start + 49 belong to one transaction.
"""

from __future__ import annotations

from dataclasses import dataclass

VERSIONS_PER_TRANSACTION = 50
"""Timestamps are multiples of this, so that a transaction can set checkpoints in between (Java clients do)."""

SHADOW_PREFIX = b"\x00\xc2\x80"
SHADOW_SUFFIX = b"\xc2\x80"
TOMBSTONE = b""
"""Value of a deleted cell; so an empty value cannot be stored."""
LEGACY_TOMBSTONE = b"__OMID_TOMBSTONE__"
FAMILY_DELETE_QUALIFIER = b""
"""A tombstone here hides all older cells of its family."""

COMMIT_TABLE = b"OMID_COMMIT_TABLE"
COMMIT_FAMILY = b"F"
COMMIT_COLUMN = b"F:C"
INVALID_COLUMN = b"F:IT"
INVALID_VALUE = b"\x00\x00\x00\x01"
LOW_WATERMARK_ROW = b"LOW_WATERMARK"
LOW_WATERMARK_FAMILY = b"LWF"
LOW_WATERMARK_COLUMN = b"LWF:LWC"

TIMESTAMP_TABLE = b"OMID_TIMESTAMP_TABLE"
TIMESTAMP_ROW = b"MAX_TIMESTAMP_R"
TIMESTAMP_COLUMN = b"MAX_TIMESTAMP_CF:MAX_TIMESTAMP_Q"

_COMMIT_TABLE_BUCKETS = 16
_CONTINUES = 0x80
_LONGEST_VARINT = 10
_MAX_INT64 = (1 << 63) - 1


class MalformedCell(ValueError):
    """Raised when a cell that Omid should have written cannot be one; the message has its bytes."""


@dataclass(frozen=True, slots=True)
class CommitEntry:
    """What the commit table says of a transaction: committed at `commit_ts`, or invalidated (None)."""

    commit_ts: int | None


def start_of(version: int) -> int:
    """Return the start timestamp of the transaction that a cell's version belongs to."""
    return version - version % VERSIONS_PER_TRANSACTION


def shadow_qualifier(qualifier: bytes) -> bytes:
    """Return the qualifier of the shadow cell beside a data cell; of b"" that of a family's delete marker."""
    return SHADOW_PREFIX + qualifier + SHADOW_SUFFIX


def is_shadow(qualifier: bytes) -> bool:
    """Tell whether this is a shadow cell's qualifier, of the present form or of Omid's first one, without a prefix.

    Such qualifiers are not for users' cells.
    """
    return qualifier.endswith(SHADOW_SUFFIX) and len(qualifier) > len(SHADOW_SUFFIX)


def data_qualifier(shadow: bytes) -> bytes:
    """Return the qualifier of the data cell beside a shadow cell. Raises MalformedCell for other qualifiers."""
    if not is_shadow(shadow):
        raise MalformedCell(f"{shadow!r} is not the qualifier of a shadow cell")
    if shadow.startswith(SHADOW_PREFIX) and len(shadow) > len(SHADOW_PREFIX):
        return shadow[len(SHADOW_PREFIX) : -len(SHADOW_SUFFIX)]
    return shadow[: -len(SHADOW_SUFFIX)]


def is_tombstone(value: bytes) -> bool:
    """Tell whether a data cell's value says that the cell is deleted."""
    return value in (TOMBSTONE, LEGACY_TOMBSTONE)


def is_family_delete(qualifier: bytes, value: bytes) -> bool:
    """Tell whether a cell is the marker that hides all older cells of its family."""
    return qualifier == FAMILY_DELETE_QUALIFIER and value == TOMBSTONE


def encode_timestamp(ts: int) -> bytes:
    """Return the 8 bytes that a shadow cell, the low watermark and the timestamp table hold."""
    return ts.to_bytes(8, "big", signed=True)


def decode_timestamp(value: bytes) -> int:
    """Return the timestamp that a shadow cell holds. Raises MalformedCell."""
    if len(value) != 8:
        raise MalformedCell(f"a timestamp has 8 bytes, not {value!r}")
    return int.from_bytes(value, "big", signed=True)


def commit_key(start_ts: int) -> bytes:
    """Return the row of a transaction in the commit table, for its start timestamp or any of its versions."""
    start = start_of(start_ts)
    return bytes((start % _COMMIT_TABLE_BUCKETS,)) + start.to_bytes(8, "big")


def start_of_commit_key(key: bytes) -> int:
    """Return the start timestamp of a row of the commit table. Raises MalformedCell."""
    if len(key) != 9 or key[0] != key[8] % _COMMIT_TABLE_BUCKETS:
        raise MalformedCell(f"{key!r} is not the row of a transaction in the commit table")
    return int.from_bytes(key[1:], "big")


def encode_commit(start_ts: int, commit_ts: int) -> bytes:
    """Return what the commit table's F:C holds for a transaction."""
    return encode_varint(commit_ts - start_of(start_ts))


def decode_commit(start_ts: int, value: bytes) -> int:
    """Return the commit timestamp that F:C holds in the row of `start_ts`. Raises MalformedCell."""
    return start_of(start_ts) + decode_varint(value)


def commit_entry(start_ts: int, committed: bytes | None, invalid: bytes | None) -> CommitEntry | None:
    """Return what the cells F:C and F:IT of a transaction's row say; None if there is neither.

    None means: never committed, still running, or committed and cleaned up long ago.
    """
    if invalid is not None:
        return CommitEntry(None)  # it wins: a server that had lost its lease may still have written the other
    return None if committed is None else CommitEntry(decode_commit(start_ts, committed))


def encode_varint(number: int) -> bytes:
    """Return a protobuf varint of a non-negative 63-bit number."""
    if not 0 <= number <= _MAX_INT64:
        raise ValueError(f"{number} is not within 0..2^63-1")
    out = bytearray()
    while number >= _CONTINUES:
        out.append(number & 0x7F | _CONTINUES)
        number >>= 7
    out.append(number)
    return bytes(out)


def decode_varint(value: bytes) -> int:
    """Return the number of a varint that fills `value`. Raises MalformedCell."""
    number = 0
    for index, byte in enumerate(value[:_LONGEST_VARINT]):
        number |= (byte & 0x7F) << 7 * index
        if byte < _CONTINUES:
            if index + 1 != len(value) or number > _MAX_INT64:
                break
            return number
    raise MalformedCell(f"{value!r} is not a varint of 63 bits")
