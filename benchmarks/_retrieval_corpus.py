"""A million ads with realistic skew: values, words and interests by Zipf's law, bids and prices log-normal. Seeded.

What an ad targets, what its title says and what it costs are drawn independently of each other and of its id; its
score is bid times quality. Everything is arrays first, so that every engine gets the same from the same draw.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from catalog import Catalog, load_catalog
from catalog.documents import encode_document
from catalog.targeting import accept_term, any_term, exclude_term

SEED = 7
MICROS = 1_000_000
_CENT = 10_000
_CHUNK = 50_000
"""Documents made at a time: their values are Python objects while they are."""


@dataclass(frozen=True, slots=True)
class Dimension:
    """One thing that a request says and ads demand."""

    values: int
    indifferent: float
    """Share of the ads that accept every value."""
    most: int
    """Values that an ad accepts at most."""
    skew: float
    """Exponent of Zipf's law."""
    excluded: float = 0.0
    """Share of the ads that exclude one value."""


DIMENSIONS: Mapping[str, Dimension] = {
    "country": Dimension(60, 0.35, 4, 1.0, excluded=0.05),
    "language": Dimension(30, 0.5, 2, 1.2),
    "device": Dimension(3, 0.6, 2, 0.5),
    "gender": Dimension(3, 0.65, 1, 0.7),
    "age": Dimension(7, 0.45, 4, 0.3),
    "interest": Dimension(2_000, 0.3, 8, 0.9, excluded=0.05),
}
WORDS, TOPICS, ADS_PER_CAMPAIGN = 30_000, 500, 10

_CATALOG = """
version: 1
name: retrieval
dimensions:
  country: {type: int}
  language: {type: int}
  device: {type: int}
  gender: {type: int}
  age: {type: int}
  interest: {type: int, multi: true}
tables:
  ad:
    owner: bench
    key: int
    source: {table: ads, key: id}
    columns:
      id: {type: int, from: ads.id}
      campaign_id: {type: int, from: ads.campaign_id}
      targeting: {type: list<string>, from: ads.targeting}
      terms: {type: list<string>, from: ads.terms}
      topics: {type: list<int>, from: ads.topics}
      affinities: {type: list<int>, from: ads.affinities}
      bid_micros: {type: int, from: ads.bid_micros}
      price_micros: {type: int, from: ads.price_micros}
      rating: {type: int, from: ads.rating}
      quality: {type: float, from: ads.quality}
  ad_document:
    owner: indexing
    key: int
    root: ad
    columns: {}
fields:
  ad_id: {from: ad.id}
  campaign_id: {from: ad.campaign_id, index: term}
  targeting: {from: ad.targeting, index: targeting}
  terms: {from: ad.terms, index: text}
  topics: {from: ad.topics, index: term, payload: affinities}
  affinities: {from: ad.affinities}
  bid_micros: {from: ad.bid_micros, index: numeric}
  price_micros: {from: ad.price_micros, index: numeric}
  rating: {from: ad.rating, index: numeric}
  quality: {from: ad.quality, index: numeric}
serving:
  bid: bid_micros
  quality: quality
  price: price_micros
  text: terms
  targeting: targeting
"""


@dataclass(frozen=True, slots=True)
class Lists:
    """Several values per document: those of document i are values[offsets[i]:offsets[i + 1]], each once."""

    offsets: npt.NDArray[np.int64]
    values: npt.NDArray[np.int32]

    def of(self, first: int, last: int) -> list[list[int]]:
        """Return the lists of some documents."""
        flat, at = self.values[self.offsets[first] : self.offsets[last]].tolist(), self.offsets[first : last + 1]
        cuts = (at - at[0]).tolist()
        return [flat[a:b] for a, b in pairwise(cuts)]


@dataclass(frozen=True, slots=True)
class Corpus:
    """All ads as arrays."""

    ids: npt.NDArray[np.int64]
    accepted: Mapping[str, Lists]
    """Dimension -> values that ads accept; none: every value."""
    excluded: Mapping[str, Lists]
    words: Lists
    topics: Lists
    affinities: npt.NDArray[np.int64]
    """1 to 100, aligned with the values of `topics`."""
    campaigns: npt.NDArray[np.int64]
    bids: npt.NDArray[np.int64]
    prices: npt.NDArray[np.int64]
    ratings: npt.NDArray[np.int64]
    qualities: npt.NDArray[np.float64]
    versions: npt.NDArray[np.int64]

    @property
    def count(self) -> int:
        """Number of ads."""
        return len(self.ids)

    @property
    def scores(self) -> npt.NDArray[np.float64]:
        """Bid in currency units x quality: what ads are ranked by, summed up as the index does it."""
        return self.bids / MICROS * self.qualities


