"""The second phase: candidates of the first, as arrays that an expression or a Python function scores.

Only the numeric columns and posting lists that are asked for are read, and of documents only the families.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from catalog import Serving
from catalog.targeting import accept_term
from manas._clauses import And, Clause, Condition, Targets
from manas._exceptions import InvalidRequest
from manas._expression import Vocabulary, finite
from manas._layer import Boost, LayerView
from manas._ranking import Ranked
from manas._schema import MICROS, DocumentSchema

Numbers = npt.NDArray[np.float64]
MAX_RERANK = 100_000
"""Candidates of the second phase: their columns are gathered at random, some 10 ms for so many."""
_FIRST = 100
_TIMES = 4
"""Candidates scored in full when the request does not say: four for each hit wanted, and at least a hundred."""


def default_rerank(k: int) -> int:
    """Return how many candidates are scored in full for `k` hits when the request does not say."""
    return min(MAX_RERANK, max(_FIRST, _TIMES * k))


def vocabulary(schema: DocumentSchema) -> Vocabulary:
    """Return the names that expressions over this catalogue may use."""
    roles = {name for name, (field, _, _) in _roles(schema.catalog.serving).items() if field is not None}
    dimensions = set(schema.catalog.dimensions) if schema.catalog.serving.targeting is not None else set()
    return Vocabulary(frozenset({*schema.number_fields, *roles}), frozenset({*schema.filter_fields, *dimensions}))


def _roles(serving: Serving) -> Mapping[str, tuple[str | None, float, float]]:
    """Return role -> (field, units of it for one, what a missing one counts as)."""
    return {
        "bid": (serving.bid, float(MICROS), 0.0),
        "price": (serving.price, float(MICROS), 0.0),
        "quality": (serving.quality, 1.0, 1.0),
        "score": (serving.score, 1.0, 0.0),
    }


class CandidateColumns:
    """The candidates of a request as arrays, in order of their light score."""

    def __init__(
        self,
        schema: DocumentSchema,
        views: Sequence[LayerView],
        ranked: Ranked,
        boosts: Sequence[Boost],
        conditions: Sequence[Condition],
        at_us: int,
    ) -> None:
        self._schema = schema
        self._views = views
        self._ranked = ranked
        self._conditions = conditions
        self._at_us = at_us
        self._boosts = boosts
        self._roles = _roles(schema.catalog.serving)

    def __len__(self) -> int:
        return len(self._ranked.ids)

    def __getitem__(self, name: str) -> Numbers:
        """Return a number of every candidate. Raises InvalidRequest for a name that is none."""
        if name not in self._schema.number_fields and self._roles.get(name, (None,))[0] is None:
            known = ", ".join(sorted(vocabulary(self._schema).numbers))
            raise InvalidRequest(f"score: no number {name!r}; there are {known}")
        return self.number(name)

    @property
    def light(self) -> Numbers:
        """The score of the first phase."""
        return self._ranked.scores

    @property
    def at_us(self) -> int:
        """The request's instant, microseconds since the epoch."""
        return self._at_us

    @property
    def keys(self) -> npt.NDArray[Any]:
        """The document ids."""
        return self._ranked.keys

    def number(self, name: str, missing: float | None = None) -> Numbers:
        """Return a numeric field or role; `missing` (None: the name's own) where a candidate has none."""
        field, units, other = self._resolve(name)
        values, present = self._numbers(field)
        return np.where(present, values / units, other if missing is None else missing)

    def has(self, name: str) -> Numbers:
        """Return 1 where a candidate has the number, else 0."""
        return self._numbers(self._resolve(name)[0])[1].astype(np.float64)

    def match(self, name: str) -> Numbers:
        """Return what words and boosts of a field add, plus payloads of the request's values of a dimension."""
        parts = [boost for boost in self._boosts if boost.field == name]
        serving = self._schema.catalog.serving
        if serving.targeting is not None:
            for value in self._said.get(name, ()):
                parts.append(Boost(serving.targeting, accept_term(name, value), 1.0))
        result = np.zeros(len(self))
        for part in parts:
            for mask, view in self._by_view:
                result[mask] += part.weight * view.payloads(part.field, part.term, self._ranked.ids[mask])
        return result

    def fields(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Return some fields of every candidate's document; only the families that they are in are read."""
        return [
            self._views[layer].layer.fields(internal, names)
            for layer, internal in zip(self._ranked.layers.tolist(), self._ranked.ids.tolist(), strict=True)
        ]

    def _resolve(self, name: str) -> tuple[str, float, float]:
        serving = self._schema.catalog.serving
        if name in self._schema.number_fields:
            return name, 1.0, 1.0 if name == serving.quality else 0.0
        field, units, other = self._roles[name]
        return field or "", units, other

    def _numbers(self, field: str) -> tuple[Numbers, npt.NDArray[np.bool_]]:
        values, present = np.zeros(len(self)), np.zeros(len(self), bool)
        for mask, view in self._by_view:
            values[mask], present[mask] = view.numbers(field, self._ranked.ids[mask])
        return values, present

    @cached_property
    def _by_view(self) -> list[tuple[npt.NDArray[np.intp], LayerView]]:
        places = [np.flatnonzero(self._ranked.layers == layer) for layer in range(len(self._views))]
        return [(own, view) for own, view in zip(places, self._views, strict=True) if len(own)]

    @cached_property
    def _said(self) -> dict[str, tuple[str | int, ...]]:
        said: dict[str, tuple[str | int, ...]] = {}
        clauses: list[Clause] = [condition.clause for condition in self._conditions]
        while clauses:
            clause = clauses.pop()
            if isinstance(clause, Targets):
                said[clause.dimension] = clause.values
            elif isinstance(clause, And):
                clauses += clause.parts
        return said


Scorer = Callable[[CandidateColumns], npt.ArrayLike]
"""A Python function that scores candidates: a number for each."""


def rescored(ranked: Ranked, columns: CandidateColumns, scorer: Scorer) -> Ranked:
    """Return the candidates in order of their full scores, ties by document id.

    Raises InvalidRequest when the function does not give a number for each.
    """
    given = np.asarray(scorer(columns), np.float64)
    if given.shape != (len(columns),):
        raise InvalidRequest(f"score: {len(columns)} numbers are expected, the function gave shape {given.shape}")
    scores = finite(given)
    order = np.lexsort((ranked.keys, -scores))
    return replace(
        ranked,
        scores=scores[order],
        light=ranked.scores[order],
        keys=ranked.keys[order],
        layers=ranked.layers[order],
        ids=ranked.ids[order],
        exhausted=True,
    )
