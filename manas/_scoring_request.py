"""The keys of a request that say how to score and which page to return: boost, score, rerank, page_token.

| key | value |
| --- | --- |
| `boost` | list of {field, value, weight}: what the term adds to the light score, times its payload |
| `score` | expression that orders the best candidates of the light score (see `_expression`) |
| `rerank` | how many candidates the second phase scores |
| `page_token` | "" for the first page, else what the answer before gave |
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import msgspec

from catalog import ValueType
from manas._exceptions import InvalidRequest
from manas._expression import Expression, parse_expression
from manas._layer import Boost
from manas._paging import KEY as PAGE_TOKEN
from manas._paging import Page, read_page
from manas._schema import DocumentSchema, term_of
from manas._scoring import MAX_RERANK, vocabulary

MAX_BOOSTS = 200
"""Every boost is a list that the kernel reads along."""
_CACHED_EXPRESSIONS = 1_024
"""Parsed expressions kept: callers send the same few again and again."""


class Scoring(msgspec.Struct, frozen=True):
    """How a request wants to be scored, and which page it wants."""

    boosts: tuple[Boost, ...] = ()
    expression: Expression | None = None
    rerank: int | None = None
    page: Page | None = None


NO_SCORING = Scoring()


class ScoringParser:
    """Reads these keys for one catalogue."""

    keys = ("boost", "score", "rerank", PAGE_TOKEN)

    def __init__(self, schema: DocumentSchema) -> None:
        self._schema = schema
        names = vocabulary(schema)
        self._expression = lru_cache(_CACHED_EXPRESSIONS)(lambda text: parse_expression(text, names))
        self._names = names

    def parse(self, request: Mapping[str, Any]) -> Scoring:
        """Check and compile. Raises InvalidRequest naming the key."""
        if request.keys().isdisjoint(self.keys):
            return NO_SCORING
        expression = None
        if "score" in request:
            text = request["score"]
            expression = self._expression(text) if isinstance(text, str) else parse_expression(text, self._names)
        rerank = request.get("rerank")
        if "rerank" in request and (type(rerank) is not int or not 1 <= rerank <= MAX_RERANK):
            raise InvalidRequest(f"rerank: a whole number from 1 to {MAX_RERANK}, got {str(rerank)[:60]!r}")
        return Scoring(
            tuple(self._boosts(request.get("boost", []))),
            expression,
            rerank,
            read_page(request, int_keys=self._schema.int_keys),
        )

    def _boosts(self, given: Any) -> list[Boost]:
        if not isinstance(given, list) or len(given) > MAX_BOOSTS:
            raise InvalidRequest(f"boost: a list of at most {MAX_BOOSTS} objects, got {str(given)[:60]!r}")
        return [self._boost(item) for item in given]

    def _boost(self, item: Any) -> Boost:
        keys = {"field", "value", "weight"}
        if not isinstance(item, Mapping) or item.keys() != keys:
            raise InvalidRequest(f"boost: an object with field, value and weight, got {str(item)[:60]!r}")
        name, value, weight = item["field"], item["value"], item["weight"]
        field = self._schema.filter_fields.get(name) if isinstance(name, str) else None
        if field is None:
            known = ", ".join(sorted(self._schema.filter_fields))
            raise InvalidRequest(f"boost: no field {str(name)[:60]!r} with terms; there are {known}")
        wanted: type = str
        if field.type in (ValueType.INT, ValueType.INT_LIST):
            wanted = int
        elif field.type is ValueType.BOOL:
            wanted = bool
        if type(value) is not wanted:
            raise InvalidRequest(f"boost: values of {field.name} are {wanted.__name__}, got {str(value)[:60]!r}")
        if type(weight) not in (int, float) or not math.isfinite(weight) or abs(weight) > 1e100:
            raise InvalidRequest(f"boost: the weight of {field.name} {value!r} is a number, got {str(weight)[:60]!r}")
        return Boost(field.name, term_of(value), float(weight))
