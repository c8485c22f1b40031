"""Requests: from JSON to conditions, with every fault named together with what would be valid."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from functools import lru_cache, partial
from typing import Any

import msgspec
import numpy as np

from catalog import Catalog, Destination, Dimension, Field, ValueType
from catalog.text import unique_terms
from catalog.values import datetime_of
from manas._clauses import And, Clause, Condition, Funded, HasVector, InSchedule, Is, Not, Or, Range, Targets, Term
from manas._exceptions import InvalidDocument, InvalidRequest, UnusableCatalog
from manas._request_values import check_object, instant, is_number, micros, numbers_of, shown
from manas._schema import INT64_MAX, INT64_MIN, DocumentSchema, Floats, normalized, term_of
from manas._scoring_request import NO_SCORING, Scoring, ScoringParser
from manas._special_request import SpecialParser, near, values_of
from manas.budgets import Seen
from messaging.headers import now_us

MAX_DEPTH, MAX_NODES = 32, 1_000
"""Of a filter tree: more is a mistake or an attack, and a deeper tree would exhaust the interpreter's stack."""
_CACHED_CONDITIONS = 4_096
"""What requests have said, of each dimension: most of them say what others have said."""
_KEPT_VALUES = 32
"""A longer list is one user's own."""
_PLAIN = frozenset((int, str, type(None)))
_PLAIN_LISTS: tuple[set[type], ...] = ({int}, {str})
"""Types of what is said, or of the items of a list: what is equal then means the same."""
_Said = int | str | tuple[int | str, ...] | None
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_BOUNDS = ("gte", "gt", "lte", "lt")


class Query(msgspec.Struct, frozen=True):
    """A request, checked and compiled."""

    conditions: tuple[Condition, ...]
    at_us: int
    text_terms: tuple[str, ...] = ()
    vector: Floats | None = None
    similar_to: str | None = None
    max_per_group: int | None = None
    scoring: Scoring = NO_SCORING
    vector_field: str | None = None
    """The field that `vector` or `similar_to` is about, None when nothing was said of neighbours."""
    seen: Seen = {}
    """What the user has seen of each campaign."""


