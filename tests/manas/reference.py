"""Retrieval by brute force: plain loops over dictionaries, written from the request's definition alone."""

from __future__ import annotations

import math
import struct
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

DIMENSIONS = ("age", "gender", "interests", "country", "language", "device")
NUMBERS = ("bid_account_micros", "starts_us", "ends_us", "price_micros", "discount_percent", "quality", "impressions")


def funded(budget: dict[str, int] | None) -> bool:
    """Tell whether a campaign with this budget may serve."""
    if budget is None or budget.get("deleted"):
        return False
    for limit, spent in (("daily_micros", "spent_today_micros"), ("lifetime_micros", "spent_total_micros")):
        if budget.get(limit, 0) > 0 and budget.get(spent, 0) >= budget[limit]:
            return False
    return True


def matches(doc: dict[str, Any], budgets: dict[str, dict[str, int]], request: dict[str, Any]) -> bool:
    """Tell whether a document fits a request."""
    at = datetime.fromisoformat(request["at"]).replace(tzinfo=UTC).timestamp() * 1_000_000
    if doc.get("starts_us") is not None and doc["starts_us"] > at:
        return False
    if doc.get("ends_us") is not None and doc["ends_us"] <= at:
        return False
    if not funded(budgets.get(str(doc["campaign_id"]))):
        return False
    for name in DIMENSIONS:
        said = request.get(name, [])
        if said == "*":
            continue
        said = said if isinstance(said, list) else [said]
        terms = doc.get("targeting") or []
        if f"{name}=*" not in terms and not any(f"{name}={v}" in terms for v in said):
            return False
        if any(f"!{name}={v}" in terms for v in said):
            return False
    if "price" in request:
        price = doc.get("price_micros")
        limits = request["price"]
        if price is None:
            return False
        if "min" in limits and Fraction(price, 1_000_000) < Fraction(str(limits["min"])):
            return False
        if "max" in limits and Fraction(price, 1_000_000) > Fraction(str(limits["max"])):
            return False
        if "currency" in limits and doc.get("currency") != limits["currency"]:
            return False
    if "text" in request and not set(request["text"].split()) & set(doc.get("terms") or []):
        return False
    if "filter" in request and not holds(doc, request["filter"]):
        return False
    if "similar_to" in request and doc["ad_id"] == request["similar_to"]:
        return False
    return not (("vector" in request or "similar_to" in request) and doc.get("embedding") is None)


def holds(doc: dict[str, Any], node: dict[str, Any]) -> bool:
    """Tell whether a document satisfies a filter tree."""
    [(kind, value)] = node.items()
    if kind == "and":
        return all(holds(doc, n) for n in value)
    if kind == "or":
        return any(holds(doc, n) for n in value)
    if kind == "not":
        return not holds(doc, value)
    own = doc.get(value["field"])
    if own is None:
        return False
    if kind == "term":
        return value["value"] in own if isinstance(own, list) else own == value["value"]
    own = Fraction(own)
    tests = {"gte": own.__ge__, "gt": own.__gt__, "lte": own.__le__, "lt": own.__lt__}
    return all(test(Fraction(value[name])) for name, test in tests.items() if name in value)


def cosine(a: bytes, b: bytes) -> float:
    """Return the cosine of two packed float32 vectors, 0 if one is zero."""
    x, y = struct.unpack(f"<{len(a) // 4}f", a), struct.unpack(f"<{len(b) // 4}f", b)
    norm = math.sqrt(sum(v * v for v in x)) * math.sqrt(sum(v * v for v in y))
    return sum(v * w for v, w in zip(x, y, strict=True)) / norm if norm else 0.0


def scores(docs: dict[str, dict[str, Any]], found: list[dict[str, Any]], request: dict[str, Any]) -> dict[int, float]:
    """Return ad id -> score of the matching documents; `docs` are all that are alive."""
    if "vector" in request or "similar_to" in request:
        if "vector" in request:
            wanted = struct.pack(f"<{len(request['vector'])}f", *request["vector"])
        else:
            wanted = docs[str(request["similar_to"])]["embedding"]
        return {d["ad_id"]: cosine(d["embedding"], wanted) for d in found}
    idf = {}
    for word in set(request.get("text", "").split()):
        having = sum(word in (d.get("terms") or []) for d in docs.values())
        idf[word] = math.log(1 + (len(docs) - having + 0.5) / (having + 0.5))
    result = {}
    for d in found:
        quality = 1.0 if d.get("quality") is None else d["quality"]
        text = sum(idf[w] for w in sorted(idf) if w in (d.get("terms") or []))
        result[d["ad_id"]] = (d.get("bid_account_micros") or 0) / 1_000_000 * quality + text
    return result


def search(
    docs: dict[str, dict[str, Any]], budgets: dict[str, dict[str, int]], request: dict[str, Any], k: int
) -> tuple[list[tuple[int, float]], int]:
    """Return ([(ad id, score), ...] in order, number matching)."""
    found = [d for d in docs.values() if matches(d, budgets, request)]
    by_id = {d["ad_id"]: d for d in found}
    ranked = sorted(scores(docs, found, request).items(), key=lambda pair: (-pair[1], pair[0]))
    most = request.get("max_per_advertiser")
    if most is not None:
        taken: dict[int, int] = {}
        diverse = []
        for ad_id, score in ranked:
            advertiser = by_id[ad_id]["advertiser_id"]
            if taken.get(advertiser, 0) < most:
                taken[advertiser] = taken.get(advertiser, 0) + 1
                diverse.append((ad_id, score))
        ranked = diverse
    return ranked[: k or None], len(found)
