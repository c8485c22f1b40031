"""Documents to columns, batch by batch: what a segment is written from.

A batch is decoded into typed records, so that types are checked where bytes are read, and then taken apart field by
field. Anything unusual in a batch is found again document by document by `DocumentSchema.prepare`, which names it.
"""

from __future__ import annotations

import gc
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, count, repeat
from typing import Any, NamedTuple, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from catalog import Field, ValueType
from manas._exceptions import InvalidDocument
from manas._payloads import LARGEST, WITHOUT
from manas._schema import DocumentSchema, PreparedDocument, normalized_rows, term_of

_BATCH = 4_096
"""Documents taken apart at a time: their records stay in the processor's cache, and the cost per batch is spread."""
_ROWS = 65_536
"""Vectors brought to length 1 at a time: bounds the memory of their float64 copies."""
_TYPES: dict[ValueType, Any] = {
    ValueType.STRING: str | None,
    ValueType.INT: int | None,
    ValueType.TIME: int | None,
    ValueType.BOOL: bool | None,
    ValueType.FLOAT: float | None,
    ValueType.STRING_LIST: list[str] | None,
    ValueType.INT_LIST: list[int] | None,
    ValueType.VECTOR: bytes | None,
}
_LISTS = (ValueType.STRING_LIST, ValueType.INT_LIST)


class PreparedSink(Protocol):
    """Takes what is kept of documents with fields whose terms are not their values."""

    def add(self, place: int, document: PreparedDocument) -> None:
        """Take a document by its order of input."""


class NumberColumn:
    """Numbers by order of input."""

    def __init__(self, dtype: type[np.int64] | type[np.float64]) -> None:
        self._dtype = dtype
        self._parts: list[npt.NDArray[Any]] = []
        self._present: list[npt.NDArray[np.bool_]] = []
        self._whole = True

    def extend(self, values: Sequence[int | float | None]) -> None:
        """Append a batch. Raises OverflowError or ValueError for what the type does not hold."""
        if None in values:
            self._whole = False
            present = np.fromiter((value is not None for value in values), bool, len(values))
            values = [0 if value is None else value for value in values]
        else:
            present = np.ones(len(values), bool)
        part = np.array(values, self._dtype)
        if self._dtype is np.float64 and not np.isfinite(part).all():
            raise ValueError("not finite")
        self._parts.append(part)
        self._present.append(present)

    def finish(self) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_] | None]:
        """Return the values, 0 where missing, and who has one (None: everybody)."""
        if not self._parts:
            return np.empty(0, self._dtype), None
        values = np.concatenate(self._parts)
        return values, None if self._whole else np.concatenate(self._present)


class Postings(NamedTuple):
    """The postings of one field, in order of input."""

    terms: list[str]
    """All terms, sorted as their UTF-8 bytes sort."""
    inputs: npt.NDArray[np.uint32]
    """Document of each posting, by order of input."""
    places: npt.NDArray[np.uint32]
    """Place in `terms` of each posting's term."""
    payloads: npt.NDArray[np.float32] | None


