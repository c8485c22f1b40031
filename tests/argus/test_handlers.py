"""Every built-in handler by itself, on good and on bad input."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from argus import InvalidInput, SourceUnavailable
from argus.handlers._language import detect_language
from argus.handlers.content import category, interests, text_annotation
from argus.handlers.creative import creative
from argus.handlers.delivery import bid, schedule, status_rollup
from argus.handlers.performance import performance
from argus.handlers.price import price
from argus.handlers.targeting import targeting
from argus.handlers.text_embedding import embed, text_embedding
from argus.sources import PerformanceRow
from argus.testing import run_handler

ANY = ["age=*", "country=*", "device=*", "gender=*", "interests=*", "language=*"]


def _terms(spec: object) -> list[str]:
    text = spec if isinstance(spec, str) or spec is None else json.dumps(spec)
    found: list[str] = run_handler(targeting, {"ad_group.targeting_spec": text})["ad_group.targeting_terms"]
    return found


def test_targeting_names_every_dimension() -> None:
    """Dimensions that are not named accept all; accepted and excluded values become terms, in canonical order."""
    assert _terms(None) == _terms({}) == ANY
    terms = _terms({"age": ["35-39", "30-34", "30-34"], "interests": [16], "exclude": {"country": ["FR"]}})
    assert terms == sorted(
        ["age=30-34", "age=35-39", "interests=16", "!country=FR", "country=*", "device=*", "gender=*", "language=*"]
    )


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("{", "not JSON"),
        ("[" * 40_000, "not JSON"),
        ("[]", "must be an object"),
        ("null", "must be an object"),
        ('{"age": ["1"], "age": ["2"]}', "'age' is there twice"),
        ({"ages": ["30-34"]}, "'ages' is not a targeting dimension"),
        ({"exclude": {"ages": ["30-34"]}}, "'ages' is not a targeting dimension"),
        ({"exclude": ["FR"]}, '"exclude" must be an object'),
        ({"age": []}, "must be a list of values"),
        ({"age": None}, "must be a list of values"),
        ({"age": "30-34"}, "must be a list of values"),
        ({"age": [30]}, "takes values of type string"),
        ({"interests": ["16"]}, "takes values of type int"),
        ({"interests": [True]}, "takes values of type int"),
        ({"interests": [1.5]}, "takes values of type int"),
        ({"country": ["*"]}, "cannot have the value"),
        ({"country": [" "]}, "cannot have the value"),
        ({"country": ["x" * 200]}, "cannot have the value"),
        ({"interests": list(range(1001))}, "more than 1000"),
        ({"country": ["FR"], "exclude": {"country": ["FR"]}}, "both accepts and excludes"),
    ],
)
def test_targeting_refuses_what_it_does_not_understand(spec: object, said: str) -> None:
    """Whatever is wrong with a spec is refused as bad_targeting, with a sentence that names it."""
    with pytest.raises(InvalidInput, match="bad_targeting") as refused:
        _terms(spec)
    assert said in refused.value.sentence


HEALTHY: dict[str, Any] = {
    "advertiser.status": "ACTIVE",
    "advertiser.billing_status": "OK",
    "campaign.status": "ACTIVE",
    "ad_group.status": "ACTIVE",
    "ad_group.targeting_terms": ANY,
    "ad.status": "ACTIVE",
    "ad.review_status": "APPROVED",
    "ad_document.bid_micros": 5,
}


def test_status_rollup_lists_every_cause_outermost_first() -> None:
    """A healthy ad is servable; a broken one says all that is wrong, from the advertiser inwards."""
    outputs = run_handler(status_rollup, HEALTHY)
    assert outputs == {"ad_document.servable": True, "ad_document.blocked_by": None}
    outputs = run_handler(
        status_rollup,
        {
            **HEALTHY,
            "ad.status": "PAUSED",
            "advertiser.billing_status": "PAYMENT_FAILED",
            "campaign.status": "ARCHIVED",
            "ad_document.creative_problem": "pin p1 has no title",
            "ad_group.targeting_terms": None,
            "ad_document.bid_micros": None,
        },
        row="7",
    )
    assert outputs["ad_document.servable"] is False
    assert outputs["ad_document.blocked_by"] == [
        "advertiser 7 has billing status PAYMENT_FAILED, not OK",
        "campaign 7 has status ARCHIVED, not ACTIVE",
        "ad 7 has status PAUSED, not ACTIVE",
        "pin p1 has no title",
        "ad group 7 has no valid targeting",
        "ad group 7 has no bid above 0",
    ]


@pytest.mark.parametrize(
    ("absent", "cause"),
    [
        (["advertiser"], "advertiser 1 has not arrived"),
        (["campaign", "advertiser"], "campaign 1 has not arrived"),
        (["ad_group", "campaign", "advertiser"], "ad group 1 has not arrived"),
    ],
)
def test_status_rollup_names_only_the_nearest_missing_parent(absent: list[str], cause: str) -> None:
    """What is above a missing row is unknown, not missing."""
    values = {ref: value for ref, value in HEALTHY.items() if ref.split(".")[0] not in absent}
    assert run_handler(status_rollup, values, absent=absent)["ad_document.blocked_by"] == [cause]


def test_schedule_intersects_campaign_and_ad_group() -> None:
    """The later start and the earlier end count; no limit stays open."""
    outputs = run_handler(
        schedule,
        {"campaign.starts_at": 10, "ad_group.starts_at": 20, "campaign.ends_at": 90, "ad_group.ends_at": 80},
    )
    assert outputs == {"ad_document.starts_us": 20, "ad_document.ends_us": 80}
    assert run_handler(schedule, {"ad_group.ends_at": 5}) == {"ad_document.starts_us": None, "ad_document.ends_us": 5}


@pytest.mark.parametrize(("micros", "expected"), [(1, 1), (0, None), (-5, None), (None, None)])
def test_only_a_bid_above_zero_is_a_bid(micros: int | None, expected: int | None) -> None:
    """Zero, negative and missing bids come out as none."""
    outputs = run_handler(bid, {"ad_group.bid_micros": micros, "advertiser.currency": "EUR"})
    assert outputs["ad_document.bid_micros"] == expected
    assert outputs["ad_document.bid_currency"] == ("EUR" if expected else None)


@pytest.mark.parametrize(
    ("micros", "currency", "expected"),
    [
        (1_000_000, "USD", 1_000_000),
        (1_000_000, "EUR", 1_110_000),
        (80_000_000, "INR", 1_000_000),
        (1, "INR", 1),
        ((1 << 62) - 1, "USD", (1 << 62) - 1),
    ],
)
def test_bids_are_compared_in_the_account_currency(micros: int, currency: str, expected: int) -> None:
    """80 rupees are a dollar, to the micro; a bid above 0 stays above 0; the advertiser's own amount is kept."""
    outputs = run_handler(bid, {"ad_group.bid_micros": micros, "advertiser.currency": currency})
    assert outputs == {
        "ad_document.bid_micros": micros,
        "ad_document.bid_currency": currency,
        "ad_document.bid_account_micros": expected,
    }


