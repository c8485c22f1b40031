"""The posting lists of a segment: found in its dictionary, unpacked when they are asked for, and kept for a while."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from manas import kernels
from manas._bits import Words, blocks_of
from manas._dictionary import Strings
from manas._exceptions import SegmentCorrupt
from manas._lately import Lately
from manas._layer import Ids
from manas._lists import DENSE_BIT, SHORT_DENSE_BIT, encoded, is_dense
from manas._manifest import Manifest
from manas._mapped import map_array, map_strings, map_whole
from manas._postings import Payloads, Posting
from manas.kernels.layout import BLOCK_WORDS
from manas.kernels.list_layout import Unpack

_KEPT_BYTES = 256 << 20
"""Of posting lists looked up lately and unpacked: all common terms of some ten million documents."""
_ENTRY_BYTES = 512
"""What a list takes besides its ids."""
_UNKNOWN = Posting(0, 0)
"""Stands for what was not looked up lately: that a term has no list is kept too."""


class PostingLists:
    """All lists of a segment. Safe for threads."""

    def __init__(self, directory: Path, manifest: Manifest, internal: Callable[[str], int | None]) -> None:
        """`internal` finds a document by its id."""
        self._directory, self._internal = directory, internal
        self._count = manifest.documents
        self._own = frozenset(manifest.keys)
        self._counts = map_array(directory / "postings.counts", np.uint32)
        self._terms = _terms(directory, manifest, len(self._counts))
        self._places = map_whole(directory / "postings.places", len(self._counts))
        self._dense_bit = SHORT_DENSE_BIT if self._places.dtype == np.uint32 else DENSE_BIT
        self._dense = map_array(directory / "postings.dense", np.uint64)
        self._packed = map_array(directory / "postings.packed", np.uint8)
        self._payloads = {
            name: _FieldPayloads(directory, name, len(self._terms[name][1]), "table" in files)
            for name, files in _payload_files(manifest).items()
        }
        self._unpack = kernels.load().unpack
        self._lately = Lately(_KEPT_BYTES)

    def posting(self, field: str, term: str) -> Posting | None:
        """Return the posting list of a term, None when no document has it. Raises SegmentCorrupt."""
        key = field, term
        posting: Posting | None = self._lately.get(key, _UNKNOWN)
        if posting is _UNKNOWN:
            posting = self._read_posting(field, term)
            self._lately.put(key, posting, _ENTRY_BYTES + (0 if posting is None else posting.held))
        return posting

    def _read_posting(self, field: str, term: str) -> Posting | None:
        if field in self._own:
            internal = self._internal(term)
            return None if internal is None else Posting.of(np.array([internal], np.uint32))
        first, terms = self._terms.get(field, (0, None))
        if terms is None:
            return None
        own, found = terms.find(encoded(term))
        if not found:
            return None
        at, count = int(self._places[first + own]), int(self._counts[first + own])
        payloads = self._payloads.get(field)
        if at & self._dense_bit:
            offset = at ^ self._dense_bit
            words = self._dense[offset : offset + blocks_of(self._count) * BLOCK_WORDS]
        elif count > 1 and is_dense(count, self._count, plain=payloads is None):
            words = np.zeros(blocks_of(self._count) * BLOCK_WORDS, np.uint64)
            self._unpack_into(words, at, count)
        else:
            ids = np.empty(count, np.uint32)
            if count == 1:
                ids[0] = at
            else:
                self._unpack_into(ids, at, count)
            return Posting(count, ids.ctypes.data, split=ids, payloads=None if payloads is None else payloads.of(own))
        carried = None if payloads is None else payloads.of(own, _ranks(words))
        return Posting(count, words.ctypes.data, dense=words, payloads=carried)

    def _unpack_into(self, out: npt.NDArray[Any], at: int, count: int) -> None:
        p = np.zeros(Unpack.COUNT, np.int64)
        p[Unpack.SOURCE], p[Unpack.ROOM] = self._packed.ctypes.data + at, len(self._packed) - at
        p[Unpack.IDS], p[Unpack.LIMIT] = count, self._count
        p[Unpack.OUT], p[Unpack.AS_BITS] = out.ctypes.data, out.dtype == np.uint64
        self._unpack(p.ctypes.data)
        if p[Unpack.DAMAGED]:
            raise SegmentCorrupt(str(self._directory / "postings.packed"), f"has no list of {count} ids at byte {at}")


class _FieldPayloads:
    """The payloads of one field's posting lists, mapped."""

    def __init__(self, directory: Path, field: str, terms: int, coded: bool) -> None:
        """`coded`: values are places in a table."""
        self._table = map_array(directory / f"payloads.{field}.table", np.float32) if coded else None
        self._values = map_array(directory / f"payloads.{field}.values", np.uint8 if coded else np.float32)
        self._starts = map_array(directory / f"payloads.{field}.starts", np.uint64, terms + 1)
        self._bounds = map_array(directory / f"payloads.{field}.bounds", np.float32)
        self._bound_starts = map_array(directory / f"payloads.{field}.bound_starts", np.uint64, terms + 1)

    def of(self, own: int, ranks: Ids | None = None) -> Payloads:
        """Return what the list of the field's term number `own` carries."""
        start, stop = self._starts[own : own + 2].tolist()
        bound_start, bound_stop = self._bound_starts[own : own + 2].tolist()
        values = self._values[start:stop]
        if self._table is not None:
            values = self._table[values]
        return Payloads.of(values, self._bounds[bound_start:bound_stop], ranks)


def _ranks(words: Words) -> Ids:
    """Return how many ids of a dense list come before each block."""
    counts = np.bitwise_count(words).reshape(-1, BLOCK_WORDS).sum(axis=1, dtype=np.uint32)
    ranks: Ids = np.cumsum(counts, dtype=np.uint32) - counts
    return ranks


def _terms(directory: Path, manifest: Manifest, lists: int) -> dict[str, tuple[int, Strings]]:
    """Return by field the number of its first list, and its terms."""
    counts = {name: sizes["terms"] for name, sizes in sorted(manifest.postings_by_field.items())}
    if sum(counts.values()) != lists:
        raise ValueError(f"the manifest has {sum(counts.values())} terms, there are {lists} lists")
    found, first = {}, 0
    for name, terms in zip(counts, map_strings(directory, "terms", list(counts.values())), strict=True):
        found[name] = first, terms
        first += len(terms)
    return found


def _payload_files(manifest: Manifest) -> dict[str, set[str]]:
    """Return by field which files its payloads have."""
    found: dict[str, set[str]] = {}
    for file in manifest.files:
        if file.startswith("payloads."):
            name, _, part = file.removeprefix("payloads.").rpartition(".")
            found.setdefault(name, set()).add(part)
    return found
