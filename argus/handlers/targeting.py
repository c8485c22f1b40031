"""Targeting: a spec in JSON becomes flat terms that an inverted index can match."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from argus import HandlerContext, Inputs, InvalidInput, Value, handler
from catalog import Dimension, ValueType
from catalog.targeting import ANY, accept_term, any_term, exclude_term

_EXCLUDE_KEY = "exclude"
_MAX_VALUES = 1_000
"""Per dimension. Terms are postings: a spec that names more is better expressed as an exclusion."""
_MAX_LENGTH = 128


@handler(root="ad_group", watches=("ad_group.targeting_spec",), writes=("ad_group.targeting_terms",))
def targeting(row: Inputs, context: HandlerContext) -> Mapping[str, Value]:
    """Flatten {"age": ["30-34"], "interests": [16], "exclude": {"country": ["FR"]}} into sorted terms.

    A dimension that is not named, and a spec that is null, accept everything. What is not understood in full is
    refused: serving an ad to people whom its advertiser did not mean is worse than not serving it.
    """
    spec = _parse(row["ad_group.targeting_spec"])
    excluded = spec.pop(_EXCLUDE_KEY, {})
    if not isinstance(excluded, dict):
        raise _bad(f'"{_EXCLUDE_KEY}" must be an object of dimensions, not {_shown(excluded)}')
    dimensions = {name: dimension for name, dimension in context.catalog.dimensions.items() if dimension.flat}
    for name in (*spec, *excluded):
        if name not in dimensions:
            raise _bad(f"{name!r} is not a targeting dimension; there are {', '.join(dimensions)}")
    terms: list[str] = []
    for name, dimension in dimensions.items():
        accepts = _values(dimension, spec[name]) if name in spec else set()
        excludes = _values(dimension, excluded[name]) if name in excluded else set()
        if both := accepts & excludes:
            raise _bad(f"{name!r} both accepts and excludes {sorted(both, key=str)}")
        terms += [accept_term(name, value) for value in accepts] or [any_term(name)]
        terms += [exclude_term(name, value) for value in excludes]
    return {"ad_group.targeting_terms": sorted(terms)}


def _parse(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        spec = json.loads(text, object_pairs_hook=_unique)
    except (json.JSONDecodeError, RecursionError) as error:
        raise _bad(f"it is not JSON: {error}") from error
    if not isinstance(spec, dict):
        raise _bad(f"it must be an object of dimensions, not {_shown(spec)}")
    return spec


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise _bad(f"{next(n for n in names if names.count(n) > 1)!r} is there twice")
    return found


def _values(dimension: Dimension, given: Any) -> set[str] | set[int]:
    if not isinstance(given, list) or not given:
        raise _bad(f"{dimension.name!r} must be a list of values, not {_shown(given)}; leave it out for all")
    if len(given) > _MAX_VALUES:
        raise _bad(f"{dimension.name!r} has {len(given)} values, more than {_MAX_VALUES}")
    kind = int if dimension.type is ValueType.INT else str
    for value in given:
        if not isinstance(value, kind) or isinstance(value, bool):
            raise _bad(f"{dimension.name!r} takes values of type {dimension.type.value}, not {_shown(value)}")
        if isinstance(value, str) and (not value.strip() or value == ANY or len(value) > _MAX_LENGTH):
            raise _bad(f"{dimension.name!r} cannot have the value {_shown(value)}; leave the dimension out for all")
        if dimension.values and value not in dimension.values:
            raise _bad(f"{dimension.name!r} has no value {_shown(value)}; there are {', '.join(dimension.values)}")
    return set(given)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _bad(sentence: str) -> InvalidInput:
    return InvalidInput("bad_targeting", f"targeting spec: {sentence}")
