"""Write the term dictionary and the posting lists with their payloads, column by column.

| file | content |
| --- | --- |
| `terms.blob` | the terms (UTF-8) of all fields, fields by name, terms sorted, front-coded (`_dictionary`) |
| `terms.offsets` | where each group of 16 terms begins, and the end; every field begins a group |
| `postings.places` | by term: where its list is |
| `postings.counts` | uint32 by term: how many ids the list has |
| `postings.dense` | bitmaps over all ids, one bit per id; places count words |
| `postings.packed` | ascending ids as gaps of as many bits as needed (`kernels/_list_source`); places count bytes |
| `payloads.FIELD.values` | of the field's lists in order of the terms, aligned with their ascending ids: float32, or |
| `payloads.FIELD.table` | if there are at most 256 different ones: these (float32); `values` are uint8 places in it |
| `payloads.FIELD.starts` | uint64 by term of the field, and the end: places of each list's values |
| `payloads.FIELD.bounds` | float32, the largest payload of each block (dense list) or of each 128 ids (split list) |
| `payloads.FIELD.bound_starts` | uint64 by term of the field, and the end: places of each list's bounds |

Offsets and places are uint32 where they fit, else uint64: the length of the file tells. The highest bit of a place says
that the list is a bitmap. The place of a list of one id is the id. How many terms a field has is in the manifest.

A list is *dense* from 1/32 of the ids on, else *split*: that is how it is joined, block by block or id by id, and what
its bounds are of. Dense lists of 1/8 of the ids or more are kept as bitmaps; rarer ones take less room packed, and are
made a bitmap when they are first asked for. Payloads are in order of ids for both; in a dense list an id's place is the
number of bits before.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from manas import kernels
from manas._arrays import write_array
from manas._bits import blocks_of, words_of
from manas._columns import Postings
from manas._dictionary import shortest, write_strings
from manas.kernels.layout import BLOCK_IDS, BLOCK_WORDS, BOUND_IDS
from manas.kernels.list_layout import RUN_IDS, Pack

DENSE_BIT, SHORT_DENSE_BIT = 1 << 63, 1 << 31
"""The highest bit of a place as uint64, and as uint32."""
_DENSE_FROM = 1 / 32
"""Share of the ids from which a bitmap is not larger than the list of 32-bit ids."""
_PLAIN_DENSE_FROM = 1 / 128
"""The same in memory, without payloads to be aligned with: from eight ids per block on, two vector instructions and
four times the memory are sooner done than putting ids in one by one."""
_BITMAP_FROM = 1 / 8
"""Share of the ids from which gaps, of six bits then, save less than a quarter of a bitmap."""
_SMALLEST_DENSE = 32
"""Ids of a segment below which no list is dense: everything fits in a page anyway."""
_TABLE = 256
"""Different payloads whose places fit in a byte."""
Sizes = dict[str, int]


def is_dense(count: int, ids: int, *, plain: bool = False) -> bool:
    """Tell whether a list of `count` of so many ids is joined block by block; `plain`: it carries no payloads."""
    return count >= ids * (_PLAIN_DENSE_FROM if plain else _DENSE_FROM) and ids > _SMALLEST_DENSE


class ListWriter:
    """Writes the dictionary and all lists of one segment."""

    def __init__(self, directory: Path, internal: npt.NDArray[np.uint32]) -> None:
        """`internal` gives the internal id of each document by order of input."""
        self._directory = directory
        self._internal = internal
        self._count = len(internal)
        self._words = blocks_of(self._count) * BLOCK_WORDS
        self._places: list[npt.NDArray[np.uint64]] = []
        self._counts: list[npt.NDArray[np.uint32]] = []
        self._dense_at = self._packed_at = 0
        self.sizes: dict[str, Sizes] = {}

    def write(self, fields: Mapping[str, Postings]) -> dict[str, Sizes]:
        """Write everything; return per field how many lists of each kind there are, and their bytes."""
        offsets = [0]
        with (
            (self._directory / "terms.blob").open("xb") as blob,
            (self._directory / "postings.dense").open("xb") as dense,
            (self._directory / "postings.packed").open("xb") as packed,
        ):
            for name in sorted(fields):
                offsets += write_strings(blob, list(map(encoded, fields[name].terms)), offsets[-1])
                self.sizes[name] = self._field(name, fields[name], dense, packed)
        self._save("terms.offsets", shortest(np.array(offsets, np.uint64)))
        places = np.concatenate([np.empty(0, np.uint64), *self._places])
        if max(self._dense_at, self._packed_at, self._count) < SHORT_DENSE_BIT:
            places = np.where(places >= DENSE_BIT, places - DENSE_BIT + SHORT_DENSE_BIT, places).astype(np.uint32)
        self._save("postings.places", places)
        self._save("postings.counts", np.concatenate([np.empty(0, np.uint32), *self._counts]))
        return self.sizes

    def _field(self, name: str, postings: Postings, dense_file: BinaryIO, packed_file: BinaryIO) -> Sizes:
        terms = len(postings.terms)
        ids, owners, payloads = self._in_order(postings)
        counts = np.bincount(owners, minlength=terms).astype(np.uint32)
        starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        dense = (counts >= self._count * _DENSE_FROM) & (self._count > _SMALLEST_DENSE)
        bitmap = dense & (counts >= self._count * _BITMAP_FROM)
        places = np.zeros(terms, np.uint64)
        single = (counts == 1) & ~bitmap
        places[single] = ids[starts[:-1][single]]
        rest = np.flatnonzero(~bitmap & (counts > 1))
        bytes_of = np.zeros(terms, np.int64)
        places[rest], bytes_of[rest] = self._pack(ids[~(bitmap | single)[owners]], counts[rest], packed_file)
        for term in np.flatnonzero(bitmap).tolist():
            places[term] = DENSE_BIT | self._dense_at
            write_array(dense_file, words_of(ids[starts[term] : starts[term + 1]], self._count))
            self._dense_at += self._words
            bytes_of[term] = self._words * 8
        self._places.append(places)
        self._counts.append(counts)
        sizes = {
            "terms": terms,
            "dense_lists": int(dense.sum()),
            "dense_bytes": int(bytes_of[dense].sum()),
            "split_lists": int((~dense).sum()),
            "split_bytes": int(bytes_of[~dense].sum()),
        }
        if payloads is not None:
            sizes |= self._payloads(name, payloads, ids, counts, starts, dense)
        return sizes

    def _pack(
        self, ids: npt.NDArray[np.uint32], counts: npt.NDArray[np.uint32], file: BinaryIO
    ) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
        """Write lists, one behind the other in `ids`; return the place and the bytes of each."""
        wide = counts.astype(np.int64)
        ids = np.ascontiguousarray(ids)
        out = np.empty(4 * len(ids) + int((-(-wide // RUN_IDS)).sum()), np.uint8)
        begins = np.zeros(len(wide) + 1, np.int64)
        p = np.zeros(Pack.COUNT, np.int64)
        p[Pack.IDS], p[Pack.COUNTS], p[Pack.LISTS] = ids.ctypes.data, wide.ctypes.data, len(wide)
        p[Pack.OUT], p[Pack.PLACES] = out.ctypes.data, begins.ctypes.data
        kernels.load().pack(p.ctypes.data)
        end = begins[-1] = p[Pack.END]
        write_array(file, out[:end])
        places = (begins[:-1] + self._packed_at).astype(np.uint64)
        self._packed_at += int(end)
        return places, np.diff(begins)

    def _in_order(
        self, postings: Postings
    ) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32], npt.NDArray[np.float32] | None]:
        """Return ids, terms and payloads sorted by (term, id), each pair once, with the larger payload."""
        pairs = (postings.places.astype(np.uint64) << np.uint64(32)) | self._internal[postings.inputs]
        payloads = postings.payloads
        if payloads is None:
            pairs.sort()
        else:
            order = np.argsort(pairs, kind="stable")
            pairs, payloads = pairs[order], payloads[order]
        first = np.ones(len(pairs), bool)
        first[1:] = pairs[1:] != pairs[:-1]
        if not first.all():
            if payloads is not None:
                payloads = np.maximum.reduceat(payloads, np.flatnonzero(first))
            pairs = pairs[first]
        return pairs.astype(np.uint32), (pairs >> np.uint64(32)).astype(np.uint32), payloads

    def _payloads(
        self,
        name: str,
        values: npt.NDArray[np.float32],
        ids: npt.NDArray[np.uint32],
        counts: npt.NDArray[np.uint32],
        starts: npt.NDArray[np.int64],
        dense: npt.NDArray[np.bool_],
    ) -> Sizes:
        bound_counts = np.where(dense, blocks_of(self._count), -(-counts.astype(np.int64) // BOUND_IDS))
        bound_starts = np.concatenate([[0], np.cumsum(bound_counts)])
        bounds = np.zeros(int(bound_starts[-1]), np.float32)
        # Every bound is the maximum of a run of values: of BOUND_IDS places of a split list, of a block of a dense one.
        owners = np.repeat(np.arange(len(counts)), counts)
        groups = (np.arange(len(ids)) - starts[owners]) // BOUND_IDS
        if dense.any():
            groups = np.where(dense[owners], ids // BLOCK_IDS, groups)
        slots = bound_starts[owners] + groups
        if len(slots):
            heads = np.flatnonzero(np.concatenate([[True], slots[1:] != slots[:-1]]))
            bounds[slots[heads]] = np.maximum.reduceat(values, heads)
        kept: npt.NDArray[Any] = values
        if len(values) >= _TABLE and len(table := np.unique(values)) <= _TABLE:
            self._save(f"payloads.{name}.table", table)
            kept = np.searchsorted(table, values).astype(np.uint8)
        self._save(f"payloads.{name}.values", kept)
        self._save(f"payloads.{name}.starts", starts.astype(np.uint64))
        self._save(f"payloads.{name}.bounds", bounds)
        self._save(f"payloads.{name}.bound_starts", bound_starts.astype(np.uint64))
        return {"payload_bytes": kept.nbytes, "bound_bytes": bounds.nbytes}

    def _save(self, name: str, values: npt.NDArray[Any]) -> None:
        with (self._directory / name).open("xb") as handle:
            write_array(handle, values)


def encoded(term: str) -> bytes:
    """Return a term as the dictionary has it."""
    return term.encode(errors="surrogatepass")
