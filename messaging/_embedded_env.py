"""The embedded log's file: one LMDB environment, opened once per process and shared by processes, with group commit.

Layout (integers big-endian, so that keys sort by number):

=========== ============================== ==========================================================
database    key                            value
=========== ============================== ==========================================================
meta        "format"                       u32 version of this layout
topics      topic name                     u16 topic id, u16 partitions
offsets     u16 topic, u16 partition       u64 oldest offset kept, u64 offset of the next record
records     u16 topic, u16 part, u64 off   u64 appended (microseconds), u16 key length, key, value
positions   group, 0, u16 topic, u16 part  u64 next offset to read, metadata in UTF-8
=========== ============================== ==========================================================

LMDB's locks need a local file system and one PID namespace. Not usable across fork(): a forked child gets
LogUnavailable; start processes by spawn or exec.
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeAlias, TypeVar

import lmdb

from messaging._exceptions import LogUnavailable

MAP_SIZE = 1 << 40
"""Upper bound of the file in bytes. The file is sparse; a bound that is never reached spares every process the dance of
growing the map in step with the others."""

_FORMAT = struct.pack(">I", 1)
_OPEN_ATTEMPTS = 50  # another process may be writing the file's first pages: an attempt costs well under a millisecond
_READER_CHECK_S = 2.0
"""Processes killed while reading pin free pages and the file grows until their slots are cleared. Writers, who alone
make it grow, clear them at this interval."""

OFFSETS = struct.Struct(">QQ")
TOPIC = struct.Struct(">HH")
U64 = struct.Struct(">Q")

T = TypeVar("T")

if TYPE_CHECKING:
    Txn: TypeAlias = lmdb.Transaction[bytes]
    Cursor: TypeAlias = lmdb.Cursor[bytes]


@dataclass(slots=True)
class Write:
    """What one publish or commit adds: record bodies (without time) by partition prefix, and positions by key."""

    appends: dict[bytes, list[bytes]] = field(default_factory=dict)
    positions: dict[bytes, bytes] = field(default_factory=dict)
    done: bool = False
    error: LogUnavailable | None = None


class Environment:
    """The file at one path in this process. Use `acquire` and `release`, which count its users."""

    _open: ClassVar[dict[Path, Environment]] = {}
    _registry: ClassVar[threading.Lock] = threading.Lock()

    @classmethod
    def acquire(cls, path: Path) -> Environment:
        """Open the file at `path` (a directory), or share it if this process has it open. Raises LogUnavailable."""
        path = path.resolve()
        with cls._registry:
            env = cls._open.get(path)
            if env is None:
                env = cls._open[path] = cls(path)
            env._check_process()
            env._users += 1
            return env

    def release(self) -> None:
        """Give up one use; the last one closes the file. No other thread may be using it then."""
        with self._registry:
            self._users -= 1
            if self._users == 0:
                del self._open[self.path]
                if self._pid == os.getpid():
                    self._lmdb.close()

    def __init__(self, path: Path) -> None:
        self.path = path
        self.committed_writes = 0
        """Durable transactions so far; one may carry the writes of several threads."""
        self._users = 0
        self._pid = os.getpid()
        self._turn = threading.Condition()
        self._queue: list[Write] = []
        self._leading = False
        self._next_reader_check = 0.0
        with self._wrapped("open"):
            self._lmdb = _open_lmdb(path)
            self._lmdb.reader_check()
            for attempt in range(_OPEN_ATTEMPTS):
                try:
                    self._open_databases()
                    break
                except lmdb.MapResizedError:
                    if attempt == _OPEN_ATTEMPTS - 1:
                        raise
                    self._lmdb.set_mapsize(0)
        self._check_format()

    def _open_databases(self) -> None:
        self.meta = self._lmdb.open_db(b"meta")
        self.topics = self._lmdb.open_db(b"topics")
        self.offsets = self._lmdb.open_db(b"offsets")
        self.records = self._lmdb.open_db(b"records")
        self.positions = self._lmdb.open_db(b"positions")

    def _check_format(self) -> None:
        def check(txn: Txn) -> bytes:
            if txn.get(b"format", db=self.meta) is None:
                txn.put(b"format", _FORMAT, db=self.meta)
            return bytes(txn.get(b"format", b"", db=self.meta))

        with self.reading() as txn:
            found = txn.get(b"format", db=self.meta)
        found = found or self.write(check)
        if found != _FORMAT:
            self._lmdb.close()
            raise LogUnavailable(
                f"the message log at {self.path} has layout {found.hex()}, this release writes {_FORMAT.hex()}; "
                "use the release that wrote it, or another home"
            )

    @contextlib.contextmanager
    def reading(self) -> Iterator[Txn]:
        """Open a read transaction: one consistent state. Keep it short, since it pins every page freed after it."""
        self._check_process()
        with self._wrapped("read"), self._lmdb.begin() as txn:
            yield txn

    def write(self, change: Callable[[Txn], T]) -> T:
        """Run `change` in a durable transaction of its own; nothing of it remains if it raises."""
        self._check_process()
        with self._wrapped("write"), self._lmdb.begin(write=True) as txn:
            result = change(txn)
        with self._turn:
            self.committed_writes += 1
        return result

    def append(self, write: Write) -> None:
        """Make a write durable, in one transaction with those of all other threads that wait (group commit).

        Raises LogUnavailable, and then nothing of it was stored.
        """
        self._check_process()
        with self._turn:
            self._queue.append(write)
            while self._leading and not write.done:
                self._turn.wait()
            if not write.done:
                self._leading = True
                group, self._queue = self._queue, []
        if not write.done:
            self._lead(group)
        if write.error is not None:
            raise write.error

    def _lead(self, group: list[Write]) -> None:
        failure: LogUnavailable | None = LogUnavailable(
            f"the thread that was writing to the log at {self.path} was interrupted; publish again"
        )
        try:
            self.write(lambda txn: self._store(txn, group))
            failure = None
        except LogUnavailable as error:
            failure = error
        finally:
            with self._turn:
                for write in group:
                    write.done, write.error = True, failure
                self._leading = False
                self._turn.notify_all()
        self._clear_dead_readers()

    def _store(self, txn: Txn, group: list[Write]) -> None:
        now = U64.pack(time.time_ns() // 1000)
        for write in group:
            for prefix, bodies in write.appends.items():
                start, end = self.bounds(txn, prefix)
                pack = U64.pack
                items = [(prefix + pack(offset), now + body) for offset, body in enumerate(bodies, end)]
                with txn.cursor(self.records) as cursor:
                    _, added = cursor.putmulti(items, overwrite=False)
                if added != len(items):
                    raise self.damaged(f"partition {prefix.hex()} has records beyond its end offset {end}")
                txn.put(prefix, OFFSETS.pack(start, end + len(bodies)), db=self.offsets)
            for key, position in write.positions.items():
                txn.put(key, position, db=self.positions)

    def _clear_dead_readers(self) -> None:
        now = time.monotonic()
        if now >= self._next_reader_check:
            self._next_reader_check = now + _READER_CHECK_S
            with self._wrapped("clear dead readers"):
                self._lmdb.reader_check()

    def bounds(self, txn: Txn, prefix: bytes) -> tuple[int, int]:
        """Return the oldest offset kept of a partition, and the offset of its next record."""
        value = txn.get(prefix, db=self.offsets)
        if value is None:
            raise self.damaged(f"partition {prefix.hex()} has no offsets")
        start, end = OFFSETS.unpack(value)
        return start, end

    def damaged(self, what: str) -> LogUnavailable:
        """Return the error for a file that contradicts itself."""
        return LogUnavailable(f"the message log at {self.path} is damaged: {what}; restore the home from a copy")

    def sizes(self) -> dict[str, int]:
        """Return the file's size, and how much of it is in use, in bytes."""
        info, stat = self._lmdb.info(), self._lmdb.stat()
        with self.reading() as txn:
            kept = txn.stat(self.records)
        pages = kept["branch_pages"] + kept["leaf_pages"] + kept["overflow_pages"]
        return {
            "file_bytes": (info["last_pgno"] + 1) * stat["psize"],
            "records_bytes": pages * stat["psize"],
            "records_kept": kept["entries"],
        }

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            raise LogUnavailable(
                f"the log at {self.path} was opened by process {self._pid} before it forked into {os.getpid()}; "
                "start processes by spawn or exec and open it there"
            )

    @contextlib.contextmanager
    def _wrapped(self, action: str) -> Iterator[None]:
        try:
            yield
        except lmdb.Error as error:
            raise LogUnavailable(
                f"the message log at {self.path} cannot {action}: {error}; look for a full disk, a file that is no "
                "log, or a log already closed"
            ) from error


def _open_lmdb(path: Path) -> lmdb.Environment:
    try:
        path.mkdir(parents=True, exist_ok=True)
        env = lmdb.open(
            str(path),
            map_size=MAP_SIZE,
            subdir=True,
            max_dbs=16,
            max_readers=512,
            sync=True,
            metasync=True,
            readahead=False,  # consumers read the tail, which is in memory; catching up reads in key order anyway
            meminit=False,
            max_spare_txns=4,
            lib_version=0,  # the 0.9 engine: its file format is stable and every build of LMDB reads it
        )
        for directory in (path, path.parent):  # LMDB syncs the file, not the entries that lead to it
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        return env
    except OSError as error:
        raise LogUnavailable(f"cannot open the message log at {path}: {error}") from error
