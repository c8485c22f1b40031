"""The debug UI as a process: uvicorn on loopback."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

import structlog
import uvicorn

from debug_ui.app import create_app
from debug_ui.backends import Backends
from messaging.stage import StageContext

_BEAT_SECONDS = 0.25
_CONCURRENT = 64
"""More open requests than that are refused: the page must not take the pipeline's cores."""


def run(context: StageContext, open_backends: Callable[[], Backends]) -> None:
    """Serve the pages on 127.0.0.1 at settings["port"] (0 or none: a free one) until told to stop.

    Raises OSError when the port is taken.
    """
    backends = open_backends()
    listener = socket.create_server(("127.0.0.1", int(context.settings.get("port") or 0)), backlog=128)
    port = int(listener.getsockname()[1])
    config = uvicorn.Config(
        create_app(backends), log_config=None, access_log=False, lifespan="off", limit_concurrency=_CONCURRENT
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="uvicorn", daemon=True)
    thread.start()
    structlog.get_logger().info("debug_ui_ready", stage="debug_ui", port=port)
    context.ready(port)
    try:
        while thread.is_alive() and not context.stop.wait(_BEAT_SECONDS):
            context.beat()
        if not context.stop.is_set():
            raise RuntimeError("the web server ended by itself; see the log above")
    finally:
        server.should_exit = True
        thread.join(5)
        listener.close()
        context.metrics.flush(force=True)
