"""Text embedding: a small model that needs no download and gives the same bytes everywhere.

Signed feature hashing (Weinberger et al., Feature Hashing for Large Scale Multitask Learning, ICML 2009) of terms,
word pairs and letter trigrams. Pins that share words, or parts of words, point the same way.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from argus import HandlerContext, Inputs, Value, handler
from catalog.text import analyze

_WEIGHTS = {"w": 1.0, "p": 0.7, "t": 0.3}
"""Of terms, word pairs and trigrams: a shared word says more than a shared syllable."""
_TITLE_FACTOR = 2
"""The title counts twice: it names the product, the description sells it."""
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
    features: list[str] = []
    for text, factor in ((analyze(head), _TITLE_FACTOR), (analyze(body)[:_MAX_WORDS], 1)):
        of_text: list[str] = []
        for word, following in zip(text, [*text[1:], ""], strict=False):
            of_text += _features(word)
            if following:
                of_text.append(f"p{word} {following}")
        features += of_text * factor
    vector = [0.0] * dims
    for feature, count in Counter(features).items():
        slot, weight = _place(feature, dims)
        vector[slot] += weight * math.sqrt(count)
    # Plain sums and square roots in a fixed order: IEEE 754 gives the same bits on every platform.
    norm = math.sqrt(sum(x * x for x in vector))
    return np.array([x / norm for x in vector], dtype="<f4").tobytes() if norm else None


@lru_cache(maxsize=1 << 14)
def _features(word: str) -> tuple[str, ...]:
    """The word itself and its trigrams."""
    padded = f"_{word}_"
    return ("w" + word, *("t" + padded[start : start + 3] for start in range(len(padded) - 2)))


@lru_cache(maxsize=1 << 16)
def _place(feature: str, dims: int) -> tuple[int, float]:
    """Slot and signed weight of a feature."""
    mixed = zlib.crc32(feature.encode()) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
    return (mixed >> 40) % dims, _WEIGHTS[feature[0]] * (1.0 if mixed >> 63 else -1.0)