@pytest.mark.parametrize("currency", ["XXX", "usd", None])
def test_a_bid_in_a_currency_without_a_rate_is_refused(currency: str | None) -> None:
    """It cannot be compared with others, so it is no bid; an advertiser that has not come yet is no such fault."""
    values = {"ad_group.bid_micros": 5, "advertiser.currency": currency}
    with pytest.raises(InvalidInput, match=r"advertiser 1 has currency .*; correct the currency, or add it"):
        run_handler(bid, values)
    outputs = run_handler(bid, {"ad_group.bid_micros": 5}, absent=["advertiser"])
    assert outputs["ad_document.bid_account_micros"] is None


GOOD_PIN = {"pin.title": " Shorts ", "pin.status": "ACTIVE"}
GOOD_IMAGE = {"pin.image_id": "i1", "image.url": "https://x/i.jpg", "image.status": "ACTIVE"}


@pytest.mark.parametrize(
    ("values", "absent", "url", "problem"),
    [
        ({**GOOD_PIN, **GOOD_IMAGE}, [], "https://x/i.jpg", None),
        (GOOD_PIN, ["image"], None, None),
        ({**GOOD_PIN, "pin.image_id": "i1"}, ["image"], None, "image i1 has not arrived"),
        ({**GOOD_PIN, **GOOD_IMAGE, "image.status": "REMOVED"}, [], None, "image i1 has status REMOVED, not ACTIVE"),
        ({**GOOD_PIN, **GOOD_IMAGE, "image.url": None}, [], None, "image i1 has no url"),
        ({**GOOD_PIN, "pin.status": None}, ["image"], None, "pin 1 has status unknown, not ACTIVE"),
        ({**GOOD_PIN, "pin.title": " "}, ["image"], None, "pin 1 has no title"),
        ({"ad.pin_id": "p9"}, ["pin", "image"], None, "pin p9 has not arrived"),
    ],
)
def test_creative_joins_pin_and_image(
    values: dict[str, Any], absent: list[str], url: str | None, problem: str | None
) -> None:
    """A pin may lack an image, but the one that it names must be there and shown."""
    outputs = run_handler(creative, values, absent=absent)
    assert outputs["ad_document.image_url"] == url
    assert outputs["ad_document.creative_problem"] == problem
    assert outputs["ad_document.title"] == ((values.get("pin.title") or "").strip() or None)


