"""One field's vectors of one layer: which documents have one, and the nearest of those that pass a filter."""

from __future__ import annotations

import math
import mmap
import time
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from manas._bits import Bits, Words, ids_of, padded
from manas._layer import Ids
from manas._schema import Floats
from manas._vector_codes import Codes, bytes_of
from manas._vector_plan import LEAST_LOCAL, PLAN_VERSION, WALK_BUDGET, Beam, Choice, VectorPlan, Way, choose
from manas._vector_table import Found, Lists, VectorTable

_KEPT_CHOICES = 1_024
"""Of the planner: some 300 kB per field."""
_ROUNDING = 1e-6
"""More than the rounding error of a float32 dot product of unit vectors."""


class Neighbours(msgspec.Struct):
    """The nearest of those that pass, with float64 similarities; ties with the last may make them more than k."""

    ids: Ids
    scores: npt.NDArray[np.float64]
    way: Way
    survivors: int
    choice: Choice | None = None
    """Also what was chosen before, if that did not do."""
    found: Found | None = None
    failed: Found | None = None
    """A walk that did not do."""
    complete: bool = True
    """False: the deadline came first, and these are the best until then."""
    ranked: bool = False
    """In the order of the answer: by similarity, then by the table's `ties`."""

    def words(self) -> str:
        """Return how they were found, what that took, and what was estimated."""
        if self.found is None or self.choice is None:
            said = f"{self.way} scan of {self.survivors} survivors"
        elif self.way is Way.LISTS:
            how = f"{self.found.looked} rows by codes, " if self.choice.by_codes else ""
            said = f"{self.way}: {self.found.visits} scanned, {how}{self.found.compared} survivors compared"
        else:
            said = f"{self.way}: {self.found.visits} steps with a beam of {self.choice.width}, "
            said += f"{self.found.compared} vectors compared"
        if self.failed is not None:
            said += f"; a walk did not do, after {self.failed.compared} comparisons"
        if not self.complete:
            said += "; the deadline came first"
        return said if self.choice is None else f"{said}; {self.survivors} pass; estimated {self.choice.words}"


class VectorStore(Protocol):
    """Vectors of one field of one layer, at length 1."""

    def nearest(
        self,
        query: Floats,
        words: Words,
        survivors: int,
        k: int,
        *,
        exact_survivors: int,
        only: Way | None = None,
        deadline: float | None = None,
    ) -> Neighbours:
        """Return the `k` (0: all) nearest of the ids in `words`, which are `survivors` and all have a vector.

        `deadline` is a time of the monotonic clock; what was found until then is returned as not complete.
        """


class SegmentVectors:
    """A segment's vectors of one field, mapped."""

    def __init__(self, table: VectorTable, plan: VectorPlan, count: int) -> None:
        """Use `open_vectors`."""
        self.table = table
        self.plan = plan
        self.having = Bits(count)
        """Ids that have a vector."""
        if table.ids is not None:
            self.having.add(table.ids)
        self._choices: dict[tuple[int, int, int, Way | None], Choice] = {}

    def nearest(
        self,
        query: Floats,
        words: Words,
        survivors: int,
        k: int,
        *,
        exact_survivors: int,
        only: Way | None = None,
        deadline: float | None = None,
    ) -> Neighbours:
        """Return the nearest by the way that the planner chooses; at least min(k, survivors) of them if complete.

        A walk that comes to nothing is followed by lists or a comparison of all, under the same deadline.
        """
        if survivors <= exact_survivors:
            only = Way.EXACT
        choice = self._choice(survivors, len(words), k, only)
        way, failed = choice.way, None
        if choice.beam is not None and way in (Way.WALK, Way.POST_FILTER):
            found = self._walk(query, words, choice.beam, choice.width, deadline)
            enough = found.finished and len(found.ids) >= min(k, survivors)
            if enough or not found.complete:
                return Neighbours(
                    found.ids, found.scores, way, survivors, choice, found, None, found.complete, found.ranked
                )
            failed = found
            way = Way.LISTS if choice.micros.get(Way.LISTS, math.inf) <= choice.micros[Way.EXACT] else Way.EXACT
        if way is Way.LISTS:
            found = self._probe(query, words, survivors, k, choice, deadline)
            return Neighbours(
                found.ids, found.scores, way, survivors, choice, found, failed, found.complete, found.ranked
            )
        ids, scores, complete = exact(self.table, query, words, survivors, k, deadline)
        return self._ranked(Neighbours(ids, scores, Way.EXACT, survivors, choice, None, failed, complete))

    def _ranked(self, found: Neighbours) -> Neighbours:
        """Put what was found into the order of the answer, where the table knows it."""
        ties = self.table.ties
        if ties is None:
            return found
        order = np.lexsort((ties[found.ids], -found.scores))
        found.ids, found.scores, found.ranked = found.ids[order], found.scores[order], True
        return found

    def _choice(self, survivors: int, words: int, k: int, only: Way | None) -> Choice:
        """Return what the planner chooses, remembered: filters that are asked for often let as many pass each time."""
        known = self._choices.get((survivors, words, k, only))
        if known is None:
            if len(self._choices) >= _KEPT_CHOICES:
                self._choices = {}
            known = self._choices[survivors, words, k, only] = choose(self.plan, survivors, words, k, only=only)
        return known

    def _probe(
        self, query: Floats, words: Words, survivors: int, k: int, choice: Choice, deadline: float | None
    ) -> Found:
        return self.table.probe(
            query,
            words,
            survivors,
            min(k, survivors),
            choice.reach,
            choice.further,
            by_codes=choice.by_codes,
            deadline=deadline,
        )

    def _walk(self, query: Floats, words: Words, beam: Beam, width: int, deadline: float | None) -> Found:
        return self.table.walk(
            query,
            words,
            width,
            two_hops=beam.two_hops,
            least_local=beam.share * LEAST_LOCAL,
            budget=WALK_BUDGET,
            deadline=deadline,
        )


