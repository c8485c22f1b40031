"""What a pin is about: its terms, language and categories, and an ad's interests."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

from argus import HandlerContext, Inputs, Value, handler
from argus.handlers._language import detect_language
from catalog.targeting import accept_term
from catalog.text import unique_terms

_LEVEL = re.compile(r">+")
_MAX_LEVELS = 16
"""Deeper paths are broken exports; every level is a term of the document."""


@handler(
    root="pin",
    watches=("pin.title", "pin.description", "pin.brand", "pin.category_path"),
    writes=("pin.terms", "pin.language"),
)
def text_annotation(row: Inputs, context: HandlerContext) -> Mapping[str, Value]:
    """Analyse all text of a pin into the set of its terms, and tell the language of its sentences."""
    title, description = row["pin.title"], row["pin.description"]
    terms = unique_terms(title, description, row["pin.brand"], row["pin.category_path"])
    return {
        "pin.terms": terms or None,
        "pin.language": detect_language(" ".join(text for text in (title, description) if text)),
    }


@handler(root="pin", watches=("pin.category_path",), writes=("pin.categories", "pin.category"))
def category(row: Inputs, context: HandlerContext) -> Mapping[str, Value]:
    """Turn "Clothing >> Women >> Shorts" into its prefixes, so that each level can be asked for, and the top level."""
    prefixes = list(_prefixes(row["pin.category_path"] or ""))
    return {"pin.categories": prefixes or None, "pin.category": prefixes[0] if prefixes else None}


@lru_cache(maxsize=4096)  # a shop has hundreds of categories and millions of products
def _prefixes(path: str) -> tuple[str, ...]:
    levels = [level.strip() for level in _LEVEL.split(path)]
    levels = [level for level in levels if level][:_MAX_LEVELS]
    return tuple(" >> ".join(levels[: depth + 1]) for depth in range(len(levels)))


@handler(root="ad", watches=("ad_group.targeting_terms",), writes=("ad_document.interests",))
def interests(row: Inputs, context: HandlerContext) -> Mapping[str, Value]:
    """List the interests that the ad's targeting accepts, in order; null if it accepts all."""
    prefix = accept_term("interests", "")
    accepted = [term.removeprefix(prefix) for term in row["ad_group.targeting_terms"] or () if term.startswith(prefix)]
    return {"ad_document.interests": sorted(int(i) for i in accepted if i.lstrip("-").isdecimal()) or None}
