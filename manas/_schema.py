"""What of a document is indexed, and how: documents to terms, numbers and vectors, as the catalogue declares."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from catalog import Catalog, Destination, Field, InvalidValue, Serving, ValueType
from catalog.documents import decode_document, is_canonical
from catalog.model import BODY
from catalog.predicates import Always, Predicate, PredicateError, parse
from catalog.values import check
from manas._exceptions import InvalidDocument, UnusableCatalog
from manas._geo import circle_cells
from manas._manifest import static_roles
from manas._payloads import payloads_of
from manas._predicates import EVERY, candidate_terms

Floats = npt.NDArray[np.float32]

MICROS = 1_000_000
"""Prices and bids are kept in millionths of a currency unit."""
INT64_MIN, INT64_MAX = -(1 << 63), (1 << 63) - 1
_TERM_DESTINATIONS = (Destination.TERM, Destination.TEXT, Destination.TARGETING)
_CANDIDATE_DESTINATIONS = (Destination.PREDICATE, Destination.CIRCLES)
"""Their terms lead to candidates, which are then judged by the value itself."""
_SPECIAL_DESTINATIONS = (*_CANDIDATE_DESTINATIONS, Destination.POINT, Destination.HOURS)
_KEPT_PREDICATES = 65_536
"""Parsed predicates kept: ads of one ad group share theirs."""
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
    payloads: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Field that declares payloads -> term -> payload."""
    targets: Mapping[str, Any] = field(default_factory=dict)
    """Special field (predicate, circles, point, hours) -> its value; places in the one form that they are kept in."""


class DocumentSchema:
    """The catalogue's fields by destination, and the taking apart of documents."""

    def __init__(self, catalog: Catalog) -> None:
        """Raises UnusableCatalog when a serving role cannot work with the field it names."""
        self.catalog = catalog
        self.fields: dict[str, Field] = dict(catalog.fields)
        searchable = (*_TERM_DESTINATIONS, *_CANDIDATE_DESTINATIONS)
        self.term_fields = {f.name: f for f in catalog.fields.values() if f.index in searchable}
        self.filter_fields = {f.name: f for f in catalog.fields.values() if f.index in _TERM_DESTINATIONS}
        self.special_fields = frozenset(f.name for f in catalog.fields.values() if f.index in _SPECIAL_DESTINATIONS)
        self.predicate = lru_cache(_KEPT_PREDICATES)(self._predicate)
        self.number_fields = {f.name: f for f in catalog.fields.values() if f.index is Destination.NUMERIC}
        self.vector_fields = {f.name: f for f in catalog.fields.values() if f.index is Destination.VECTOR}
        self.int_keys = catalog.tables[catalog.root].key_type is ValueType.INT
        diversity = catalog.serving.diversity
        if diversity is not None and diversity not in self.filter_fields:
            raise UnusableCatalog(f"serving.diversity: field {diversity!r} must have index 'term'")
        self._scalars = [(f.name, _SCALARS[f.type]) for f in self.term_fields.values() if f.type in _SCALARS]
        self._lists = [(f.name, _LISTS[f.type]) for f in self.term_fields.values() if f.type in _LISTS]
        self._ints = [f.name for f in self.number_fields.values() if f.type is not ValueType.FLOAT]
        self._floats = [f.name for f in self.number_fields.values() if f.type is ValueType.FLOAT]
        self._vectors = [(f.name, f.column.dims) for f in self.vector_fields.values()]
        self._taken_apart = any(f.family != BODY for f in catalog.fields.values())
        """Whether a segment keeps documents in families, of which only canonical ones come back byte by byte."""
        self.payload_fields = {f.name: f.payload for f in self.term_fields.values() if f.payload is not None}

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
        if self._taken_apart and not is_canonical(body):
            raise InvalidDocument(f"document {document_id}: the body is not canonical: {sorted(values)[:5]}")
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
        targets: dict[str, Any] = {}
        for name in self.special_fields:
            if (value := get(name)) is not None:
                targets[name], found = self._special(document_id, name, value)
                if found is not None:
                    terms[name] = found
        present = tuple(name for name, value in values.items() if value is not None and name in self.fields)
        payloads = {
            name: self._payloads_of(document_id, source, terms[name], get(source))
            for name, source in self.payload_fields.items()
            if name in terms
        }
        return PreparedDocument(document_id, version, body, terms, numbers, vectors, present, payloads, targets)

    def _special(self, document_id: str, name: str, value: Any) -> tuple[Any, tuple[str, ...] | None]:
        """Return a special value as it is kept, and the terms by which it is a candidate, None if it has none."""
        index = self.fields[name].index
        if index in (Destination.PREDICATE, Destination.HOURS):
            if type(value) is not str:
                raise self._bad(document_id, name, value)
            if index is Destination.PREDICATE:
                return value, candidate_terms(self.predicate(value), self.catalog.dimensions)
            return value, None
        try:
            value = check(self.fields[name].column, value)
        except InvalidValue as error:
            raise InvalidDocument(f"document {document_id}: field {name}: {error}") from None
        if index is Destination.CIRCLES:
            wanted = [circle[:3] for circle in value if not circle[3]]
            return value, tuple(sorted({cell for circle in wanted for cell in circle_cells(*circle)})) or (EVERY,)
        return value, None

    def _predicate(self, text: str) -> Predicate:
        """Parse a predicate. What this catalogue does not understand never holds."""
        try:
            return parse(text, self.catalog.dimensions)
        except PredicateError:
            return Always(False)

    def terms_of(self, field: str, body: bytes) -> tuple[str, ...]:
        """Return the terms that one field of a canonical document is indexed by."""
        value = decode_document(body).get(field)
        if value is None:
            return ()
        return tuple(map(term_of, value)) if isinstance(value, list) else (term_of(value),)

    @staticmethod
    def _payloads_of(document_id: str, source: str, terms: tuple[str, ...], given: Any) -> dict[str, float]:
        try:
            return payloads_of(terms, given)
        except ValueError as error:
            raise InvalidDocument(f"document {document_id}: field {source}: {error}") from None

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

    roles = static_roles(serving)
    if "bid" in roles:
        scores = given(roles["bid"], 0.0) / MICROS
    elif "score" in roles:
        scores = given(roles["score"], 0.0)
    else:
        scores = np.ones(count)
    return scores * given(roles["quality"], 1.0) if "quality" in roles else scores


def term_of(value: Any) -> str:
    """Return a scalar (string, int or bool) as its term."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def normalized(raw: bytes) -> Floats:
    """Return a vector at length 1 (float32), so that a dot product is the cosine; a zero vector stays zero."""
    row: Floats = normalized_rows(np.frombuffer(raw, dtype="<f4").reshape(1, -1))[0]
    return row


def normalized_rows(rows: npt.NDArray[np.float32]) -> Floats:
    """Return vectors at length 1; each row comes out the same whatever the others are."""
    wide = rows.astype(np.float64)
    norms = np.sqrt((wide * wide).sum(axis=1))
    norms[norms == 0] = 1.0
    unit: Floats = (wide / norms[:, None]).astype(np.float32)
    return unit


def _finite(raw: bytes) -> bool:
    vector = np.frombuffer(raw, dtype="<f4")
    return bool(np.isfinite(vector).all())
