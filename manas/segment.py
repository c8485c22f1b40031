"""The immutable layer: a segment's files, mapped into memory (`_writer` lists them). Opening parses no document."""

from __future__ import annotations

import mmap
from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from catalog import Catalog, ValueType
from catalog.model import BODY
from manas._bits import Words, blocks_of, padded
from manas._columns import number_dtype
from manas._exceptions import CatalogMismatch, SegmentCorrupt
from manas._forward import Forward
from manas._layer import Ids
from manas._lists import DENSE_BIT, dictionary_key
from manas._manifest import Manifest, check_files, read_manifest
from manas._program import Column, Payloads, Posting, StaticScores
from manas._targets import SegmentTargets
from manas._vector_store import SegmentVectors, open_vectors
from manas.kernels.layout import BLOCK_WORDS

_CACHED_POSTINGS = 65_536
"""Places of posting lists kept: the terms of common requests, and not the long tail of unique ids."""


class Segment:
    """A base index, read-only and safe for threads."""

    name = "base"

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        """Use `Segment.open`."""
        self.directory = directory
        self.manifest = manifest
        self.count = count = manifest.documents
        self.forward = _forward(directory, manifest)
        self._ids = _Table(directory, "ids", count) if "ids.blob" in manifest.files else None
        self._order = _array(directory / "ids.order", np.uint32, count)
        self._ties = _array(directory / "ids.ties", np.int64, padded(count))
        self._versions = _array(directory / "versions", np.int64, count)
        self._counts = _array(directory / "postings.counts", np.uint32)
        self._terms = _Table(directory, "terms", len(self._counts))
        self._list_places = _array(directory / "postings.places", np.uint64, len(self._counts))
        self._dense = _array(directory / "postings.dense", np.uint64)
        self._split = _array(directory / "postings.split", np.uint32)
        self.scores = StaticScores.of(
            _array(directory / "scores.static", np.float64, padded(count)), self._ties, ordered=True
        )
        self._payloads = {
            name: _FieldPayloads(directory, name, bisect_left(self._terms, dictionary_key(name, "")))
            for name, declared in manifest.fields.items()
            if declared.payload
        }
        self._columns = {
            name: _column(directory, name, ValueType(declared.type), manifest)
            for name, declared in manifest.fields.items()
            if declared.index == "numeric"
        }
        self._vectors = {
            name: open_vectors(directory, name, declared.dims, count, self._ties)
            for name, declared in manifest.fields.items()
            if declared.index == "vector"
        }
        self.targets = SegmentTargets(directory, {name: kept.index for name, kept in manifest.fields.items()})
        self.posting = lru_cache(_CACHED_POSTINGS)(self._read_posting)

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Itself: a base of one segment."""
        return (self,)

    @classmethod
    def open(cls, directory: Path, verify: bool = True) -> Self:
        """Map a segment's files after comparing them with the manifest: sizes always, checksums if `verify`.

        Raises SegmentMissing, SegmentFormat, or SegmentCorrupt naming the file.
        """
        manifest = read_manifest(directory)
        check_files(directory, manifest, verify=verify)
        try:
            return cls(directory, manifest)
        except (ValueError, KeyError, RuntimeError, OSError) as error:
            raise SegmentCorrupt(str(directory), f"files do not fit together ({error})") from error

    def check_catalog(self, catalog: Catalog) -> list[str]:
        """Return the declared fields that this segment does not know. Raises CatalogMismatch where it contradicts.

        Unknown fields have no values in the base until the next one is built.
        """
        missing = []
        for field in catalog.fields.values():
            built = self.manifest.fields.get(field.name)
            if built is None:
                missing.append(field.name)
            elif (built.index, built.type, built.dims) != (field.index.value, field.type.value, field.column.dims):
                raise CatalogMismatch(
                    f"{self.directory.name}: field {field.name} was indexed as {built.index} of {built.type}, the "
                    f"catalogue now says {field.index.value} of {field.type.value}; build a new base index"
                )
            elif built.payload != (field.payload or ""):
                raise CatalogMismatch(
                    f"{self.directory.name}: postings of field {field.name} were built with payload {built.payload!r}, "
                    f"the catalogue now says {field.payload or ''!r}; build a new base index"
                )
        return missing

    def internal(self, document_id: str) -> int | None:
        """Return the internal id of a document."""
        place, found = self._search(document_id)
        return int(self._order[place]) if found else None

    def tie_before(self, key: int | str) -> int:
        """Return the tie key that a document of this id has or would have: later ids have larger ones."""
        if self._ids is None:
            return int(key)
        place, found = self._search(str(key))
        return place if found else place - 1

    def _search(self, document_id: str) -> tuple[int, bool]:
        """Return the place of a document id among all in order, and whether it is there."""
        if self._ids is None:
            try:
                key = int(document_id)
            except ValueError:
                return 0, False
            place = bisect_left(self._order, key, key=self._ties.__getitem__)
            found = place < self.count and int(self._ties[self._order[place]]) == key and str(key) == document_id
            return place, found
        wanted = document_id.encode(errors="surrogatepass")
        place = bisect_left(self._order, wanted, key=self._ids.__getitem__)
        return place, place < self.count and self._ids[self._order[place]] == wanted

    def document_id(self, internal: int) -> str:
        """Return the document id."""
        if self._ids is None:
            return str(int(self._ties[internal]))
        return self._ids[internal].decode()

    def body(self, internal: int) -> bytes:
        """Return the canonical document."""
        return self.forward.body(internal)

    def fields(self, internal: int, names: Sequence[str]) -> dict[str, Any]:
        """Return some fields of a document, those that it has; reads only the families that they are in."""
        return self.forward.fields(internal, names)

    def version(self, internal: int) -> int:
        """Return the document's version."""
        return int(self._versions[internal])

    def keys(self, ids: Ids, *, int_keys: bool) -> npt.NDArray[Any]:
        """Return document ids in the key's type."""
        if int_keys:
            return self._ties[ids]
        return np.array([self.document_id(int(i)) for i in ids], dtype=str)

    def _read_posting(self, field: str, term: str) -> Posting | None:
        wanted = dictionary_key(field, term)
        place = bisect_left(self._terms, wanted)
        if place >= len(self._terms) or self._terms[place] != wanted:
            return None
        at, count = int(self._list_places[place]), int(self._counts[place])
        payloads = self._payloads.get(field)
        if at & DENSE_BIT:
            offset = at ^ DENSE_BIT
            words = self._dense[offset : offset + blocks_of(self.count) * BLOCK_WORDS]
            carried = None if payloads is None else payloads.of(place, _ranks(words))
            return Posting(count, words.ctypes.data, dense=words, payloads=carried)
        ids = self._split[at : at + count]
        return Posting(count, ids.ctypes.data, split=ids, payloads=None if payloads is None else payloads.of(place))

    def column(self, field: str) -> Column | None:
        """Return a numeric column, None when the segment has none of that name."""
        return self._columns.get(field)

    def vectors(self, field: str) -> SegmentVectors | None:
        """Return the vectors of a field."""
        return self._vectors.get(field)


