"""Wake-ups by named pipes (messaging._wake)."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from messaging import Waiter, wake
from tests.messaging.log_backends import ROOT


def test_hint_sent_before_waiting_is_kept(tmp_path: Path) -> None:
    """A hint that arrives between construction and wait() is not lost, and is taken once."""
    with Waiter(tmp_path, ["a"]) as waiter:
        assert not waiter.wait(0)
        wake(tmp_path, ["a"])
        wake(tmp_path, ["a"])
        assert waiter.wait(0)
        assert not waiter.wait(0.01)


def test_only_registered_names_wake(tmp_path: Path) -> None:
    """A waiter hears each of its names and no other; one call with two of its names is one hint."""
    with Waiter(tmp_path, ["a", "b", "a"]) as waiter, Waiter(tmp_path, ["c"]) as other:
        wake(tmp_path, ["c", "unheard-of"])
        assert not waiter.wait(0)
        assert other.wait(0)
        for name in ("a", "b"):
            wake(tmp_path, [name])
            assert waiter.wait(0)
        wake(tmp_path, ["b", "a"])
        assert len(os.read(waiter.fileno(), 10)) == 1


def test_blocked_wait_ends_at_the_hint(tmp_path: Path) -> None:
    """A wait that has begun returns when another thread wakes it."""
    with Waiter(tmp_path, ["a"]) as waiter:
        timer = threading.Timer(0.1, wake, (tmp_path, ["a"]))
        timer.start()
        began = time.monotonic()
        assert waiter.wait(120)
        assert time.monotonic() - began < 5
        timer.join()


def test_wait_keeps_its_time_limit(tmp_path: Path) -> None:
    """Without a hint wait() is false, not before its time, and does not spin."""
    with Waiter(tmp_path, ["a"]) as waiter:
        wake(tmp_path, ["a"])
        assert waiter.wait(1)
        began, cpu = time.monotonic(), time.process_time()
        assert not waiter.wait(0.2)
        assert time.monotonic() - began >= 0.2
        assert time.process_time() - cpu < 0.1


def test_full_pipe_does_not_block_the_sender(tmp_path: Path) -> None:
    """A reader that never waits cannot hold up senders."""
    with Waiter(tmp_path, ["a"]) as waiter:
        fd = os.open(next((tmp_path / "a").iterdir()), os.O_WRONLY | os.O_NONBLOCK)
        with pytest.raises(BlockingIOError):
            while True:
                os.write(fd, bytes(4096))
        os.close(fd)
        wake(tmp_path, ["a"])
        assert waiter.wait(0)
        assert not waiter.wait(0)


def test_pipe_of_a_dead_reader_is_removed(tmp_path: Path) -> None:
    """After kill -9 of a waiting process, the next wake() removes its pipe and wakes the others."""
    code = (
        "import sys, pathlib; from messaging import Waiter; w = Waiter(pathlib.Path(sys.argv[1]), ['a']);"
        "print('ready', flush=True); w.wait(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.kill()
        process.wait()
    with Waiter(tmp_path, ["a"]) as waiter:
        assert len(list((tmp_path / "a").iterdir())) == 2
        wake(tmp_path, ["a"])
        assert waiter.wait(0)
        assert len(list((tmp_path / "a").iterdir())) == 1


def test_closed_waiter_leaves_nothing_behind(tmp_path: Path) -> None:
    """Closing removes the pipe under every name; closing twice is harmless."""
    waiter = Waiter(tmp_path, ["a", "b"])
    descriptor = waiter.fileno()
    waiter.close()
    waiter.close()
    assert [path for path in tmp_path.rglob("*") if not path.is_dir()] == []
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    wake(tmp_path, ["a", "b"])


def test_wiped_directory_does_not_break_senders_or_readers(tmp_path: Path) -> None:
    """When somebody removes the pipes, senders go on and readers fall back to their time limit."""
    with Waiter(tmp_path, ["a"]) as waiter:
        next((tmp_path / "a").iterdir()).unlink()
        (tmp_path / "a").rmdir()
        wake(tmp_path, ["a"])
        assert not waiter.wait(0.01)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "\0"])
def test_name_that_is_no_file_name_is_refused(tmp_path: Path, name: str) -> None:
    """A name cannot lead out of the directory."""
    with pytest.raises(ValueError, match="cannot name"):
        Waiter(tmp_path, [name])
    with pytest.raises(ValueError, match="cannot name"):
        wake(tmp_path, [name])
    assert list(tmp_path.iterdir()) == []
