"""What all servers of the stack have in common: a directory, remembered ports, a process."""

from __future__ import annotations

import json
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from compose import process
from compose._errors import PortTaken, ServerFailed, StackError
from compose.jars import TEMPLATES, locked

READY_SECONDS = 120.0
"""Servers start in one to five seconds; a loaded machine, or recovery after a kill, may take far longer."""
STOP_SECONDS = 60.0
"""A clean stop takes a second or two; one that writes a big buffer pool takes longer, and killing it costs recovery."""
ANSWER_SECONDS = 10.0
"""For one answer. Where nobody listens the refusal comes at once; with 2 s, servers of a loaded machine seemed dead."""
PORT_SECONDS = 3.0
"""How long a server that somebody else has just killed may take to give up its port."""
FRESH_PORT_ATTEMPTS = 3
"""Somebody may take a port between our choosing and the server's listening; then another one is chosen."""
FORBIDDEN_IN_PATHS = ' ,;:#"\\\n'
"""Characters with a meaning in server.properties, my.cnf, a class path or mariadb-install-db (a shell script)."""

State = Literal["ready", "standby", "unresponsive", "dead", "stopped", "absent"]


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """One server as it is now.

    `state`: ready (answers), standby (takes over when the one that serves fails), unresponsive (the process lives and
    does not answer), dead (it ended without being stopped), stopped, absent (never started here). `admin_url` has a
    password: never print it.
    """

    name: str
    port: int
    pid: int
    url: str
    state: State
    log_file: Path
    admin_url: str = field(default="", repr=False)

    def to_json(self) -> dict[str, object]:
        """Return what a user may see, as JSON types."""
        return {
            "name": self.name, "state": self.state, "port": self.port, "pid": self.pid, "url": self.url,
            "log_file": str(self.log_file),
        }  # fmt: skip


