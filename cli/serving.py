"""Serving as a command sees it: the running Manas server, or the same index opened in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

from catalog import Catalog
from cli.runtime import serving_port
from manas import Answer, Index, ManasClient, ManasUnavailable, SearchBackend, open_local_index
from messaging.api import Log
from messaging.home import Home
from messaging.proto import adsindex_pb2 as pb

T = TypeVar("T")
_GET = 1_000
"""Documents asked for at once: some megabytes, below what one gRPC message may have."""


def served_bodies(serving: SearchBackend, ids: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Yield (id, body) of the documents that serving has, whatever budget and schedule say, in the order of `ids`."""
    waiting = iter(ids)
    while some := list(islice(waiting, _GET)):
        for document in serving.get(some):
            if document.found and not document.deleted:
                yield document.document_id, document.body


class HomeServing:
    """Answers from the home's server when one runs; else from base and log, read when first asked.

    A server that was restarted on another port is found again. With `server_only`, as in a long-lived process, a server
    that is away is ManasUnavailable, because an index opened here would not follow the log.
    """

    def __init__(self, home: Home, catalog: Catalog, log: Log, *, server_only: bool = False) -> None:
        self._home, self._catalog, self._log, self._server_only = home, catalog, log, server_only
        self._client: tuple[int, ManasClient] | None = None
        self._local: Index | None = None

    def search(self, request: Mapping[str, Any], k: int = 10, *, timeout_s: float | None = None) -> Answer:
        """Return the best `k` ads that fit; 0 means all. Raises InvalidRequest, ManasUnavailable."""
        return self._ask(lambda backend: backend.search(request, k, timeout_s=timeout_s))

    def explain(
        self,
        request: Mapping[str, Any],
        k: int = 10,
        ad_id: int | str | None = None,
        *,
        timeout_s: float | None = None,
    ) -> dict[str, Any]:
        """Return the answer with its plan, and why an ad is or is not in it."""
        return self._ask(lambda backend: backend.explain(request, k, ad_id, timeout_s=timeout_s))

    def get(self, document_ids: Sequence[str]) -> list[pb.ServedDocument]:
        """Return what serving has of each document, in the order asked."""
        return self._ask(lambda backend: backend.get(document_ids))

    def stats(self) -> dict[str, Any]:
        """Return sizes, versions and positions."""
        return self._ask(lambda backend: backend.stats())

    def budget(self, campaign_id: str) -> pb.BudgetState | None:
        """Return the newest budget state known of a campaign."""
        return self._ask(lambda backend: backend.budget(campaign_id))

    def close(self) -> None:
        """Close the connection; safe to call twice."""
        if self._client is not None:
            self._client[1].close()
            self._client = None

    def _ask(self, question: Callable[[SearchBackend], T]) -> T:
        port = serving_port(self._home)
        if port is not None:
            if self._client is None or self._client[0] != port:
                self.close()
                self._client = (port, ManasClient(port, self._catalog))
            return question(self._client[1])
        if self._server_only:
            raise ManasUnavailable("no Manas server is ready; the supervisor starts it again within seconds")
        if self._local is None:
            self._local = open_local_index(self._home, self._catalog, self._log)
        return question(self._local)
