"""Write a segment: documents in any order in, an immutable directory of files out.

Internal ids are numbers from 0 in the order (static score descending, document id ascending), so a scan of ids meets
the best candidates first. All files are little-endian; arrays by id that kernels read are padded to whole blocks of
1024 ids. `_lists` has the files of the dictionary and the posting lists, `_forward` those of the documents.

| file | content |
| --- | --- |
| `ids.ties` | packed, by id: what decides between equal scores, the document id itself or its rank |
| `ids.order` | short internal ids sorted by document id: the way from a document id to its internal id |
| `ids.blob`, `ids.offsets` | document ids (UTF-8), sorted, front-coded (`_dictionary`); not for whole numbers |
| `versions` | packed, by id |
| `scores.static` | float64 by id, padded with -inf |
| `scores.bounds` | float64, the largest score of each block, which is its first |
| `numbers.FIELD.values` | by id, 0 where missing: whole numbers packed, others float64, float32 where all of them are |
| `numbers.FIELD.order` | the short internal ids of present values, these ascending |
| `numbers.FIELD.present` | bitmap of the ids that have a value; only where some have none |
| `vectors.FIELD.*` | see `_vector_files` |

*Packed* whole numbers are stored as `_packed` says, with width, base and step in the manifest. Of `ids.ties` they have
4 bytes or 8, and 8 where the catalogue has vectors, which compare them as they are. *Short* ids have as few bytes as
hold the number of documents less one.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from contextlib import closing
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from catalog import Catalog
from manas._arrays import write_array
from manas._bits import padded, words_of
from manas._columns import Columns
from manas._dictionary import shortest, write_strings
from manas._exceptions import InvalidDocument, SegmentError
from manas._forward import ForwardWriter
from manas._lists import ListWriter, Sizes
from manas._manifest import (
    FORMAT_VERSION,
    FieldFormat,
    Manifest,
    StoredFamily,
    file_entry,
    static_roles,
    write_manifest,
)
from manas._packed import Packing, packed, short_ids
from manas._schema import DocumentSchema, static_scores
from manas._targets import TargetsWriter
from manas._vector_files import VectorBuild, write_vectors
from manas.kernels.layout import BLOCK_IDS


class SegmentWriter:
    """Builds one segment in a directory of its own."""

    def __init__(self, directory: Path, catalog: Catalog, *, vectors: VectorBuild | None = None) -> None:
        """`directory` must not exist or be empty. Raises SegmentError otherwise."""
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise SegmentError(f"{directory} is not empty; give a new directory for every build")
        self._directory = directory
        self._schema = DocumentSchema(catalog)
        self._vectors = vectors or VectorBuild()
        self._packed: dict[str, Packing] = {}
        self._stored: dict[str, StoredFamily] = {}

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
        targets = TargetsWriter(self._schema)
        families = {declared.name: declared.family for declared in self._schema.fields.values()}
        with closing(ForwardWriter(self._directory, families)) as forward:
            columns = Columns(self._schema, forward.add, targets)
            for document_id, version, body in documents:
                if version > snapshot_ts:
                    raise InvalidDocument(f"document {document_id}: version {version} is after snapshot {snapshot_ts}")
                columns.add(document_id, version, body)
            columns.flush()
            count = columns.count
            ties, by_name = self._order_of_names(columns)
            numbers = {name: column.finish() for name, column in columns.numbers.items()}
            scores = static_scores(self._schema.catalog.serving, numbers, count)
            inputs = np.lexsort((ties, -scores))
            self._stored = forward.finish(inputs)
        internal = np.empty(count, np.uint32)
        internal[inputs] = np.arange(count, dtype=np.uint32)
        targets.write(self._save, internal)
        if not self._schema.int_keys:
            names = [columns.ids[place].encode() for place in by_name.tolist()]
            with (self._directory / "ids.blob").open("xb") as blob:
                offsets = [0, *write_strings(blob, names, 0)]
            self._save("ids.offsets", shortest(np.array(offsets, np.uint64)))
        self._save("ids.order", short_ids(internal[by_name], count))
        self._save_packed("ids.ties", ties[inputs], 8 if columns.vectors else 4, pad=True)
        self._save_packed("versions", _joined(columns.versions, np.int64)[inputs], 1)
        self._save("scores.static", _padded(scores[inputs], -np.inf))
        self._save("scores.bounds", scores[inputs[::BLOCK_IDS]])
        keys = ties.tolist() if self._schema.int_keys else columns.ids
        own = {name for name, column in columns.terms.items() if count and column.is_key(keys)}
        postings = {name: column.finish() for name, column in columns.terms.items() if name not in own}
        sizes = ListWriter(self._directory, internal).write(postings)
        for name, (values, holders) in numbers.items():
            self._numbers(name, values[inputs], None if holders is None else holders[inputs])
        for name, column in columns.vectors.items():
            holders_of, matrix = column.finish()
            dims = self._schema.vector_fields[name].column.dims
            write_vectors(self._directory, name, dims, internal[holders_of], matrix, count, self._vectors)
        return self._seal(count, snapshot_ts, delta_positions, budget_positions, columns.present, sizes, own)

    def _order_of_names(self, columns: Columns) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the tie keys, and the documents sorted by id. Raises InvalidDocument for one that comes twice."""
        if self._schema.int_keys:
            ties = _joined(columns.keys, np.int64)
            by_name = np.argsort(ties, kind="stable")
            ordered = ties[by_name]
            twice = [str(ordered[place]) for place in np.flatnonzero(ordered[1:] == ordered[:-1])[:1].tolist()]
        else:
            names = columns.ids
            by_name = np.array(sorted(range(columns.count), key=names.__getitem__), np.int64)
            twice = [names[left] for left, right in pairwise(by_name.tolist()) if names[left] == names[right]]
            ties = np.empty(columns.count, np.int64)
            ties[by_name] = np.arange(columns.count)
        if twice:
            raise InvalidDocument(f"document {twice[0]} comes twice; give each document once")
        return ties, by_name

    def _seal(
        self,
        count: int,
        snapshot_ts: int,
        delta_positions: Mapping[int, int],
        budget_positions: Mapping[int, int],
        present: Mapping[str, int],
        postings: Mapping[str, Sizes],
        own: Collection[str],
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
                    f.name: FieldFormat(f.index.value, f.type.value, f.column.dims, f.payload or "", f.family)
                    for f in catalog.fields.values()
                },
                stored=self._stored,
                packed=self._packed,
                keys=tuple(sorted(own)),
                static=static_roles(catalog.serving),
                postings=_total(postings),
                postings_by_field=dict(postings),
                files={file.name: file_entry(file) for file in files},
                created_at=datetime.now(UTC).isoformat(),
            ),
        )
        _sync(self._directory / "manifest.json")
        _sync(self._directory)
        return manifest

    def _save(self, name: str, values: npt.NDArray[Any]) -> None:
        with (self._directory / name).open("xb") as handle:
            write_array(handle, values)

    def _save_packed(self, name: str, values: npt.NDArray[np.int64], least: int, *, pad: bool = False) -> None:
        stored, self._packed[name] = packed(values, least)
        self._save(name, _padded(stored, 0) if pad else stored)

    def _numbers(self, field: str, values: npt.NDArray[Any], holders: npt.NDArray[np.bool_] | None) -> None:
        ids = np.arange(len(values), dtype=np.uint32) if holders is None else np.flatnonzero(holders).astype(np.uint32)
        present = values[ids]
        name = f"numbers.{field}.values"
        if values.dtype == np.int64:
            present, self._packed[name] = packed(present)
        elif (present.astype(np.float32) == present).all():
            present = present.astype(np.float32)
        stored = np.zeros(len(values), present.dtype)
        stored[ids] = present
        self._save(name, _padded(stored, 0))
        order = ids[np.argsort(present, kind="stable")]
        self._save(f"numbers.{field}.order", short_ids(order, len(values)))
        if holders is not None:
            self._save(f"numbers.{field}.present", words_of(ids, len(values)))


def _total(postings: Mapping[str, Sizes]) -> Sizes:
    total = {"terms": 0, "dense_lists": 0, "dense_bytes": 0, "split_lists": 0, "split_bytes": 0}
    total |= {"payload_bytes": 0, "bound_bytes": 0}
    for sizes in postings.values():
        for name, value in sizes.items():
            total[name] += value
    return total


def _joined(parts: list[npt.NDArray[Any]], dtype: Any) -> npt.NDArray[Any]:
    return np.concatenate([np.empty(0, dtype), *parts])


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