class TermColumn:
    """Terms of one field: (document by order of input, number of the term), and payloads if the field declares them."""

    def __init__(self, *, payloads: bool) -> None:
        self._known: defaultdict[Any, int] = defaultdict(count().__next__)
        self._numbers: list[npt.NDArray[np.uint32]] = []
        self._lengths: list[npt.NDArray[np.int64]] = []
        self._payloads: list[npt.NDArray[np.float32]] | None = [] if payloads else None

    def extend_scalars(self, values: Sequence[Any], given: Sequence[Any] | None) -> None:
        """Append a batch of single values, None for none."""
        numbers = np.fromiter(map(self._known.__getitem__, values), np.uint32, len(values))
        if None in values:
            has = numbers != self._known[None]
            self._append(numbers[has], has.astype(np.int64), given)
        else:
            self._append(numbers, np.ones(len(values), np.int64), given)

    def extend_lists(self, values: Sequence[Sequence[Any] | None], given: Sequence[Any] | None) -> None:
        """Append a batch of lists."""
        lengths = np.fromiter((len(value) if value else 0 for value in values), np.int64, len(values))
        flat = chain.from_iterable(value for value in values if value)
        numbers = np.fromiter(map(self._known.__getitem__, flat), np.uint32, int(lengths.sum()))
        self._append(numbers, lengths, given)

    def _append(self, numbers: npt.NDArray[np.uint32], lengths: npt.NDArray[np.int64], given: Any) -> None:
        if self._payloads is not None:
            self._payloads.append(_flat_payloads(lengths.tolist(), given))
        self._numbers.append(numbers)
        self._lengths.append(lengths)

    def is_key(self, keys: Sequence[Any]) -> bool:
        """Tell whether every document has its own id in this field, and nothing else."""
        if self._payloads is not None or len(self._known) != len(keys):
            return False
        if any(isinstance(value, bool) for value in self._known):  # True equals 1, but its term is "true"
            return False
        return all(bool((lengths == 1).all()) for lengths in self._lengths) and list(self._known) == keys

    def finish(self) -> Postings:
        """Return all postings."""
        if not self._numbers:
            nothing = np.empty(0, np.uint32)
            return Postings([], nothing, nothing, None if self._payloads is None else np.empty(0, np.float32))
        lengths = np.concatenate(self._lengths)
        inputs = np.repeat(np.arange(len(lengths), dtype=np.uint32), lengths)
        names = [None if value is None else term_of(value) for value in self._known]
        terms = sorted(name for name in names if name is not None)
        places: dict[str | None, int] = {term: place for place, term in enumerate(terms)}
        places[None] = 0  # no posting has it
        ranks = np.fromiter(map(places.__getitem__, names), np.uint32, len(names))
        payloads = None if self._payloads is None else np.concatenate(self._payloads)
        return Postings(terms, inputs, ranks[np.concatenate(self._numbers)], payloads)


class VectorColumn:
    """Vectors by order of input."""

    def __init__(self, dims: int) -> None:
        self._dims = dims
        self._inputs: list[npt.NDArray[np.uint32]] = []
        self._rows: list[npt.NDArray[np.float32]] = []

    def extend(self, first: int, values: Sequence[bytes | None]) -> None:
        """Append a batch that begins with document `first`. Raises ValueError for a wrong length or number."""
        rows = [value for value in values if value is not None]
        if any(len(row) != 4 * self._dims for row in rows):
            raise ValueError("wrong length")
        matrix = np.frombuffer(b"".join(rows), "<f4").reshape(-1, self._dims)
        if not np.isfinite(matrix).all():
            raise ValueError("not finite")
        has = np.fromiter((value is not None for value in values), bool, len(values))
        self._inputs.append(np.flatnonzero(has).astype(np.uint32) + np.uint32(first))
        self._rows.append(normalized_rows(matrix))

    def finish(self) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.float32]]:
        """Return the documents that have a vector, and the vectors at length 1."""
        if not self._inputs:
            return np.empty(0, np.uint32), np.empty((0, self._dims), np.float32)
        return np.concatenate(self._inputs), np.concatenate(self._rows)


