"""The same questions as `Index` answers, asked of a Manas server."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import grpc

from catalog import Catalog, ValueType
from manas._common import Ask, Common, with_shared
from manas._exceptions import InvalidRequest, ManasError, ManasUnavailable, NotServing
from manas._wire import answer_of, common_message
from manas.api import Answer
from messaging.proto import adsindex_pb2 as pb
from messaging.proto import adsindex_pb2_grpc as rpc
from messaging.rpc import open_channel

T = TypeVar("T")
_LEAST_SECONDS = 1e-9
_GRACE_SECONDS = 1.0
"""Beyond the time a search is given: for the way there and back."""


class ManasClient:
    """A connection to the server on `port`. Safe for threads. Raises what `Index` raises, or ManasUnavailable."""

    def __init__(self, port: int, catalog: Catalog, *, timeout_s: float = 10.0, connections: int = 1) -> None:
        """With several processes behind one port, as many `connections` reach several of them, in turns."""
        self._port = port
        self._int_keys = catalog.tables[catalog.root].key_type is ValueType.INT
        self._timeout_s = timeout_s
        self._channels = [open_channel(port, alone=connections > 1) for _ in range(connections)]
        self._stubs = [rpc.ManasStub(channel) for channel in self._channels]
        self._turns = itertools.cycle(self._stubs)
        self._closed = False

    def __enter__(self) -> ManasClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; safe to call twice. Questions that are on their way end with ManasUnavailable."""
        self._closed = True
        for channel in self._channels:
            channel.close()

    @property
    def _stub(self) -> Any:
        return self._stubs[0] if len(self._stubs) == 1 else next(self._turns)

    def search(
        self,
        request: Mapping[str, Any],
        k: int = 10,
        *,
        counting: bool = True,
        timeout_s: float | None = None,
        common: Common | None = None,
    ) -> Answer:
        """Return the best `k` ads that fit; 0 means all. `timeout_s`: what was found until then, as partial."""
        wanted = self._wanted(Ask(request, k, counting, common))
        wanted.timeout_s = _sent(timeout_s)
        return answer_of(self._search(wanted), int_keys=self._int_keys)

    def search_batch(
        self,
        requests: Sequence[Mapping[str, Any]],
        k: int = 10,
        *,
        counting: bool = True,
        timeout_s: float | None = None,
    ) -> list[Answer | ManasError]:
        """Return the answers of many requests in one call; one that cannot be answered has its error in its place.

        That is InvalidRequest, or behind a broker ManasUnavailable for a document whose shard is away. `timeout_s` is
        for all of them together.
        """
        return self._batch([Ask(request, k, counting) for request in requests], None, timeout_s)

    def search_each(
        self, asks: Sequence[Ask], *, shared: Common | None = None, timeout_s: float | None = None
    ) -> list[Answer | ManasError]:
        """Return the answers of requests that each have their own options, in one call, as `search_batch` does.

        `shared` are the counts that all of them go by.
        """
        if len(asks) != 1:
            return self._batch(asks, shared, timeout_s)
        [ask] = asks
        common = with_shared(ask.common, shared)
        try:
            return [self.search(ask.request, ask.k, counting=ask.counting, timeout_s=timeout_s, common=common)]
        except InvalidRequest as error:
            return [error]

    def _batch(self, asks: Sequence[Ask], shared: Common | None, timeout_s: float | None) -> list[Answer | ManasError]:
        batch = pb.SearchBatchRequest(requests=map(self._wanted, asks), timeout_s=_sent(timeout_s))
        if shared is not None:
            batch.common.CopyFrom(common_message(shared))
        limit = self._limit(timeout_s)
        replies = self._call(lambda: self._stub.SearchBatch(batch, timeout=limit)).replies
        return [_outcome(reply, int_keys=self._int_keys) for reply in replies]

    def explain(
        self,
        request: Mapping[str, Any],
        k: int = 10,
        ad_id: int | str | None = None,
        *,
        timeout_s: float | None = None,
        common: Common | None = None,
    ) -> dict[str, Any]:
        """Return the answer with its plan, and why an ad is or is not in it.

        `timeout_s`: what there was no time for is named in the plan's "cut".
        """
        wanted = self._wanted(Ask(request, k, common=common))
        wanted.timeout_s = _sent(timeout_s)
        wanted.explain, wanted.explain_ad_id = True, "" if ad_id is None else str(ad_id)
        reply = self._search(wanted)
        return {**answer_of(reply, int_keys=self._int_keys), **json.loads(reply.explain_json)}

    def statistics(self, requests: Sequence[Mapping[str, Any]]) -> Common:
        """Return what idf needs of this server for the words of requests; those that cannot be read have none."""
        wanted = pb.StatisticsRequest(requests_json=map(json.dumps, requests))
        reply = self._call(lambda: self._stub.Statistics(wanted, timeout=self._timeout_s))
        return Common(reply.documents, dict(reply.frequencies))

    def health(self) -> dict[str, str]:
        """Return status, problem, base_version, shard and verification; answered while nothing else is."""
        reply = self._call(lambda: self._stub.Health(pb.HealthRequest(), timeout=self._timeout_s))
        return {field.name: getattr(reply, field.name) for field in reply.DESCRIPTOR.fields}

    def get(self, document_ids: Sequence[str], fields: Sequence[str] | None = None) -> list[pb.ServedDocument]:
        """Return what serving has of each document, in the order asked; of the bodies only `fields`, if given."""
        request = pb.GetRequest(document_ids=document_ids, fields=fields)
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

    @staticmethod
    def _wanted(ask: Ask) -> pb.SearchRequest:
        k = ask.k
        if isinstance(k, bool) or not isinstance(k, int) or not 0 <= k < 1 << 31:
            raise InvalidRequest(f"k: a whole number from 0 (all), got {k!r}")
        text = json.dumps(ask.request)
        wanted = pb.SearchRequest(request_json=text, k=k, skip_total=not ask.counting, columns=True)
        if ask.common is not None:
            wanted.common.CopyFrom(common_message(ask.common))
        return wanted

    def _search(self, wanted: pb.SearchRequest) -> pb.SearchReply:
        limit = self._limit(wanted.timeout_s or None)
        reply: pb.SearchReply = self._call(lambda: self._stub.Search(wanted, timeout=limit))
        return reply

    def _limit(self, timeout_s: float | None) -> float:
        return self._timeout_s if timeout_s is None else timeout_s + _GRACE_SECONDS

    def _call(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except grpc.RpcError as error:
            raise self._translated(error) from error
        except ValueError as error:  # as gRPC says that a channel is closed
            if not self._closed:
                raise
            raise ManasUnavailable(f"the connection to the Manas server on port {self._port} is closed") from error

    def _translated(self, error: grpc.RpcError) -> ManasError:
        if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
            return InvalidRequest(error.details())
        if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
            return NotServing(error.details())
        return ManasUnavailable(
            f"the Manas server on port {self._port} answered {error.code().name}: {error.details()}; is it running?"
        )


def _sent(timeout_s: float | None) -> float:
    """Return a time limit as it is sent: 0 is none, and no time at all is a very short one."""
    return 0.0 if timeout_s is None else max(timeout_s, _LEAST_SECONDS)


def _outcome(reply: pb.SearchReply, *, int_keys: bool) -> Answer | ManasError:
    if reply.error:
        return ManasUnavailable(reply.error) if reply.unavailable else InvalidRequest(reply.error)
    return answer_of(reply, int_keys=int_keys)