class _FieldPayloads:
    """The payloads of one field's posting lists, mapped."""

    def __init__(self, directory: Path, field: str, first: int) -> None:
        self._first = first
        self._values = _array(directory / f"payloads.{field}.values", np.float32)
        self._starts = _array(directory / f"payloads.{field}.starts", np.uint64)
        self._bounds = _array(directory / f"payloads.{field}.bounds", np.float32)
        self._bound_starts = _array(directory / f"payloads.{field}.bound_starts", np.uint64)

    def of(self, place: int, ranks: Ids | None = None) -> Payloads:
        """Return what the list of the term at `place` of the dictionary carries."""
        own = place - self._first
        start, stop = self._starts[own : own + 2].tolist()
        bound_start, bound_stop = self._bound_starts[own : own + 2].tolist()
        return Payloads.of(self._values[start:stop], self._bounds[bound_start:bound_stop], ranks)


def _ranks(words: Words) -> Ids:
    """Return how many ids of a dense list come before each block."""
    counts = np.bitwise_count(words).reshape(-1, BLOCK_WORDS).sum(axis=1, dtype=np.uint32)
    ranks: Ids = np.cumsum(counts, dtype=np.uint32) - counts
    return ranks


class _Table:
    """A blob with offsets, mapped: a sequence of byte strings."""

    def __init__(self, directory: Path, name: str, count: int) -> None:
        file = directory / f"{name}.offsets"
        short = file.stat().st_size == 4 * (count + 1)
        self._offsets = _array(file, np.uint32 if short else np.uint64, count + 1)
        self._blob = _map(directory / f"{name}.blob")
        if len(self._offsets) == 0 or int(self._offsets[-1]) != len(self._blob):
            raise ValueError(f"{name}.offsets do not end at the end of {name}.blob")

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, place: int) -> bytes:
        return self._blob[int(self._offsets[place]) : int(self._offsets[place + 1])]


def _forward(directory: Path, manifest: Manifest) -> Forward:
    count, families = manifest.documents, {name: declared.family for name, declared in manifest.fields.items()}
    names = sorted({BODY, *families.values()})
    return Forward(
        families,
        {name: _map(directory / f"forward.{name}.blob") for name in names},
        {name: _array(directory / f"forward.{name}.starts", np.uint64, count) for name in names},
        {name: _array(directory / f"forward.{name}.lengths", np.uint32, count) for name in names},
    )


def _column(directory: Path, field: str, kind: ValueType, manifest: Manifest) -> Column:
    dtype, some = number_dtype(kind), f"numbers.{field}.present" in manifest.files
    return Column(
        _array(directory / f"numbers.{field}.values", dtype, padded(manifest.documents)),
        _array(directory / f"numbers.{field}.sorted", dtype),
        _array(directory / f"numbers.{field}.order", np.uint32),
        _array(directory / f"numbers.{field}.present", np.uint64) if some else None,
    )


def _map(file: Path) -> mmap.mmap | bytes:
    with file.open("rb") as handle:
        if file.stat().st_size == 0:  # an empty file cannot be mapped
            return b""
        return mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)


def _array(file: Path, dtype: Any, length: int | None = None) -> npt.NDArray[Any]:
    found = np.frombuffer(_map(file), dtype=dtype)
    if length is not None and len(found) != length:
        raise ValueError(f"{file.name} has {len(found)} values instead of {length}")
    return found
