"""The immutable layer: a segment's files, mapped into memory (`_writer` lists them). Opening parses no document."""

from __future__ import annotations

import mmap
from bisect import bisect_left
from functools import lru_cache
from pathlib import Path
from typing import Any

import hnswlib
import numpy as np
import numpy.typing as npt
from pyroaring import BitMap

from catalog import Catalog, ValueType
from manas._bits import Words, blocks_of, padded, words_of
from manas._exceptions import CatalogMismatch, SegmentCorrupt
from manas._layer import Ids
from manas._manifest import Manifest, check_files, read_manifest
from manas._program import Column, Posting, StaticScores
from manas._schema import Floats
from manas._writer import DENSE, dictionary_key, number_dtype
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
        self._documents = _map(directory / "documents.blob")
        self._places = _array(directory / "documents.place", np.uint64, 2 * count).reshape(-1, 2)
        self._ids = _Table(directory, "ids", count)
        self._order = _array(directory / "ids.order", np.uint32, count)
        self._ties = _array(directory / "ids.ties", np.int64, padded(count))
        self._versions = _array(directory / "versions", np.int64, count)
        self._terms = _Table(directory, "terms")
        self._entries = _array(directory / "postings.entries", np.int64, 3 * len(self._terms)).reshape(-1, 3)
        self._dense = _array(directory / "postings.dense", np.uint64)
        self._split = _array(directory / "postings.split", np.uint32)
        self.scores = StaticScores.of(
            _array(directory / "scores.static", np.float64, padded(count)), self._ties, ordered=True
        )
        self._columns = {
            name: _column(directory, name, ValueType(declared.type), manifest)
            for name, declared in manifest.fields.items()
            if declared.index == "numeric"
        }
        self._vectors = {
            name: SegmentVectors(directory, name, declared.dims, count, f"vectors.{name}.graph" in manifest.files)
            for name, declared in manifest.fields.items()
            if declared.index == "vector"
        }
        self.posting = lru_cache(_CACHED_POSTINGS)(self._read_posting)

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Itself: a base of one segment."""
        return (self,)

    @classmethod
    def open(cls, directory: Path, verify: bool = True) -> Segment:
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
        return missing

    def internal(self, document_id: str) -> int | None:
        """Return the internal id of a document."""
        wanted = document_id.encode(errors="surrogatepass")
        place = bisect_left(self._order, wanted, key=self._ids.__getitem__)
        if place < self.count:
            internal = int(self._order[place])
            if self._ids[internal] == wanted:
                return internal
        return None

    def document_id(self, internal: int) -> str:
        """Return the document id."""
        return self._ids[internal].decode()

    def body(self, internal: int) -> bytes:
        """Return the canonical document."""
        start, length = self._places[internal].tolist()
        return self._documents[start : start + length]

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
        kind, offset, count = self._entries[place].tolist()
        if kind == DENSE:
            words = self._dense[offset : offset + blocks_of(self.count) * BLOCK_WORDS]
            return Posting(count, words.ctypes.data, dense=words)
        ids = self._split[offset : offset + count]
        return Posting(count, ids.ctypes.data, split=ids)

    def column(self, field: str) -> Column | None:
        """Return a numeric column, None when the segment has none of that name."""
        return self._columns.get(field)

    def vectors(self, field: str) -> SegmentVectors | None:
        """Return the vectors of a field."""
        return self._vectors.get(field)


class SegmentVectors:
    """Vectors of one field: a mapped matrix, and the graph if there is one."""

    def __init__(self, directory: Path, field: str, dims: int, count: int, has_graph: bool) -> None:
        self._rows = _array(directory / f"vectors.{field}.ids", np.uint32)
        self._matrix = _array(directory / f"vectors.{field}.matrix", np.float32).reshape(-1, dims)
        if len(self._matrix) != len(self._rows):
            raise ValueError(f"vectors.{field}: {len(self._matrix)} rows for {len(self._rows)} ids")
        self.ids = BitMap(self._rows)
        self.words: Words = words_of(self._rows, count)
        self.graphed = BitMap()
        self._graph = hnswlib.Index("ip", dims)
        if has_graph:
            self._graph.load_index(str(directory / f"vectors.{field}.graph"))
            self.graphed = self.ids

    def gather(self, ids: Ids) -> Floats:
        """Return vectors as rows."""
        if len(ids) == len(self._rows):
            return self._matrix
        return self._matrix[np.searchsorted(self._rows, ids)]

    def walk(self, query: Floats, count: int) -> Ids:
        """Return the ids nearest by the graph."""
        return walk_graph(self._graph, query, min(count, len(self._rows)))


def walk_graph(graph: Any, query: Floats, count: int) -> Ids:
    """Ask an hnswlib index for `count` labels; fewer when the walk's beam did not reach that many."""
    while count > 0:
        graph.set_ef(max(2 * count, 200))
        try:
            labels, _ = graph.knn_query(query, k=count, num_threads=1)
        except RuntimeError:  # hnswlib answers all or nothing: fewer were reachable than asked for
            count //= 2
            continue
        found: Ids = labels[0].astype(np.uint32)
        return found
    return np.empty(0, np.uint32)


class _Table:
    """A blob with offsets, mapped: a sequence of byte strings."""

    def __init__(self, directory: Path, name: str, count: int | None = None) -> None:
        self._offsets = _array(directory / f"{name}.offsets", np.uint64, None if count is None else count + 1)
        self._blob = _map(directory / f"{name}.blob")
        if len(self._offsets) == 0 or int(self._offsets[-1]) != len(self._blob):
            raise ValueError(f"{name}.offsets do not end at the end of {name}.blob")

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, place: int) -> bytes:
        return self._blob[int(self._offsets[place]) : int(self._offsets[place + 1])]


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
