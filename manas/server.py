"""The Manas stage: a follower of the log and a gRPC server over the index that it keeps."""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
from collections.abc import Sequence

import grpc
import structlog

from manas import kernels
from manas._exceptions import IndexIncomplete, SegmentError
from manas._follower import Follower
from manas._service import FOLLOW_BACKLOG, MAX_FOLLOWERS, SWITCH_SECONDS, THREADS, Documents, Service, State
from manas._serving_settings import ServingSettings
from manas.index import Index
from messaging import LogUnavailable
from messaging.proto import adsindex_pb2 as pb
from messaging.proto import adsindex_pb2_grpc as rpc
from messaging.rpc import start_server
from messaging.stage import StageContext
from messaging.topics import ensure_topics

_IDLE_SECONDS = 0.25
_RETRY_SECONDS = 0.5
_log = structlog.get_logger()


def run(context: StageContext) -> None:
    """Follow the log and answer requests until `context.stop` is set.

    `context.ready(port)` is called once everything that was in the log at the start is answerable. Until then, and
    while a base is missing, searches are refused with the reason, and so says `Health`. Where several processes share
    a port, each of them listens only once it is ready. After a crash: start again. Raises InvalidSetting.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    ensure_topics(context.log)
    settings = ServingSettings.parse(context.settings)
    index = Index(context.catalog, shard=settings.shard)
    feed, state = Feed(), State()
    reports = context.worker == settings.shard.number  # one process of several stores positions and counts
    metrics = context.metrics if reports else None
    follower = Follower(context.home.base, context.log, index, metrics, feed.send, settings=settings, beat=context.beat)
    service = Service(index, feed, state, lambda: _health(index, state))

    def listen() -> tuple[grpc.Server, int]:
        return start_server(
            lambda s: rpc.add_ManasServicer_to_server(service, s),
            port=settings.port,
            threads=THREADS,
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


def _start(follower: Follower, context: StageContext, state: State) -> bool:
    while not context.stop.is_set():
        try:
            follower.start()
            return True
        except (IndexIncomplete, SegmentError, OSError) as error:
            if state.starting != str(error):
                state.starting = str(error)
                context.metrics.count("waiting_for_base")
                _log.error("manas.waiting_for_base", error=str(error))
            context.beat()
            context.stop.wait(_RETRY_SECONDS)
    return False


class Feed:
    """Hands applied documents to the streams that follow."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queues: list[Documents] = []
        self._closed = False

    def send(self, applied: Sequence[pb.Applied]) -> None:
        """Queue documents for every stream; one that is too slow is cut off."""
        with self._lock:
            for stream in list(self._queues):
                if stream.qsize() + len(applied) > FOLLOW_BACKLOG:
                    self._queues.remove(stream)
                    stream.put(None)
                    continue
                for document in applied:
                    stream.put(document)

    def open(self) -> Documents | None:
        """Return a new queue, ended by None; None when there are too many."""
        with self._lock:
            if self._closed or len(self._queues) >= MAX_FOLLOWERS:
                return None
            stream: Documents = queue.Queue()
            self._queues.append(stream)
            return stream

    def drop(self, stream: Documents) -> None:
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


def _health(index: Index, state: State) -> pb.HealthReply:
    described = index.describe()
    problem = state.starting or index.refusal or index.caveat or described.get("problem", "")
    status = "refused" if index.refusal else "incomplete" if index.caveat else "serving"
    return pb.HealthReply(
        status="starting" if state.starting else status,
        problem=problem,
        base_version=index.base_version,
        shard=str(index.shard),
        verification=described.get("verification", {}).get("state", ""),
    )
