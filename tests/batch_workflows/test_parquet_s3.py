"""Snapshots on a real S3 server: written, read back, gone on with after the server was away."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from batch_workflows._objects_errors import ObjectsUnavailable
from batch_workflows.objects import Address, Objects
from batch_workflows.parquet_snapshot import days, read_day
from batch_workflows.runs import Outcome, RunStore
from compose import ServerInfo
from tests.batch_workflows.parquet_support import catalogue, contents, fill, open_with
from tests.batch_workflows.run_support import run
from tests.batch_workflows.s3_support import account, new_bucket, s3

__all__ = ["account", "s3"]


class Line:
    """A line to a server that can be cut: connections are forwarded, or refused."""

    def __init__(self, port: int) -> None:
        self._target, self.port = port, 0
        self.mend()

    def mend(self) -> None:
        """Forward connections, on the same port as before."""
        target = self._target

        class Forward(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with socket.create_connection(("127.0.0.1", target)) as there:
                    back = threading.Thread(target=_pump, args=(there, self.request), daemon=True)
                    back.start()
                    _pump(self.request, there)
                    back.join()

        socketserver.ThreadingTCPServer.allow_reuse_address = True
        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", self.port), Forward)
        self._server.daemon_threads, self._server.block_on_close = True, False
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def cut(self) -> None:
        """Refuse new connections; those that are open see their end when the client looks again."""
        self._server.shutdown()
        self._server.server_close()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def test_there_and_back(s3: Address, tmp_path: Path) -> None:
    """A day on S3 has the same files as one in a directory, byte for byte, and comes back whole."""
    catalog = catalogue(tmp_path)
    home, other = open_with(tmp_path / "home", catalog), open_with(tmp_path / "other", catalog)
    fill(home, 60, 3)
    run(home, "snapshot", to=str(s3), day="2026-03-01")
    there = read_day(Objects(s3))
    assert there.find("ad").rows == 60 and there.documents is not None
    done = run(other, "snapshot-import", source=str(s3), as_of="2026-03-09")
    assert contents(other.repo, catalog) == contents(home.repo, catalog) and done.counts["verified"] is True
    for opened in (home, other):
        opened.repo.close()


def test_s3_goes_away_in_the_middle(
    s3_server: ServerInfo, account: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that cannot be reached fails the run after a while, with its address and what to do; the day is not
    there; when the server is back, a resume writes the rest only."""
    monkeypatch.setattr(Objects.__init__, "__kwdefaults__", {"patience_s": 5.0})
    there = urlsplit(s3_server.url)
    assert there.port is not None
    line = Line(there.port)
    direct = new_bucket(s3_server)
    address = replace(direct, endpoint=f"http://127.0.0.1:{line.port}")
    home = open_with(tmp_path / "home", catalogue(tmp_path))
    fill(home, 60, 3)
    real, tried = Objects.put, []

    def put(self: Objects, file: Path, name: str) -> None:
        tried.append(name)
        if len(tried) == 4:
            line.cut()
            self = Objects(self.address)  # a new connection, as after the server closed the old one
        real(self, file, name)

    monkeypatch.setattr(Objects, "put", put)
    with pytest.raises(ObjectsUnavailable):
        run(home, "snapshot", to=str(address), day="2026-03-01")
    failed = RunStore(home.repo).get("snapshot-1")
    assert failed.outcome is Outcome.FAILED and address.endpoint in failed.error and "--resume" in failed.said
    assert days(Objects(direct)) == []
    line.mend()
    assert run(home, "snapshot", resume=True).outcome is Outcome.SUCCEEDED
    day = read_day(Objects(direct))
    names = [name for table in [*day.tables, day.documents] if table for name in day.files(table.table)]
    assert len(names) == len(tried) - 1 and tried[4] == tried[3], "what was there was not written again"
    assert sorted(n for n in Objects(direct).names() if n.endswith(".parquet")) == sorted(names)
    line.cut()
    home.repo.close()
