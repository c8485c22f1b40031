"""Argus's RPC mirror: the same core behind gRPC, for tests, dev runs and replays."""

from __future__ import annotations

import threading

import grpc

from argus._hints import Hint
from argus.core import ArgusCore, Outcome
from messaging import MessagingError
from messaging.api import Log
from messaging.proto import adsindex_pb2 as pb
from messaging.proto import adsindex_pb2_grpc as rpc
from messaging.rpc import start_server
from storage_repo import RepoError


class ArgusMirror(rpc.ArgusServicer):
    """Service adsindex.v1.Argus."""

    def __init__(self, core: ArgusCore, log: Log) -> None:
        self._core, self._log = core, log
        self._lock = threading.Lock()

    def Process(self, request: pb.NotificationBatch, context: grpc.ServicerContext) -> pb.ProcessReply:
        """Process a batch as the stage would, publishing what it leads to; a dry run only answers.

        Documents are in the answer, and published, even if they are unchanged: a caller who got no answer calls again.
        The rest of a long fan-out is left to the stage, except in a dry run, which follows it to its end.
        """
        hints = [Hint(notification, redelivered=True) for notification in request.notifications]
        try:
            with self._lock:
                outcome = self._core.dry_run(hints) if request.dry_run else self._process(hints)
        except (RepoError, MessagingError) as error:
            context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
            raise AssertionError("abort raises") from error
        return pb.ProcessReply(
            documents=outcome.deltas,
            dead_letters=outcome.dead_letters,
            rows_written=outcome.counts["rows_written"],
        )

    def _process(self, hints: list[Hint]) -> Outcome:
        try:
            outcome = self._core.process_hints(hints)
            self._log.publish(outcome.records())
        except (RepoError, MessagingError):
            self._core.disown()
            raise
        return outcome


def serve(core: ArgusCore, log: Log) -> tuple[grpc.Server, int]:
    """Start the mirror on a free loopback port."""
    return start_server(lambda server: rpc.add_ArgusServicer_to_server(ArgusMirror(core, log), server))
