"""The gRPC methods, the same before an index and before a broker."""

from __future__ import annotations

import json
import os
import queue
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import grpc

from manas._common import Ask, Common
from manas._exceptions import InvalidRequest, ManasError, ManasUnavailable, NotServing
from manas._wire import common_of, decode_request, reply_of
from manas.api import Answer
from messaging.proto import adsindex_pb2 as pb
from messaging.proto import adsindex_pb2_grpc as rpc

THREADS = 16
"""Of a server."""
SWITCH_SECONDS = 0.0005
"""Between threads: with the interpreter's own 5 ms a search may wait that long for the thread that applies deltas."""
MAX_FOLLOWERS = 8
"""Each open Follow stream holds a thread of the server; the other half stays for requests."""
FOLLOW_BACKLOG = 10_000
"""Applied documents waiting for a slow follower before it is disconnected: serving never waits for it."""
_WAY_BACK_SECONDS = 0.02
"""For the reply of a search that uses up its caller's deadline."""
_PATIENCE_SECONDS = 2.0
"""A caller who waits longer is not in a hurry: looking at the clock during a search is not free."""

T = TypeVar("T")


class Engine(Protocol):
    """What answers: an `Index`, or a `Broker`."""

    def search(
        self,
        request: Mapping[str, Any],
        k: int = 10,
        *,
        counting: bool = True,
        timeout_s: float | None = None,
        common: Common | None = None,
    ) -> Answer:
        """Return the best."""

    def search_each(
        self, asks: Sequence[Ask], *, shared: Common | None = None, timeout_s: float | None = None
    ) -> list[Answer | ManasError]:
        """Return the answers of several requests, errors in their places."""

    def explain(
        self,
        request: Mapping[str, Any],
        k: int = 10,
        ad_id: int | str | None = None,
        *,
        timeout_s: float | None = None,
        common: Common | None = None,
    ) -> dict[str, Any]:
        """Return an answer with its plan, and why an ad is or is not in it."""

    def statistics(self, requests: Sequence[Mapping[str, Any]]) -> Common:
        """Return what idf needs."""

    def get(self, document_ids: Sequence[str], fields: Sequence[str] | None = None) -> list[pb.ServedDocument]:
        """Return what is served of documents."""

    def stats(self) -> dict[str, Any]:
        """Return sizes, versions and positions."""

    def budget(self, campaign_id: str) -> pb.BudgetState | None:
        """Return a campaign's budget state."""


@dataclass(slots=True)
class State:
    """Of the process, beside that of its index."""

    starting: str = "opening the base"
    """What is being done, or waited for, before anything is answered; "" from then on."""


Documents = queue.Queue[pb.Applied | None]


class Streams(Protocol):
    """Applied documents for those who follow."""

    def open(self) -> Documents | None:
        """Return a new queue, ended by None; None when there are too many. Raises ManasUnavailable."""

    def drop(self, stream: Documents) -> None:
        """Forget a queue and wake its reader."""


