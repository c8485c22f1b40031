"""How a filtered nearest-neighbour query is answered: the alternatives, what each would cost, and the choice.

What passes the filter is counted, not estimated. What each way takes was measured when the segment was built, on its
own vectors (see `_vector_calibration`), and is turned into time here. Only ratios of times matter.
"""

from __future__ import annotations

import math
from enum import StrEnum

import msgspec

PLAN_VERSION = 2
_TEST_NS = 1.5
"""One bit of the filter, of the rows of a list one after the other."""
_SAMPLE_NS = 0.8
"""One row compared by codes where there is a filter: a part of the rows is tested as well."""
_LOOK_NS = 9.0
"""One row met in a walk: its mark and its bit of the filter, anywhere in memory."""
_WORD_NS = 0.7
"""One word of the filter, when all are looked through."""
_NEAR_NS = (10.0, 0.12)
"""Compare one vector that passed a test, not far from the one before: fixed part, and per dimension."""
_FAR_NS = (12.0, 0.12)
"""Compare one vector anywhere in memory, asked for some time before."""
_WALKED_NS = (6.0, 0.12)
"""Compare one vector in a walk."""
_BEAM_NS = 0.07
"""The same, per candidate in the beam: its heap and queue take longer, and it roams further than caches reach."""
_CODE_NS = (0.5, 0.03)
"""Compare one row's codes: reading them takes longer than multiplying."""
_CENTRE_NS = (0.5, 0.02)
"""Work out one list's bound."""
_VISIT_NS = 100.0
"""Take one list from the queue, and set out on it."""
_STEP_NS = 60.0
"""One step of a walk."""
_MAX_WALK_K = 100
"""Walks are calibrated for ten answers; up to this many the beam is widened in proportion."""
CALIBRATED_K = 10
WALK_BUDGET = 20_000
"""Comparisons after which a walk gives up: by then, scanning lists would have been cheaper."""
LEAST_LOCAL = 0.5
"""A walk does not start when the share that passes around the query is less than this part of the share among all: the
filter keeps away from the query, and the neighbours that pass are far off."""


class Way(StrEnum):
    """How one layer's vectors are searched."""

    EXACT = "exact"
    """Every survivor is compared."""
    LISTS = "lists"
    """Lists of a clustering, nearest first, survivors only."""
    WALK = "walk"
    """The graph, over survivors only, through those that do not pass."""
    POST_FILTER = "post-filter"
    """The graph, over everything; what does not pass is left out of the answer."""


class Reach(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What scanning lists takes when the wanted neighbours are among the `depth` nearest of all vectors."""

    depth: float
    reach: float
    """Spreads for random filters: see `VectorTable.probe`."""
    further: float
    """Spreads for filters that depend on the vectors."""
    share: float
    """Of all vectors, in the lists that are scanned."""


class Beam(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a walk takes when a share of the vectors passes."""

    share: float
    width: int
    two_hops: bool
    looked: float
    compared: float
    steps: float


class VectorPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the planner knows about one field's vectors."""

    version: int
    vectors: int
    dims: int
    lists: int
    degree: int
    """Links per vector in the graph, 0 without one."""
    power: float = 0.0
    """Of the codes (`_vector_codes`), 0 without any."""
    reaches: tuple[Reach, ...] = ()
    """By ascending depth."""
    beams: tuple[Beam, ...] = ()
    """By descending share."""


class Choice(msgspec.Struct, frozen=True):
    """The way chosen, its parameters, and what every possible way was estimated to take."""

    way: Way
    micros: dict[Way, float]
    reach: float = 0.0
    further: float = 0.0
    by_codes: bool = False
    beam: Beam | None = None
    width: int = 0

    @property
    def words(self) -> str:
        """The estimates in words, cheapest first."""
        ranked = sorted(self.micros.items(), key=lambda pair: pair[1])
        return ", ".join(f"{way} {micros:.0f} us" for way, micros in ranked)


def choose(plan: VectorPlan, survivors: int, words: int, k: int, *, only: Way | None = None) -> Choice:
    """Choose how to find the `k` nearest of `survivors` ids in a bitmap of so many words.

    `only`: that way if it is possible here, else the cheapest.
    """
    micros = {Way.EXACT: (words * _WORD_NS + survivors * _each(_FAR_NS, plan.dims)) / 1_000}
    reach, further, by_codes, beam, width = 0.0, 0.0, False, None, 0
    centres = plan.lists * _each(_CENTRE_NS, plan.dims)
    if plan.reaches and k and survivors > k:
        depth = k * plan.vectors / survivors
        if depth <= plan.reaches[-1].depth:
            reach, further, share = _interpolated(plan, depth)
            by_tests = plan.vectors * _TEST_NS + survivors * _each(_NEAR_NS, plan.dims)
            rows = plan.vectors * _each(_CODE_NS, plan.dims) if plan.power else math.inf
            if survivors < plan.vectors:
                rows += plan.vectors * _SAMPLE_NS
            by_codes = rows < by_tests
            micros[Way.LISTS] = (centres + share * (plan.lists * _VISIT_NS + min(by_tests, rows))) / 1_000
        beam = _beam(plan, survivors / plan.vectors) if k <= _MAX_WALK_K else None
        if beam is not None:
            wider = max(1.0, k / CALIBRATED_K)
            width = round(beam.width * wider)
            each = _each(_WALKED_NS, plan.dims) + _BEAM_NS * width
            spent = beam.looked * _LOOK_NS + beam.compared * each + beam.steps * _STEP_NS
            micros[Way.WALK if beam.two_hops else Way.POST_FILTER] = (centres + wider * spent) / 1_000
    way = min(micros, key=micros.__getitem__)
    if only is not None and only in micros:
        way = only
    return Choice(way, micros, reach, further, by_codes, beam, width)


def _each(cost: tuple[float, float], dims: int) -> float:
    return cost[0] + cost[1] * dims


def _interpolated(plan: VectorPlan, depth: float) -> tuple[float, float, float]:
    """Return both reaches, and the share scanned, at a depth, on the line between those measured around it."""
    below = plan.reaches[0]
    for above in plan.reaches:
        if depth <= above.depth:
            break
        below = above
    if below.depth >= above.depth:
        return above.reach, above.further, above.share
    part = math.log(depth / below.depth) / math.log(above.depth / below.depth)
    return (
        below.reach + part * (above.reach - below.reach),
        below.further + part * (above.further - below.further),
        below.share + part * (above.share - below.share),
    )


def _beam(plan: VectorPlan, share: float) -> Beam | None:
    """Return the setting measured at the next smaller share, which asks for more than is needed."""
    fitting = [beam for beam in plan.beams if beam.share <= share * 1.000_001]
    return fitting[0] if fitting else None
