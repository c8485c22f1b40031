"""Write the term dictionary and the posting lists with their payloads, column by column.

| file | content |
| --- | --- |
| `terms.blob`, `terms.offsets` | sorted dictionary: field, NUL, term; offsets as uint32, uint64 from 4 GiB on |
| `postings.places` | uint64 by term: where its list is; the highest bit says dense |
| `postings.counts` | uint32 by term: how many ids the list has |
| `postings.dense` | bitmaps over all ids, one bit per id; places count words |
| `postings.split` | ascending uint32 ids; places count ids |
| `payloads.FIELD.values` | float32 of the field's lists in order of the terms, aligned with the lists' ascending ids |
| `payloads.FIELD.starts` | uint64 by term of the field, and the end: places of each list's values |
| `payloads.FIELD.bounds` | float32, the largest payload of each block (dense list) or of each 128 ids (split list) |
| `payloads.FIELD.bound_starts` | uint64 by term of the field, and the end: places of each list's bounds |

A list is dense from 1/32 of the ids on: a bitmap is then not larger than the ids, and blocks of it are joined without
looking at ids. Payloads are in order of ids for both kinds; in a dense list an id's place is the number of bits before.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from manas._bits import blocks_of, words_of
from manas._columns import Postings
from manas.kernels.layout import BLOCK_IDS, BLOCK_WORDS, BOUND_IDS

DENSE_BIT = 1 << 63
_DENSE_FROM = 1 / 32
"""Share of the ids from which a bitmap is not larger than the list of 32-bit ids."""
_SMALLEST_DENSE = 32
"""Ids of a segment below which no list is dense: everything fits in a page anyway."""
Sizes = dict[str, int]


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
        self._dense_at = self._split_at = 0
        self.sizes: dict[str, Sizes] = {}

    def write(self, fields: Mapping[str, Postings]) -> dict[str, Sizes]:
        """Write everything; return per field how many lists of each kind there are, and their bytes."""
        offsets = [np.zeros(1, np.uint64)]
        end = 0
        with (
            (self._directory / "terms.blob").open("xb") as blob,
            (self._directory / "postings.dense").open("xb") as dense,
            (self._directory / "postings.split").open("xb") as split,
        ):
            for name in sorted(fields):
                keys = [dictionary_key(name, term) for term in fields[name].terms]
                blob.write(b"".join(keys))
                lengths = np.fromiter(map(len, keys), np.uint64, len(keys))
                offsets.append(np.cumsum(lengths, dtype=np.uint64) + np.uint64(end))
                end += int(lengths.sum())
                self.sizes[name] = self._field(name, fields[name], dense, split)
        places = np.concatenate(offsets)
        self._save("terms.offsets", places.astype(np.uint32) if end < 1 << 32 else places)
        self._save("postings.places", np.concatenate([np.empty(0, np.uint64), *self._places]))
        self._save("postings.counts", np.concatenate([np.empty(0, np.uint32), *self._counts]))
        return self.sizes

    def _field(self, name: str, postings: Postings, dense_file: BinaryIO, split_file: BinaryIO) -> Sizes:
        terms = len(postings.terms)
        ids, owners, payloads = self._in_order(postings)
        counts = np.bincount(owners, minlength=terms).astype(np.uint32)
        starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        dense = (counts >= self._count * _DENSE_FROM) & (self._count > _SMALLEST_DENSE)
        places = np.zeros(terms, np.uint64)
        split_ids = ids[~dense[owners]] if dense.any() else ids
        split_ids.tofile(split_file)
        split_counts = np.where(dense, 0, counts).astype(np.int64)
        places[:] = (self._split_at + np.cumsum(split_counts) - split_counts).astype(np.uint64)
        self._split_at += len(split_ids)
        for term in np.flatnonzero(dense).tolist():
            places[term] = DENSE_BIT | self._dense_at
            words_of(ids[starts[term] : starts[term + 1]], self._count).tofile(dense_file)
            self._dense_at += self._words
        self._places.append(places)
        self._counts.append(counts)
        lists = int(dense.sum())
        sizes = {
            "dense_lists": lists,
            "dense_bytes": lists * self._words * 8,
            "split_lists": terms - lists,
            "split_bytes": len(split_ids) * 4,
        }
        if payloads is not None:
            sizes |= self._payloads(name, payloads, ids, counts, starts, dense)
        return sizes

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
        self._save(f"payloads.{name}.values", values)
        self._save(f"payloads.{name}.starts", starts.astype(np.uint64))
        self._save(f"payloads.{name}.bounds", bounds)
        self._save(f"payloads.{name}.bound_starts", bound_starts.astype(np.uint64))
        return {"payload_bytes": values.nbytes, "bound_bytes": bounds.nbytes}

    def _save(self, name: str, values: npt.NDArray[Any]) -> None:
        with (self._directory / name).open("xb") as handle:
            np.ascontiguousarray(values).tofile(handle)


def dictionary_key(field: str, term: str) -> bytes:
    """Return the term dictionary's key; field names have no NUL, so keys are unique."""
    return f"{field}\0{term}".encode(errors="surrogatepass")
