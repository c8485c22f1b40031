"""Predicates compiled for matching: terms by which candidates are found, and branching programs that judge them.

Candidates: a predicate is indexed by a few features of which at least one must be true for it to hold: of conditions
joined by `and` those of the most selective one, of an `or` those of all parts. A feature is a value ("country=UK"), an
aligned block of numbers ("age~1:3" is 24 to 31), or that a dimension is said at all ("age"). What has no feature is
under "*". A request brings its own features, the union of their lists are the candidates, and each is then judged: the
idea of the access predicates of "Indexing Boolean Expressions" (VLDB 2009), with a judge that knows any nesting.

Judging: each step of a program looks at one condition and goes on to one of two steps (`kernels.predicate_layout`).
Values of text are compared by 64 bits of BLAKE2b.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from catalog import Dimension
from catalog.predicates import All, Always, Between, No, OneOf, Predicate, Some
from manas._clauses import Asked
from manas.kernels.predicate_layout import ACCEPT, BROWSED, DENIED, GIVEN, RANGE, REFUSE, UNKNOWN, Judge

EVERY = "*"
"""The term of predicates that have no feature to be found by."""
_BLOCK_BITS, _LEVELS = 3, 8
"""Blocks of 8, 64, ... 2 million numbers; a request looks up one of each, so there are no more of them than useful."""
_MAX_BLOCKS = 64
"""Of one range: a range that needs more of them is found by its dimension alone, and judged."""
_MAX_TERMS = 512
"""Of one predicate: more of them are found by their dimensions alone."""
_TYPICAL_VALUES = 50
"""How many values a dimension is taken to have where the catalogue does not list them."""
_MAX_CACHED = 65_536
_LAST_TURN = (1 << 30) - 1
"""Stamps are int32, and a stamp is the turn x 2 + the verdict."""

Numbers = npt.NDArray[np.int64]


# ---- candidates ----


def candidate_terms(predicate: Predicate, dimensions: Mapping[str, Dimension]) -> tuple[str, ...]:
    """Return the terms of which a request must have one for the predicate to hold; none if it never holds."""
    found = _access(predicate, False, dimensions)
    if found is None:
        return (EVERY,)
    terms = found[1]
    if len(terms) > _MAX_TERMS:
        terms = frozenset(term for name in dimensions for term in _said(name) if any(_is_of(t, name) for t in terms))
    return tuple(sorted(terms))


def request_terms(asked: Asked) -> list[str]:
    """Return the terms under which candidates for a request are."""
    terms = [EVERY]
    for key, values in asked:
        name = key.partition(":")[2]
        if values is None:
            terms.append(f"{name}?")
            continue
        terms.append(name)
        for value in values:
            terms.append(f"{name}={value}")
            if isinstance(value, int):
                terms += [f"{name}~{level}:{value >> _BLOCK_BITS * level}" for level in range(1, _LEVELS)]
    return list(dict.fromkeys(terms))


_Access = tuple[float, frozenset[str]]
"""An estimate of the share of requests that have one of the terms, and the terms."""


def _access(node: Predicate, denied: bool, dimensions: Mapping[str, Dimension]) -> _Access | None:
    """Return what a request must have one of; None if the predicate may hold without any."""
    match node:
        case Always(holds):
            return None if holds != denied else (0.0, frozenset())
        case No(part):
            return _access(part, not denied, dimensions)
        case All(parts) | Some(parts):
            found = [_access(part, denied, dimensions) for part in parts]
            if isinstance(node, All) != denied:
                return min((one for one in found if one is not None), key=lambda one: one[0], default=None)
            if None in found:
                return None
            every = [one for one in found if one is not None]
            return sum(share for share, _ in every), frozenset().union(*(terms for _, terms in every))
        case OneOf(name, values):
            known = len(dimensions[name].values) if name in dimensions else 0
            share = min(1.0, len(values) / (known or _TYPICAL_VALUES))
            if denied:
                return max(0.5, 1 - share), _said(name)
            return share, frozenset({f"{name}?", *(f"{name}={value}" for value in values)})
        case Between(name, low, high):
            share = min(1.0, (high - low + 1) / _TYPICAL_VALUES)
            blocks = None if denied else _blocks(low, high)
            if blocks is None:
                return max(0.5, 1 - share if denied else share), _said(name)
            return share, frozenset({f"{name}?", *(f"{name}{block}" for block in blocks)})


def _said(name: str) -> frozenset[str]:
    return frozenset({name, f"{name}?"})


def _is_of(term: str, name: str) -> bool:
    return term.startswith(name) and (len(term) == len(name) or term[len(name)] in "=~?")


def _blocks(low: int, high: int) -> list[str] | None:
    """Return the blocks and single numbers that make up a range; None if they are too many."""
    found: list[str] = []
    level, first, last = 0, low, high + 1
    while first < last:
        mark = "=" if level == 0 else f"~{level}:"
        top = level == _LEVELS - 1
        if top and last - first > _MAX_BLOCKS:
            return None
        while first < last and (top or first % (1 << _BLOCK_BITS)):
            found.append(f"{mark}{first}")
            first += 1
        while first < last and last % (1 << _BLOCK_BITS):
            last -= 1
            found.append(f"{mark}{last}")
        if len(found) > _MAX_BLOCKS:
            return None
        first, last, level = first >> _BLOCK_BITS, last >> _BLOCK_BITS, level + 1
    return found


# ---- judging ----


@lru_cache(_MAX_CACHED)
def value_number(value: str | int) -> int:
    """Return the number that stands for a value: itself, or 64 bits of the text's hash."""
    if isinstance(value, int):
        return value
    digest = hashlib.blake2b(value.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


class Programs:
    """The programs of distinct predicates, numbered as they were added."""

    def __init__(self, dimensions: Iterable[Dimension]) -> None:
        self.names = [dimension_key(d) for d in dimensions]
        """Type and name of each dimension, by number."""
        self.entries = array("i")
        self.steps = array("i")
        self.elements = array("q")
        self._dimensions = {key.partition(":")[2]: number for number, key in enumerate(self.names)}
        self._numbers: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self.entries)

    def add(self, text: str, predicate: Predicate) -> int:
        """Return the number of a predicate, whose canonical text says whether it is known already."""
        number = self._numbers.get(text)
        if number is None:
            number = self._numbers[text] = len(self.entries)
            self.entries.append(self._compile(predicate, False, ACCEPT, REFUSE))
        return number

    def _compile(self, node: Predicate, denied: bool, met: int, otherwise: int) -> int:
        """Add the steps of a node, last first, and return where it begins."""
        match node:
            case Always(holds):
                return met if holds != denied else otherwise
            case No(part):
                return self._compile(part, not denied, met, otherwise)
            case All(parts) | Some(parts):
                every = isinstance(node, All) != denied
                at = met if every else otherwise
                for part in reversed(parts):
                    at = self._compile(part, denied, *((at, otherwise) if every else (met, at)))
                return at
            case OneOf(name, values):
                return self._step(name, 0, denied, sorted(map(value_number, values)), met, otherwise)
            case Between(name, low, high):
                return self._step(name, RANGE, denied, [low, high], met, otherwise)

    def _step(self, name: str, kind: int, denied: bool, numbers: Sequence[int], met: int, otherwise: int) -> int:
        at = len(self.steps) // 5
        what = 4 * self._dimensions[name] + kind + (DENIED if denied else 0)
        self.steps.extend((what, len(self.elements), len(numbers), met, otherwise))
        self.elements.extend(numbers)
        return at


