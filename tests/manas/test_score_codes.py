"""Scores that ids do not follow: a byte bounds each of them, and what bytes rule out is never missed in the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manas._bits import padded, words_of
from manas._postings import Posting
from manas._program import Program
from manas._runner import Runner
from manas._static_scores import ScoreCodes, StaticScores
from manas.kernels.layout import CODES, Op

COUNT = 40_000
"""Forty blocks: enough to guess by eight of them how many match."""
Scores = npt.NDArray[np.float64]


def _padded(scores: Sequence[float] | Scores) -> Scores:
    values = np.full(padded(len(scores)), -np.inf)
    values[: len(scores)] = scores
    return values


def _program(lists: Sequence[npt.NDArray[np.uint64]]) -> Program:
    """Return the program of what is in all lists."""
    rows = []
    for place, words in enumerate(lists):
        rows += [(Op.AND_DENSE if place else Op.PUSH_DENSE, words.ctypes.data, 0, 0), (Op.IF_EMPTY, 0, 0, 0)]
    return Program(np.array(rows, np.int64).tobytes(), b"", lists)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from((0.0, 1.0, -1.0)), max_size=300))
def test_no_score_is_above_the_level_of_its_code(scores: list[float]) -> None:
    """Whatever scores there are, ties and none at all included, codes bound them, in their order."""
    values = _padded(scores)
    found = ScoreCodes.of(values)
    assert len(found.levels) == CODES
    assert (np.diff(found.codes[np.argsort(values)].astype(int)) >= 0).all()
    assert (found.levels[found.codes] >= values).all()
    assert (found.codes.reshape(-1, 64).max(axis=1, initial=0) == found.word_codes).all()


def test_levels_are_finest_where_the_best_are() -> None:
    """Of 100,000 different scores each level has at most some percent more above it than the next, or a few."""
    values = _padded(np.random.default_rng(1).lognormal(size=100_000))
    above = np.array([(values > level).sum() for level in ScoreCodes.of(values).levels])
    assert (above[:-1] <= 1.06 * above[1:] + 2).all()


def _world(rng: np.random.Generator) -> tuple[StaticScores, list[npt.NDArray[np.uint64]], npt.NDArray[np.uint32]]:
    """Return scores in any order, some of them equal, three lists, and the ids that are in all of these."""
    scores = _padded(rng.lognormal(size=COUNT).round(int(rng.integers(1, 6))) - rng.integers(0, 3))
    ties = rng.permutation(padded(COUNT)).astype(np.uint32)
    flags = rng.random((3, COUNT)) < rng.choice((0.02, 0.3, 0.9), size=(3, 1))
    lists = [words_of(np.flatnonzero(one).astype(np.uint32), COUNT) for one in flags]
    matches = np.flatnonzero(flags.all(axis=0)).astype(np.uint32)
    return StaticScores.of(scores, ties, ordered=False), lists, matches


@pytest.mark.parametrize("bonuses", [0, 1, 3])
def test_the_best_are_those_of_looking_at_every_score(bonuses: int) -> None:
    """With and without lists that add to scores, every page is exact, and blocks are left out for their codes."""
    rng, runner = np.random.default_rng(bonuses), Runner()
    skipped = 0
    for _ in range(25):
        scores, lists, matches = _world(rng)
        program, wanted = _program(lists), scores.values[matches]
        holders = [np.flatnonzero(rng.random(COUNT) < share).astype(np.uint32) for share in (0.001, 0.01, 0.5)]
        added = [(Posting.of(ids), float(rng.choice((-0.5, 0.01, 2.0)))) for ids in holders[:bonuses]]
        bonus = np.zeros(len(matches))
        for posting, weight in added:
            bonus += weight * posting.payloads_of(matches)
        wanted = wanted + bonus if bonuses else wanted
        for k in (1, 30, 700):
            order = np.lexsort((scores.ties[matches], -wanted))
            best = runner.best(program, scores, k, added, counting=False)
            assert best.ids.tolist() == matches[order[:k]].tolist()
            assert best.scores.tolist() == wanted[order[:k]].tolist()
            assert best.ties.tolist() == scores.ties[matches[order[:k]]].tolist()
            assert best.counted == (best.matched == len(matches) and len(matches) < k)
            skipped += scores.blocks - best.blocks
            counted = runner.best(program, scores, k, added, counting=True)
            assert (counted.matched, counted.ids.tolist()) == (len(matches), best.ids.tolist())
            if len(order) > k:
                after = float(wanted[order[k - 1]]), int(scores.ties[matches[order[k - 1]]])
                more = runner.best(program, scores, k, added, counting=False, after=after)
                assert more.ids.tolist() == matches[order[k : 2 * k]].tolist()
    assert skipped > 50


class _Counted(Runner):
    """Counts how often a run is begun."""

    runs = 0

    def _begin(self, *args: Any, **options: Any) -> None:
        self.runs += 1
        super()._begin(*args, **options)


@pytest.mark.parametrize("misled", [False, True])
def test_a_guess_that_was_wrong_costs_a_second_run_and_no_answer(misled: bool) -> None:
    """Where only what scores low matches, nothing reaches the guessed score; all the same the best are found."""
    rng, runner = np.random.default_rng(7), _Counted()
    scores = StaticScores.of(
        _padded(rng.lognormal(size=COUNT)), np.arange(padded(COUNT), dtype=np.uint32), ordered=False
    )
    matches = np.flatnonzero((scores.values[:COUNT] < 0.5) if misled else (rng.random(COUNT) < 0.3)).astype(np.uint32)
    best = runner.best(_program([words_of(matches, COUNT)]), scores, 50, counting=False)
    assert best.ids.tolist() == matches[np.lexsort((matches, -scores.values[matches]))[:50]].tolist()
    assert runner.runs == (2 if misled else 1)
    assert misled or best.matched < len(matches) / 20


def test_a_code_that_is_no_bound_would_be_noticed() -> None:
    """Levels that are too low lose ads: what the tests above compare depends on the codes."""
    rng, runner = np.random.default_rng(5), Runner()
    differs = 0
    for _ in range(10):
        scores, lists, _ = _world(rng)
        assert scores.codes is not None
        low = replace(scores.codes, levels=np.concatenate([np.full(20, -np.inf), scores.codes.levels[:-20]]))
        right = runner.best(_program(lists), scores, 50, counting=False)
        wrong = runner.best(_program(lists), replace(scores, codes=low), 50, counting=False)
        differs += right.ids.tolist() != wrong.ids.tolist()
    assert differs > 3
