"""Questions put to all shards at once, each shard by threads of its own, and going on without those that are late."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from manas._common import Ask, Common
from manas._exceptions import ManasError
from manas.api import Answer
from messaging.proto import adsindex_pb2 as pb

_GRACE_SECONDS = 0.1
"""After a shard's deadline: for an answer that is already on its way."""
_AHEAD = 0.5
"""Of the time that is left: for what has to be known before shards search. One that hangs then leaves the other half to
those that do not."""


class SearchShard(Protocol):
    """A shard: an `Index` in process, or a server behind a `ManasClient`."""

    def search_each(
        self, asks: Sequence[Ask], *, shared: Common | None = None, timeout_s: float | None = None
    ) -> list[Answer | ManasError]:
        """Return the shard's best for each request, an error in the place of one that cannot be answered."""

    def explain(
        self,
        request: Mapping[str, Any],
        k: int = 10,
        ad_id: int | str | None = None,
        *,
        timeout_s: float | None = None,
        common: Common | None = None,
    ) -> dict[str, Any]:
        """Return the shard's plan, and why an ad of it is or is not in its answer."""

    def statistics(self, requests: Sequence[Mapping[str, Any]]) -> Common:
        """Return what idf needs of the shard for the words of requests."""

    def get(self, document_ids: Sequence[str], fields: Sequence[str] | None = None) -> list[pb.ServedDocument]:
        """Return what the shard has of documents."""

    def stats(self) -> dict[str, Any]:
        """Return sizes, versions and positions."""

    def budget(self, campaign_id: str) -> pb.BudgetState | None:
        """Return a campaign's budget state."""


T = TypeVar("T")
S = TypeVar("S", bound=SearchShard)


@dataclass(slots=True)
class Round:
    """A caller's requests on their way: until when, and which shards are given up, and why."""

    ends: float
    """On the monotonic clock."""
    missing: dict[int, str] = field(default_factory=dict)
    grace: float = _GRACE_SECONDS

    def left(self) -> float:
        """Return the seconds that are left."""
        return max(0.0, self.ends - time.monotonic())

    def ahead(self) -> Round:
        """Return a shorter round, without grace, for what has to be known first; it gives up shards by itself."""
        return Round(time.monotonic() + _AHEAD * self.left(), dict(self.missing), 0.0)


class Shards(Generic[S]):
    """The shards of one index by number. Safe for threads."""

    def __init__(self, shards: Sequence[S], concurrent: int) -> None:
        """`concurrent`: questions that a shard is asked at the same time; a shard that hangs keeps no other waiting."""
        self._shards = list(shards)
        self._pools = [
            ThreadPoolExecutor(concurrent, thread_name_prefix=f"shard-{number}") for number in range(len(shards))
        ]

    def __len__(self) -> int:
        return len(self._shards)

    def close(self) -> None:
        """Ask no more; safe to call twice."""
        for pool in self._pools:
            pool.shutdown(wait=False, cancel_futures=True)

    def ask(self, question: Callable[[int, S], T], round_: Round, only: Collection[int] | None = None) -> dict[int, T]:
        """Return the answers of the shards that are not missing yet; who has none in time is missing from then on.

        Whatever is wrong with a shard is in `round_.missing` and raises nothing.
        """
        missing = round_.missing
        wanted = [n for n in range(len(self)) if n not in missing and (only is None or n in only)]
        futures: dict[int, Future[T]] = {n: self._pools[n].submit(question, n, self._shards[n]) for n in wanted}
        wait(futures.values(), round_.left() + round_.grace)
        found: dict[int, T] = {}
        for number, future in futures.items():
            if not future.done():
                future.cancel()
                missing[number] = "no answer before the deadline"
                continue
            try:
                found[number] = future.result()
            except ManasError as error:
                missing[number] = str(error)
        return found

    def name(self, number: int) -> str:
        """Return a shard's name, "0/3"."""
        return f"{number}/{len(self)}"

    def named(self, missing: Mapping[int, str]) -> dict[str, str]:
        """Return why shards are missing, by name."""
        return {self.name(number): missing[number] for number in sorted(missing)}