class Columns:
    """All columns of the documents of one segment."""

    def __init__(
        self,
        schema: DocumentSchema,
        take_bodies: Callable[[Sequence[bytes]], None],
        targets: PreparedSink | None = None,
    ) -> None:
        """`take_bodies` receives the bodies of every batch that was found good."""
        self._schema = schema
        self._targets = targets
        self._take_bodies = take_bodies
        self._batch: list[tuple[str, int, bytes]] = []
        self.count = 0
        self.ids: list[str] = []
        self.keys: list[npt.NDArray[np.int64]] = []
        self.versions: list[npt.NDArray[np.int64]] = []
        self.present: Counter[str] = Counter()
        self.numbers = {
            name: NumberColumn(number_dtype(declared.type)) for name, declared in schema.number_fields.items()
        }
        self.terms = {name: TermColumn(payloads=name in schema.payload_fields) for name in schema.term_fields}
        self.vectors = {name: VectorColumn(declared.column.dims) for name, declared in schema.vector_fields.items()}
        self._fields = list(schema.fields.values())
        self._special = frozenset(schema.special_fields)
        # Field names may be Python keywords: records have names of their own.
        self._names = {f"f{place}": declared for place, declared in enumerate(self._fields)}
        record = msgspec.defstruct(
            "Record",
            [(name, self._type(declared), None) for name, declared in self._names.items()],
            rename={name: declared.name for name, declared in self._names.items()},
            gc=False,
        )
        self._decode = msgspec.msgpack.Decoder(record).decode

    def _type(self, declared: Field) -> Any:
        indexed = declared.name in self.numbers or declared.name in self.terms or declared.name in self.vectors
        return _TYPES.get(declared.type, Any) if indexed and declared.name not in self._special else Any

    def add(self, document_id: str, version: int, body: bytes) -> None:
        """Take a document. Raises InvalidDocument, perhaps for an earlier one."""
        self._batch.append((document_id, version, body))
        if len(self._batch) == _BATCH:
            self.flush()

    def flush(self) -> None:
        """Take apart what `add` has kept back."""
        batch, self._batch = self._batch, []
        if not batch:
            return
        try:
            with _uncollected():
                self._take(batch)
        except (InvalidDocument, RecursionError, msgspec.DecodeError, ValueError, TypeError, OverflowError) as error:
            for document_id, version, body in batch:
                self._schema.prepare(document_id, version, body)
            raise InvalidDocument(f"documents {batch[0][0]} to {batch[-1][0]}: {error}") from error

    def _take(self, batch: Sequence[tuple[str, int, bytes]]) -> None:
        ids, versions, bodies = zip(*batch, strict=True)
        records = list(map(self._decode, bodies))
        if self._schema.int_keys:
            keys = list(map(int, ids))
            if list(map(str, keys)) != list(ids):
                raise ValueError("a document id is not a plain whole number")
            self.keys.append(np.array(keys, np.int64))
        else:
            self.ids += ids
        self.versions.append(np.array(versions, np.int64))
        columns = zip(*map(msgspec.structs.astuple, records), strict=True)
        values: dict[str, Sequence[Any]] = dict(zip(self._schema.fields, columns, strict=True))
        for name, column in values.items():
            self.present[name] += len(batch) - column.count(None)
        if self._special:
            self._take_special(batch, values)
        for name, number in self.numbers.items():
            number.extend(values[name])
        for name, term in self.terms.items():
            source = self._schema.payload_fields.get(name)
            given = None if source is None else values[source]
            if name in self._special or self._schema.fields[name].type in _LISTS:
                term.extend_lists(values[name], given)
            elif self._schema.fields[name].type in _TYPES:
                term.extend_scalars(values[name], given)
        for name, vector in self.vectors.items():
            vector.extend(self.count, values[name])
        self._take_bodies(bodies)
        self.count += len(batch)

    def _take_special(self, batch: Sequence[tuple[str, int, bytes]], values: dict[str, Sequence[Any]]) -> None:
        """Have fields whose terms are not their values taken apart document by document."""
        rows = {row for name in self._special for row, value in enumerate(values[name]) if value is not None}
        terms: dict[str, list[Any]] = {name: [None] * len(batch) for name in self._special}
        for row in sorted(rows):
            prepared = self._schema.prepare(*batch[row])
            if self._targets is not None:
                self._targets.add(self.count + row, prepared)
            for name in self._special:
                terms[name][row] = prepared.terms.get(name)
        values.update(terms)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Keep the cycle collector away from a batch: its thousands of lists hold no cycles and are gone in milliseconds.

    Looking at them again and again would cost more than decoding them.
    """
    active = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if active:
            gc.enable()


def _flat_payloads(lengths: Sequence[int], given: Sequence[Any] | None) -> npt.NDArray[np.float32]:
    """Return the payload of every posting of a batch. Raises ValueError where they do not fit."""
    parts: list[Any] = []
    for length, own in zip(lengths, given or repeat(None), strict=given is not None):
        if isinstance(own, list):
            if length and len(own) != length:
                raise ValueError("other number of payloads than of terms")
            parts.append(own if length else ())
        elif length:
            parts.append(repeat(WITHOUT if own is None else own, length))
    given_flat = list(chain.from_iterable(parts))
    if not {int, float}.issuperset(map(type, given_flat)):
        raise ValueError("a payload is no number")
    flat = np.array(given_flat, np.float64)
    if len(flat) and not (flat.min() >= 0 and flat.max() <= LARGEST):
        raise ValueError("a payload is negative or too large")
    return flat.astype(np.float32)


def number_dtype(kind: ValueType) -> type[np.int64] | type[np.float64]:
    """Return the array type of a numeric field."""
    return np.float64 if kind is ValueType.FLOAT else np.int64
