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
from manas._exceptions import CatalogMismatch, SegmentCorrupt
from manas._layer import Ids
from manas._manifest import Manifest, check_files, read_manifest
from manas._schema import Floats
from manas._writer import dictionary_key, number_dtype

_CACHED_POSTINGS = 8_192
"""Deserialized posting lists kept: the terms of common requests, and not the long tail of unique ids."""
_NOTHING = BitMap()


class Segment:
    """A base index, read-only and safe for threads."""

    name = "base"

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        """Use `Segment.open`."""
        self.directory = directory
        self.manifest = manifest
        self.count = manifest.documents
        self._forward = _Table(directory, "forward")
        self._ids = _Table(directory, "ids")
        self._order = _array(directory / "ids.order", np.uint32)
        self._keys = _array(directory / "ids.keys", np.int64) if "ids.keys" in manifest.files else None
        self._versions = _array(directory / "versions", np.int64)
        self._terms = _Table(directory, "terms")
        self._postings = _Table(directory, "postings")
        self._counts = _array(directory / "postings.counts", np.uint32)
        self._numbers = {
            name: _Numbers(directory, name, declared.type)
            for name, declared in manifest.fields.items()
            if declared.index == "numeric"
        }
        self._vectors = {
            name: SegmentVectors(directory, name, declared.dims, f"vectors.{name}.graph" in manifest.files)
            for name, declared in manifest.fields.items()
            if declared.index == "vector"
        }
        self.postings = lru_cache(_CACHED_POSTINGS)(self._read_postings)

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
        return self._forward[internal]

    def version(self, internal: int) -> int:
        """Return the document's version."""
        return int(self._versions[internal])

    def keys(self, ids: Ids) -> npt.NDArray[Any]:
        """Return document ids in the key's type."""
        if self._keys is not None:
            return self._keys[ids]
        return np.array([self.document_id(int(i)) for i in ids], dtype=str)

    def _place(self, field: str, term: str) -> int | None:
        wanted = dictionary_key(field, term)
        place = bisect_left(self._terms, wanted)
        return place if place < len(self._terms) and self._terms[place] == wanted else None

    def _read_postings(self, field: str, term: str) -> BitMap:
        place = self._place(field, term)
        return _NOTHING if place is None else BitMap.deserialize(self._postings[place])

    def document_frequency(self, field: str, term: str) -> int:
        """Return the size of the posting list from the dictionary alone."""
        place = self._place(field, term)
        return 0 if place is None else int(self._counts[place])

    def within(self, field: str, low: float | None, high: float | None) -> BitMap:
        """Return the ids whose number is in the closed interval."""
        column = self._numbers.get(field)
        return BitMap() if column is None else BitMap(column.order[column.slice(low, high)])

    def count_within(self, field: str, low: float | None, high: float | None) -> int:
        """Return how many ids `within` gives."""
        column = self._numbers.get(field)
        if column is None:
            return 0
        found = column.slice(low, high)
        return max(0, int(found.stop) - int(found.start))

    def numbers(self, field: str, ids: Ids, default: float) -> npt.NDArray[np.float64]:
        """Return the field's numbers of `ids`."""
        column = self._numbers.get(field)
        if column is None:
            return np.full(len(ids), default)
        values = column.values[ids].astype(np.float64)
        if len(column.order) < self.count:
            values[~column.present[ids]] = default
        return values

    def vectors(self, field: str) -> SegmentVectors | None:
        """Return the vectors of a field."""
        return self._vectors.get(field)


class SegmentVectors:
    """Vectors of one field: a mapped matrix, and the graph if there is one."""

    def __init__(self, directory: Path, field: str, dims: int, has_graph: bool) -> None:
        self._rows = _array(directory / f"vectors.{field}.ids", np.uint32)
        self._matrix = _array(directory / f"vectors.{field}.matrix", np.float32).reshape(-1, dims)
        if len(self._matrix) != len(self._rows):
            raise ValueError(f"vectors.{field}: {len(self._matrix)} rows for {len(self._rows)} ids")
        self.ids = BitMap(self._rows)
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

    def __init__(self, directory: Path, name: str) -> None:
        self._offsets = _array(directory / f"{name}.offsets", np.uint64)
        self._blob = _map(directory / f"{name}.blob")
        if len(self._offsets) == 0 or int(self._offsets[-1]) != len(self._blob):
            raise ValueError(f"{name}.offsets do not end at the end of {name}.blob")

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, place: int) -> bytes:
        return self._blob[int(self._offsets[place]) : int(self._offsets[place + 1])]


class _Numbers:
    """One numeric column with its sorted order."""

    def __init__(self, directory: Path, field: str, kind: str) -> None:
        dtype = number_dtype(ValueType(kind))
        self.values = _array(directory / f"numbers.{field}.values", dtype)
        self.sorted = _array(directory / f"numbers.{field}.sorted", dtype)
        self.order = _array(directory / f"numbers.{field}.order", np.uint32)
        self.present = np.zeros(len(self.values), bool)
        self.present[self.order] = True

    def slice(self, low: float | None, high: float | None) -> slice:
        """Return the place of the closed interval in `sorted`."""
        start = 0 if low is None else int(np.searchsorted(self.sorted, low, side="left"))
        stop = len(self.sorted) if high is None else int(np.searchsorted(self.sorted, high, side="right"))
        return slice(start, stop)


def _map(file: Path) -> mmap.mmap | bytes:
    with file.open("rb") as handle:
        if file.stat().st_size == 0:  # an empty file cannot be mapped
            return b""
        return mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)


def _array(file: Path, dtype: Any) -> npt.NDArray[Any]:
    return np.frombuffer(_map(file), dtype=dtype)
