"""Write a segment: documents in any order in, an immutable directory of files out.

Files (all little-endian, internal ids are uint32 from 0 in the order of input):

| file | content |
| --- | --- |
| `forward.blob`, `forward.offsets` | canonical documents one after another; uint64 offsets, n + 1 of them |
| `ids.blob`, `ids.offsets` | document ids (UTF-8) by internal id, and their offsets |
| `ids.order` | internal ids sorted by id bytes: the way from a document id to its internal id |
| `ids.keys` | int64 ids by internal id; only where the catalogue's key is an int |
| `versions` | int64 by internal id |
| `terms.blob`, `terms.offsets` | sorted dictionary: field, NUL, term |
| `postings.blob`, `postings.offsets`, `postings.counts` | serialized roaring bitmap per term, offsets, sizes (uint32) |
| `numbers.FIELD.values` | int64 or float64 by internal id, 0 where missing |
| `numbers.FIELD.sorted`, `numbers.FIELD.order` | present values ascending, and the internal ids in that order |
| `vectors.FIELD.ids`, `vectors.FIELD.matrix` | ascending internal ids with a vector; rows of float32 at length 1 |
| `vectors.FIELD.graph` | hnswlib index over them, label = internal id; only from `GRAPH_FROM` vectors on |
"""

from __future__ import annotations

import os
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import hnswlib
import numpy as np
import numpy.typing as npt
from pyroaring import BitMap

from catalog import Catalog, ValueType
from manas._exceptions import InvalidDocument, SegmentError
from manas._manifest import FORMAT_VERSION, FieldFormat, Manifest, file_entry, write_manifest
from manas._schema import DocumentSchema, normalized

GRAPH_FROM = 20_000
"""Below this many vectors queries scan exactly (see `PlannerLimits`): a graph would only cost building time."""
GRAPH_M, GRAPH_EF_CONSTRUCTION = 16, 200
"""The setting measured in the project's comparison of vector indexes: recall@10 above 0.95 on clustered and on weakly
clustered data at 40-60 s per 200,000 vectors of 64 dimensions."""


