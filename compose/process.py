"""Server processes: started apart from us, found again by pid and start time, watched until they answer, stopped."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from compose._errors import ServerFailed

POLL_SECONDS = 0.05
"""Between two looks at a starting or stopping server: well below what a start takes."""
FIRST_LINES, COMPLAINTS, LAST_LINES = 6, 6, 12
"""How much of a log an error repeats. A tool's first complaint is the cause and its last lines say what followed;
mariadb-install-db ends with twenty lines of advice. A Java server complains somewhere in the middle."""
_COMPLAINT = re.compile(r"\b(ERROR|FATAL|Caused by|Exception)\b")
_STACK_FRAME = re.compile(r"\s+(at |\.\.\. \d+ more)")
_RECORD_AND_BECOME = (
    'echo "$$ $(cut -d" " -f22 /proc/$$/stat 2>/dev/null)" >"$0.part" && mv "$0.part" "$0" && exec "$@"'
)
"""The child writes its own pid file before it becomes the server: killing us in between cannot lose a server."""


def spawn(command: Sequence[str], pid_file: Path, log_file: Path, *, cwd: Path) -> subprocess.Popen[bytes]:
    """Start a server in a session of its own, its output appended to the log; it outlives us."""
    pid_file.unlink(missing_ok=True)
    with log_file.open("ab") as log:
        return subprocess.Popen(
            ["/bin/sh", "-c", _RECORD_AND_BECOME, str(pid_file), *command],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=cwd, start_new_session=True,
        )  # fmt: skip


def running_pid(pid_file: Path, token: str) -> int:
    """Return the pid of the live process that the file names, else 0.

    It must be the process that wrote the file: same start time (in clock ticks since boot, where the kernel tells),
    and `token` (the server's directory) in its arguments, since pids are used again.
    """
    try:
        pid, _, ticks = pid_file.read_text().strip().partition(" ")
        process = psutil.Process(int(pid))
        if process.status() == psutil.STATUS_ZOMBIE or not any(token in word for word in process.cmdline()):
            return 0
        return process.pid if not ticks or ticks == _start_ticks(process.pid) else 0
    except (FileNotFoundError, ValueError, psutil.NoSuchProcess):
        return 0


def _start_ticks(pid: int) -> str:
    """Field 22 of /proc/PID/stat; the name before it is in parentheses and may hold spaces."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


def stop(pid: int, *, gracefully_within: float) -> bool:
    """Send SIGTERM, after the given seconds SIGKILL (0 = at once), and return when the process is gone.

    Returns whether it went by itself.
    """
    try:
        process = psutil.Process(pid)
    except psutil.NoSuchProcess:
        return True
    if gracefully_within and _signal(process, signal.SIGTERM, gracefully_within):
        return True
    if not _signal(process, signal.SIGKILL, 30.0):
        raise ServerFailed(f"process {pid} does not end after SIGKILL; it waits for the kernel (a dead disk or mount?)")
    return not gracefully_within


def _signal(process: psutil.Process, number: int, seconds: float) -> bool:
    """Send a signal and wait for the end.

    A zombie has ended too (its parent reaps it, or we do), but only when its last thread is gone: until then the
    ports are still taken.
    """
    deadline = time.monotonic() + seconds
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)
        while process.status() != psutil.STATUS_ZOMBIE or process.num_threads() > 1:
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_SECONDS)
        with suppress(ChildProcessError):
            os.waitpid(process.pid, os.WNOHANG)
    return True


def wait_until_ready(
    name: str,
    is_ready: Callable[[], bool],
    is_alive: Callable[[], bool],
    *,
    seconds: float,
    log_file: Path,
    log_start: int = 0,
) -> None:
    """Return when the server answers and its process lives.

    Raises ServerFailed with what is in the log from byte `log_start` on.
    """
    deadline = time.monotonic() + seconds
    while True:
        alive, ready = is_alive(), is_ready()
        if alive and ready:
            return
        if not alive:
            raise ServerFailed(f"{name} ended while starting; {log_file} has:\n{excerpt(log_file, log_start)}")
        if time.monotonic() > deadline:
            raise ServerFailed(
                f"{name} is not ready after {seconds:.0f} s; {log_file} has:\n{excerpt(log_file, log_start)}"
            )
        time.sleep(POLL_SECONDS)


