"""Wake-ups between processes without busy polling: a named pipe per waiting reader, registered under each name.

A wake-up is a hint and never data: look at the log or store first, then wait, then look again. Wait with a time limit
(`SAFETY_NET_S`): a hint is lost when somebody removes the directory or a writer dies between commit and wake-up.
Pipe files need a local file system with hard links.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import select
import time
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType

import structlog

SAFETY_NET_S = 0.25
"""Longest time to trust in a hint alone. A writer killed between commit and wake-up delays readers by this much, and an
idle reader costs four look-ups a second."""

_DRAIN_BYTES = 1 << 16  # the default capacity of a Linux pipe: one read empties it

_log = structlog.get_logger()


class Waiter:
    """A reader's end: registered under `names` in `directory` until closed or until its process dies.

    Not thread-safe: one thread waits on one Waiter. Hints sent from construction on are kept until the next wait().
    """

    def __init__(self, directory: Path, names: Sequence[str]) -> None:
        """Create the pipe and register it. Raises OSError when the directory cannot be written."""
        identity = f"{os.getpid()}-{uuid.uuid4().hex}"
        directory.mkdir(parents=True, exist_ok=True)
        hidden = directory / f".{identity}"
        self._fd = -1
        self._paths = [directory / _checked(name) / identity for name in dict.fromkeys(names)]
        try:
            os.mkfifo(hidden, 0o600)
            # Open for both directions: a pipe without a writer would report "hung up" for ever instead of blocking.
            self._fd = os.open(hidden, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            for path in self._paths:  # visible only now that it has a reader: a sender removes pipes without one
                path.parent.mkdir(exist_ok=True)
                path.hardlink_to(hidden)
        except OSError:
            self.close()
            raise
        finally:
            hidden.unlink(missing_ok=True)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)

    def wait(self, timeout_s: float) -> bool:
        """Block until a hint arrives, and take all pending hints; return False after `timeout_s` without one."""
        if not self._poll.poll(math.ceil(max(timeout_s, 0) * 1000)):
            return False
        with contextlib.suppress(BlockingIOError):
            while len(os.read(self._fd, _DRAIN_BYTES)) == _DRAIN_BYTES:
                pass
        return True

    def fileno(self) -> int:
        """Return the descriptor that becomes readable on a hint, for callers with a poll loop of their own."""
        return self._fd

    def close(self) -> None:
        """Unregister and close; safe to call twice."""
        for path in self._paths:
            path.unlink(missing_ok=True)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Waiter:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def wake(directory: Path, names: Iterable[str]) -> None:
    """Wake every Waiter registered under one of `names`; call it after the commit. Never blocks.

    Pipes of dead readers are removed. Never raises for a pipe: the data is durable already and readers look by
    themselves within SAFETY_NET_S, so an unexpected error is logged.
    """
    woken: set[str] = set()
    for name in names:
        folder = f"{directory}/{_checked(name)}"
        try:
            waiting = os.listdir(folder)  # noqa: PTH208 - on the path of every publish: three times as fast
        except FileNotFoundError:
            continue  # nobody has ever waited for this name
        for identity in waiting:
            if identity not in woken:
                woken.add(identity)
                _send(f"{folder}/{identity}")


def wait_until(waiter: Waiter, deadline: float) -> bool:
    """Wait for a hint until `deadline` (time.monotonic) or for SAFETY_NET_S; return False once the deadline is over."""
    left = deadline - time.monotonic()
    if left <= 0:
        return False
    waiter.wait(min(left, SAFETY_NET_S))
    return True


def _send(path: str) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return  # closed since listed
    except OSError as error:
        if error.errno == errno.ENXIO:  # no reader: its process died
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)  # noqa: PTH108
        else:
            _log.warning("wake_failed", path=path, error=str(error))
        return
    try:
        os.write(fd, b"\0")
    except (BlockingIOError, BrokenPipeError):
        pass  # full: it has hints enough; broken: it died since opened
    finally:
        os.close(fd)


def _checked(name: str) -> str:
    if not name or name.startswith(".") or "/" in name or "\0" in name:
        raise ValueError(f"{name!r} cannot name a wake-up: use a plain file name that does not start with a dot")
    return name
