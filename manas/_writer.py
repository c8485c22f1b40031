"""Write a segment: documents in any order in, an immutable directory of files out.

Internal ids are numbers from 0 in the order (static score descending, document id ascending), so a scan of ids meets
the best candidates first. All files are little-endian; arrays by id are padded to whole blocks of 1024 ids.

| file | content |
| --- | --- |
| `documents.blob`, `documents.place` | canonical documents in the order of input; uint64 (start, length) by id |
| `ids.blob`, `ids.offsets` | document ids (UTF-8) by internal id; uint64 offsets, n + 1 of them |
| `ids.order` | internal ids sorted by document id: the way from a document id to its internal id |
| `ids.ties` | int64 by id: what decides between equal scores, the document id itself or its rank |
| `versions` | int64 by id |
| `scores.static` | float64 by id, padded with -inf |
| `terms.blob`, `terms.offsets` | sorted dictionary: field, NUL, term |
| `postings.entries` | (kind, offset, count) as int64 triples by term |
| `postings.dense` | kind 0: bitmaps over all ids, one bit per id; offset in words |
| `postings.split` | kind 1: ascending uint32 ids; offset in ids |
| `numbers.FIELD.values` | int64 or float64 by id, 0 where missing |
| `numbers.FIELD.sorted`, `numbers.FIELD.order` | present values ascending, and the internal ids in that order |
| `numbers.FIELD.present` | bitmap of the ids that have a value; only where some have none |
| `vectors.FIELD.ids`, `vectors.FIELD.matrix` | ascending internal ids with a vector; rows of float32 at length 1 |
| `vectors.FIELD.graph` | hnswlib index over them, label = internal id; only from `GRAPH_FROM` vectors on |
"""

from __future__ import annotations

import os
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import hnswlib
import numpy as np
import numpy.typing as npt

from catalog import Catalog, ValueType
from manas._bits import blocks_of, padded, words_of
from manas._exceptions import InvalidDocument, SegmentError
from manas._manifest import FORMAT_VERSION, FieldFormat, Manifest, file_entry, write_manifest
from manas._schema import DocumentSchema, normalized, static_scores
from manas.kernels.layout import BLOCK_WORDS

GRAPH_FROM = 20_000
"""Below this many vectors queries scan exactly (see `PlannerLimits`): a graph would only cost building time."""
GRAPH_M, GRAPH_EF_CONSTRUCTION = 16, 200
"""The setting measured in the project's comparison of vector indexes: recall@10 above 0.95 on clustered and on weakly
clustered data at 40-60 s per 200,000 vectors of 64 dimensions."""
DENSE, SPLIT = 0, 1
_DENSE_FROM = 1 / 32
"""Share of the ids from which a bitmap is not larger than the list of 32-bit ids."""


