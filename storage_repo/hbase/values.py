"""Values between the Repo, where the empty value is a value, and Omid, where it is a tombstone.

Ordinary values are stored as they are, so Java clients read and write them unchanged. Only what Omid would take for a
tombstone, and what would be taken for such an escape, is stored with C1 in front: a byte that neither UTF-8 nor
MessagePack ever begins with. Values of Java clients that begin with C1 come back unchanged unless they look like an
escape themselves (C1 alone, C1 C1…, or C1 and the old tombstone text).
"""

from __future__ import annotations

from storage_repo.omid.layout import LEGACY_TOMBSTONE

_ESCAPE = b"\xc1"
_ESCAPED_TOMBSTONE = _ESCAPE + LEGACY_TOMBSTONE


def encode_value(value: bytes) -> bytes:
    """Return what is stored for a value; never a tombstone."""
    if not value or value == LEGACY_TOMBSTONE or (value[0] == 0xC1 and _is_escape(value)):
        return _ESCAPE + value
    return value


def decode_value(stored: bytes) -> bytes:
    """Return the value of a stored one that is no tombstone."""
    return stored[1:] if stored[0] == 0xC1 and _is_escape(stored) else stored


def _is_escape(stored: bytes) -> bool:
    return len(stored) == 1 or stored[1] == 0xC1 or stored == _ESCAPED_TOMBSTONE