class SegmentWriter:
    """Builds one segment in a directory of its own."""

    def __init__(self, directory: Path, catalog: Catalog, *, graph_from: int = GRAPH_FROM) -> None:
        """`directory` must not exist or be empty. Raises SegmentError otherwise."""
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise SegmentError(f"{directory} is not empty; give a new directory for every build")
        self._directory = directory
        self._schema = DocumentSchema(catalog)
        self._graph_from = graph_from

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
        schema = self._schema
        ids: list[bytes] = []
        versions = array("q")
        keys = array("q")
        postings: dict[tuple[str, str], array[int]] = defaultdict(lambda: array("I"))
        numbers: dict[str, tuple[array[int], list[int | float]]] = {n: (array("I"), []) for n in schema.number_fields}
        vector_ids: dict[str, array[int]] = {name: array("I") for name in schema.vector_fields}
        present: Counter[str] = Counter()
        offsets = array("Q", [0])
        with self._create("forward.blob") as blob, _vector_files(self, schema) as matrices:
            for internal, (document_id, version, body) in enumerate(documents):
                if version > snapshot_ts:
                    raise InvalidDocument(f"document {document_id}: version {version} is after snapshot {snapshot_ts}")
                document = schema.prepare(document_id, version, body)
                blob.write(body)
                offsets.append(offsets[-1] + len(body))
                ids.append(document_id.encode())
                versions.append(version)
                if schema.int_keys:
                    keys.append(int(document_id))
                for field, terms in document.terms.items():
                    for term in terms:
                        postings[field, term].append(internal)
                for field, number in document.numbers.items():
                    numbers[field][0].append(internal)
                    numbers[field][1].append(number)
                for field, vector in document.vectors.items():
                    vector_ids[field].append(internal)
                    matrices[field].write(normalized(vector).tobytes())
                present.update(schema.present(body))
        count = len(ids)
        self._save("forward.offsets", offsets)
        self._ids(ids)
        self._save("versions", versions)
        if schema.int_keys:
            self._save("ids.keys", keys)
        self._postings(postings)
        for field, (holders, values) in numbers.items():
            self._numbers(field, count, holders, values)
        for field, holders in vector_ids.items():
            self._vectors(field, holders)
        return self._seal(count, snapshot_ts, delta_positions, budget_positions, present)

    def _seal(
        self,
        count: int,
        snapshot_ts: int,
        delta_positions: Mapping[int, int],
        budget_positions: Mapping[int, int],
        present: Mapping[str, int],
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

    def _save(self, name: str, values: array[int] | npt.NDArray[Any]) -> None:
        with self._create(name) as handle:
            handle.write(values.tobytes())

    def _table(self, name: str, items: Iterable[bytes]) -> None:
        offsets = array("Q", [0])
        with self._create(f"{name}.blob") as blob:
            for item in items:
                blob.write(item)
                offsets.append(offsets[-1] + len(item))
        self._save(f"{name}.offsets", offsets)

    def _ids(self, ids: list[bytes]) -> None:
        self._table("ids", ids)
        order = sorted(range(len(ids)), key=ids.__getitem__)
        for left, right in pairwise(order):
            if ids[left] == ids[right]:
                raise InvalidDocument(f"document {ids[left].decode()} comes twice; give each document once")
        self._save("ids.order", array("I", order))

    def _postings(self, postings: Mapping[tuple[str, str], array[int]]) -> None:
        terms = sorted((dictionary_key(field, term), holders) for (field, term), holders in postings.items())
        bitmaps = [BitMap(holders) for _, holders in terms]
        self._table("terms", (key for key, _ in terms))
        self._table("postings", (bitmap.serialize() for bitmap in bitmaps))
        self._save("postings.counts", array("I", map(len, bitmaps)))

    def _numbers(self, field: str, count: int, holders: array[int], values: list[int | float]) -> None:
        dtype = number_dtype(self._schema.number_fields[field].type)
        column = np.zeros(count, dtype)
        ids = np.frombuffer(holders, dtype=np.uint32) if holders else np.empty(0, np.uint32)
        present = np.array(values, dtype=dtype)
        column[ids] = present
        order = np.argsort(present, kind="stable")
        self._save(f"numbers.{field}.values", column)
        self._save(f"numbers.{field}.sorted", present[order])
        self._save(f"numbers.{field}.order", ids[order])

    def _vectors(self, field: str, holders: array[int]) -> None:
        self._save(f"vectors.{field}.ids", holders)
        if len(holders) < self._graph_from or not holders:
            return
        dims = self._schema.vector_fields[field].column.dims
        matrix = np.fromfile(self._directory / f"vectors.{field}.matrix", dtype=np.float32).reshape(-1, dims)
        graph = hnswlib.Index("ip", dims)
        graph.init_index(len(holders), M=GRAPH_M, ef_construction=GRAPH_EF_CONSTRUCTION, random_seed=1)
        graph.add_items(matrix, np.frombuffer(holders, dtype=np.uint32))
        graph.save_index(str(self._directory / f"vectors.{field}.graph"))


def dictionary_key(field: str, term: str) -> bytes:
    """Return the term dictionary's key; field names have no NUL, so keys are unique."""
    return f"{field}\0{term}".encode(errors="surrogatepass")


def number_dtype(kind: ValueType) -> type[np.int64] | type[np.float64]:
    """Return the array type of a numeric field."""
    return np.float64 if kind is ValueType.FLOAT else np.int64


@contextmanager
def _vector_files(writer: SegmentWriter, schema: DocumentSchema) -> Iterator[dict[str, BinaryIO]]:
    files: dict[str, BinaryIO] = {
        name: (writer._directory / f"vectors.{name}.matrix").open("xb") for name in schema.vector_fields
    }
    try:
        yield files
    finally:
        for file in files.values():
            file.close()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
