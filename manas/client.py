"""The same questions as `Index` answers, asked of a Manas server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import grpc

from catalog import Catalog, ValueType
from manas._exceptions import InvalidRequest, ManasUnavailable
from manas.api import Answer
from messaging.proto import adsindex_pb2 as pb
from messaging.proto import adsindex_pb2_grpc as rpc
from messaging.rpc import open_channel

T = TypeVar("T")


class ManasClient:
    """A connection to the server on `port`. Safe for threads. Raises what `Index` raises, or ManasUnavailable."""

    def __init__(self, port: int, catalog: Catalog, *, timeout_s: float = 10.0) -> None:
        self._port = port
        self._int_keys = catalog.tables[catalog.root].key_type is ValueType.INT
        self._timeout_s = timeout_s
        self._channel = open_channel(port)
        self._stub = rpc.ManasStub(self._channel)

    def __enter__(self) -> ManasClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; safe to call twice."""
        self._channel.close()

    def search(self, request: Mapping[str, Any], k: int = 10) -> Answer:
        """Return the best `k` ads that fit; 0 means all."""
        return self._answer(self._search(request, k, pb.SearchRequest()))

    def explain(self, request: Mapping[str, Any], k: int = 10, ad_id: int | str | None = None) -> dict[str, Any]:
        """Return the answer with its plan, and why an ad is or is not in it."""
        wanted = pb.SearchRequest(explain=True, explain_ad_id="" if ad_id is None else str(ad_id))
        reply = self._search(request, k, wanted)
        return {**self._answer(reply), **json.loads(reply.explain_json)}

    def get(self, document_ids: Sequence[str]) -> list[pb.ServedDocument]:
        """Return what serving has of each document, in the order asked."""
        request = pb.GetRequest(document_ids=document_ids)
        return list(self._call(lambda: self._stub.Get(request, timeout=self._timeout_s)).documents)

    def stats(self) -> dict[str, Any]:
        """Return sizes, versions and positions."""
        reply = self._call(lambda: self._stub.Stats(pb.StatsRequest(), timeout=self._timeout_s))
        stats: dict[str, Any] = json.loads(reply.stats_json)
        return stats

    def budget(self, campaign_id: str) -> pb.BudgetState | None:
        """Return the newest budget state known of a campaign."""
        request = pb.BudgetRequest(campaign_id=campaign_id)
        state = self._call(lambda: self._stub.Budget(request, timeout=self._timeout_s))
        return state if state.version else None

    def follow(self) -> Iterator[pb.Applied]:
        """Return documents as they become answerable, complete from the return of this call on; ends with close()."""
        stream = self._stub.Follow(pb.FollowRequest())
        self._call(stream.initial_metadata)
        return self._documents(stream)

    def _documents(self, stream: Any) -> Iterator[pb.Applied]:
        try:
            yield from stream
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.CANCELLED:
                raise self._translated(error) from error

    def _search(self, request: Mapping[str, Any], k: int, wanted: pb.SearchRequest) -> pb.SearchReply:
        if isinstance(k, bool) or not isinstance(k, int) or not 0 <= k < 1 << 31:
            raise InvalidRequest(f"k: a whole number from 0 (all), got {k!r}")
        wanted.request_json, wanted.k = json.dumps(request), k
        reply: pb.SearchReply = self._call(lambda: self._stub.Search(wanted, timeout=self._timeout_s))
        return reply

    def _answer(self, reply: pb.SearchReply) -> Answer:
        kind: type[int] | type[str] = int if self._int_keys else str
        return {
            "hits": [{"ad_id": kind(h.ad_id), "score": h.score} for h in reply.hits],
            "total": reply.total,
            "total_is_lower_bound": reply.total_is_lower_bound,
            "partial": reply.partial,
        }

    def _call(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except grpc.RpcError as error:
            raise self._translated(error) from error

    def _translated(self, error: grpc.RpcError) -> Exception:
        if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
            return InvalidRequest(error.details())
        return ManasUnavailable(
            f"the Manas server on port {self._port} answered {error.code().name}: {error.details()}; is it running?"
        )