def generate(count: int, seed: int = SEED) -> Corpus:
    """Draw `count` ads with the ids 1 to `count`."""
    rng = np.random.default_rng(seed)
    accepted, excluded = {}, {}
    for name, dimension in DIMENSIONS.items():
        wanted = rng.integers(1, dimension.most + 1, count)
        wanted[rng.random(count) < dimension.indifferent] = 0
        accepted[name] = _draw(rng, wanted, dimension.values, dimension.skew)
        denies = (rng.random(count) < dimension.excluded) & (wanted == 0)
        excluded[name] = _draw(rng, denies.astype(np.int64), dimension.values, dimension.skew)
    topics = _draw(rng, rng.integers(1, 5, count), TOPICS, 0.8)
    campaigns = max(1, count // ADS_PER_CAMPAIGN)
    return Corpus(
        np.arange(1, count + 1),
        accepted,
        excluded,
        _draw(rng, rng.integers(4, 10, count), WORDS, 1.0),
        topics,
        rng.integers(1, 101, len(topics.values)),
        zipf(rng, count, campaigns, 0.5).astype(np.int64) + 1,
        np.maximum(1, rng.lognormal(np.log(60), 0.9, count).astype(np.int64)) * _CENT,
        np.maximum(1, rng.lognormal(np.log(3_000), 1.2, count).astype(np.int64)) * _CENT,
        rng.binomial(40, 0.72, count) + 10,
        rng.lognormal(0.0, 0.4, count).astype(np.float32).astype(np.float64),
        np.sort(rng.integers(1, 20 * count, count)),
    )


def redrawn(corpus: Corpus, share: float, seed: int = SEED) -> Corpus:
    """Draw a share of the ads anew: what they are after a change, with newer versions than any had."""
    rng = np.random.default_rng([seed, 1])
    ids = rng.choice(corpus.ids, max(1, round(corpus.count * share)), replace=False)
    fresh = generate(len(ids), seed + 1)
    return replace(fresh, ids=ids, versions=int(corpus.versions.max()) + np.arange(1, len(ids) + 1))


def catalog() -> Catalog:
    """Return the declarations of these documents."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "retrieval.yaml"
        file.write_text(_CATALOG)
        return load_catalog(file)


def documents(corpus: Corpus) -> Iterator[tuple[str, int, bytes]]:
    """Yield (id, version, canonical body) of every ad."""
    for first in range(0, corpus.count, _CHUNK):
        yield from _documents(corpus, first, min(corpus.count, first + _CHUNK))


def _documents(corpus: Corpus, first: int, last: int) -> Iterator[tuple[str, int, bytes]]:
    targeting: list[list[str]] = [[] for _ in range(first, last)]
    for name, dimension in DIMENSIONS.items():
        terms = [accept_term(name, value) for value in range(dimension.values)]
        denied = [exclude_term(name, value) for value in range(dimension.values)]
        every = any_term(name)
        for mine, values in zip(targeting, corpus.accepted[name].of(first, last), strict=True):
            mine.extend([terms[value] for value in values] if values else [every])
        for mine, values in zip(targeting, corpus.excluded[name].of(first, last), strict=True):
            mine.extend(denied[value] for value in values)
    at, topics = corpus.topics.offsets[first], corpus.topics.of(first, last)
    affinities = corpus.affinities[at : corpus.topics.offsets[last]].tolist()
    columns: dict[str, list[Any]] = {
        "ad_id": corpus.ids[first:last].tolist(),
        "campaign_id": corpus.campaigns[first:last].tolist(),
        "terms": [[word_of(value) for value in values] for values in corpus.words.of(first, last)],
        "bid_micros": corpus.bids[first:last].tolist(),
        "price_micros": corpus.prices[first:last].tolist(),
        "rating": corpus.ratings[first:last].tolist(),
        "quality": corpus.qualities[first:last].tolist(),
    }
    versions = corpus.versions[first:last].tolist()
    used = 0
    for row in range(last - first):
        own = {name: values[row] for name, values in columns.items()}
        own |= {"targeting": targeting[row], "topics": topics[row]}
        own["affinities"] = affinities[used : used + len(topics[row])]
        used += len(topics[row])
        yield str(own["ad_id"]), versions[row], encode_document(own)


_CONSONANTS, _VOWELS = "bcdfghjklmnprstvwz", "aeiou"


def word_of(number: int) -> str:
    """Return the word of a number: syllables, more for rarer words, as in languages."""
    word = ""
    number += len(_CONSONANTS) * len(_VOWELS)
    while number:
        number, syllable = divmod(number, len(_CONSONANTS) * len(_VOWELS))
        word += _CONSONANTS[syllable // len(_VOWELS)] + _VOWELS[syllable % len(_VOWELS)]
    return word


def zipf(rng: np.random.Generator, count: int, values: int, skew: float) -> npt.NDArray[np.int64]:
    """Draw numbers below `values`, the smaller the more often."""
    weights = np.arange(1, values + 1) ** -skew
    edges = np.cumsum(weights / weights.sum())
    drawn: npt.NDArray[np.int64] = np.minimum(np.searchsorted(edges, rng.random(count)), values - 1)
    return drawn


def _draw(rng: np.random.Generator, wanted: npt.NDArray[np.int64], values: int, skew: float) -> Lists:
    """Draw so many values for each document; one that comes twice is kept once."""
    owners = np.repeat(np.arange(len(wanted), dtype=np.int64), wanted)
    pairs = np.unique(owners * values + zipf(rng, len(owners), values, skew))
    counts = np.bincount(pairs // values, minlength=len(wanted))
    return Lists(np.concatenate([[0], np.cumsum(counts)]), (pairs % values).astype(np.int32))
