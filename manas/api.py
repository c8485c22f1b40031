"""What a caller of retrieval needs, whether the index is in its own process or behind a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, Protocol, TypedDict

from messaging.proto import adsindex_pb2 as pb


class Hit(TypedDict):
    """One ad of an answer."""

    ad_id: int | str
    score: float
    groups: NotRequired[list[str]]
    """Values of the field that diversity goes by; only in answers to a broker."""
    light: NotRequired[float]
    """Score of the first phase, where there is a second; only in answers to a broker."""


class Answer(TypedDict):
    """Hits in order of rank, and how many ads match before the cut at k and before diversity."""

    hits: Sequence[Hit]
    """A list, or columns (`Hits`) where the index is in this process."""
    total: int
    total_is_lower_bound: bool
    """The search ended before everything was counted."""
    partial: bool
    """A deadline or a missing shard cut the search short: there may be better ads."""
    page_token: NotRequired[str]
    """Of the next page, "" when there is none. Only there when the request has one, and not where time or a shard was
    short and the page is not full: then the same page is asked for once more."""
    missing_shards: NotRequired[dict[str, str]]
    """Shards that have not answered, and why; only there when some have not."""
    problem: NotRequired[str]
    """What the index lacks, for example deltas that the log no longer has; only there when it lacks something."""


class SearchBackend(Protocol):
    """Implemented by `Index` (in process) and `ManasClient` (a server)."""

    def search(self, request: Mapping[str, Any], k: int = 10, *, timeout_s: float | None = None) -> Answer:
        """Return the best `k` ads that fit; 0 means all. Raises InvalidRequest, ManasUnavailable.

        `timeout_s`: what was found until then is returned as partial.
        """

    def explain(
        self,
        request: Mapping[str, Any],
        k: int = 10,
        ad_id: int | str | None = None,
        *,
        timeout_s: float | None = None,
    ) -> dict[str, Any]:
        """Return the plan with estimates and actual counts, and why an ad is or is not in the answer.

        `timeout_s`: what there was no time for is named in the plan's "cut".
        """

    def get(self, document_ids: Sequence[str]) -> list[pb.ServedDocument]:
        """Return what serving has of each document, in the order asked."""

    def stats(self) -> dict[str, Any]:
        """Return sizes, versions and positions."""

    def budget(self, campaign_id: str) -> pb.BudgetState | None:
        """Return the newest budget state known of a campaign."""
