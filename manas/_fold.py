"""Fold deltas into a segment, in a process of its own: `python -m manas._fold`, with a pickled `FoldOrder` as input.

Writing a segment of ten thousand documents takes a second of Python, during which a server could answer thousands of
requests: so it is done elsewhere, at low priority, and the server maps the result.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import struct
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np

from catalog import Catalog
from manas._delta import Delta, Entry
from manas._fold_files import SEGMENT, Fold, write_entries
from manas._layer import Ids
from manas._writer import SegmentWriter
from manas.segment import Segment

_NICE = 10
_LENGTH = struct.Struct("<I")
Row = tuple[str, int, bytes, int, bytes | None]
"""Document id, version, header, answerable since, body (None: a tombstone)."""


@dataclass(frozen=True, slots=True)
class FoldOrder:
    """What to fold and where to write it."""

    directory: Path
    """Of the folded segment; must not exist."""
    input: Path
    """The delta's rows, written by `write_rows`."""
    catalog: Catalog
    merged: tuple[Path, ...]
    """Older folded segments that are merged into this one, oldest first."""
    lower: tuple[tuple[str, Path], ...]
    """Layers that stay below it: name and segment directory, oldest first."""
    delta_positions: Mapping[int, int]
    parent: int
    """Process that waits for it: with that one gone there is nothing to do."""


def delta_rows(delta: Delta) -> Iterator[Row]:
    """Yield everything that a delta which changes no more knows, dead documents of it included."""
    for document_id, entry in delta.entries.items():
        body = None if entry.slot < 0 else delta.body(entry.slot)
        yield document_id, entry.version, entry.header, entry.answerable_us, body


def write_rows(handle: BinaryIO, rows: list[Row]) -> None:
    """Append rows to an input file."""
    data = msgspec.msgpack.encode(rows)
    handle.write(_LENGTH.pack(len(data)) + data)


def read_rows(file: Path) -> Iterator[Row]:
    """Yield the rows of an input file."""
    decoder = msgspec.msgpack.Decoder(list[Row])
    with file.open("rb") as handle:
        while head := handle.read(_LENGTH.size):
            yield from decoder.decode(handle.read(_LENGTH.unpack(head)[0]))


def fold(order: FoldOrder) -> None:
    """Write the folded segment: the newest row of each document wins, the delta over younger over older segments."""
    rows: dict[bytes, Row] = {}
    for row in read_rows(order.input):
        rows[_name(row[0])] = row
    for directory in reversed(order.merged):
        for row in fold_rows(Fold.open(directory)):
            rows.setdefault(_name(row[0]), row)
    order.directory.mkdir()
    alive = ((r[0], r[1], r[4]) for r in rows.values() if r[4] is not None)
    newest = max((row[1] for row in rows.values()), default=0)
    SegmentWriter(order.directory / SEGMENT, order.catalog).write(alive, newest, order.delta_positions, {})
    hides = {name: _hidden(directory, (r[0] for r in rows.values())) for name, directory in order.lower}
    segment = Segment.open(order.directory / SEGMENT, verify=False)
    entries = {}
    for name, (document_id, version, header, answerable_us, body) in rows.items():
        slot = None if body is None else segment.internal(document_id)
        entries[name] = Entry(version, -1 if slot is None else slot, header, answerable_us)
    write_entries(order.directory, entries, hides)


def fold_rows(fold: Fold) -> Iterator[Row]:
    """Yield the rows of a folded segment."""
    for place in range(len(fold)):
        entry = fold.at(place)
        body = None if entry.slot < 0 else fold.segment.body(entry.slot)
        yield fold.document_id(place), entry.version, entry.header, entry.answerable_us, body


def _hidden(directory: Path, document_ids: Iterable[str]) -> Ids:
    segment = Segment.open(directory, verify=False)
    found = [internal for name in document_ids if (internal := segment.internal(name)) is not None]
    return np.array(sorted(found), np.uint32)


def _name(document_id: str) -> bytes:
    return document_id.encode(errors="surrogatepass")


def main() -> None:
    """Do one order; dies with its parent."""
    order: FoldOrder = pickle.load(sys.stdin.buffer)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != order.parent:
        raise SystemExit("the server is gone")
    os.nice(_NICE)
    fold(order)


if __name__ == "__main__":
    main()
