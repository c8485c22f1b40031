"""Checksums of the segments in service, compared in the background: a start looks at structure and sizes only."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from manas._exceptions import SegmentCorrupt, passes
from manas._manifest import FileEntry

_CHUNK = 1 << 20
_RETRY_SECONDS = 1.0
_SHARE = 0.5
"""Of one core: the rest is left to answering. A gigabyte takes about three seconds."""

Files = tuple[Path, Mapping[str, FileEntry]]
"""A directory and what its manifest lists."""


def check_sizes(directory: Path, files: Mapping[str, FileEntry]) -> None:
    """Compare sizes with a manifest. Raises SegmentCorrupt naming the file."""
    for name, entry in files.items():
        file = directory / name
        if not file.is_file():
            raise SegmentCorrupt(str(file), "is missing")
        if (size := file.stat().st_size) != entry.bytes:
            raise SegmentCorrupt(str(file), f"has {size} bytes instead of {entry.bytes}")


class Verifier:
    """Reads every file once in a thread of its own; `corrupt` says what it found."""

    def __init__(self) -> None:
        self._todo: list[Files] = []
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self.corrupt: tuple[Path, SegmentCorrupt] | None = None
        """Directory and error of the first damaged file; nothing is read after it until `start`."""
        self.verified_bytes = 0
        self.pending_bytes = 0

    def start(self, listed: Iterable[Files]) -> None:
        """Forget what was found and verify these from now on, instead of what was left."""
        self.close()
        self._stop = threading.Event()
        self.corrupt, self.verified_bytes = None, 0
        self._todo = list(listed)
        self.pending_bytes = sum(e.bytes for _, files in self._todo for e in files.values())
        self._run()

    def add(self, listed: Iterable[Files]) -> None:
        """Verify these as well."""
        more = list(listed)
        with self._lock:
            self._todo += more
            self.pending_bytes += sum(e.bytes for _, files in more for e in files.values())
        self._run()

    def state(self) -> str:
        """Return "corrupt", "verifying" or "verified"."""
        if self.corrupt is not None:
            return "corrupt"
        return "verifying" if self.pending_bytes else "verified"

    def close(self) -> None:
        """Stop reading; safe to call twice."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def wait(self) -> None:
        """Return when everything is verified, or something is found."""
        if (thread := self._thread) is not None:
            thread.join()

    def _run(self) -> None:
        with self._lock:
            if self._todo and (self._thread is None or not self._thread.is_alive()) and self.corrupt is None:
                self._thread = threading.Thread(target=self._verify, name="manas-verify", daemon=True)
                self._thread.start()

    def _verify(self) -> None:
        while True:
            with self._lock:
                if not self._todo or self._stop.is_set():
                    self._thread = None if not self._stop.is_set() else self._thread
                    return
                directory, files = self._todo.pop(0)
            for name, entry in files.items():
                problem = self._problem(directory / name, entry)
                if self._stop.is_set():
                    return
                if problem:
                    self.corrupt = (directory, SegmentCorrupt(str(directory / name), problem))
                    return
                self.verified_bytes += entry.bytes
                self.pending_bytes -= entry.bytes

    def _problem(self, file: Path, entry: FileEntry) -> str:
        while True:
            try:
                return self._read(file, entry)
            except OSError as error:
                if not passes(error):
                    return f"cannot be read ({error})"
            if self._stop.wait(_RETRY_SECONDS):
                return ""

    def _read(self, file: Path, entry: FileEntry) -> str:
        digest, size = hashlib.blake2b(digest_size=16), 0
        try:
            with file.open("rb") as handle:
                while not self._stop.is_set():
                    began = time.thread_time()
                    if not (chunk := handle.read(_CHUNK)):
                        break
                    digest.update(chunk)
                    size += len(chunk)
                    self._stop.wait((time.thread_time() - began) * (1 / _SHARE - 1))
        except FileNotFoundError:
            return "" if not file.parent.exists() else "is missing"  # pruned while mapped: it can be used to the end
        if size != entry.bytes:
            return f"has {size} bytes instead of {entry.bytes}"
        return "" if digest.hexdigest() == entry.blake2b else "checksum differs"
