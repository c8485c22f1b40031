"""The Manas stage: a follower of the log and a gRPC server over the index that it keeps."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import grpc
import structlog

from manas import kernels
from manas._exceptions import IndexIncomplete, InvalidRequest, NotServing, SegmentError
from manas._follower import Follower
from manas._serving_settings import ServingSettings
from manas._wire import common_of, decode_request, reply_of
from manas.index import Index
from messaging import LogUnavailable
from messaging.proto import adsindex_pb2 as pb
from messaging.proto import adsindex_pb2_grpc as rpc
from messaging.rpc import start_server
from messaging.stage import StageContext
from messaging.topics import ensure_topics

_THREADS = 16
_MAX_FOLLOWERS = 8
"""Each open Follow stream holds a thread of the server; the other half stays for requests."""
_FOLLOW_BACKLOG = 10_000
"""Applied documents waiting for a slow follower before it is disconnected: serving never waits for it."""
_IDLE_SECONDS = 0.25
_RETRY_SECONDS = 0.5
_WAY_BACK_SECONDS = 0.02
"""For the reply of a search that uses up its caller's deadline."""
_PATIENCE_SECONDS = 2.0
"""A caller who waits longer is not in a hurry: looking at the clock during a search is not free."""

_log = structlog.get_logger()
T = TypeVar("T")


def run(context: StageContext) -> None:
    """Follow the log and answer requests until `context.stop` is set.

    `context.ready(port)` is called once everything that was in the log at the start is answerable. Until then, and
    while a base is missing, searches are refused with the reason, and so says `Health`. Where several processes share
    a port, each of them listens only once it is ready. After a crash: start again. Raises InvalidSetting.
    """
    ensure_topics(context.log)
    settings = ServingSettings.parse(context.settings)
    index = Index(context.catalog, shard=settings.shard)
    feed, state = _Feed(), _State()
    metrics = context.metrics if context.worker == 0 else None  # one process of several stores positions and counts
    follower = Follower(context.home.base, context.log, index, metrics, feed.send, settings=settings, beat=context.beat)
    service = _Service(index, feed, state)

    def listen() -> tuple[grpc.Server, int]:
        return start_server(
            lambda s: rpc.add_ManasServicer_to_server(service, s),
            port=settings.port,
            threads=_THREADS,
            shared_port=settings.shared_port,
        )

    def go_on() -> bool:
        context.beat()
        return not context.stop.is_set()

    server, port = (None, 0) if settings.shared_port else listen()
    try:
        kernels.load()  # where they must be compiled first, no query is to wait for it
        if not _start(follower, context, state):
            return
        state.starting = "reading what the log has"
        follower.catch_up(go_on)
        if context.stop.is_set():
            return
        state.starting = ""
        if server is None:
            server, port = listen()
        context.ready(port)
        while not context.stop.is_set():
            try:
                if follower.step() == 0:
                    follower.wait(_IDLE_SECONDS)
            except LogUnavailable as error:  # go on answering from what is here
                context.metrics.count("log_unavailable")
                _log.warning("manas.log_unavailable", error=str(error))
                context.stop.wait(_RETRY_SECONDS)
            context.metrics.gauge("documents", index.documents())
            context.beat()
    finally:
        feed.close()
        if server is not None:
            server.stop(grace=1.0).wait()
        with contextlib.suppress(LogUnavailable):  # the position only says from where on nothing is counted twice
            follower.commit()
        follower.close()
        context.metrics.flush(force=True)


def _start(follower: Follower, context: StageContext, state: _State) -> bool:
    while not context.stop.is_set():
        try:
            follower.start()
            return True
        except (IndexIncomplete, SegmentError) as error:
            if state.starting != str(error):
                state.starting = str(error)
                context.metrics.count("waiting_for_base")
                _log.error("manas.waiting_for_base", error=str(error))
            context.beat()
            context.stop.wait(_RETRY_SECONDS)
    return False


@dataclass(slots=True)
class _State:
    """Of the process, beside that of its index."""

    starting: str = "opening the base"
    """What is being done, or waited for, before anything is answered; "" from then on."""


