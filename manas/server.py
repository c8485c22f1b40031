"""The Manas stage: a follower of the log and a gRPC server over the index that it keeps."""

from __future__ import annotations

import contextlib
import json
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import grpc
import structlog

from manas._exceptions import IndexIncomplete, InvalidRequest
from manas._follower import Follower
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

_log = structlog.get_logger()
T = TypeVar("T")


def run(context: StageContext) -> None:
    """Follow the log and answer requests until `context.stop` is set.

    `context.ready(port)` is called once everything that was in the log at the start is answerable. While the log lacks
    deltas that are needed, the stage says so and waits for a newer base. After a crash: start again.
    """
    ensure_topics(context.log)
    index = Index(context.catalog)
    feed = _Feed()
    follower = Follower(context.home.base, context.log, index, context.metrics, feed.send)
    if not _start(follower, context):
        return

    def go_on() -> bool:
        context.beat()
        return not context.stop.is_set()

    follower.catch_up(go_on)
    if context.stop.is_set():
        return
    service = _Service(index, feed)
    server, port = start_server(lambda s: rpc.add_ManasServicer_to_server(service, s), threads=_THREADS)
    try:
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
        server.stop(grace=1.0).wait()
        with contextlib.suppress(LogUnavailable):  # the position only says from where on nothing is counted twice
            follower.commit()
        context.metrics.flush(force=True)


def _start(follower: Follower, context: StageContext) -> bool:
    problem = ""
    while not context.stop.is_set():
        try:
            follower.start()
            return True
        except IndexIncomplete as error:
            if str(error) != problem:
                problem = str(error)
                context.metrics.count("waiting_for_base")
                _log.error("manas.waiting_for_base", error=problem)
            context.beat()
            context.stop.wait(_RETRY_SECONDS)
    return False


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
    """The gRPC methods. A bad request is INVALID_ARGUMENT with the sentence."""

    def __init__(self, index: Index, feed: _Feed) -> None:
        self._index = index
        self._feed = feed

    def Search(self, request: pb.SearchRequest, context: grpc.ServicerContext) -> pb.SearchReply:
        """Answer one request."""

        def answer() -> pb.SearchReply:
            try:
                wanted: Any = json.loads(request.request_json)
            except (ValueError, RecursionError) as error:
                raise InvalidRequest(f"request_json is not JSON: {error}") from None
            reply = pb.SearchReply()
            found: Any
            if request.explain or request.explain_ad_id:
                found = self._index.explain(wanted, request.k, request.explain_ad_id or None)
                reply.explain_json = json.dumps({key: found[key] for key in ("plan", "ad") if key in found})
            else:
                timeout_s = request.timeout_s or None
                found = self._index.search(wanted, request.k, counting=not request.skip_total, timeout_s=timeout_s)
            reply.total, reply.total_is_lower_bound = found["total"], found["total_is_lower_bound"]
            reply.partial = found["partial"]
            reply.hits.extend(pb.Hit(ad_id=str(hit["ad_id"]), score=hit["score"]) for hit in found["hits"])
            return reply

        return _checked(context, answer)

    def Get(self, request: pb.GetRequest, context: grpc.ServicerContext) -> pb.GetReply:
        """Return what is served of some documents."""
        documents = self._index.get(list(request.document_ids))
        return pb.GetReply(documents=documents, base_version=self._index.base_version)

    def Stats(self, request: pb.StatsRequest, context: grpc.ServicerContext) -> pb.StatsReply:
        """Return sizes, versions and positions."""
        return pb.StatsReply(stats_json=json.dumps(self._index.stats()))

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


def _checked(context: grpc.ServicerContext, answer: Callable[[], T]) -> T:
    try:
        return answer()
    except InvalidRequest as error:
        # JSON can smuggle in lone surrogates, which gRPC could not encode.
        sentence = str(error).encode(errors="backslashreplace").decode()
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, sentence)
        raise
