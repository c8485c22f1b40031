"""Keys of several columns: how they are declared, and the row key that their values make.

A declaration joins the column names with commas: "actor_id,film_id". A row key joins the values the same way: "7,112".
A comma or percent sign within a value is percent-encoded, so different values never make the same row key. A key of one
column is its value, unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence

SEPARATOR = ","
ESCAPES = (("%", "%25"), (SEPARATOR, "%2C"))
"""In this order, so that an escape is not escaped again."""


def key_columns(key: str) -> tuple[str, ...]:
    """Return the columns of a declared key."""
    return tuple(key.split(SEPARATOR))


def join_key(values: Sequence[object]) -> object:
    """Return the key that column values make: of one column the value itself, of several a text; None if one is null.

    A value that is not text or a whole number (a float, bytes that are no UTF-8) makes no row key: it is returned as
    it is, for whoever checks keys to refuse.
    """
    if len(values) == 1:
        return values[0]
    parts = []
    for value in values:
        if value is None or isinstance(value, bool) or not isinstance(value, str | int):
            return value
        text = str(value)
        for plain, escape in ESCAPES:
            text = text.replace(plain, escape)
        parts.append(text)
    return SEPARATOR.join(parts)


def split_key(key: str) -> tuple[str, ...]:
    """Return the values of a row key that several columns made, as text."""
    parts = []
    for part in key.split(SEPARATOR):
        text = part
        for plain, escape in reversed(ESCAPES):
            text = text.replace(escape, plain)
        parts.append(text)
    return tuple(parts)
