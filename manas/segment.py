"""The immutable layer: a segment's files, mapped into memory (`_writer` lists them). Opening parses no document."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from catalog import Catalog, ValueType
from catalog.model import BODY
from manas._bits import blocks_of, padded
from manas._exceptions import CatalogMismatch, SegmentCorrupt, passes
from manas._finder import Finder
from manas._forward import Forward
from manas._layer import Ids
from manas._manifest import Manifest, check_files, read_manifest, static_roles
from manas._mapped import map_array, map_packed, map_strings, map_whole
from manas._number_column import Column
from manas._packed import Packing, ShortIds
from manas._posting_lists import PostingLists
from manas._static_scores import StaticScores
from manas._stored import Blocks
from manas._targets import SegmentTargets
from manas._vector_store import SegmentVectors, open_vectors


class Segment:
    """A base index, read-only and safe for threads."""

    name = "base"

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        """Use `Segment.open`."""
        self.directory = directory
        self.manifest = manifest
        self.count = count = manifest.documents
        self.forward = _forward(directory, manifest)
        self._names = map_strings(directory, "ids", [count])[0] if "ids.blob" in manifest.files else None
        self._order = ShortIds(map_array(directory / "ids.order", np.uint8), count)
        if len(self._order) != count:
            raise ValueError(f"ids.order has {len(self._order)} ids instead of {count}")
        self._ties, self._tie_packing = map_packed(directory, "ids.ties", manifest, padded(count))
        self._finder = Finder(directory / "ids.order", self._order, self._ties, self._tie_packing, count)
        self._versions, self._version_packing = map_packed(directory, "versions", manifest, count)
        bounds = map_array(directory / "scores.bounds", np.float64, blocks_of(count))
        self.scores = StaticScores(
            map_array(directory / "scores.static", np.float64, padded(count)), self._ties, bounds, bounds, ordered=True
        )
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
        self.posting = PostingLists(directory, manifest, self.internal).posting

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
            if passes(error):
                raise
            raise SegmentCorrupt(str(directory), f"files do not fit together ({error})") from error

    def check_catalog(self, catalog: Catalog) -> list[str]:
        """Return the declared fields that this segment does not know. Raises CatalogMismatch where it contradicts.

        Ads of a base and ads that came since are only in one order if both are scored by the same fields.
        Unknown fields have no values in the base until the next one is built.
        """
        static, missing = static_roles(catalog.serving), []
        if isinstance(self.manifest.static, dict) and self.manifest.static != static:
            raise CatalogMismatch(
                f"{self.directory.name}: scores were made of {self.manifest.static}, the catalogue's roles are now "
                f"{static}; build a new base index"
            )
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
        if self._names is None:
            return self._finder.find(document_id)
        place, found = self._names.find(document_id.encode(errors="surrogatepass"))
        return int(self._order[place]) if found else None

    def tie_before(self, key: int | str) -> int:
        """Return the stored tie key of the last document up to this id, as if there was one: later ones are larger."""
        if self._names is None:
            return self._tie_packing.within(None, int(key))[1]
        place, found = self._names.find(str(key).encode(errors="surrogatepass"))
        return place if found else place - 1

    def document_id(self, internal: int) -> str:
        """Return the document id."""
        if self._names is None:
            return str(self._key(internal))
        name: bytes = self._names[int(self._ties[internal])]
        return name.decode()

    def _key(self, internal: int) -> int:
        return self._tie_packing.value(int(self._ties[internal]))

    def body(self, internal: int) -> bytes:
        """Return the canonical document."""
        return self.forward.body(internal)

    def fields(self, internal: int, names: Sequence[str]) -> dict[str, Any]:
        """Return some fields of a document, those that it has; reads only the families that they are in."""
        return self.forward.fields(internal, names)

    def version(self, internal: int) -> int:
        """Return the document's version."""
        return self._version_packing.value(int(self._versions[internal]))

    def keys(self, ids: Ids, *, int_keys: bool) -> npt.NDArray[Any]:
        """Return document ids in the key's type."""
        if int_keys:
            return self._tie_packing.values(self._ties[ids])
        return np.array([self.document_id(int(i)) for i in ids], dtype=str)

    def keys_of_ties(self, ties: npt.NDArray[np.int64]) -> npt.NDArray[np.int64] | None:
        """Return the document ids of tie keys, None where only texts are ids: these are read one by one."""
        return self._tie_packing.values(ties) if self._names is None else None

    def column(self, field: str) -> Column | None:
        """Return a numeric column, None when the segment has none of that name."""
        return self._columns.get(field)

    def vectors(self, field: str) -> SegmentVectors | None:
        """Return the vectors of a field."""
        return self._vectors.get(field)


def _forward(directory: Path, manifest: Manifest) -> Forward:
    count, families = manifest.documents, {name: declared.family for name, declared in manifest.fields.items()}
    blocks = {}
    for name in sorted({BODY, *families.values()}):
        file = directory / f"forward.{name}.blob"
        blocks[name] = Blocks(
            file,
            map_array(file, np.uint8),
            map_array(directory / f"forward.{name}.dictionary", np.uint8),
            map_whole(directory / f"forward.{name}.starts", count),
            map_whole(directory / f"forward.{name}.lengths", count, np.uint16),
            manifest.stored[name].longest,
        )
    return Forward(families, blocks)


def _column(directory: Path, field: str, kind: ValueType, manifest: Manifest) -> Column:
    name, some = f"numbers.{field}.values", f"numbers.{field}.present" in manifest.files
    count = padded(manifest.documents)
    if kind is ValueType.FLOAT:
        short = manifest.files[name].bytes == 4 * count
        stored, packing = map_array(directory / name, np.float32 if short else np.float64, count), Packing(8)
    else:
        stored, packing = map_packed(directory, name, manifest, count)
    present = map_array(directory / f"numbers.{field}.present", np.uint64) if some else None
    order = ShortIds(map_array(directory / f"numbers.{field}.order", np.uint8), manifest.documents)
    return Column(stored, packing, order, present)
