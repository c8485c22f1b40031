"""How much of everything `bench retrieval` takes."""

from __future__ import annotations

from dataclasses import dataclass

K = 100
"""Answers wanted of every query."""


OURS, TANTIVY, DUCKDB = "ours", "tantivy", "duckdb"
DRIFT = 0.3
"""Standard deviation of the logarithm of what bids were multiplied by since the build."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many documents, queries and repetitions."""

    documents: int = 1_000_000
    queries: int = 1_000
    """Different requests of each kind."""
    rounds: int = 3
    """Times that every engine is started and asked everything; figures are medians over them."""
    builds: int = 2
    checked: int = 12
    """Requests of each kind whose answers are compared with the scan."""
    budget_s: float = 1.8
    """At most so long is one engine asked one kind of request in one round; medians are over what it has answered."""
    changed: float = 0.01
    """Share of the documents that have changed since the base."""


QUICK = Sizes(documents=4_000, queries=40, rounds=1, builds=1, checked=40, budget_s=0.5)