class Server(ABC):
    """One server under a directory: configuration, data, log and pid file of it, and nothing elsewhere."""

    name: ClassVar[str]
    port_names: ClassVar[tuple[str, ...]] = ("port",)
    needs: ClassVar[tuple[str, ...]] = ()
    """Servers of the same stack that must answer before this one starts."""

    def __init__(self, directory: Path, overrides: Mapping[str, str] | None = None) -> None:
        self.directory = directory
        self.overrides = dict(overrides or {})
        self.log_file = directory / "server.log"
        self._pid_file = directory / "server.pid"
        self._ports_file = directory / "ports.json"
        self._child: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def prepare(self) -> None:
        """Find or fetch the programs. Raises ServerMissing."""

    @abstractmethod
    def configure(self, ports: Mapping[str, int]) -> list[str]:
        """Write the configuration, make the data directory if there is none, return the command.

        The command names the directory somewhere: the process is known by it.
        """

    @abstractmethod
    def answers(self, port: int) -> bool:
        """Return whether the server does its work on this port now."""

    @abstractmethod
    def url(self, port: int) -> str:
        """The address for our own programs."""

    def admin_url(self, port: int) -> str:
        """The address with all rights, if that is another one."""
        return self.url(port)

    def up(self) -> ServerInfo:
        """Start the server if it does not run, and return when it answers."""
        self._check_path()
        with locked(self.directory / "lock"):
            pid = self.pid
            if not pid:
                self.prepare()
                pid = self._start()
            self._wait(pid, self.ports()["port"], lambda: self.pid != 0)  # one that ran already may still be starting
            return self.status()

    def down(self, *, gracefully_within: float = STOP_SECONDS) -> None:
        """Stop the server, by SIGKILL if it does not listen; data and port stay."""
        if not self.directory.is_dir():
            return
        with locked(self.directory / "lock"):
            if pid := self.pid:
                process.stop(pid, gracefully_within=gracefully_within)
            self._pid_file.unlink(missing_ok=True)

    def kill(self) -> None:
        """End the server by SIGKILL, as an accident would; it then counts as dead."""
        if not (pid := self.pid):
            raise StackError(f"{self.name} of {self.directory.parent} does not run; start it: adsindex stack up")
        process.stop(pid, gracefully_within=0)

    def status(self) -> ServerInfo:
        """Return what is known of the server now."""
        ports = self.ports()
        if not ports:
            return self._info(0, 0, "absent")
        port = ports["port"]
        if pid := self.pid:
            return self._info(pid, port, self.state_of(pid, port))
        return self._info(0, port, "dead" if self._pid_file.exists() else "stopped")

    def state_of(self, pid: int, port: int) -> State:
        """Return ready, or unresponsive, of a living process; what answers must be this very process."""
        return "ready" if self.answers(port) and process.listens(pid, port) else "unresponsive"

    @property
    def pid(self) -> int:
        """Process id of the running server, else 0."""
        return process.running_pid(self._pid_file, str(self.directory))

    def ports(self) -> dict[str, int]:
        """Return the remembered ports by name; empty before the first start."""
        try:
            ports: dict[str, int] = json.loads(self._ports_file.read_text())
        except FileNotFoundError:
            return {}
        return ports

    def _start(self) -> int:
        remembered = self.ports()
        for port in remembered.values():
            if not process.wait_until_free(port, seconds=PORT_SECONDS):
                raise PortTaken(
                    f"port {port}, which {self.name} in {self.directory} had before, is used by "
                    f"{process.holder(port)}; stop that, or remove {self._ports_file} to have another port chosen"
                )
        for attempt in range(FRESH_PORT_ATTEMPTS):
            ports = remembered or {name: process.free_port() for name in self.port_names}
            try:
                return self._launch(ports)
            except ServerFailed:
                last = remembered or attempt == FRESH_PORT_ATTEMPTS - 1
                if last or all(process.is_free(port) for port in ports.values()):
                    raise
        raise AssertionError("the last attempt raises or returns")

    def _launch(self, ports: Mapping[str, int]) -> int:
        """Start the server on these ports and wait until it answers; a server that does not is stopped."""
        command = self.configure(ports)
        self._remember(ports)
        log_start = process.size(self.log_file)
        child = process.spawn(command, self._pid_file, self.log_file, cwd=self.directory)
        self._child = child
        try:
            # Another server of the same kind that was quicker to take the port would answer as well.
            self._wait(child.pid, ports["port"], lambda: child.poll() is None, log_start)
        except ServerFailed:
            process.stop(child.pid, gracefully_within=5.0)
            raise
        return child.pid

    def _wait(self, pid: int, port: int, is_alive: Callable[[], bool], log_start: int = 0) -> None:
        def is_ready() -> bool:
            return self.state_of(pid, port) != "unresponsive"

        process.wait_until_ready(
            self.name, is_ready, is_alive, seconds=READY_SECONDS, log_file=self.log_file, log_start=log_start
        )

    def _remember(self, ports: Mapping[str, int]) -> None:
        part = self._ports_file.with_suffix(".part")
        part.write_text(json.dumps(ports))
        part.replace(self._ports_file)

    def _info(self, pid: int, port: int, state: State) -> ServerInfo:
        url, admin = (self.url(port), self.admin_url(port)) if port else ("", "")
        return ServerInfo(self.name, port, pid, url, state, self.log_file, admin)

    def _check_path(self) -> None:
        if bad := sorted({char for char in str(self.directory) if char in FORBIDDEN_IN_PATHS}):
            raise StackError(
                f"{self.directory} cannot hold a server: its path has {' '.join(map(repr, bad))}, which "
                f"{self.name} would misread; choose another home with --home"
            )
        self.directory.mkdir(parents=True, exist_ok=True)


def fill_template(name: str, target: Path, values: Mapping[str, object], *, extra: str = "", mode: int = 0o644) -> None:
    """Write a template with its @NAMES@ replaced."""
    text = (TEMPLATES / name).read_text()
    for key, value in values.items():
        text = text.replace(f"@{key}@", str(value))
    target.touch(mode=mode)
    target.write_text(text + extra)