def run_tool(command: Sequence[str], log_file: Path, *, what: str, seconds: float, cwd: Path) -> None:
    """Run a tool to its end, its output appended to the log. Raises ServerFailed with what it wrote.

    The tool inherits the locks that we hold (`compose.jars.locked`): should we be killed, nobody takes over its
    work before it has ended.
    """
    start = size(log_file)
    with log_file.open("ab") as log:
        try:
            code = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=cwd,
                timeout=seconds,
                check=False,
                close_fds=False,
            ).returncode
        except subprocess.TimeoutExpired as error:
            raise ServerFailed(f"{what} took longer than {seconds:.0f} s; see {log_file}") from error
    if code:
        raise ServerFailed(f"{what} failed (exit {code}); {log_file} has:\n{excerpt(log_file, start)}")


def excerpt(log_file: Path, start: int = 0) -> str:
    """Return the first and the last lines of a log from byte `start` on, and the first complaints between them.

    Java's stack frames are left out.
    """
    try:
        text = log_file.read_bytes()[start:].decode(errors="replace")
    except FileNotFoundError:
        return "(no log)"
    lines = [line for line in text.splitlines() if not _STACK_FRAME.match(line)]
    if len(lines) > FIRST_LINES + LAST_LINES:
        between = [line for line in lines[FIRST_LINES:-LAST_LINES] if _COMPLAINT.search(line)][:COMPLAINTS]
        lines = [*lines[:FIRST_LINES], "…", *between, *(["…"] if between else []), *lines[-LAST_LINES:]]
    return "\n".join(lines) or "(nothing)"


def size(log_file: Path) -> int:
    """Return the length of a log in bytes; 0 if there is none."""
    return log_file.stat().st_size if log_file.exists() else 0


def free_port() -> int:
    """Return a free port on loopback, below the range from which the kernel takes ports of outgoing connections.

    A port from that range could be somebody's outgoing connection when the server comes back after a restart.
    """
    upper = 32_768
    with suppress(FileNotFoundError):
        upper = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    if upper < 12_000:  # an unusual setting that leaves no room below
        with socket.create_server(("127.0.0.1", 0)) as listener:
            return int(listener.getsockname()[1])
    while True:
        port = random.randrange(10_240, upper)
        if is_free(port):
            return port


def is_free(port: int) -> bool:
    """Return whether a server could listen on this loopback port now."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def wait_until_free(port: int, *, seconds: float) -> bool:
    """Return whether the port is free, waiting a little: a listener that is just dying still holds it."""
    deadline = time.monotonic() + seconds
    while not is_free(port):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def listens(pid: int, port: int) -> bool:
    """Return whether this process is the one that listens on the port."""
    return any(entry.status == psutil.CONN_LISTEN and entry.laddr[1:2] == (port,) for entry in _connections(pid))


def is_connected(pid: int, port: int) -> bool:
    """Return whether this process has a connection to the port."""
    return any(entry.status == psutil.CONN_ESTABLISHED and entry.raddr[1:2] == (port,) for entry in _connections(pid))


def _connections(pid: int) -> list[Any]:
    try:
        return list(psutil.Process(pid).net_connections("tcp"))
    except psutil.NoSuchProcess:
        return []


def holder(port: int) -> str:
    """Describe who listens on a port, as far as we may know."""
    with suppress(psutil.AccessDenied):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.pid and connection.laddr[1:] == (port,):
                with suppress(psutil.NoSuchProcess):
                    return f"process {connection.pid} ({psutil.Process(connection.pid).name()})"
    return "another process"
