"""Stored documents, made small: each an LZ4 block of its own that may refer to a dictionary, a sample of the documents.

So one document is one block, however many others there are, and reading one holds the interpreter's lock for less time
than giving it back and waiting for it takes.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from manas import kernels
from manas._exceptions import InvalidDocument, SegmentCorrupt
from manas.kernels.stored_layout import HASH_BITS, Expand, Squeeze

_DICTIONARY_BYTES = 32 << 10
"""Of a dictionary, at most: documents that are as long again still reach all of it. Twice as much saves 3 %."""
_SHARE = 16
"""A dictionary is at most so small a part of the first batch: in a small segment it would cost more than it saves."""
LONGEST = (1 << 31) - (1 << 17)
"""Bytes of a document: places in it and in the dictionary before it are 32-bit numbers."""
_ROOM = 1 << 14
"""Bytes that a thread expands documents into before it meets a longer one."""


class Squeezer:
    """Makes blocks of the documents of one family; the first batch gives the dictionary."""

    def __init__(self) -> None:
        self.dictionary = b""
        self.bytes = 0
        """Of the documents so far, as they came."""
        self.longest = 0
        """Bytes of the longest of them."""
        self._work = np.empty(0, np.uint8)
        self._links = self._looked = np.empty(0, np.int32)
        self._heads: npt.NDArray[np.int32] | None = None

    def add(self, documents: Sequence[bytes]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """Return the blocks of these documents, one behind the other, and where each ends. Raises InvalidDocument."""
        lengths = np.fromiter(map(len, documents), np.int64, len(documents))
        longest = int(lengths.max(initial=0))
        if longest > LONGEST:
            raise InvalidDocument(f"a document has more than {LONGEST} bytes")
        first = self._heads is None
        if self._heads is None:
            self.dictionary = _sample(documents, lengths)
            self._heads = np.full(1 << HASH_BITS, -1, np.int32)
        self._make_room(longest)
        self.longest = max(self.longest, longest)
        starts = np.concatenate([[0], np.cumsum(lengths)])
        whole = np.frombuffer(b"".join(documents), np.uint8)
        self.bytes += len(whole)
        out = np.empty(len(whole) + len(whole) // 255 + 16 * len(documents), np.uint8)
        ends = np.empty(len(documents), np.int64)
        p = np.zeros(Squeeze.COUNT, np.int64)
        p[Squeeze.SOURCE], p[Squeeze.STARTS] = whole.ctypes.data, starts.ctypes.data
        p[Squeeze.DOCUMENTS], p[Squeeze.INDEXED] = len(documents), not first
        p[Squeeze.WORK], p[Squeeze.DICTIONARY] = self._work.ctypes.data, len(self.dictionary)
        p[Squeeze.HEADS], p[Squeeze.LINKS] = self._heads.ctypes.data, self._links.ctypes.data
        p[Squeeze.LOOKED] = self._looked.ctypes.data
        p[Squeeze.OUT], p[Squeeze.ENDS] = out.ctypes.data, ends.ctypes.data
        kernels.load().squeeze(p.ctypes.data)
        return out[: int(ends[-1]) if len(ends) else 0], ends

    def _make_room(self, longest: int) -> None:
        wanted = len(self.dictionary) + longest
        if len(self._work) >= wanted and len(self._work):
            return
        work, links = np.empty(wanted, np.uint8), np.empty(wanted, np.int32)
        work[: len(self.dictionary)] = np.frombuffer(self.dictionary, np.uint8)
        kept = self._links[: len(self.dictionary)]
        links[: len(kept)] = kept
        self._work, self._links, self._looked = work, links, np.empty(longest, np.int32)


def _sample(documents: Sequence[bytes], lengths: npt.NDArray[np.int64]) -> bytes:
    """Return a dictionary: documents evenly spread over these, as many as it may have bytes for."""
    most = min(_DICTIONARY_BYTES, int(lengths.sum()) // _SHARE)
    short = np.flatnonzero(lengths <= most)
    if not len(short):
        return b""
    wanted = max(1, int(most // max(1.0, float(lengths[short].mean()))))
    chosen, size = [], 0
    for place in short[np.linspace(0, len(short) - 1, min(wanted, len(short))).astype(np.int64)].tolist():
        if size + len(documents[place]) <= most:
            chosen.append(documents[place])
            size += len(documents[place])
    return b"".join(chosen)


class _Room(threading.local):
    """Where a thread expands documents; its parameters stay, because setting up arrays takes longer than expanding."""

    def __init__(self) -> None:
        self.p = (ctypes.c_int64 * Expand.COUNT)()
        self.where = ctypes.addressof(self.p)
        self.grow(_ROOM)

    def grow(self, size: int) -> None:
        """Have room for a document of so many bytes."""
        self.out = np.empty(size, np.uint8)
        self.bytes = self.out.data
        self.p[Expand.OUT], self.p[Expand.ROOM] = self.out.ctypes.data, size


_room = _Room()


class Blocks:
    """The documents of one family of a segment, mapped. Safe for threads."""

    def __init__(
        self,
        file: Path,
        blob: npt.NDArray[np.uint8],
        dictionary: npt.NDArray[np.uint8],
        starts: npt.NDArray[Any],
        lengths: npt.NDArray[Any],
        longest: int,
    ) -> None:
        """`file` is what `blob` maps; `starts` and `lengths` are of the blocks; `longest` is in expanded bytes."""
        self._file, self._size, self._longest = file, len(blob), longest
        self._starts, self._lengths = starts, lengths
        self._keep = blob, dictionary
        self._blob, self._dictionary = blob.ctypes.data, dictionary.ctypes.data
        self._dictionary_bytes = len(dictionary)
        self._expand = kernels.load().brief.expand

    def __getitem__(self, internal: int) -> bytes:
        """Return a document. Raises SegmentCorrupt."""
        start, length = int(self._starts[internal]), int(self._lengths[internal])
        if start + length <= self._size:
            if _room.p[Expand.ROOM] < self._longest:
                _room.grow(self._longest)
            p = _room.p
            p[Expand.SOURCE], p[Expand.LENGTH] = self._blob + start, length
            p[Expand.DICTIONARY], p[Expand.DICTIONARY_LENGTH] = self._dictionary, self._dictionary_bytes
            self._expand(_room.where)
            if (size := p[Expand.SIZE]) >= 0:
                return _room.bytes[:size].tobytes()
        raise SegmentCorrupt(str(self._file), f"has no document of {length} bytes at byte {start}")
