"""A shard behind a server that comes and goes: whoever owns it says where the server is at the moment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog

from catalog import Catalog
from manas._common import Ask, Common
from manas._exceptions import ManasError, ManasUnavailable
from manas.api import Answer
from manas.client import ManasClient
from manas.shards import Shard
from messaging.proto import adsindex_pb2 as pb

Address = tuple[int, int]
"""Process id and port: a server that was started again is another one, whatever its port."""

_log = structlog.get_logger()


class RemoteShard:
    """Asks a shard's server. Safe for threads, but for `look`. Raises what a ManasClient raises."""

    def __init__(self, shard: Shard, catalog: Catalog, find: Callable[[], Address | None], timeout_s: float) -> None:
        """`find` says where the server is, None while there is none."""
        self._shard, self._catalog, self._find, self._timeout_s = shard, catalog, find, timeout_s
        self._address: Address | None = None
        self._client: ManasClient | None = None
        self._problem = "its server has not been started"

    def __str__(self) -> str:
        return str(self._shard)

    @property
    def connected(self) -> bool:
        """Whether there is a server to ask."""
        return self._client is not None

    def look(self) -> bool:
        """Find the server if it is another one than before; return whether there is one. For one thread."""
        address = self._find()
        if address == self._address:
            return self._client is not None
        old, self._client = self._client, None
        if address is None:
            self._address, self._problem = None, "its server is not running"
        else:
            self._connect(address)
        if old is not None:
            old.close()
        return self._client is not None

    def close(self) -> None:
        """Close the connection; safe to call twice."""
        if self._client is not None:
            self._client.close()

    def _connect(self, address: Address) -> None:
        """Take a server in use after asking it which shard it is: another one would give wrong answers in silence."""
        client = ManasClient(address[1], self._catalog, timeout_s=self._timeout_s)
        try:
            found = client.health()["shard"]
        except ManasError as error:  # looked for again, as the address is not taken over
            self._problem = str(error)
            client.close()
            return
        self._address = address
        if found != str(self._shard):
            self._problem = f"the server on port {address[1]} is shard {found}"
            _log.error("manas.wrong_shard", wanted=str(self._shard), found=found, port=address[1])
            client.close()
            return
        self._client, self._problem = client, ""
        _log.info("manas.shard_found", shard=str(self._shard), port=address[1])

    @property
    def _server(self) -> ManasClient:
        client = self._client
        if client is None:
            raise ManasUnavailable(self._problem)
        return client

    def search_each(
        self, asks: Sequence[Ask], *, shared: Common | None = None, timeout_s: float | None = None
    ) -> list[Answer | ManasError]:
        """Return the shard's best for each request, an error in the place of one that cannot be answered."""
        return self._server.search_each(asks, shared=shared, timeout_s=timeout_s)

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
        return self._server.explain(request, k, ad_id, timeout_s=timeout_s, common=common)

    def statistics(self, requests: Sequence[Mapping[str, Any]]) -> Common:
        """Return what idf needs of the shard for the words of requests."""
        return self._server.statistics(requests)

    def health(self) -> dict[str, str]:
        """Return what the server says of itself."""
        return self._server.health()

    def get(self, document_ids: Sequence[str], fields: Sequence[str] | None = None) -> list[pb.ServedDocument]:
        """Return what the shard has of documents."""
        return self._server.get(document_ids, fields)

    def stats(self) -> dict[str, Any]:
        """Return sizes, versions and positions."""
        return self._server.stats()

    def budget(self, campaign_id: str) -> pb.BudgetState | None:
        """Return a campaign's budget state."""
        return self._server.budget(campaign_id)

    def another_client(self) -> ManasClient:
        """Return a connection of its own to the server as it is now, for what lasts; the caller closes it."""
        address = self._address
        if address is None or self._client is None:
            raise ManasUnavailable(f"shard {self}: {self._problem}")
        return ManasClient(address[1], self._catalog, timeout_s=self._timeout_s)
