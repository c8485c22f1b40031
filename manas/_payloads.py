"""The numbers that postings carry: from a document's fields to term -> payload, as the catalogue declares.

A field with `payload: OTHER` takes them from the document's field OTHER: a list of numbers as long as its own list of
terms, or one number for all its terms. Without OTHER every term has 1. Payloads are float32, finite and not negative.
Of a term that comes twice in a document the larger one counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

LARGEST = float(np.finfo(np.float32).max)
WITHOUT = 1.0
"""Payload of a term whose document has none: what a list without payloads adds, too."""


def payloads_of(terms: Sequence[str], given: Any) -> dict[str, float]:
    """Return term -> payload of one field of a document. Raises ValueError with a sentence."""
    if given is None:
        return dict.fromkeys(terms, WITHOUT)
    if not isinstance(given, list):
        return dict.fromkeys(terms, _payload(given))
    if len(given) != len(terms):
        raise ValueError(f"has {len(given)} payloads for {len(terms)} terms")
    found: dict[str, float] = {}
    for term, value in zip(terms, given, strict=True):
        payload = _payload(value)
        if payload >= found.get(term, 0.0):
            found[term] = payload
    return found


def _payload(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value <= LARGEST:
        raise ValueError(f"payloads are numbers from 0 that a float32 holds, got {str(value)[:60]!r}")
    return float(np.float32(value))
