"""What a broker finds out once for all shards, so that each of them scores as if it had all documents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Common:
    """Sent to every shard with a request; a server without shards needs none."""

    documents: int | None = None
    """Live documents of all shards; None: the shard's own numbers count."""
    frequencies: Mapping[str, int] = field(default_factory=dict)
    """Word of the text -> live documents of all shards that have it."""
    vector: bytes | None = None
    """Little-endian float32 of the document that `similar_to` names, which only one shard has."""
    diversity: bool = True
    """False: the best whatever they share, with their groups: the broker sees to diversity."""
    light: bool = False
    """With a second phase: hits with their scores of the first as well: the broker chooses whom it scores."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One of several requests asked together."""

    request: Mapping[str, Any]
    k: int = 10
    counting: bool = True
    common: Common | None = None


def with_shared(common: Common | None, shared: Common | None) -> Common | None:
    """Return what is common for one of several requests, with the counts that all of them share."""
    if shared is None:
        return common
    return replace(common or Common(), documents=shared.documents, frequencies=shared.frequencies)