class RequestParser:
    """Compiles requests against one catalogue."""

    def __init__(self, schema: DocumentSchema) -> None:
        """Raises UnusableCatalog when a dimension is named like one of the request's own keys."""
        self._schema = schema
        self._catalog: Catalog = schema.catalog
        serving = self._catalog.serving
        own = {"at": True, "filter": True, "text": serving.text, "price": serving.price}
        own |= {"vector": bool(schema.vector_fields), "similar_to": bool(schema.vector_fields)}
        own |= {"max_per_advertiser": serving.diversity}
        own |= {"vector_field": bool(schema.vector_fields)}
        own |= dict.fromkeys(ScoringParser.keys, True)
        self._special = SpecialParser(schema)
        own |= self._special.keys
        self._scoring = ScoringParser(schema)
        clash = own.keys() & self._catalog.dimensions.keys()
        if clash:
            raise UnusableCatalog(f"dimensions {sorted(clash)} are named like keys that every request has; rename them")
        flat = [d for d in self._catalog.dimensions.values() if d.flat and serving.targeting is not None]
        self._flat: list[tuple[str, Dimension, Callable[[_Said], Condition | None]]] = [
            (d.name, d, lru_cache(_CACHED_CONDITIONS)(partial(self._plainly_said, d))) for d in flat
        ]
        known = list(self._catalog.dimensions) if serving.predicate is not None else [d.name for d in flat]
        self._keys = sorted([key for key, usable in own.items() if usable] + known)
        self._known = frozenset(self._keys)
        self._common = frozenset((*known, "text", "filter", "price", "at"))
        """Keys of requests about nothing but targeting and what ads are like."""

    def parse(self, request: Mapping[str, Any]) -> Query:
        """Check and compile a request. Raises InvalidRequest naming the key."""
        if not isinstance(request, Mapping):
            raise InvalidRequest(f"a request is a JSON object, got {shown(request)}")
        if not request.keys() <= self._known:
            unknown = next(key for key in request if key not in self._known)
            raise InvalidRequest(f"unknown key {unknown!r}; valid are {', '.join(self._keys)}")
        common = request.keys() <= self._common
        if not common and "vector" in request and "similar_to" in request:
            raise InvalidRequest("give either vector or similar_to, not both")
        serving = self._catalog.serving
        scoring = NO_SCORING if common else self._scoring.parse(request)
        now = now_us() if scoring.page is None or not scoring.page.at_us else scoring.page.at_us
        at_us = instant(request["at"], "at") if "at" in request else now
        conditions: list[Condition] = []
        if serving.starts is not None or serving.ends is not None:
            schedule = InSchedule(serving.starts or "", serving.ends or "", at_us)
            conditions.append(Condition("schedule", schedule, lambda: f"runs at {datetime_of(at_us)}"))
        if serving.budget_key is not None:
            conditions.append(Condition("budget", Funded(), "has budget left"))
        for name, dimension, said in self._flat:
            value: Any = request.get(name)
            if (kind := type(value)) is list and len(value) <= _KEPT_VALUES and set(map(type, value)) in _PLAIN_LISTS:
                found = said(tuple(value))
            else:  # what equals a plain value and is none (True, 1.0) must not be taken for it
                found = said(value) if kind in _PLAIN else self._new_said(dimension, value)
            if found is not None:
                conditions.append(found)
        if self._special.any:
            conditions += self._special.conditions(request, at_us)
        if "price" in request:
            conditions.append(self._price(request["price"]))
        terms: tuple[str, ...] = ()
        if "text" in request and serving.text is not None:
            terms = self._text_terms(request["text"])
            clause = Or(tuple([Term(serving.text, term) for term in terms]))
            conditions.append(Condition("text", clause, lambda: f"has one of the words {', '.join(terms)}"))
        if "filter" in request:
            tree = _Tree(self._schema).clause(request["filter"])
            conditions.append(Condition("filter", tree, "satisfies the filter"))
        if common:
            return Query(tuple(conditions), at_us, terms)
        vector, similar_to, vector_field = None, None, self._vector_field(request)
        if vector_field is not None:
            conditions.append(Condition("vector", HasVector(vector_field), f"has a value of {vector_field}"))
            if "vector" in request:
                vector = self._vector(request["vector"], self._catalog.fields[vector_field])
            else:
                similar_to = self._document_id(request["similar_to"])
                words = f"is not {similar_to} itself"
                conditions.append(Condition("other", Not(Is(similar_to)), words))
        most = self._max_per_group(request)
        seen = self._special.seen(request)
        return Query(tuple(conditions), at_us, terms, vector, similar_to, most, scoring, vector_field, seen)

    def _plainly_said(self, dimension: Dimension, value: _Said) -> Condition | None:
        return self._new_said(dimension, list(value) if isinstance(value, tuple) else value)

    def _new_said(self, dimension: Dimension, value: Any) -> Condition | None:
        """Return the condition of what a request says of a dimension, None for "*"."""
        values = values_of(dimension, value)
        if values is None:
            return None
        name, field = dimension.name, self._catalog.serving.targeting or ""
        said = f"accepts {name} {', '.join(map(str, values))}" if values else f"does not care about {name} (not given)"
        return Condition(f"targeting:{name}", Targets(field, name, values), said)

    def _price(self, value: Any) -> Condition:
        serving = self._catalog.serving
        allowed = ["min", "max"] + (["currency"] if serving.currency else [])
        check_object(value, "price", allowed)
        low = micros(value["min"], "price.min", ROUND_CEILING) if "min" in value else None
        high = micros(value["max"], "price.max", ROUND_FLOOR) if "max" in value else None
        if low is not None and high is not None and Decimal(str(value["min"])) > Decimal(str(value["max"])):
            raise InvalidRequest(f"price: min {value['min']} is above max {value['max']}")
        parts: list[Clause] = [Range(serving.price or "", low, high)]
        currency = value.get("currency")
        if currency is not None:
            if not isinstance(currency, str):
                raise InvalidRequest(f"price.currency: a string like 'EUR', got {shown(currency)}")
            parts.append(Term(serving.currency or "", currency))
        words = f"price between {value.get('min', 'anything')} and {value.get('max', 'anything')} {currency or ''}"
        return Condition("price", And(tuple(parts)), words.strip())

    def _text_terms(self, value: Any) -> tuple[str, ...]:
        if not isinstance(value, str):
            raise InvalidRequest(f"text: a string, got {shown(value)}")
        terms = tuple(unique_terms(value))
        if not terms:
            raise InvalidRequest(f"text: {value[:60]!r} has no words; leave the key out to search without text")
        return terms

    def _vector_field(self, request: Mapping[str, Any]) -> str | None:
        """Return the field whose neighbours are wanted, None for no neighbours."""
        wanted, neighbours = request.get("vector_field"), "vector" in request or "similar_to" in request
        known = ", ".join(sorted(self._schema.vector_fields))
        if "vector_field" in request:
            if not isinstance(wanted, str) or wanted not in self._schema.vector_fields:
                raise InvalidRequest(f"vector_field: one of {known}, got {shown(wanted)}")
            if not neighbours:
                raise InvalidRequest("vector_field: give vector or similar_to with it")
            return wanted
        if neighbours and self._catalog.serving.vector is None:
            raise InvalidRequest(f"vector_field: say which of {known}")
        return self._catalog.serving.vector if neighbours else None

    def _vector(self, value: Any, field: Field) -> Floats:
        dims = field.column.dims
        numbers = numbers_of(value) if isinstance(value, list) and len(value) == dims else None
        if numbers is None:
            got = f"a list of {len(value)}" if isinstance(value, list) else shown(value)
            raise InvalidRequest(f"vector: a list of {dims} finite numbers (field {field.name}), got {got}")
        return normalized(numbers.clip(-_FLOAT32_MAX, _FLOAT32_MAX).astype("<f4").tobytes())

    def _document_id(self, value: Any) -> str:
        try:
            if isinstance(value, int | str) and not isinstance(value, bool):
                return str(self._schema.key(str(value)))
        except InvalidDocument as error:
            raise InvalidRequest(f"similar_to: {error}") from None
        raise InvalidRequest(f"similar_to: an ad id, got {shown(value)}")

    def _max_per_group(self, request: Mapping[str, Any]) -> int | None:
        value = request.get("max_per_advertiser")
        if "max_per_advertiser" in request and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise InvalidRequest(f"max_per_advertiser: a whole number from 1, got {shown(value)}")
        return value


