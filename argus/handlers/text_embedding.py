"""Text embedding: a small model that needs no download and gives the same bytes everywhere.

Signed feature hashing (Weinberger et al., Feature Hashing for Large Scale Multitask Learning, ICML 2009) of terms,
word pairs and letter trigrams. Pins that share words, or parts of words, point the same way.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from argus import HandlerContext, Inputs, Value, handler
from catalog.text import analyze

_WEIGHTS = {"w": 1.0, "p": 0.7, "t": 0.3}
"""Of terms, word pairs and trigrams: a shared word says more than a shared syllable."""
_TITLE_FACTOR = 2
"""The title counts twice: it names the product, the description sells it."""
_Place = tuple[str, int, float]
"""A feature, the number whose remainder is its slot, and its signed weight."""
_ROOTS = [math.sqrt(count) for count in range(64)]
_MAX_WORDS = 200
"""Of the description. What a product is stands at the beginning, and the cost per pin stays bounded (a millisecond)."""


@handler(
    root="pin",
    watches=("pin.title", "pin.description", "pin.brand", "pin.category_path"),
    writes=("pin.embedding",),
)
def text_embedding(row: Inputs, context: HandlerContext) -> Mapping[str, Value]:
    """Embed a pin's text as a unit vector of float32; null when it has no words."""
    head = " ".join(row[ref] for ref in ("pin.title", "pin.brand", "pin.category_path") if row[ref])
    dims = context.catalog.column("pin.embedding").dims
    return {"pin.embedding": embed(head, row["pin.description"] or "", dims)}


@lru_cache(maxsize=4096)  # refreshes, and changes of one pin's price or image, come back to the same text
def embed(head: str, body: str, dims: int) -> bytes | None:
    """Return the unit vector of a text as little-endian float32 bytes; `head` counts more than `body`."""
    counts: dict[_Place, int] = {}  # in the order of first appearance, which decides the order of the sums
    get = counts.get
    for words, factor in ((analyze(head), _TITLE_FACTOR), (analyze(body)[:_MAX_WORDS], 1)):
        last = ""
        for word in words:
            if last:
                place = _pair(last, word)
                counts[place] = get(place, 0) + factor
            for place in _features(word):
                counts[place] = get(place, 0) + factor
            last = word
    vector = [0.0] * dims
    for (_, mixed, weight), count in counts.items():
        vector[mixed % dims] += weight * _ROOTS[count] if count < len(_ROOTS) else weight * math.sqrt(count)
    # Plain sums and square roots in a fixed order: IEEE 754 gives the same bits on every platform.
    norm = math.sqrt(sum([x * x for x in vector]))
    return np.array([x / norm for x in vector], dtype="<f4").tobytes() if norm else None


@lru_cache(maxsize=1 << 16)
def _features(word: str) -> tuple[_Place, ...]:
    """Return the places of the word itself and its trigrams."""
    padded = f"_{word}_"
    return (_place("w" + word), *(_place("t" + padded[start : start + 3]) for start in range(len(padded) - 2)))


@lru_cache(maxsize=1 << 16)
def _pair(word: str, following: str) -> _Place:
    """Return the place of two words."""
    return _place(f"p{word} {following}")


def _place(feature: str) -> _Place:
    """Return a feature with what decides its slot, and its signed weight."""
    mixed = zlib.crc32(feature.encode()) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
    return feature, mixed >> 40, _WEIGHTS[feature[0]] * (1.0 if mixed >> 63 else -1.0)
