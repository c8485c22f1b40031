"""A catalogue with payloads and families, random documents for it, and the light score by plain loops."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from catalog import Catalog, Destination, Field
from tests.manas import reference
from tests.manas.support import CATALOG, SECOND, T0, VALUES, WORDS, document, embedding


def _forward(name: str, like: str) -> Field:
    """Return a field of the type of another that is only in the forward index."""
    column = replace(CATALOG.fields[like].column, name=name)
    return Field(name, column, Destination.FORWARD, 1, family="weights")


def catalog() -> Catalog:
    """Return the ads catalogue with payloads: of interests and words one each, of categories the document's quality."""
    fields = dict(CATALOG.fields)
    fields["affinities"] = _forward("affinities", "interests")
    fields["frequencies"] = _forward("frequencies", "interests")
    fields["interests"] = replace(fields["interests"], payload="affinities")
    fields["terms"] = replace(fields["terms"], payload="frequencies")
    fields["categories"] = replace(fields["categories"], payload="quality")
    for name in ("title", "link", "image_url"):
        fields[name] = replace(fields[name], family="shown")
    fields["advertiser_id"] = replace(fields["advertiser_id"], family="keys")
    return replace(CATALOG, fields=fields)


SCORED = catalog()


def payload(doc: Mapping[str, Any], field: str, value: Any) -> float:
    """Return the payload of a value of a field, 0 where the document does not have the value."""
    own = doc.get(field)
    if own is None:
        return 0.0
    own = own if isinstance(own, list) else [own]
    if value not in own:
        return 0.0
    source = {"interests": "affinities", "terms": "frequencies", "categories": "quality"}.get(field)
    given = None if source is None else doc.get(source)
    if given is None:
        return 1.0
    if not isinstance(given, list):
        return float(np.float32(given))
    return max(float(np.float32(g)) for v, g in zip(own, given, strict=True) if v == value)


def light(docs: Mapping[str, dict[str, Any]], found: list[dict[str, Any]], request: dict[str, Any]) -> dict[int, float]:
    """Return ad id -> light score; `docs` are all that are alive."""
    words = {}
    for word in set(request.get("text", "").split()):
        having = sum(word in (d.get("terms") or []) for d in docs.values())
        words[word] = math.log(1 + (len(docs) - having + 0.5) / (having + 0.5))
    adding = [("terms", word, words[word]) for word in sorted(words)]
    adding += [(boost["field"], boost["value"], boost["weight"]) for boost in request.get("boost", [])]
    scores = {}
    for doc in found:
        quality = 1.0 if doc.get("quality") is None else doc["quality"]
        static = (doc.get("bid_account_micros") or 0) / 1_000_000 * quality
        bonus = 0.0
        for field, value, weight in adding:
            bonus += weight * payload(doc, field, value)
        scores[doc["ad_id"]] = static + bonus if adding else static
    return scores


def matching(
    docs: Mapping[str, dict[str, Any]], budgets: dict[str, dict[str, int]], request: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return the documents that fit a request."""
    return [doc for doc in docs.values() if reference.matches(doc, budgets, request)]


def ordered(scores: Mapping[int, float]) -> list[tuple[int, float]]:
    """Return (ad id, score) as an answer has them."""
    return sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))


def diverse(
    ranking: list[tuple[int, float]], docs: Mapping[str, dict[str, Any]], most: int | None
) -> list[tuple[int, float]]:
    """Return what is left of a ranking with at most so many of an advertiser."""
    if most is None:
        return ranking
    taken: dict[int, int] = {}
    kept = []
    for ad_id, score in ranking:
        advertiser = docs[str(ad_id)]["advertiser_id"]
        taken[advertiser] = taken.get(advertiser, 0) + 1
        if taken[advertiser] <= most:
            kept.append((ad_id, score))
    return kept


def corpus(count: int, seed: int) -> dict[str, dict[str, Any]]:
    """Return documents with lists of every length, payloads on them, and many equal scores."""
    rng = random.Random(seed)
    docs = {}
    for ad_id in range(1, count + 1):
        targeting = [f"{name}=*" if rng.random() < 0.8 else f"{name}={rng.choice(VALUES[name])}" for name in VALUES]
        terms = sorted(word for place, word in enumerate(WORDS) if rng.random() < 0.5**place * 0.6)
        # Up to 20 they are in more than 1/32 of the documents, from 21 on in fewer.
        interests = rng.sample(range(1, 21), rng.randint(0, 2)) + rng.sample(range(21, 60), rng.randint(0, 1))
        interests += [15] if rng.random() < 0.5 and 15 not in interests else []
        docs[str(ad_id)] = document(
            ad_id,
            campaign_id=rng.choice((1, 1, 1, 2)),
            advertiser_id=rng.randint(1, 40),
            bid_account_micros=rng.choice((None, 0, 333_333, 1_000_000, rng.randint(1, 5_000_000))),
            quality=rng.choice((None, 0.1, 0.7, 1.0, 1.9)),
            starts_us=T0 + rng.randint(0, 10) * SECOND if rng.random() < 0.1 else None,
            targeting=sorted(targeting),
            price_micros=rng.choice((None, 0, 9_990_000, rng.randint(0, 30_000_000))),
            terms=terms or None,
            frequencies=[rng.randint(0, 9) for _ in terms] if terms and rng.random() < 0.8 else None,
            interests=interests or None,
            affinities=[rng.randint(0, 1_000) for _ in interests] if interests and rng.random() < 0.9 else None,
            categories=rng.choice((None, ["home"], ["home", "toys"], ["rare"] if rng.random() < 0.02 else None)),
            objective="REACH" if rng.random() < 0.9 else None,
            embedding=embedding(rng.randint(1, 40)) if rng.random() < 0.3 else None,
            title=f"title {ad_id}",
        )
    return docs
