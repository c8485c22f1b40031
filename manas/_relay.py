"""Follow behind a broker: what becomes answerable in any shard, in one stream."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence

import structlog

from manas._exceptions import ManasError
from manas._remote import RemoteShard
from manas._service import FOLLOW_BACKLOG, MAX_FOLLOWERS, Documents
from manas.client import ManasClient
from messaging.proto import adsindex_pb2 as pb

_log = structlog.get_logger()


class Relay:
    """Streams of applied documents, each put together from those of all shards. Safe for threads."""

    def __init__(self, shards: Sequence[RemoteShard]) -> None:
        self._shards = shards
        self._lock = threading.Lock()
        self._open: dict[Documents, list[ManasClient]] = {}
        self._closed = False

    def open(self) -> Documents | None:
        """Return a new queue, complete from now on; None when there are too many. Raises ManasUnavailable.

        It ends with None when the first shard's stream does: what that shard applies from then on would be missing.
        """
        with self._lock:
            if self._closed or len(self._open) >= MAX_FOLLOWERS:
                return None
            stream: Documents = queue.Queue()
            clients = self._open[stream] = []
        try:
            for shard in self._shards:
                clients.append(shard.another_client())
            sources = [client.follow() for client in clients]
        except ManasError:
            self.drop(stream)
            raise
        for source in sources:
            threading.Thread(target=self._pump, args=(source, stream), name="relay", daemon=True).start()
        return stream

    def drop(self, stream: Documents) -> None:
        """Forget a queue, end its shards' streams and wake its reader; safe to call twice."""
        with self._lock:
            clients = self._open.pop(stream, [])
        for client in clients:
            client.close()
        stream.put(None)

    def close(self) -> None:
        """End every stream."""
        with self._lock:
            self._closed = True
            streams = list(self._open)
        for stream in streams:
            self.drop(stream)

    def _pump(self, source: Iterator[pb.Applied], stream: Documents) -> None:
        try:
            for document in source:
                if stream.qsize() >= FOLLOW_BACKLOG:
                    break
                stream.put(document)
        except ManasError as error:
            _log.warning("manas.relay_ended", error=str(error))
        self.drop(stream)
