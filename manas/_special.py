"""Clauses of predicates, circles, points and weekly hours over one segment: posting lists, and what is to be judged."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo

import numpy as np

from catalog.hours import time_zone
from catalog.targeting import ANY
from catalog.values import datetime_of
from manas._bits import Bits, Words
from manas._clauses import Inside, Meets, Near, Runs, Special
from manas._geo import cells_at
from manas._layer import Ids
from manas._postings import Posting
from manas._predicates import EVERY, Bench, request_terms
from manas._targets import SegmentTargets

_KEPT = 16
"""Clauses whose finding is kept: estimating, compiling and explaining one request ask for it several times."""


class Found(NamedTuple):
    """Lists whose union has all that satisfies a clause."""

    postings: tuple[Posting, ...]
    bench: Bench | None
    """Judges which of them do; None: all."""
    estimate: int
    """Of how many ids satisfy the clause, from counts alone."""


class SpecialFinder:
    """Finds what satisfies special clauses in one segment."""

    def __init__(self, targets: SegmentTargets, posting: Callable[[str, str], Posting | None], count: int) -> None:
        self._targets, self._posting, self._count = targets, posting, count
        self.find = lru_cache(_KEPT)(self._find)

    def _find(self, clause: Special) -> Found:
        targets = self._targets
        match clause:
            case Meets(field, asked):
                if (predicates := targets.predicates.get(field)) is None:
                    return self._everything()
                postings = [*_opened(predicates.open, predicates.open_count), *self._lists(field, request_terms(asked))]
                return self._found(postings, predicates.bench(asked))
            case Inside(field, position):
                if (circles := targets.circles.get(field)) is None:
                    return self._everything()
                postings = _opened(circles.open, circles.open_count)
                if position is not None:
                    lists = self._lists(field, [EVERY, *cells_at(*position)])
                    ids = np.unique(np.concatenate([np.empty(0, np.uint32), *(one.ids for one in lists)]))
                    postings += _listed(circles.inside(ids.astype(np.uint32), *position))
                return self._found(postings)
            case Near(field, lat, lon, metres):
                if (points := targets.points.get(field)) is None:
                    return self._found([])
                estimate = points.estimate(lat, lon, metres)
                return self._found(_listed(points.near(lat, lon, metres)))._replace(estimate=estimate)
            case Runs(field, at_us, zone):
                if (hours := targets.hours.get(field)) is None:
                    return self._everything()
                words, count = hours.running(datetime_of(at_us), user_zone(zone), browse=zone == ANY)
                return self._found(_opened(words, count))

    def _lists(self, field: str, terms: list[str]) -> list[Posting]:
        found = [self._posting(field, term) for term in terms]
        return [posting for posting in found if posting is not None]

    def _found(self, postings: list[Posting], bench: Bench | None = None) -> Found:
        return Found(tuple(postings), bench, min(self._count, sum(posting.count for posting in postings)))

    def _everything(self) -> Found:
        return self._found(_opened(Bits(self._count, full=True).words, self._count))


def user_zone(zone: str | None) -> ZoneInfo | None:
    """Return the zone of a clause, None where it names none."""
    return None if zone is None or zone == ANY else time_zone(zone)


def _opened(words: Words, count: int) -> list[Posting]:
    return [Posting(count, words.ctypes.data, dense=words)] if count else []


def _listed(ids: Ids) -> list[Posting]:
    return [Posting.of(ids)] if len(ids) else []
