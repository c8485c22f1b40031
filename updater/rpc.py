"""The Updater's RPC mirror: the same core behind gRPC, for tests, dev runs and backfills."""

from __future__ import annotations

import threading

import grpc

from messaging.proto import adsindex_pb2 as pb
from messaging.proto import adsindex_pb2_grpc as rpc
from messaging.rpc import start_server
from storage_repo import RepoError
from updater.core import UpdaterCore


class UpdaterMirror(rpc.UpdaterServicer):
    """Service adsindex.v1.Updater."""

    def __init__(self, core: UpdaterCore) -> None:
        self._core = core
        self._lock = threading.Lock()

    def Apply(self, request: pb.UpdateBatch, context: grpc.ServicerContext) -> pb.ApplyReply:
        """Apply a batch as the stage would; what is wrong is told in the reply and goes to no dead letter topic."""
        try:
            with self._lock:
                return pb.ApplyReply(results=self._core.apply(request.updates, dry_run=request.dry_run).results)
        except RepoError as error:
            context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
            raise AssertionError("abort raises") from error


def serve(core: UpdaterCore) -> tuple[grpc.Server, int]:
    """Start the mirror on a free loopback port."""
    return start_server(lambda server: rpc.add_UpdaterServicer_to_server(UpdaterMirror(core), server))
