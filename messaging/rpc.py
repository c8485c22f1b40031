"""gRPC servers and channels as every stage uses them: loopback only, free ports, bounded message sizes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc

MAX_MESSAGE_BYTES = 64 << 20
"""A batch of documents fits; more than that is a client's mistake."""

_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),  # two servers must never share a port by accident
    ("grpc.enable_http_proxy", 0),  # a proxy of the user's environment cannot reach this machine's loopback
]


def start_server(
    register: Callable[[grpc.Server], None], *, port: int = 0, threads: int = 8
) -> tuple[grpc.Server, int]:
    """Start a server on 127.0.0.1 (port 0 = a free one) and return it with its port."""
    server = grpc.server(ThreadPoolExecutor(threads, thread_name_prefix="rpc"), options=_OPTIONS)
    register(server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    return server, bound


def open_channel(port: int) -> grpc.Channel:
    """Open a channel to a server on this machine."""
    return grpc.insecure_channel(f"127.0.0.1:{port}", options=_OPTIONS)