class _Tree:
    """Compiles one filter tree."""

    def __init__(self, schema: DocumentSchema) -> None:
        self._schema = schema
        self._nodes = 0

    def clause(self, node: Any, depth: int = 0) -> Clause:
        """Compile a node. Raises InvalidRequest."""
        self._nodes += 1
        if depth > MAX_DEPTH or self._nodes > MAX_NODES:
            raise InvalidRequest(f"filter: deeper than {MAX_DEPTH} or more than {MAX_NODES} nodes; simplify it")
        kinds = ("and", "or", "not", "term", "range", "near")
        if not isinstance(node, Mapping) or len(node) != 1 or next(iter(node)) not in kinds:
            raise InvalidRequest(
                f"filter: a node is an object with one key out of {', '.join(kinds)}, got {shown(node)}"
            )
        kind, value = next(iter(node.items()))
        match kind:
            case "and" | "or":
                if not isinstance(value, list) or not value:
                    raise InvalidRequest(f"filter: {kind!r} takes a list of at least one node, got {shown(value)}")
                parts = tuple(self.clause(v, depth + 1) for v in value)
                return And(parts) if kind == "and" else Or(parts)
            case "not":
                return Not(self.clause(value, depth + 1))
            case "term":
                return self._term(value)
            case "near":
                return self._near(value)
        return self._range(value)

    def _near(self, value: Any) -> Clause:
        if not isinstance(value, Mapping):
            raise InvalidRequest(f"filter near: an object with field, lat, lon and a radius, got {shown(value)}")
        points = {f.name: f for f in self._schema.fields.values() if f.index is Destination.POINT}
        field = self._field(value.get("field"), points, "near")
        return near(field.name, {k: v for k, v in value.items() if k != "field"}, "filter near").clause

    def _term(self, value: Any) -> Clause:
        check_object(value, "filter term", ["field", "value"], required=["field", "value"])
        field = self._field(value["field"], self._schema.filter_fields, "term")
        wanted: type = str
        if field.type in (ValueType.INT, ValueType.INT_LIST):
            wanted = int
        elif field.type is ValueType.BOOL:
            wanted = bool
        given = value["value"]
        if type(given) is not wanted:
            raise InvalidRequest(f"filter term: values of {field.name} are {wanted.__name__}, got {shown(given)}")
        return Term(field.name, term_of(given))

    def _range(self, value: Any) -> Clause:
        check_object(value, "filter range", ["field", *_BOUNDS], required=["field"])
        field = self._field(value["field"], self._schema.number_fields, "range")
        given = {name: value[name] for name in _BOUNDS if name in value}
        if not given or {"gte", "gt"} <= given.keys() or {"lte", "lt"} <= given.keys():
            raise InvalidRequest(f"filter range on {field.name}: give gte or gt, lte or lt, or one of each")
        return _interval(field, {name: self._bound(field, name, limit) for name, limit in given.items()})

    @staticmethod
    def _bound(field: Field, name: str, limit: Any) -> int | float:
        if field.type is ValueType.TIME and isinstance(limit, str):
            return instant(limit, f"filter range {field.name}.{name}")
        if not is_number(limit):
            raise InvalidRequest(f"filter range on {field.name}: {name} must be a finite number, got {shown(limit)}")
        number: int | float = limit
        return number

    def _field(self, name: Any, fitting: Mapping[str, Field], kind: str) -> Field:
        if isinstance(name, str) and name in fitting:
            return fitting[name]
        known = self._schema.fields.get(name) if isinstance(name, str) else None
        if known is None:
            raise InvalidRequest(f"filter {kind}: no field {shown(name)}; valid are {', '.join(sorted(fitting))}")
        how = "not indexed" if known.index is Destination.FORWARD else f"indexed as {known.index.value}"
        raise InvalidRequest(f"filter {kind}: field {name} is {how}; {kind} works on {', '.join(sorted(fitting))}")


def _interval(field: Field, bounds: Mapping[str, int | float]) -> Clause:
    """Return the closed interval that equals the bounds on the field's own numbers."""
    low: float | None = None
    high: float | None = None
    if field.type is ValueType.FLOAT:
        low = bounds.get("gte", math.nextafter(bounds["gt"], math.inf) if "gt" in bounds else None)
        high = bounds.get("lte", math.nextafter(bounds["lt"], -math.inf) if "lt" in bounds else None)
        return Range(field.name, low, high)
    if "gte" in bounds or "gt" in bounds:
        low = math.ceil(bounds["gte"]) if "gte" in bounds else math.floor(bounds["gt"]) + 1
    if "lte" in bounds or "lt" in bounds:
        high = math.floor(bounds["lte"]) if "lte" in bounds else math.ceil(bounds["lt"]) - 1
    if (low is not None and low > INT64_MAX) or (high is not None and high < INT64_MIN):
        return Or((Range(field.name, 1, 0),))
    low = None if low is None or low < INT64_MIN else low
    high = None if high is None or high > INT64_MAX else high
    return Range(field.name, low, high)
