"""What of a document is indexed, and how: documents to terms, numbers and vectors, as the catalogue declares."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from catalog import Catalog, Destination, Field, Serving, ValueType
from catalog.documents import decode_document
from manas._exceptions import InvalidDocument, UnusableCatalog

Floats = npt.NDArray[np.float32]

MICROS = 1_000_000
"""Prices and bids are kept in millionths of a currency unit."""
INT64_MIN, INT64_MAX = -(1 << 63), (1 << 63) - 1
_TERM_DESTINATIONS = (Destination.TERM, Destination.TEXT, Destination.TARGETING)
_LISTS: dict[ValueType, type[str | int]] = {ValueType.STRING_LIST: str, ValueType.INT_LIST: int}
_SCALARS: dict[ValueType, type[str | int]] = {ValueType.STRING: str, ValueType.INT: int, ValueType.BOOL: bool}


@dataclass(frozen=True, slots=True)
class PreparedDocument:
    """A document taken apart for indexing."""

    document_id: str
    version: int
    body: bytes
    terms: Mapping[str, tuple[str, ...]]
    """Field -> its terms; fields without a value are left out."""
    numbers: Mapping[str, int | float]
    vectors: Mapping[str, bytes]
    present: tuple[str, ...] = ()
    """Declared fields with a value."""


class DocumentSchema:
    """The catalogue's fields by destination, and the taking apart of documents."""

    def __init__(self, catalog: Catalog) -> None:
        """Raises UnusableCatalog when a serving role cannot work with the field it names."""
        self.catalog = catalog
        self.fields: dict[str, Field] = dict(catalog.fields)
        self.term_fields = {f.name: f for f in catalog.fields.values() if f.index in _TERM_DESTINATIONS}
        self.number_fields = {f.name: f for f in catalog.fields.values() if f.index is Destination.NUMERIC}
        self.vector_fields = {f.name: f for f in catalog.fields.values() if f.index is Destination.VECTOR}
        self.int_keys = catalog.tables[catalog.root].key_type is ValueType.INT
        diversity = catalog.serving.diversity
        if diversity is not None and diversity not in self.term_fields:
            raise UnusableCatalog(f"serving.diversity: field {diversity!r} must have index 'term'")
        self._scalars = [(f.name, _SCALARS[f.type]) for f in self.term_fields.values() if f.type in _SCALARS]
        self._lists = [(f.name, _LISTS[f.type]) for f in self.term_fields.values() if f.type in _LISTS]
        self._ints = [f.name for f in self.number_fields.values() if f.type is not ValueType.FLOAT]
        self._floats = [f.name for f in self.number_fields.values() if f.type is ValueType.FLOAT]
        self._vectors = [(f.name, f.column.dims) for f in self.vector_fields.values()]

    def key(self, document_id: str) -> int | str:
        """Return the id in the key's own type. Raises InvalidDocument for an id that the key type does not have."""
        if not self.int_keys:
            return document_id
        try:
            key = int(document_id)
        except ValueError:
            key = None
        if key is None or str(key) != document_id or not INT64_MIN <= key <= INT64_MAX:
            raise InvalidDocument(
                f"document id {document_id[:80]!r} is not a 64-bit integer, as {self.catalog.root} keys are"
            )
        return key

    def prepare(self, document_id: str, version: int, body: bytes) -> PreparedDocument:
        """Take a document apart. Raises InvalidDocument naming the document and the field."""
        self.key(document_id)
        try:
            values = decode_document(body)
        except msgspec.DecodeError as error:
            raise InvalidDocument(f"document {document_id}: the body is not a canonical document: {error}") from None
        get = values.get
        terms: dict[str, tuple[str, ...]] = {}
        numbers: dict[str, int | float] = {}
        vectors: dict[str, bytes] = {}
        for name, kind in self._scalars:
            if (value := get(name)) is not None:
                if type(value) is not kind:
                    raise self._bad(document_id, name, value)
                terms[name] = (term_of(value),)
        for name, kind in self._lists:
            if (value := get(name)) is not None:
                if type(value) is not list or not all(type(v) is kind for v in value):
                    raise self._bad(document_id, name, value)
                terms[name] = tuple(value) if kind is str else tuple(map(str, value))
        for name in self._ints:
            if (value := get(name)) is not None:
                if type(value) is not int or not INT64_MIN <= value <= INT64_MAX:
                    raise self._bad(document_id, name, value)
                numbers[name] = value
        for name in self._floats:
            if (value := get(name)) is not None:
                if type(value) not in (float, int) or not math.isfinite(value):
                    raise self._bad(document_id, name, value)
                numbers[name] = float(value)
        for name, dims in self._vectors:
            if (value := get(name)) is not None:
                if type(value) is not bytes or len(value) != 4 * dims or not _finite(value):
                    raise self._bad(document_id, name, value)
                vectors[name] = value
        present = tuple(name for name, value in values.items() if value is not None and name in self.fields)
        return PreparedDocument(document_id, version, body, terms, numbers, vectors, present)

    def terms_of(self, field: str, body: bytes) -> tuple[str, ...]:
        """Return the terms that one field of a canonical document is indexed by."""
        value = decode_document(body).get(field)
        if value is None:
            return ()
        return tuple(map(term_of, value)) if isinstance(value, list) else (term_of(value),)

    def _bad(self, document_id: str, name: str, value: Any) -> InvalidDocument:
        wanted = self.fields[name]
        kind = f"{wanted.type.value}[{wanted.column.dims}]" if wanted.column.dims else wanted.type.value
        return InvalidDocument(f"document {document_id}: field {name} must be {kind}, got {str(value)[:60]!r}")


def static_scores(
    serving: Serving, numbers: Mapping[str, tuple[npt.NDArray[Any], npt.NDArray[np.bool_] | None]], count: int
) -> npt.NDArray[np.float64]:
    """Return the part of the light score that no request changes: bid in currency units (or score, or 1) x quality.

    `numbers` are the values of each numeric field and who has one (None: everybody). A missing bid or score counts as
    0, a missing quality as 1.
    """

    def given(field: str, default: float) -> npt.NDArray[np.float64]:
        if field not in numbers:
            return np.full(count, default)
        values, holders = numbers[field]
        wide = values.astype(np.float64)
        return wide if holders is None else np.where(holders, wide, default)

    if serving.bid is not None:
        scores = given(serving.bid, 0.0) / MICROS
    elif serving.score is not None:
        scores = given(serving.score, 0.0)
    else:
        scores = np.ones(count)
    return scores * given(serving.quality, 1.0) if serving.quality is not None else scores


def term_of(value: Any) -> str:
    """Return a scalar (string, int or bool) as its term."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def normalized(raw: bytes) -> Floats:
    """Return a vector at length 1 (float32), so that a dot product is the cosine; a zero vector stays zero."""
    vector = np.frombuffer(raw, dtype="<f4").astype(np.float64)
    norm = math.sqrt(float(vector @ vector))
    return (vector / norm if norm > 0 else vector).astype(np.float32)


def _finite(raw: bytes) -> bool:
    vector = np.frombuffer(raw, dtype="<f4")
    return bool(np.isfinite(vector).all())
