"""The Gateway's RPC mirror: the same core, fed by hand."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import grpc

from catalog import Catalog
from gateway._exceptions import AdsDbUnavailable
from gateway.ads_db import AdsDb
from gateway.backends import newest_number, open_rows
from gateway.materialize import Materializer, change_of
from messaging import Log, LogError
from messaging.headers import now_us
from messaging.proto import adsindex_pb2 as pb
from messaging.proto import adsindex_pb2_grpc as rpc

MAX_CHANGES = 10_000
"""Changes per call: a batch that fits a reply of some megabytes."""

_THREADS = 2  # calls are a developer's or a test's


class GatewayService(rpc.GatewayServicer):
    """Materializes changes that a caller names, and publishes them unless it is a dry run."""

    def __init__(self, db: AdsDb, catalog: Catalog, log: Log) -> None:
        """Serve from `db`; published records go to `log`."""
        self._db, self._catalog, self._log = db, catalog, log
        self._materializer = Materializer(catalog)

    def Materialize(self, request: pb.ChangeBatch, context: grpc.ServicerContext) -> pb.MaterializeReply:
        """Materialize; a change without a position counts as made now, at the feed's end."""
        if len(request.changes) > MAX_CHANGES:
            context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, f"{len(request.changes)} changes; send {MAX_CHANGES} at most"
            )
        entered_us = now_us()
        try:
            with closing(open_rows(self._db, self._catalog)) as source:
                # Before the rows are read: they are at least as new as their version says.
                end = newest_number(self._db, self._catalog, self._log)
                if beyond := [m.position for m in request.changes if m.position > end]:
                    context.abort(
                        grpc.StatusCode.INVALID_ARGUMENT,
                        f"position {beyond[0]} is beyond the change feed's end {end}: as a version it would keep out "
                        "every change to come; leave the position out",
                    )
                changes = [change_of(message, end) for message in request.changes]
                result = self._materializer.materialize(changes, source)
            reply = pb.MaterializeReply(
                updates=result.updates, budgets=result.budgets, dead_letters=result.dead_letters
            )
            if not request.dry_run:
                self._log.publish(result.records(entered_us))
            return reply
        except (AdsDbUnavailable, LogError) as error:
            context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
            raise  # abort() has raised already


def serve(service: GatewayService) -> tuple[grpc.Server, int]:
    """Start the mirror on a free loopback port; return the server and its port."""
    server = grpc.server(ThreadPoolExecutor(_THREADS, thread_name_prefix="gateway-rpc"))
    rpc.add_GatewayServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, port
