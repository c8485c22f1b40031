"""The search page's request: from form fields or JSON to a request of Manas, and hits with what people know them by."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec
from pydantic import JsonValue

from catalog import Catalog, ValueType
from catalog.documents import decode_document
from debug_ui._exceptions import BadInput
from debug_ui.backends import Backends
from debug_ui.views import View

MAX_HITS = 200
"""Rows of one page."""


class HitView(View):
    """One hit with the parts of its document that a person recognizes."""

    rank: int
    ad_id: str
    score: float
    title: str
    brand: str
    price_micros: int | None
    currency: str
    bid_micros: int | None
    bid_currency: str
    quality: float | None
    campaign_id: str
    advertiser_id: str
    has_image: bool
    layer: str


class SearchResult(View):
    """An answer of serving."""

    request: dict[str, JsonValue]
    total: int
    hits: tuple[HitView, ...]
    explanation: dict[str, JsonValue] | None
    partial: bool
    """There may be better ads: a deadline came first, or shards are missing."""
    missing_shards: dict[str, str]
    """Shards that have not answered, and why."""
    answer_problem: str
    """What the index lacks; "" when it lacks nothing."""


def request_from_form(catalog: Catalog, form: Mapping[str, str]) -> dict[str, Any]:
    """Return the request that filled-in fields mean; the JSON field, if it is filled, wins. Raises BadInput."""
    if text := form.get("json", "").strip():
        try:
            request = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise BadInput(f"the request is not JSON: {error}") from error
        if not isinstance(request, dict):
            raise BadInput('the request must be a JSON object, like {"country": "US"}')
        return request
    request = {}
    for dimension in catalog.dimensions.values():
        given = [v.strip() for v in form.get(dimension.name, "").split(",") if v.strip()]
        if not given:
            continue
        values: list[Any] = list(given)
        if dimension.type is ValueType.INT and given != ["*"]:
            if not all(v.lstrip("-").isdecimal() and len(v) < 20 for v in given):
                raise BadInput(f"{dimension.name} takes whole numbers, separated by commas")
            values = [int(v) for v in given]
        request[dimension.name] = values if dimension.multi and given != ["*"] else values[0]
    if words := form.get("text", "").strip():
        request["text"] = words
    if similar := form.get("similar_to", "").strip():
        request["similar_to"] = similar
    price: dict[str, Any] = {}
    for bound in ("min", "max"):
        if amount := form.get(f"price_{bound}", "").strip():
            try:
                price[bound] = float(amount)
            except ValueError as error:
                raise BadInput(f"price {bound} is no number: {amount[:40]!r}") from error
    if price and (currency := form.get("currency", "").strip()):
        price["currency"] = currency
    if price:
        request["price"] = price
    return request


def run_search(backends: Backends, request: Mapping[str, Any], k: int, explain_ad: str = "") -> SearchResult:
    """Search and fetch what the hits are; `explain_ad` adds why that ad is or is not in the answer.

    Raises InvalidRequest, ManasUnavailable.
    """
    k = min(max(1, k), MAX_HITS)
    answer = backends.serving.search(request, k)
    ids = [str(hit["ad_id"]) for hit in answer["hits"]]
    documents = backends.serving.get(ids) if ids else []
    hits = []
    for rank, (hit, served) in enumerate(zip(answer["hits"], documents, strict=True), 1):
        try:
            fields = decode_document(served.body) if served.body else {}
        except msgspec.DecodeError:
            fields = {}
        hits.append(
            HitView(
                rank=rank,
                ad_id=str(hit["ad_id"]),
                score=hit["score"],
                title=str(fields.get("title", "")),
                brand=str(fields.get("brand", "")),
                price_micros=fields.get("price_micros"),
                currency=str(fields.get("currency", "")),
                bid_micros=fields.get("bid_micros"),
                bid_currency=str(fields.get("bid_currency", "")),
                quality=fields.get("quality"),
                campaign_id=str(fields.get("campaign_id", "")),
                advertiser_id=str(fields.get("advertiser_id", "")),
                has_image=bool(fields.get("image_url")),
                layer=served.layer,
            )
        )
    explanation = backends.serving.explain(request, k, explain_ad) if explain_ad else None
    if explanation is not None:
        explanation = {key: explanation[key] for key in ("plan", "ad") if key in explanation}
    return SearchResult(
        request=dict(request),
        total=answer["total"],
        hits=tuple(hits),
        explanation=explanation,
        partial=answer["partial"],
        missing_shards=answer.get("missing_shards", {}),
        answer_problem=answer.get("problem", ""),
    )
