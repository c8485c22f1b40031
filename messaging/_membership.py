"""Who in a consumer group reads which partition, agreed by file locks alone: no heartbeats, no coordinator.

A member holds an flock on a file of its own, and on one file per partition it owns. The kernel drops both the moment
the process dies, however it dies, so the others see at their next look that a member is gone and its partitions are
free. Two members can never hold one partition. Partition files are never removed: removing one while it is locked
would let a second owner in.
"""

from __future__ import annotations

import fcntl
import os
import uuid
import zlib
from pathlib import Path


class Share:
    """One member's part of a topic's partitions within a group. Used by one thread; not across fork()."""

    def __init__(self, directory: Path, partitions: int, member: str) -> None:
        """Join the group at `directory`. Raises OSError when it cannot be written."""
        self._directory = directory
        self._partitions = partitions
        self._name = f"member-{member}-{os.getpid()}-{uuid.uuid4().hex[:12]}"
        self._held: dict[int, int] = {}
        self._offset = zlib.crc32(str(directory).encode())
        directory.mkdir(parents=True, exist_ok=True)
        self._own = self._join()

    def held(self) -> list[int]:
        """Return the partitions owned, sorted."""
        return sorted(self._held)

    def quota(self) -> int:
        """Return how many partitions this member may own now; the quotas of all members add up to all partitions.

        Members that died are removed. The odd partitions go to members in an order that differs by topic, so that one
        member does not get the odd one of every topic.
        """
        members = self._living()
        if self._name not in members:  # somebody removed our file
            os.close(self._own)
            self._own = self._join()
            members = self._living()
        rank = (members.index(self._name) + self._offset) % len(members)
        return self._partitions // len(members) + (rank < self._partitions % len(members))

    def take(self, count: int) -> list[int]:
        """Take up to `count` partitions that nobody owns; return them."""
        taken: list[int] = []
        for step in range(self._partitions):
            if len(taken) >= count:
                break
            # Start at a place of our own: members that look at the same time then rarely try the same files.
            partition = (step + zlib.crc32(self._name.encode())) % self._partitions
            if partition not in self._held and self._lock(partition):
                taken.append(partition)
        return taken

    def release(self, partition: int) -> None:
        """Give a partition back."""
        os.close(self._held.pop(partition))

    def leave(self) -> None:
        """Give everything back and leave the group; safe to call twice."""
        for partition in self.held():
            self.release(partition)
        if self._own >= 0:
            (self._directory / self._name).unlink(missing_ok=True)
            os.close(self._own)
            self._own = -1

    def _join(self) -> int:
        path = self._directory / self._name
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX)
            if os.fstat(fd).st_nlink:
                return fd
            os.close(fd)  # another member looked before we had the lock, and removed the file as a dead member's

    def _living(self) -> list[str]:
        return sorted(
            path.name
            for path in self._directory.iterdir()
            if path.name.startswith("member-") and (path.name == self._name or _is_locked(path))
        )

    def _lock(self, partition: int) -> bool:
        fd = os.open(self._directory / f"partition-{partition}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        self._held[partition] = fd
        return True


def _is_locked(path: Path) -> bool:
    """Tell whether a member file's owner lives; remove the file if not."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: members that look at the same time agree
    except BlockingIOError:
        return True
    else:
        path.unlink(missing_ok=True)
        return False
    finally:
        os.close(fd)