class SegmentWriter:
    """Builds one segment in a directory of its own."""

    def __init__(self, directory: Path, catalog: Catalog, *, graph_from: int = GRAPH_FROM, threads: int = -1) -> None:
        """`directory` must not exist or be empty. Raises SegmentError otherwise.

        `threads` build vector graphs: -1 is one per processor; with 1 the same documents give the same bytes.
        """
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise SegmentError(f"{directory} is not empty; give a new directory for every build")
        self._directory = directory
        self._schema = DocumentSchema(catalog)
        self._graph_from, self._threads = graph_from, threads

    def write(
        self,
        documents: Iterable[tuple[str, int, bytes]],
        snapshot_ts: int,
        delta_positions: Mapping[int, int],
        budget_positions: Mapping[int, int],
    ) -> Manifest:
        """Write all files, sync them, and the manifest last. `documents` are (document id, version, body).

        Raises InvalidDocument for a document that cannot be indexed, comes twice, or is newer than the snapshot.
        A crash leaves a directory without a manifest, which nothing opens.
        """
        gathered = _Gathered(self._schema)
        with self._create("documents.blob") as blob:
            for document_id, version, body in documents:
                if version > snapshot_ts:
                    raise InvalidDocument(f"document {document_id}: version {version} is after snapshot {snapshot_ts}")
                gathered.add(document_id, version, body)
                blob.write(body)
        count = len(gathered.ids)
        by_name = sorted(range(count), key=gathered.ids.__getitem__)
        for left, right in pairwise(by_name):
            if gathered.ids[left] == gathered.ids[right]:
                raise InvalidDocument(f"document {gathered.ids[left].decode()} comes twice; give each document once")
        ties = np.empty(count, np.int64)
        if self._schema.int_keys:
            ties[:] = gathered.keys
        else:
            ties[by_name] = np.arange(count)
        numbers = {name: gathered.column(name) for name in self._schema.number_fields}
        scores = static_scores(self._schema.catalog.serving, numbers, count)
        inputs = np.lexsort((ties, -scores))
        internal = np.empty(count, np.uint32)
        internal[inputs] = np.arange(count, dtype=np.uint32)
        self._names(gathered.ids, inputs, internal, np.array(by_name, np.int64))
        self._save("ids.ties", _padded(ties[inputs], 0))
        self._save("versions", np.array(gathered.versions, np.int64)[inputs])
        self._save("scores.static", _padded(scores[inputs], -np.inf))
        ends = np.cumsum(np.array(gathered.lengths, np.uint64), dtype=np.uint64)
        lengths = np.array(gathered.lengths, np.uint64)
        self._save("documents.place", np.stack([ends - lengths, lengths], axis=1)[inputs])
        sizes = self._postings(gathered, internal, count)
        for name, (values, holders) in numbers.items():
            self._numbers(name, values[inputs], None if holders is None else holders[inputs])
        for name in self._schema.vector_fields:
            self._vectors(name, gathered, internal)
        return self._seal(count, snapshot_ts, delta_positions, budget_positions, gathered.present, sizes)

    def _seal(
        self,
        count: int,
        snapshot_ts: int,
        delta_positions: Mapping[int, int],
        budget_positions: Mapping[int, int],
        present: Mapping[str, int],
        postings: Mapping[str, int],
    ) -> Manifest:
        files = sorted(p for p in self._directory.iterdir())
        for file in files:
            _sync(file)
        catalog = self._schema.catalog
        manifest = write_manifest(
            self._directory,
            Manifest(
                format_version=FORMAT_VERSION,
                catalog=catalog.name,
                fingerprint=catalog.fingerprint,
                documents=count,
                snapshot_ts=snapshot_ts,
                delta_positions=dict(delta_positions),
                budget_positions=dict(budget_positions),
                coverage={name: present.get(name, 0) / count if count else 0.0 for name in catalog.fields},
                fields={
                    f.name: FieldFormat(f.index.value, f.type.value, f.column.dims) for f in catalog.fields.values()
                },
                postings=dict(postings),
                files={file.name: file_entry(file) for file in files},
                created_at=datetime.now(UTC).isoformat(),
            ),
        )
        _sync(self._directory / "manifest.json")
        _sync(self._directory)
        return manifest

    @contextmanager
    def _create(self, name: str) -> Iterator[BinaryIO]:
        with (self._directory / name).open("xb") as handle:
            yield handle

    def _save(self, name: str, values: npt.NDArray[Any]) -> None:
        with self._create(name) as handle:
            np.ascontiguousarray(values).tofile(handle)

    def _table(self, name: str, items: Iterable[bytes]) -> None:
        offsets = array("Q", [0])
        with self._create(f"{name}.blob") as blob:
            for item in items:
                blob.write(item)
                offsets.append(offsets[-1] + len(item))
        self._save(f"{name}.offsets", np.frombuffer(offsets, np.uint64))

    def _names(
        self,
        ids: list[bytes],
        inputs: npt.NDArray[np.int64],
        internal: npt.NDArray[np.uint32],
        by_name: npt.NDArray[np.int64],
    ) -> None:
        self._table("ids", (ids[place] for place in inputs.tolist()))
        self._save("ids.order", internal[by_name])

    def _postings(self, gathered: _Gathered, internal: npt.NDArray[np.uint32], count: int) -> dict[str, int]:
        """Write the dictionary and all lists; return how many of each kind there are and their bytes."""
        terms: list[tuple[bytes, npt.NDArray[np.uint32]]] = []
        for field in self._schema.term_fields:
            terms += gathered.lists(field, internal)
        terms.sort(key=lambda pair: pair[0])
        self._table("terms", (key for key, _ in terms))
        entries = np.zeros((len(terms), 3), np.int64)
        words = blocks_of(count) * BLOCK_WORDS
        dense = split = 0
        with self._create("postings.dense") as dense_file, self._create("postings.split") as split_file:
            for entry, (_, ids) in zip(entries, terms, strict=True):
                if len(ids) >= count * _DENSE_FROM and count > 32:
                    entry[:] = DENSE, dense * words, len(ids)
                    words_of(ids, count).tofile(dense_file)
                    dense += 1
                else:
                    entry[:] = SPLIT, split, len(ids)
                    ids.tofile(split_file)
                    split += len(ids)
        self._save("postings.entries", entries)
        return {
            "dense_lists": dense,
            "dense_bytes": dense * words * 8,
            "split_lists": len(terms) - dense,
            "split_bytes": split * 4,
        }

    def _numbers(self, field: str, values: npt.NDArray[Any], holders: npt.NDArray[np.bool_] | None) -> None:
        ids = np.arange(len(values), dtype=np.uint32) if holders is None else np.flatnonzero(holders).astype(np.uint32)
        present = values[ids]
        order = np.argsort(present, kind="stable")
        self._save(f"numbers.{field}.values", _padded(values, 0))
        self._save(f"numbers.{field}.sorted", present[order])
        self._save(f"numbers.{field}.order", ids[order])
        if holders is not None:
            self._save(f"numbers.{field}.present", words_of(ids, len(values)))

    def _vectors(self, field: str, gathered: _Gathered, internal: npt.NDArray[np.uint32]) -> None:
        dims = self._schema.vector_fields[field].column.dims
        holders = internal[np.frombuffer(gathered.vector_inputs[field], np.uint32)]
        matrix = normalized_rows(gathered.vector_rows[field], dims)
        order = np.argsort(holders, kind="stable")
        holders, matrix = holders[order], matrix[order]
        self._save(f"vectors.{field}.ids", holders)
        self._save(f"vectors.{field}.matrix", matrix)
        if len(holders) < self._graph_from or not len(holders):
            return
        graph = hnswlib.Index("ip", dims)
        graph.init_index(len(holders), M=GRAPH_M, ef_construction=GRAPH_EF_CONSTRUCTION, random_seed=1)
        graph.add_items(matrix, holders, num_threads=self._threads)
        graph.save_index(str(self._directory / f"vectors.{field}.graph"))