def dimension_key(dimension: Dimension) -> str:
    """Return type and name: programs of a dimension whose type has changed since do not know it."""
    return f"{dimension.type.value}:{dimension.name}"


class Verdicts:
    """What of a segment's predicates has been judged, stamped with the turn of the request that it was judged for.

    A stamp of another turn says nothing, so nothing is cleared between requests, and requests at the same time can do
    no harm to each other.
    """

    def __init__(self) -> None:
        self._memo: npt.NDArray[np.int32] = np.empty(0, np.int32)
        self._turn = 0
        self._lock = Lock()

    def turn(self, predicates: int) -> tuple[npt.NDArray[np.int32], int]:
        """Return the memo for so many predicates, and the number of a new turn."""
        with self._lock:
            if len(self._memo) < predicates or self._turn >= _LAST_TURN:
                self._memo, self._turn = np.zeros(2 * predicates, np.int32), 0  # requests under way keep the old one
            self._turn += 1
            return self._memo, self._turn


class Bench:
    """Where a request's predicates are judged: the address of its parameters goes to the kernels."""

    def __init__(
        self,
        names: Sequence[str],
        asked: Asked,
        of: npt.NDArray[np.int32],
        entries: npt.NDArray[np.int32],
        steps: npt.NDArray[np.int32],
        elements: Numbers,
        verdicts: Verdicts,
    ) -> None:
        """`of` is the number of the predicate by id, -1 where there is none; it must reach as far as the ids judged."""
        given_of = dict(asked)
        states, starts, values = np.zeros(len(names), np.int64), np.zeros(len(names) + 1, np.int64), array("q")
        for number, name in enumerate(names):
            states[number] = UNKNOWN
            if name in given_of:
                given = given_of[name]
                states[number] = BROWSED if given is None else GIVEN
                values.extend(map(value_number, given or ()))
            starts[number + 1] = len(values)
        said = np.array(values, np.int64)
        self.parameters = np.zeros(Judge.SIZE, np.int64)
        self._keep: list[npt.NDArray[Any]] = [of, entries, steps, elements, states, starts, said]
        for place, values_at in enumerate(self._keep):
            self.parameters[Judge.OF + place] = values_at.ctypes.data
        memo, self.parameters[Judge.TURN] = verdicts.turn(len(entries))
        self._keep.append(memo)
        self.parameters[Judge.MEMO] = memo.ctypes.data

    @property
    def address(self) -> int:
        """Where the parameters are."""
        return int(self.parameters.ctypes.data)
