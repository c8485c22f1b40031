"""What is asked of the TSO and what it answers, as callers see it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from storage_repo.omid._errors import CommitUnknown, TsoUnavailable


@dataclass(frozen=True, slots=True)
class CommitRequest:
    """A transaction whose cells are all written and that now wants its commit timestamp."""

    start_ts: int
    cell_ids: Sequence[int]
    """The conflict set; may be empty."""
    table_ids: Sequence[int]
    """Every table written, also by cells that are in no conflict set."""


@dataclass(frozen=True, slots=True)
class Committed:
    """It is in the commit table with this timestamp."""

    commit_ts: int


@dataclass(frozen=True, slots=True)
class Aborted:
    """It is refused.

    `after_retry`: the request had been sent before, over a connection that was lost. The TSO then looked into the
    commit table once, but what it did with the first request may get there later. Invalidate the transaction in the
    commit table before calling it aborted; if that fails, it is committed.
    """

    after_retry: bool = False


Outcome = Committed | Aborted | CommitUnknown | TsoUnavailable
"""The exceptions are given as values: one transaction's fate does not hide the others'."""