class _Gathered:
    """What the documents hold, by order of input and by field."""

    def __init__(self, schema: DocumentSchema) -> None:
        self._schema = schema
        self.ids: list[bytes] = []
        self.keys = array("q")
        self.versions = array("q")
        self.lengths = array("Q")
        self.present: Counter[str] = Counter()
        self._terms: dict[str, dict[str, int]] = {name: {} for name in schema.term_fields}
        self._term_numbers = {name: array("I") for name in schema.term_fields}
        self._term_inputs = {name: array("I") for name in schema.term_fields}
        self._values: dict[str, list[int | float]] = {name: [] for name in schema.number_fields}
        self._value_inputs = {name: array("I") for name in schema.number_fields}
        self.vector_inputs = {name: array("I") for name in schema.vector_fields}
        self.vector_rows: dict[str, list[bytes]] = {name: [] for name in schema.vector_fields}

    def add(self, document_id: str, version: int, body: bytes) -> None:
        """Take a document apart. Raises InvalidDocument."""
        document = self._schema.prepare(document_id, version, body)
        place = len(self.ids)
        self.ids.append(document_id.encode())
        self.versions.append(version)
        self.lengths.append(len(body))
        if self._schema.int_keys:
            self.keys.append(int(document_id))
        for field, terms in document.terms.items():
            known, numbers, inputs = self._terms[field], self._term_numbers[field], self._term_inputs[field]
            for term in terms:
                number = known.get(term)
                if number is None:
                    number = known[term] = len(known)
                numbers.append(number)
                inputs.append(place)
        for field, value in document.numbers.items():
            self._values[field].append(value)
            self._value_inputs[field].append(place)
        for field, vector in document.vectors.items():
            self.vector_inputs[field].append(place)
            self.vector_rows[field].append(vector)
        self.present.update(document.present)

    def column(self, field: str) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_] | None]:
        """Return a numeric column by order of input, and who has a value (None: everybody)."""
        count = len(self.ids)
        values = np.zeros(count, number_dtype(self._schema.number_fields[field].type))
        inputs = np.frombuffer(self._value_inputs[field], np.uint32) if self._values[field] else np.empty(0, np.uint32)
        values[inputs] = np.array(self._values[field], dtype=values.dtype)
        if len(inputs) == count:
            return values, None
        holders = np.zeros(count, bool)
        holders[inputs] = True
        return values, holders

    def lists(self, field: str, internal: npt.NDArray[np.uint32]) -> list[tuple[bytes, npt.NDArray[np.uint32]]]:
        """Return (dictionary key, ascending distinct internal ids) of every term of a field."""
        known = self._terms[field]
        if not known:
            return []
        numbers = np.frombuffer(self._term_numbers[field], np.uint32)
        ids = internal[np.frombuffer(self._term_inputs[field], np.uint32)]
        pairs = np.unique((numbers.astype(np.uint64) << np.uint64(32)) | ids)
        bounds = np.searchsorted(pairs, np.arange(len(known) + 1, dtype=np.uint64) << np.uint64(32))
        ids = pairs.astype(np.uint32)
        starts = bounds.tolist()
        return [
            (dictionary_key(field, term), ids[starts[number] : starts[number + 1]]) for term, number in known.items()
        ]


def dictionary_key(field: str, term: str) -> bytes:
    """Return the term dictionary's key; field names have no NUL, so keys are unique."""
    return f"{field}\0{term}".encode(errors="surrogatepass")


def number_dtype(kind: ValueType) -> type[np.int64] | type[np.float64]:
    """Return the array type of a numeric field."""
    return np.float64 if kind is ValueType.FLOAT else np.int64


def normalized_rows(rows: list[bytes], dims: int) -> npt.NDArray[np.float32]:
    """Return vectors as rows, each the same as `normalized` gives it alone."""
    if not rows:
        return np.empty((0, dims), np.float32)
    return np.stack([normalized(row) for row in rows])


def _padded(values: npt.NDArray[Any], fill: float) -> npt.NDArray[Any]:
    out = np.full(padded(len(values)), fill, values.dtype)
    out[: len(values)] = values
    return out


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
