"""Targeting terms: how a spec is flattened and how a request is turned into what must match.

For each dimension an ad carries either the terms it accepts, `age=30-34`, or `age=*` (does not care). What it excludes
is `!country=FR`. A request matches if in every dimension the ad carries `dim=*` or a term of the request's values, and
carries no exclusion of a value of the request. A dimension that the request leaves out is unknown: only ads that do
not care accept it. The request value "*" browses: it puts no condition on that dimension.
"""

from __future__ import annotations

from typing import Any

ANY = "*"
EXCLUDE = "!"


def accept_term(dimension: str, value: Any) -> str:
    """Return the term of an accepted value."""
    return f"{dimension}={value}"


def any_term(dimension: str) -> str:
    """Return the term of an ad that does not care about the dimension."""
    return f"{dimension}={ANY}"


def exclude_term(dimension: str, value: Any) -> str:
    """Return the term of an excluded value."""
    return f"{EXCLUDE}{dimension}={value}"
