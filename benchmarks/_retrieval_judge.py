"""The right answers, by looking at every ad with numpy: slow, short, and sharing nothing with any engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from benchmarks._retrieval_corpus import DIMENSIONS, MICROS, WORDS, Corpus, Lists, word_of
from benchmarks._retrieval_requests import Request

Hits = list[tuple[int, float]]
Flags = npt.NDArray[np.bool_]
_NUMBERS: Mapping[str, int] = {word_of(number): number for number in range(WORDS)}


def judge(parts: Sequence[tuple[Corpus, npt.NDArray[np.float64], Flags]], request: Request, k: int) -> Hits:
    """Return the best `k` of some corpora, each with the scores of its ads and which of them count at all."""
    ids, scores = [], []
    for corpus, static, alive in parts:
        found = np.flatnonzero(_fits(corpus, request) & alive)
        ids.append(corpus.ids[found])
        scores.append((static + _bonus(corpus, request))[found])
    every, best = np.concatenate(ids), np.concatenate(scores)
    order = np.lexsort((every, -best))[:k]
    return list(zip(every[order].tolist(), best[order].tolist(), strict=True))


def _fits(corpus: Corpus, request: Request) -> Flags:
    fits = np.ones(corpus.count, bool)
    for name in DIMENSIONS:
        if (said := request[name]) == "*":
            continue
        values = said if isinstance(said, list) else [said]
        accepted = corpus.accepted[name]
        fits &= (np.diff(accepted.offsets) == 0) | _has(accepted, values)
        fits &= ~_has(corpus.excluded[name], values)
    if (price := request.get("price")) is not None:
        low, high = round(price["min"] * MICROS), round(price["max"] * MICROS)
        fits &= (corpus.prices >= low) & (corpus.prices <= high)
    match request.get("filter"):
        case {"and": terms}:
            for node in terms:
                fits &= _has(corpus.words, [_NUMBERS[node["term"]["value"]]])
        case {"or": terms}:
            fits &= _has(corpus.words, [_NUMBERS[node["term"]["value"]] for node in terms])
        case {"range": {"gte": low}}:
            fits &= corpus.ratings >= low
    return fits


def _has(lists: Lists, values: Sequence[int]) -> Flags:
    """Tell for each document whether its list has one of the values."""
    flags = np.zeros(len(lists.offsets) - 1, bool)
    hits = np.flatnonzero(np.isin(lists.values, values))
    flags[np.searchsorted(lists.offsets, hits, side="right") - 1] = True
    return flags


def _bonus(corpus: Corpus, request: Request) -> npt.NDArray[np.float64]:
    bonus = np.zeros(corpus.count)
    for boost in request.get("boost", ()):
        hits = np.flatnonzero(corpus.topics.values == boost["value"])
        owners = np.searchsorted(corpus.topics.offsets, hits, side="right") - 1
        bonus[owners] += boost["weight"] * corpus.affinities[hits]
    return bonus