def test_text_annotation_collects_terms_of_all_text() -> None:
    """Terms of title, description, brand and category, each once, in order; none at all is null."""
    outputs = run_handler(
        text_annotation,
        {
            "pin.title": "Café SHORTS",
            "pin.description": "The shorts are for you",
            "pin.brand": "Alisha's",
            "pin.category_path": "Clothing >> Women",
        },
    )
    assert outputs["pin.terms"] == sorted(["cafe", "shorts", "the", "are", "for", "you", "alisha", "clothing", "women"])
    assert outputs["pin.language"] == "en"
    assert run_handler(text_annotation) == {"pin.terms": None, "pin.language": None}


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Buy this from our shop, it is the best for you", "en"),
        ("Die Schuhe sind nicht nur für den Sommer, und sie sehen gut aus", "de"),
        ("Les chaussures sont pour vous et avec des lacets dans la boîte", "fr"),
        ("El vestido es perfecto para una fiesta y los zapatos con lazo", "es"),
        ("Il vestito è perfetto per una festa, con le scarpe della sposa", "it"),
        ("O vestido não é para uma festa, com os sapatos da noiva em couro", "pt"),
        ("De schoenen zijn niet voor het feest, met een strik en van leer", "nl"),
        ("Skorna är inte för festen, med en rosett och av läder", "sv"),
        ("Красивые туфли для праздника", "ru"),
        ("Гарні черевики, її улюблені", "uk"),
        ("パーティー用の靴", "ja"),
        ("派对鞋子", "zh"),
        ("파티 신발", "ko"),
        ("أحذية للحفلات", "ar"),
        ("पार्टी के जूते", "hi"),
        ("παπούτσια για πάρτι", "el"),
        ("Alisha Solid Cycling Shorts", None),
        ("B2B 4K 100% OK", None),
        ("", None),
    ],
)
def test_language_is_told_or_left_open(text: str, language: str | None) -> None:
    """Sentences and scripts tell the language; a list of names does not."""
    assert detect_language(text) == language


@pytest.mark.parametrize(
    ("path", "categories"),
    [
        ("Clothing >> Women's Clothing >> Lingerie", ["Clothing", "Clothing >> Women's Clothing"]),
        ("  Clothing>>  Women's  Clothing >> ", ["Clothing", "Clothing >> Women's  Clothing"]),
        ("Toys", ["Toys"]),
        (">>", None),
        (None, None),
    ],
)
def test_category_gives_every_level(path: str | None, categories: list[str] | None) -> None:
    """Each prefix of the path is a category; levels are trimmed but not rewritten, and the first is the main one."""
    outputs = run_handler(category, {"pin.category_path": path})
    found = outputs["pin.categories"]
    assert (found[:2] if found else found) == categories
    assert outputs["pin.category"] == (categories[0] if categories else None)


