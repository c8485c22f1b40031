"""Places in the parameters of the kernels that pack posting lists and unpack them."""

from __future__ import annotations

from typing import NamedTuple

RUN_IDS = 128
"""Ids of a packed list that share a width: as many as share a bound for their payloads."""


class _Pack(NamedTuple):
    """Places in the parameters of `pack`."""

    IDS: int = 0
    COUNTS: int = 1
    LISTS: int = 2
    OUT: int = 3
    PLACES: int = 4
    END: int = 5
    COUNT: int = 6


class _Unpack(NamedTuple):
    """Places in the parameters of `unpack`."""

    SOURCE: int = 0
    ROOM: int = 1
    """Bytes from SOURCE to the end of the file."""
    IDS: int = 2
    """Of the list."""
    LIMIT: int = 3
    """No id may reach it."""
    OUT: int = 4
    AS_BITS: int = 5
    """OUT takes the bits of a bitmap (zeros before) instead of ids."""
    DAMAGED: int = 6
    COUNT: int = 7


Pack, Unpack = _Pack(), _Unpack()
