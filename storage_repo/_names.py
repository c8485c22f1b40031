"""Which table, row and column names are good, in every engine: checked when they are given, encoded as UTF-8."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from storage_repo._exceptions import LimitExceeded, UnknownTable

MAX_ROW_BYTES = 400
"""What the interface allows; longer natural keys (URLs) have to be hashed by the caller."""

MAX_ROW_AND_COLUMN_BYTES = 500
"""LMDB 0.9 keys have at most 511 bytes; a history key adds the table, two separators and a timestamp: 11 bytes."""

_bad_in_row = re.compile("[\x00-\x1e]").search
_bad_in_column = re.compile("[\x00-\x1f]").search


def encode_row(table: str, row: str) -> bytes:
    """Return a row key's bytes. Raises LimitExceeded."""
    if not row:
        raise LimitExceeded(f"row key of table {table} is empty; give it at least one byte")
    if bad := _bad_in_row(row):
        raise LimitExceeded(
            f"row key {table}/{row[:80]!r} has control character {bad.group()!r} at {bad.start()}; "
            "only U+001F is allowed"
        )
    encoded = _utf8(row, "row key", table)
    if len(encoded) > MAX_ROW_BYTES:
        raise LimitExceeded(
            f"row key {table}/{row[:80]!r}... has {len(encoded)} bytes, the limit is {MAX_ROW_BYTES}; "
            "hash long natural keys"
        )
    return encoded


def encode_bound(table: str, text: str) -> bytes:
    """Return the bytes of a scan's bound, which may be any text; what is longer than all keys is cut."""
    return _utf8(text, "scan bound", table)[:MAX_ROW_AND_COLUMN_BYTES]


def encode_column(table: str, families: Collection[str], column: str) -> bytes:
    """Return a column's bytes. Raises UnknownTable for an undeclared family, LimitExceeded."""
    family, colon, qualifier = column.partition(":")
    if not colon or not qualifier:
        raise LimitExceeded(f"column {column[:80]!r} of table {table} is not of the form family:qualifier")
    if family not in families:
        known = ", ".join(sorted(families)) or "none"
        raise UnknownTable(f"table {table} has no column family {family!r} (its families: {known}); declare it")
    if bad := _bad_in_column(column):
        raise LimitExceeded(f"column {column[:80]!r} of table {table} has control character {bad.group()!r}")
    encoded = _utf8(column, "column", table)
    if len(encoded) >= MAX_ROW_AND_COLUMN_BYTES:
        raise LimitExceeded(
            f"column {column[:80]!r}... of table {table} has {len(encoded)} bytes; row and column together "
            f"may have {MAX_ROW_AND_COLUMN_BYTES}"
        )
    return encoded


def check_cell(table: str, row: str, column: str, size: int) -> None:
    """Raise LimitExceeded if row and column have more bytes together (`size`) than a cell's key may."""
    if size > MAX_ROW_AND_COLUMN_BYTES:
        raise LimitExceeded(
            f"cell {table}/{row[:80]!r} {column[:80]}: row and column have {size} bytes together, "
            f"the limit is {MAX_ROW_AND_COLUMN_BYTES}; shorten the qualifier"
        )


def unknown_table(table: str, known: Iterable[str]) -> UnknownTable:
    """Return the error for a table that the schema does not have."""
    names = ", ".join(sorted(known)) or "none"
    return UnknownTable(f"table {table!r} is not in the schema (its tables: {names}); declare it")


def _utf8(text: str, what: str, table: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise LimitExceeded(
            f"{what} {text[:80]!r} of table {table} is not Unicode text: {error.reason} at {error.start}"
        ) from error
