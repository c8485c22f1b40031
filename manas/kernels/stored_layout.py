"""Places in the parameters of the kernels that squeeze stored documents, expand them again, and find them by id."""

from __future__ import annotations

from typing import NamedTuple

HASH_BITS = 14
"""Of the four bytes by which matches are looked for: a table of them stays in a core's own cache."""
FARTHEST = 65_535
"""Bytes that a match may lie back: two bytes of LZ4."""


class _Squeeze(NamedTuple):
    """Places in the parameters of `squeeze`."""

    SOURCE: int = 0
    """Documents, one behind the other."""
    STARTS: int = 1
    """int64 by document, and the end."""
    DOCUMENTS: int = 2
    WORK: int = 3
    """The dictionary, and room behind it for the longest document."""
    DICTIONARY: int = 4
    """Its bytes."""
    HEADS: int = 5
    """int32 by hash, -1 or the last place in WORK that has it."""
    LINKS: int = 6
    """int32 by place in WORK: the one before with its hash."""
    LOOKED: int = 7
    """int32, room for as many as the longest document has bytes."""
    INDEXED: int = 8
    """Not 0: HEADS and LINKS have the dictionary already."""
    OUT: int = 9
    ENDS: int = 10
    """int64 by document: where its block ends in OUT."""
    COUNT: int = 11


class _Expand(NamedTuple):
    """Places in the parameters of `expand`."""

    SOURCE: int = 0
    LENGTH: int = 1
    DICTIONARY: int = 2
    DICTIONARY_LENGTH: int = 3
    OUT: int = 4
    ROOM: int = 5
    SIZE: int = 6
    """Bytes put into OUT; -1 where this is no block, or one of more than ROOM bytes."""
    COUNT: int = 7


class _Locate(NamedTuple):
    """Places in the parameters of `locate`."""

    ORDER: int = 0
    WIDTH: int = 1
    """Bytes of an id in ORDER."""
    DOCUMENTS: int = 2
    TIES: int = 3
    TIE_BYTES: int = 4
    """Of what is in TIES: 4 (unsigned) or 8 (signed)."""
    KEY: int = 5
    PLACE: int = 6
    """The first in ORDER whose tie key is not below KEY."""
    ID: int = 7
    """The id there, if its tie key is KEY; else -1. -2: ORDER has an id that no document has."""
    COUNT: int = 8


Squeeze, Expand, Locate = _Squeeze(), _Expand(), _Locate()