class Service(rpc.ManasServicer):
    """Answers over gRPC.

    A bad request is INVALID_ARGUMENT with the sentence, a refusal FAILED_PRECONDITION, and what a broker cannot answer
    because shards are away UNAVAILABLE.
    """

    def __init__(self, engine: Engine, streams: Streams, state: State, health: Callable[[], pb.HealthReply]) -> None:
        self._engine, self._streams, self._state, self._health = engine, streams, state, health

    def Search(self, request: pb.SearchRequest, context: grpc.ServicerContext) -> pb.SearchReply:
        """Answer one request."""
        return self._checked(context, lambda: self._answer(request, deadline_of(context)))

    def SearchBatch(self, request: pb.SearchBatchRequest, context: grpc.ServicerContext) -> pb.SearchBatchReply:
        """Answer many requests; a bad one has its error in its place, and past the deadline the rest are empty."""
        return self._checked(context, lambda: self._batch(request, deadline_of(context)))

    def Statistics(self, request: pb.StatisticsRequest, context: grpc.ServicerContext) -> pb.StatisticsReply:
        """Return what idf needs of this shard for the words of requests."""

        def answer() -> pb.StatisticsReply:
            found = self._engine.statistics([decode_request(text) for text in request.requests_json])
            return pb.StatisticsReply(documents=found.documents, frequencies=found.frequencies)

        return self._checked(context, answer)

    def Health(self, request: pb.HealthRequest, context: grpc.ServicerContext) -> pb.HealthReply:
        """Say whether searches are answered, and what is wrong."""
        return self._health()

    def Get(self, request: pb.GetRequest, context: grpc.ServicerContext) -> pb.GetReply:
        """Return what is served of some documents."""

        def answer() -> pb.GetReply:
            documents = self._engine.get(list(request.document_ids), list(request.fields) or None)
            return pb.GetReply(documents=documents)

        return self._checked(context, answer)

    def Stats(self, request: pb.StatsRequest, context: grpc.ServicerContext) -> pb.StatsReply:
        """Return sizes, versions and positions, and which process answers."""
        return pb.StatsReply(stats_json=json.dumps({**self._engine.stats(), "process": os.getpid()}))

    def Budget(self, request: pb.BudgetRequest, context: grpc.ServicerContext) -> pb.BudgetState:
        """Return a campaign's budget state; without a version when none is known."""

        def answer() -> pb.BudgetState:
            return self._engine.budget(request.campaign_id) or pb.BudgetState(campaign_id=request.campaign_id)

        return self._checked(context, answer)

    def Follow(self, request: pb.FollowRequest, context: grpc.ServicerContext) -> Iterator[pb.Applied]:
        """Stream documents as they become answerable, from now on."""
        stream = self._checked(context, self._streams.open)
        if stream is None:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{MAX_FOLLOWERS} followers already, or stopping")
        context.add_callback(lambda: self._streams.drop(stream))
        context.send_initial_metadata(())  # tells the client that nothing is missed from here on
        while (document := stream.get()) is not None:
            yield document
        if context.is_active():
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "stopping, too slow, or a shard is gone; follow again")

    # ---- inside ----

    def _answer(self, request: pb.SearchRequest, deadline: float | None) -> pb.SearchReply:
        self._check_started()
        ask, timeout_s = _ask(request), _soonest(request.timeout_s, deadline)
        if request.explain or request.explain_ad_id:
            ad_id = request.explain_ad_id or None
            return reply_of(self._engine.explain(ask.request, ask.k, ad_id, timeout_s=timeout_s, common=ask.common))
        answer = self._engine.search(ask.request, ask.k, counting=ask.counting, timeout_s=timeout_s, common=ask.common)
        return reply_of(answer, columns=request.columns)

    def _batch(self, request: pb.SearchBatchRequest, deadline: float | None) -> pb.SearchBatchReply:
        self._check_started()
        asks: dict[int, Ask] = {}
        replies: list[pb.SearchReply] = []
        for place, one in enumerate(request.requests):
            replies.append(pb.SearchReply())
            try:
                if one.explain or one.explain_ad_id or one.timeout_s:
                    raise InvalidRequest("explain and timeout_s: not of one request of a batch; ask for it alone")
                asks[place] = _ask(one)
            except InvalidRequest as error:
                replies[place].error = sendable(error)
        shared = common_of(request.common) if request.HasField("common") else None
        timeout_s = _soonest(request.timeout_s, deadline)
        answers = self._engine.search_each(list(asks.values()), shared=shared, timeout_s=timeout_s)
        for place, answer in zip(asks, answers, strict=True):
            if isinstance(answer, ManasError):
                replies[place].error, replies[place].unavailable = sendable(answer), _passes(answer)
            else:
                replies[place] = reply_of(answer, columns=request.requests[place].columns)
        return pb.SearchBatchReply(replies=replies)

    def _check_started(self) -> None:
        if self._state.starting:
            raise NotServing(f"starting: {self._state.starting}")

    def _checked(self, context: grpc.ServicerContext, answer: Callable[[], T]) -> T:
        try:
            return answer()
        except InvalidRequest as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, sendable(error))
            raise
        except NotServing as error:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, sendable(error))
            raise
        except ManasUnavailable as error:
            context.abort(grpc.StatusCode.UNAVAILABLE, sendable(error))
            raise


def sendable(error: Exception) -> str:
    """Return an error's words; JSON can smuggle in lone surrogates, which gRPC could not encode."""
    return str(error).encode(errors="backslashreplace").decode()


def deadline_of(context: grpc.ServicerContext) -> float | None:
    """Return when to stop searching so that the reply is there before the caller gives up; None: no hurry."""
    left = context.time_remaining()
    return (
        None if left is None or left > _PATIENCE_SECONDS else time.monotonic() + left - min(_WAY_BACK_SECONDS, left / 4)
    )


def _ask(request: pb.SearchRequest) -> Ask:
    common = common_of(request.common) if request.HasField("common") else None
    return Ask(decode_request(request.request_json), request.k, not request.skip_total, common)


def _soonest(timeout_s: float, deadline: float | None) -> float | None:
    """Return the seconds that a search may take, None for no bound; `timeout_s` 0 means none."""
    left = None if deadline is None else max(0.0, deadline - time.monotonic())
    if not timeout_s:
        return left
    return timeout_s if left is None else min(timeout_s, left)


def _passes(error: ManasError) -> bool:
    """Tell whether an error is not the request's fault."""
    return not isinstance(error, InvalidRequest)