def exact(
    table: VectorTable,
    query: Floats,
    words: Words,
    survivors: int,
    k: int,
    deadline: float | None = None,
) -> tuple[Ids, npt.NDArray[np.float64], bool]:
    """Compare all that pass: exactly the nearest `k` (0: all), by float64 similarity and then by the table's `ties`.

    Without these, everything that ties with the last of them is there as well. The last value is False when the
    deadline came first: then it is the best of what was compared until then.
    """
    k = min(k, survivors)  # whoever wants all asks for far more than there are
    room = k + 16 + k // 16
    if k:
        found = table.scan(query, words, room, deadline)
        if survivors <= room or not found.complete:
            return found.ids, found.scores, found.complete
        best = np.partition(found.scores, room - k)[room - k]
        if table.ties is not None or best - found.scores.min() > _ROUNDING:
            return found.ids, found.scores, True
    ids = ids_of(words)
    step = len(ids) if deadline is None else table.slice_rows
    scores = table.similarities(query, ids[:step])
    while len(scores) < len(ids) and deadline is not None and time.monotonic() < deadline:
        more = table.similarities(query, ids[len(scores) : len(scores) + step])
        scores = np.concatenate([scores, more])
    complete = len(scores) == len(ids)
    ids = ids[: len(scores)]
    if k and len(scores) > k:
        near = scores >= np.partition(scores, len(scores) - k)[len(scores) - k]
        ids, scores = ids[near], scores[near]
    return ids, scores, complete


def open_vectors(
    directory: Path, field: str, dims: int, count: int, ties: npt.NDArray[np.int64] | None = None
) -> SegmentVectors:
    """Map a field's files; `ties` by id decide between equal similarities, else the id does.

    Raises ValueError or OSError where files do not fit together.
    """
    name = f"vectors.{field}"
    try:
        plan = msgspec.json.decode((directory / f"{name}.plan").read_bytes(), type=VectorPlan)
    except msgspec.DecodeError as error:
        raise ValueError(f"{name}.plan: {error}") from error
    if plan.version != PLAN_VERSION or plan.dims != dims:
        raise ValueError(f"{name}.plan is of version {plan.version} and {plan.dims} dimensions")
    size = plan.vectors
    lists = Lists(
        _mapped(directory / f"{name}.starts", np.int64, plan.lists + 1),
        _mapped(directory / f"{name}.centroids", np.float32, plan.lists * dims).reshape(-1, dims),
        _mapped(directory / f"{name}.spread", np.float32, plan.lists),
    )
    links = None
    if plan.degree:
        links = _mapped(directory / f"{name}.links", np.uint32, size * plan.degree).reshape(-1, plan.degree)
    codes = None
    if plan.lists > 1:
        codes = Codes(
            _mapped(directory / f"{name}.codes", np.uint8, bytes_of(size, dims)),
            _mapped(directory / f"{name}.scales", np.float32, dims),
            plan.power,
        )
    table = VectorTable(
        dims,
        _mapped(directory / f"{name}.matrix", np.float32, size * dims).reshape(-1, dims),
        _mapped(directory / f"{name}.rows", np.uint32, padded(count)),
        _mapped(directory / f"{name}.ids", np.uint32, size),
        lists,
        links,
        codes,
        ties,
    )
    return SegmentVectors(table, plan, count)


def _mapped(file: Path, dtype: Any, length: int) -> npt.NDArray[Any]:
    size = file.stat().st_size
    if size != length * np.dtype(dtype).itemsize:
        raise ValueError(f"{file.name} has {size} bytes instead of {length * np.dtype(dtype).itemsize}")
    if size == 0:  # an empty file cannot be mapped
        return np.empty(0, dtype)
    with file.open("rb") as handle:
        return np.frombuffer(mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ), dtype)