class _Feed:
    """Hands applied documents to the streams that follow."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queues: list[queue.Queue[pb.Applied | None]] = []
        self._closed = False

    def send(self, applied: Sequence[pb.Applied]) -> None:
        """Queue documents for every stream; one that is too slow is cut off."""
        with self._lock:
            for stream in list(self._queues):
                if stream.qsize() + len(applied) > _FOLLOW_BACKLOG:
                    self._queues.remove(stream)
                    stream.put(None)
                    continue
                for document in applied:
                    stream.put(document)

    def open(self) -> queue.Queue[pb.Applied | None] | None:
        """Return a new queue, ended by None; None when there are too many."""
        with self._lock:
            if self._closed or len(self._queues) >= _MAX_FOLLOWERS:
                return None
            stream: queue.Queue[pb.Applied | None] = queue.Queue()
            self._queues.append(stream)
            return stream

    def drop(self, stream: queue.Queue[pb.Applied | None]) -> None:
        """Forget a queue and wake its reader."""
        with self._lock:
            if stream in self._queues:
                self._queues.remove(stream)
        stream.put(None)

    def close(self) -> None:
        """End every stream."""
        with self._lock:
            self._closed = True
            streams, self._queues = self._queues, []
        for stream in streams:
            stream.put(None)


class _Service(rpc.ManasServicer):
    """The gRPC methods. A bad request is INVALID_ARGUMENT with the sentence, a refusal FAILED_PRECONDITION."""

    def __init__(self, index: Index, feed: _Feed, state: _State) -> None:
        self._index, self._feed, self._state = index, feed, state

    def Search(self, request: pb.SearchRequest, context: grpc.ServicerContext) -> pb.SearchReply:
        """Answer one request."""
        return self._checked(context, lambda: self._answer(request, _deadline(context)))

    def SearchBatch(self, request: pb.SearchBatchRequest, context: grpc.ServicerContext) -> pb.SearchBatchReply:
        """Answer many requests; a bad one has its error in its place, and past the deadline the rest are empty."""
        deadline = _deadline(context)

        def answer(one: pb.SearchRequest) -> pb.SearchReply:
            try:
                return self._answer(one, deadline)
            except InvalidRequest as error:
                return pb.SearchReply(error=_sendable(error))

        return self._checked(context, lambda: pb.SearchBatchReply(replies=[answer(one) for one in request.requests]))

    def Statistics(self, request: pb.StatisticsRequest, context: grpc.ServicerContext) -> pb.StatisticsReply:
        """Return what idf needs of this shard."""

        def answer() -> pb.StatisticsReply:
            found = self._index.statistics(decode_request(request.request_json))
            return pb.StatisticsReply(documents=found.documents, frequencies=found.frequencies)

        return self._checked(context, answer)

    def Health(self, request: pb.HealthRequest, context: grpc.ServicerContext) -> pb.HealthReply:
        """Say whether searches are answered, and what is wrong."""
        index, described = self._index, self._index.describe()
        problem = self._state.starting or index.refusal or index.caveat or described.get("problem", "")
        refused = "refused" if index.refusal else "incomplete" if index.caveat else "serving"
        return pb.HealthReply(
            status="starting" if self._state.starting else refused,
            problem=problem,
            base_version=index.base_version,
            shard=str(index.shard),
            verification=described.get("verification", {}).get("state", ""),
        )

    def _answer(self, request: pb.SearchRequest, deadline: float | None) -> pb.SearchReply:
        if self._state.starting:
            raise NotServing(f"starting: {self._state.starting}")
        wanted = decode_request(request.request_json)
        common = common_of(request.common) if request.HasField("common") else None
        if request.explain or request.explain_ad_id:
            return reply_of(self._index.explain(wanted, request.k, request.explain_ad_id or None, common=common))
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        given = request.timeout_s or None
        timeout_s = given if left is None else left if given is None else min(given, left)
        counting = not request.skip_total
        found = self._index.search(wanted, request.k, counting=counting, timeout_s=timeout_s, common=common)
        return reply_of(found, columns=request.columns)

    def _checked(self, context: grpc.ServicerContext, answer: Callable[[], T]) -> T:
        try:
            return answer()
        except InvalidRequest as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, _sendable(error))
            raise
        except NotServing as error:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, _sendable(error))
            raise

    def Get(self, request: pb.GetRequest, context: grpc.ServicerContext) -> pb.GetReply:
        """Return what is served of some documents."""

        def answer() -> pb.GetReply:
            documents = self._index.get(list(request.document_ids), list(request.fields) or None)
            return pb.GetReply(documents=documents, base_version=self._index.base_version)

        return self._checked(context, answer)

    def Stats(self, request: pb.StatsRequest, context: grpc.ServicerContext) -> pb.StatsReply:
        """Return sizes, versions and positions, and which process answers."""
        return pb.StatsReply(stats_json=json.dumps({**self._index.stats(), "process": os.getpid()}))

    def Budget(self, request: pb.BudgetRequest, context: grpc.ServicerContext) -> pb.BudgetState:
        """Return a campaign's budget state; without a version when none is known."""
        return self._index.budget(request.campaign_id) or pb.BudgetState(campaign_id=request.campaign_id)

    def Follow(self, request: pb.FollowRequest, context: grpc.ServicerContext) -> Iterator[pb.Applied]:
        """Stream documents as they become answerable, from now on."""
        stream = self._feed.open()
        if stream is None:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{_MAX_FOLLOWERS} followers already, or stopping")
        context.add_callback(lambda: self._feed.drop(stream))
        context.send_initial_metadata(())  # tells the client that nothing is missed from here on
        while (document := stream.get()) is not None:
            yield document
        if context.is_active():
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "stopping, or too slow; follow again")


def _sendable(error: Exception) -> str:
    """Return an error's words; JSON can smuggle in lone surrogates, which gRPC could not encode."""
    return str(error).encode(errors="backslashreplace").decode()


def _deadline(context: grpc.ServicerContext) -> float | None:
    """Return when to stop searching so that the reply is there before the caller gives up; None: no hurry."""
    left = context.time_remaining()
    return (
        None if left is None or left > _PATIENCE_SECONDS else time.monotonic() + left - min(_WAY_BACK_SECONDS, left / 4)
    )
