"""The requests of `bench retrieval`, by kind: JSON as a caller of the index writes it, from which peers make theirs.

Values come from the same skewed distributions as those of the ads, so what is asked often is what many ads have.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks._retrieval_corpus import DIMENSIONS, TOPICS, word_of, zipf

Request = Mapping[str, Any]
TARGETING, RANGES, PAYLOADS = "targeting", "ranges", "payloads"
BOTH_WORDS, SOME_WORD = "two words", "one of three words"
KINDS = (TARGETING, BOTH_WORDS, SOME_WORD, RANGES, PAYLOADS)
_SEED = 11
_COMMON_WORDS = 3_000
"""Of which words are asked: of rarer ones hardly two meet in a title."""


def requests(kind: str, count: int) -> list[dict[str, Any]]:
    """Return so many requests of a kind, always the same."""
    rng = np.random.default_rng([_SEED, KINDS.index(kind)])
    said = {
        name: zipf(rng, count * (3 if name == "interest" else 1), dimension.values, dimension.skew).reshape(count, -1)
        for name, dimension in DIMENSIONS.items()
    }
    return [_request(kind, rng, {name: values[row] for name, values in said.items()}) for row in range(count)]


def _request(kind: str, rng: np.random.Generator, said: Mapping[str, npt.NDArray[np.int64]]) -> dict[str, Any]:
    own: dict[str, Any] = {name: int(values[0]) for name, values in said.items()}
    own["interest"] = sorted(set(said["interest"][: rng.integers(1, 4)].tolist()))
    if kind == TARGETING:
        return own
    if kind == PAYLOADS:
        topics = sorted(set(zipf(rng, 3, TOPICS, 0.8).tolist()))
        boost = [{"field": "topics", "value": topic, "weight": int(rng.integers(1, 4)) / 64} for topic in topics]
        return {**own, "boost": boost}
    # The others are asked where somebody browses: in a country and on a device, whoever it is.
    own |= dict.fromkeys(("language", "gender", "age", "interest"), "*")
    if kind == RANGES:
        least = int(rng.choice((500, 1_000, 2_000, 5_000)))
        price = {"min": least / 100, "max": least * int(rng.choice((2, 4, 10))) / 100}
        rating = {"range": {"field": "rating", "gte": int(rng.integers(36, 44))}}
        return {**own, "price": price, "filter": rating}
    words = sorted({word_of(int(word)) for word in zipf(rng, 3 if kind == SOME_WORD else 2, _COMMON_WORDS, 1.0)})
    terms = [{"term": {"field": "terms", "value": word}} for word in words]
    return {**own, "filter": {"or" if kind == SOME_WORD else "and": terms}}