def test_interests_are_the_accepted_ones() -> None:
    """Exclusions and "all" are no interests; numbers are in order of size."""
    terms = ["interests=16", "interests=5", "!interests=7", "age=*"]
    assert run_handler(interests, {"ad_group.targeting_terms": terms}) == {"ad_document.interests": [5, 16]}
    assert run_handler(interests, {"ad_group.targeting_terms": ANY}) == {"ad_document.interests": None}
    assert run_handler(interests) == {"ad_document.interests": None}


@pytest.mark.parametrize(
    ("current", "listed", "offer", "discount"),
    [
        (379, 999, 379, 62),
        (None, 999, 999, None),
        (379, None, 379, None),
        (999, 999, 999, None),
        (0, 5, 0, 100),
        (10, 5, 10, None),
        (None, None, None, None),
    ],
)
def test_price_is_what_a_buyer_pays(
    current: int | None, listed: int | None, offer: int | None, discount: int | None
) -> None:
    """The current price wins over the list price; only a lower one is a discount."""
    outputs = run_handler(price, {"pin.price_micros": current, "pin.list_price_micros": listed, "pin.currency": "INR"})
    assert outputs == {
        "pin.offer_price_micros": offer,
        "pin.offer_currency": "INR" if offer is not None else None,
        "pin.discount_percent": discount,
    }


@pytest.mark.parametrize(
    "values",
    [{"pin.price_micros": -1}, {"pin.list_price_micros": -1}, {"pin.currency": "rs"}, {"pin.currency": "USDX"}],
)
def test_price_refuses_impossible_values(values: dict[str, Any]) -> None:
    """Negative prices and unknown forms of currency are bad_price."""
    with pytest.raises(InvalidInput, match="bad_price"):
        run_handler(price, values)


def test_embedding_is_a_unit_vector_that_knows_similar_texts() -> None:
    """Texts that share words are nearer than those that do not; empty text has no vector."""

    def vector(title: str) -> Any:
        return np.frombuffer(run_handler(text_embedding, {"pin.title": title})["pin.embedding"], dtype="<f4")

    shorts, similar, other = vector("red cotton shorts"), vector("blue cotton shorts"), vector("usb charger cable")
    assert shorts.shape == (64,)
    assert abs(float(np.linalg.norm(shorts)) - 1) < 1e-6
    assert float(shorts @ similar) > 0.4 > float(shorts @ other)
    assert run_handler(text_embedding, {"pin.title": "!?"}) == {"pin.embedding": None}


def test_embedding_has_the_same_bytes_everywhere() -> None:
    """The bytes are fixed for good: documents built by another process, machine or year must be equal."""
    import zlib

    body = embed("red cotton shorts", "for summer", 64)
    assert body is not None
    assert zlib.crc32(body) == PINNED_CRC


PINNED_CRC = 1609216693


def test_performance_is_smoothed_against_an_unknown_ad() -> None:
    """Without history the quality is 1; with much of it, it is the ad's own rate over the prior's."""
    known = {"ad.id": 1, "ad.performance_version": 3}
    assert run_handler(performance, known)["ad_document.quality"] == 1.0
    row = PerformanceRow(1, 990_000, 398, 12, 4, 5_000_000)
    outputs = run_handler(performance, known, sources={"performance": row})
    assert outputs == {
        "ad_document.impressions": 990_000,
        "ad_document.clicks": 398,
        "ad_document.conversions": 12,
        "ad_document.spend_micros": 5_000_000,
        "ad_document.quality": 2.0,
    }


def test_performance_passes_on_that_its_source_is_away() -> None:
    """The framework then keeps the previous outputs, so the handler must not invent any."""
    with pytest.raises(SourceUnavailable):
        run_handler(performance, {"ad.id": 1}, sources={"performance": SourceUnavailable("down")})
