"""Starts commands for tests: each a process of its own, forked from one that has imported what commands import.

`command_server SOCKET` listens there until its standard input ends. A connection is one command: a JSON line of
{"words", "cwd", "environment"} with the descriptors of its standard streams; the answer is its pid, and then, in a
second line, its exit code. What a command does is the same as if it were started from a shell; its imports are done.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import sys
from importlib import import_module

from cli.errors import known_errors
from cli.main import main

IMPORTED = (
    "argus", "batch_workflows.ads_import", "batch_workflows.control", "batch_workflows.execution",
    "batch_workflows.sample", "cli.up", "cli.worker", "debug_ui.diagnosis", "debug_ui.inspect", "manas",
    "messaging.kafka", "storage_repo.hbase", "tests.end_to_end.oracle", "rich.console",
)  # fmt: skip
"""Beside the command line itself; none of them opens anything or starts a thread when it is imported."""
_REQUEST_BYTES = 1 << 20


def serve() -> None:
    """Fork a command per connection."""
    for module in IMPORTED:
        import_module(module)
    from batch_workflows.runner import all_workflows

    all_workflows()
    known_errors()
    gc.freeze()  # a command's search for cycles is to touch, and so to copy, nothing of what it shares
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # who waits for a command is forked, too, and nobody waits for it
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(sys.argv[1])
        server.listen()
        while True:
            ready, _, _ = select.select([server, sys.stdin], [], [])
            if sys.stdin in ready:
                return
            connection, _ = server.accept()
            if os.fork() == 0:
                server.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _attend(connection)
            connection.close()


def _attend(connection: socket.socket) -> None:
    """Fork the command, wait for it, and say how it ended; in the command's process, run it."""
    data, streams, _, _ = socket.recv_fds(connection, _REQUEST_BYTES, 3)
    while not data.endswith(b"\n"):
        data += connection.recv(_REQUEST_BYTES)
    asked = json.loads(data)
    pid = os.fork()
    if pid == 0:
        connection.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os.chdir(asked["cwd"])
        os.environ.clear()
        os.environ.update(asked["environment"])
        sys.argv = ["adsindex", *asked["words"]]
        main()
        raise SystemExit(0)
    for stream in streams:
        os.close(stream)
    connection.sendall(f"{pid}\n".encode())
    _, status = os.waitpid(pid, 0)
    connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


if __name__ == "__main__":
    serve()
