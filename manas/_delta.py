"""The mutable layer: documents published since the base, by internal slots that are reused.

A document keeps its slot when it is replaced, and only terms, numbers and vectors that changed are touched.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pyroaring import BitMap

from catalog import ValueType
from catalog.documents import decode_document
from manas._columns import number_dtype
from manas._delta_targets import DeltaTargets
from manas._delta_vectors import DeltaVectors
from manas._layer import Ids
from manas._schema import DocumentSchema, PreparedDocument

_NOTHING = BitMap()
_FIRST_CAPACITY = 1024


@dataclass(slots=True)
class Entry:
    """The newest known version of a document. `slot` is -1 for a tombstone."""

    version: int
    slot: int
    header: bytes = b""
    """Serialized header of the delta that brought it."""
    answerable_us: int = 0


class Delta:
    """Documents and tombstones newer than the base. Not safe for threads: its owner locks."""

    name = "delta"

    def __init__(self, schema: DocumentSchema) -> None:
        self._schema = schema
        self.entries: dict[str, Entry] = {}
        self.live = BitMap()
        self.bytes = 0
        """Of the documents in it: what they take in memory is a small multiple."""
        self.tombstones = 0
        self._documents: list[PreparedDocument | None] = []
        self._free: list[int] = []
        self._postings: dict[str, dict[str, BitMap]] = {name: defaultdict(BitMap) for name in schema.term_fields}
        self._keys = np.zeros(_FIRST_CAPACITY, np.int64)
        """By slot the document id, where ids are whole numbers: every search asks for those of its candidates."""
        self._numbers = {f.name: _Column(f.type) for f in schema.number_fields.values()}
        self._vectors = {f.name: DeltaVectors(f.column.dims) for f in schema.vector_fields.values()}
        self.targets = DeltaTargets(schema)

    def upsert(self, document: PreparedDocument, entry: Entry) -> None:
        """Put a document in place of any earlier version; sets the entry's slot."""
        earlier = self.entries.get(document.document_id)
        self.tombstones -= earlier is not None and earlier.slot < 0
        old: PreparedDocument | None = None
        if earlier is not None and earlier.slot >= 0:
            slot = earlier.slot
            old = self._documents[slot]
        elif self._free:
            slot = self._free.pop()
        else:
            slot = len(self._documents)
            self._documents.append(None)
            for column in self._numbers.values():
                column.reserve(slot)
            if slot >= len(self._keys):
                self._keys = np.concatenate([self._keys, np.zeros_like(self._keys)])
        if self._schema.int_keys and old is None:
            self._keys[slot] = int(document.document_id)
        self._index(slot, old, document)
        self.bytes += len(document.body) - (len(old.body) if old is not None else 0)
        self._documents[slot] = document
        self.live.add(slot)
        entry.slot = slot
        self.entries[document.document_id] = entry

    def delete(self, document_id: str, entry: Entry) -> None:
        """Put a tombstone in place of any earlier version and free its slot."""
        earlier = self.entries.get(document_id)
        self.tombstones += earlier is None or earlier.slot >= 0
        if earlier is not None and earlier.slot >= 0:
            self._index(earlier.slot, self._documents[earlier.slot], None)
            self.bytes -= len(self.body(earlier.slot))
            self._documents[earlier.slot] = None
            self.live.discard(earlier.slot)
            self._free.append(earlier.slot)
        entry.slot = -1
        self.entries[document_id] = entry

    def _index(self, slot: int, old: PreparedDocument | None, new: PreparedDocument | None) -> None:
        nothing: dict[str, Any] = {}
        old_terms, new_terms = (old.terms if old else nothing), (new.terms if new else nothing)
        for field in old_terms.keys() | new_terms.keys():
            before, after = old_terms.get(field, ()), new_terms.get(field, ())
            if before != after:
                self._repost(self._postings[field], slot, before, after)
        self.targets.set(slot, new)
        numbers = new.numbers if new else nothing
        for field, column in self._numbers.items():
            column.set(slot, numbers.get(field))
        old_vectors, new_vectors = (old.vectors if old else nothing), (new.vectors if new else nothing)
        for field, store in self._vectors.items():
            raw = new_vectors.get(field)
            if raw != old_vectors.get(field):
                store.set(slot, raw)

    @staticmethod
    def _repost(postings: dict[str, BitMap], slot: int, before: tuple[str, ...], after: tuple[str, ...]) -> None:
        if before:
            for term in set(before).difference(after):
                holders = postings[term]
                holders.discard(slot)
                if not holders:
                    del postings[term]
            after = tuple(set(after).difference(before))
        for term in after:
            postings[term].add(slot)

    def dismantle(self, count: int) -> bool:
        """Free `count` documents of a delta that nobody reads any more; return whether there are more.

        Thousands at once would keep every other thread waiting for tens of milliseconds.
        """
        del self._documents[-count:]
        for _ in range(min(count, len(self.entries))):
            self.entries.popitem()
        return bool(self._documents or self.entries)

    @property
    def slots(self) -> int:
        """Slots ever allocated: bounded by the largest number of documents alive at once."""
        return len(self._documents)

    def internal(self, document_id: str) -> int | None:
        """Return the slot of a live document."""
        entry = self.entries.get(document_id)
        return None if entry is None or entry.slot < 0 else entry.slot

    def _document(self, slot: int) -> PreparedDocument:
        document = self._documents[slot]
        if document is None:
            raise KeyError(f"slot {slot} is free")
        return document

    def document_id(self, internal: int) -> str:
        """Return the document id."""
        return self._document(internal).document_id

    def body(self, internal: int) -> bytes:
        """Return the canonical document."""
        return self._document(internal).body

    def fields(self, internal: int, names: Sequence[str]) -> dict[str, Any]:
        """Return some fields of a document, those that it has."""
        values = decode_document(self._document(internal).body)
        return {name: values[name] for name in names if name in values}

    def version(self, internal: int) -> int:
        """Return the document's version."""
        return self._document(internal).version

    def keys(self, ids: Ids, *, int_keys: bool) -> npt.NDArray[Any]:
        """Return document ids in the key's type."""
        if int_keys:
            found: npt.NDArray[np.int64] = self._keys[ids]
            return found
        return np.array([self.document_id(int(i)) for i in ids], dtype=str)

    def postings(self, field: str, term: str) -> BitMap:
        """Return the slots whose field has the term."""
        return self._postings[field].get(term, _NOTHING) if field in self._postings else _NOTHING

    def payloads(self, field: str, term: str, ids: Ids) -> npt.NDArray[np.float64]:
        """Return the payload that the term has with each of `ids` (1 without payloads), 0 where they lack it."""
        result = np.zeros(len(ids))
        holders = self.postings(field, term)
        if field not in self._schema.payload_fields:
            result[np.fromiter(map(holders.__contains__, ids.tolist()), bool, len(ids))] = 1.0
            return result
        for place, slot in enumerate(ids.tolist()):
            if slot in holders:
                result[place] = self._document(slot).payloads[field][term]
        return result

    def document_frequency(self, field: str, term: str) -> int:
        """Return the size of the posting list."""
        return len(self.postings(field, term))

    def within(self, field: str, low: float | None, high: float | None) -> BitMap:
        """Return the slots whose number is in the closed interval."""
        column = self._numbers.get(field)
        return BitMap() if column is None else BitMap(column.within(low, high))

    def keep_within(self, ids: Ids, field: str, low: float | None, high: float | None) -> Ids:
        """Return those of some slots whose number is in the closed interval: for few slots far less than `within`."""
        column = self._numbers.get(field)
        return ids[:0] if column is None else ids[column.holds(ids, low, high)]

    def keep_without(self, ids: Ids, field: str, low: float | None, high: float | None) -> Ids:
        """Return those of some slots that have no number in the closed interval."""
        column = self._numbers.get(field)
        return ids if column is None else ids[~column.holds(ids, low, high)]

    def count_within(self, field: str, low: float | None, high: float | None) -> int:
        """Return how many slots `within` gives."""
        column = self._numbers.get(field)
        return 0 if column is None else len(column.within(low, high))

    def numbers(self, field: str, ids: Ids) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        """Return the field's numbers of `ids`, 0 where missing, and which are there."""
        column = self._numbers.get(field)
        if column is None:
            return np.zeros(len(ids)), np.zeros(len(ids), bool)
        present = column.present[ids]
        return np.where(present, column.values[ids].astype(np.float64), 0.0), present

    def vectors(self, field: str) -> DeltaVectors | None:
        """Return the vectors of a field."""
        return self._vectors.get(field)


