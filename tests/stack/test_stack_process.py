"""Finding a process again and ending it, without any server."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from compose import ServerFailed
from compose.process import (
    excerpt,
    free_port,
    is_free,
    run_tool,
    running_pid,
    size,
    spawn,
    stop,
    wait_until_free,
    wait_until_ready,
)

TOKEN = "the-config-file"


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A process started as a server is, and its pid file."""
    pid_file = tmp_path / "server.pid"
    code = "import time; print('up', flush=True); time.sleep(600)"
    child = spawn([sys.executable, "-c", code, TOKEN], pid_file, tmp_path / "log", cwd=tmp_path)
    wait_until_ready(
        "sleeper", lambda: "up" in excerpt(tmp_path / "log"), lambda: child.poll() is None, seconds=30,
        log_file=tmp_path / "log",
    )  # fmt: skip
    yield child, pid_file
    stop(child.pid, gracefully_within=0)
    child.wait()


def test_a_process_is_found_by_its_pid_file(sleeper: tuple[subprocess.Popen[bytes], Path]) -> None:
    """The file that the process wrote itself names it, as long as it lives."""
    child, pid_file = sleeper
    assert running_pid(pid_file, TOKEN) == child.pid
    assert stop(child.pid, gracefully_within=10)
    assert running_pid(pid_file, TOKEN) == 0


def test_a_process_that_got_a_used_pid_is_not_ours(sleeper: tuple[subprocess.Popen[bytes], Path]) -> None:
    """Another start time or other arguments: the pid was given to somebody else, who must not be stopped."""
    child, pid_file = sleeper
    pid, ticks = pid_file.read_text().split()
    assert running_pid(pid_file, "another-config-file") == 0
    pid_file.write_text(f"{pid} {int(ticks) - 1}")
    assert running_pid(pid_file, TOKEN) == 0
    assert child.poll() is None


@pytest.mark.parametrize("content", ["", "no number", "999999999 1"])
def test_a_pid_file_without_a_process_means_that_nothing_runs(tmp_path: Path, content: str) -> None:
    """An empty, a damaged and a stale file are as good as none."""
    file = tmp_path / "server.pid"
    assert running_pid(file, TOKEN) == 0
    file.write_text(content)
    assert running_pid(file, TOKEN) == 0


def test_a_process_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    """After the time it was given it gets SIGKILL, and `stop` says that it did not go by itself."""
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    assert not stop(child.pid, gracefully_within=0.2)
    assert not psutil.pid_exists(child.pid)
    child.stdout.close()
    child.wait()


def test_waiting_ends_when_the_process_does(tmp_path: Path) -> None:
    """A server that exits while starting is an error at once, with the beginning and the end of its log."""
    log = tmp_path / "log"
    log.write_text("an earlier run\n")
    start = size(log)
    with log.open("a") as file:
        file.write("the cause\n" + "advice\n" * 100 + "the end\n")
    expected = r"^it ended while starting; .*log has:\nthe cause\n(advice\n){5}…\n(advice\n){11}the end$"
    with pytest.raises(ServerFailed, match=expected):
        wait_until_ready("it", lambda: False, lambda: False, seconds=600, log_file=log, log_start=start)
    with pytest.raises(ServerFailed, match="is not ready after 0 s"):
        wait_until_ready("it", lambda: False, lambda: True, seconds=0, log_file=log)


def test_an_answer_without_the_process_is_not_ready(tmp_path: Path) -> None:
    """The dying listener of a killed server may still answer; that is not the new server."""
    with pytest.raises(ServerFailed, match="ended while starting"):
        wait_until_ready("it", lambda: True, lambda: False, seconds=600, log_file=tmp_path / "none")


def test_ports_are_free_loopback_ports_that_the_kernel_does_not_hand_out() -> None:
    """No outgoing connection of another program can take the port while the server is down."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = {free_port() for _ in range(20)}
    assert len(ports) > 1
    assert all(1024 < port < lowest and is_free(port) for port in ports)


def test_waiting_for_a_port_bridges_a_dying_listener() -> None:
    """A port that is given up shortly counts as free; one that is kept does not."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert not wait_until_free(port, seconds=0.1)
        closer = threading.Timer(0.2, listener.close)
        closer.start()
        assert wait_until_free(port, seconds=30)
        closer.join()


def test_a_failing_tool_reports_what_it_wrote(tmp_path: Path) -> None:
    """Exit code, log file and output are in the error; so is a time-out."""
    log = tmp_path / "log"
    with pytest.raises(ServerFailed, match=r"making it failed \(exit 3\); .*log has:\nbroken$"):
        run_tool(["/bin/sh", "-c", "echo broken; exit 3"], log, what="making it", seconds=60, cwd=tmp_path)
    with pytest.raises(ServerFailed, match="making it took longer than 0 s"):
        run_tool(["/bin/sleep", "60"], log, what="making it", seconds=0.1, cwd=tmp_path)
