"""gRPC servers and channels as every stage uses them: loopback only, free ports, bounded message sizes."""

from __future__ import annotations

import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc

MAX_MESSAGE_BYTES = 64 << 20
"""A batch of documents fits; more than that is a client's mistake."""

_OPTIONS: dict[str, int] = {
    "grpc.max_receive_message_length": MAX_MESSAGE_BYTES,
    "grpc.max_send_message_length": MAX_MESSAGE_BYTES,
    "grpc.so_reuseport": 0,  # two servers must never share a port by accident
    "grpc.enable_http_proxy": 0,  # a proxy of the user's environment cannot reach this machine's loopback
}


def start_server(
    register: Callable[[grpc.Server], None], *, port: int = 0, threads: int = 8, shared_port: bool = False
) -> tuple[grpc.Server, int]:
    """Start a server on 127.0.0.1 (port 0 = a free one) and return it with its port.

    `shared_port`: others that say so too may listen on the same one, and the kernel shares connections out.
    """
    options = list({**_OPTIONS, "grpc.so_reuseport": int(shared_port)}.items())
    server = grpc.server(ThreadPoolExecutor(threads, thread_name_prefix="rpc"), options=options)
    register(server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    return server, bound


def reserve_shared_port() -> socket.socket:
    """Return a socket that holds a free port for servers that share it, until closed; it takes no connections."""
    holder = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    holder.bind(("127.0.0.1", 0))
    return holder


def open_channel(port: int, *, alone: bool = False) -> grpc.Channel:
    """Open a channel to a server on this machine; `alone`: with a connection of its own, shared with no other."""
    options = list({**_OPTIONS, "grpc.use_local_subchannel_pool": int(alone)}.items())
    return grpc.insecure_channel(f"127.0.0.1:{port}", options=options)