class _Column:
    """A numeric column that grows by doubling."""

    def __init__(self, kind: ValueType) -> None:
        self.values: npt.NDArray[Any] = np.zeros(_FIRST_CAPACITY, number_dtype(kind))
        self.present = np.zeros(_FIRST_CAPACITY, bool)
        self._used = 0

    def reserve(self, slot: int) -> None:
        """Make room for a slot."""
        self._used = max(self._used, slot + 1)
        if slot >= len(self.values):
            self.values = np.concatenate([self.values, np.zeros_like(self.values)])
            self.present = np.concatenate([self.present, np.zeros_like(self.present)])

    def set(self, slot: int, value: int | float | None) -> None:
        """Store a value, None for none."""
        if value is None:
            self.present[slot] = False
        else:
            self.values[slot] = value
            self.present[slot] = True

    def holds(self, ids: Ids, low: float | None, high: float | None) -> npt.NDArray[np.bool_]:
        """Tell which of some slots are in the closed interval."""
        chosen: npt.NDArray[np.bool_] = self.present[ids]
        values = self.values[ids]
        if low is not None:
            chosen &= values >= low
        if high is not None:
            chosen &= values <= high
        return chosen

    def within(self, low: float | None, high: float | None) -> Ids:
        """Return the slots in the closed interval."""
        values = self.values[: self._used]
        chosen = self.present[: self._used].copy()
        if low is not None:
            chosen &= values >= low
        if high is not None:
            chosen &= values <= high
        return np.flatnonzero(chosen).astype(np.uint32)
