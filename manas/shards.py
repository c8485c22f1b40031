"""Documents shared out over shards by a hash of their id, and a shard's own part of a published base.

A shard keeps its parts below `.shards/<shard>/<base version>` of the bases' directory. It makes a part when it first
loads that base, in a process of its own, with a pickled `PartOrder` as input.
"""

from __future__ import annotations

import fcntl
import os
import pickle
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from catalog import Catalog
from manas._base import Base, shard_of
from manas._exceptions import ManasError, SegmentError
from manas._removal import remove_tree
from manas._writer import SegmentWriter

PARTS = ".shards"
_ROOT = Path(__file__).parent.parent
_BEAT_SECONDS = 0.5
_WORDS = 600
_NICE = 10
_COMMAND = "from manas.shards import main; main()"
"""Of the process. (`-m` would complain that the package has imported the module before.)"""
_UNUSABLE = 3
"""Exit code for a base of which no part can be taken; anything else (no room, killed) may go well another time."""
_LOOKED_AT = 100
"""Documents of which the shard is checked: another spread would be seen at the first few."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One of `count` shards, numbered from 0."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read "NUMBER/COUNT", for example "0/2". Raises ValueError with the valid form."""
        number, _, count = text.partition("/")
        if not number.isdigit() or not count.isdigit() or int(number) >= int(count):
            raise ValueError(f"NUMBER/COUNT with NUMBER from 0 to COUNT - 1, like 0/2, got {text!r}")
        return cls(int(number), int(count))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def directory(self) -> str:
        """Name of what is this shard's own on disk."""
        return f"{self.number}-of-{self.count}"

    def has(self, document_id: str) -> bool:
        """Tell whether a document belongs to this shard."""
        return self.count == 1 or shard_of(document_id, self.count) == self.number


WHOLE = Shard(0, 1)


@dataclass(frozen=True, slots=True)
class PartOrder:
    """Which base to take a part of, and where to write it."""

    base: Path
    part: Path
    shard: Shard
    catalog: Catalog


def part_directory(base_dir: Path, version: str, shard: Shard) -> Path:
    """Return where a shard's part of a base is, or will be; the base itself where there is one shard."""
    if shard.count == 1:
        return base_dir / version
    return base_dir / PARTS / shard.directory / version


def ensure_part(
    base_dir: Path, version: str, shard: Shard, catalog: Catalog, beat: Callable[[], None] = lambda: None
) -> Path:
    """Return a shard's part of a base, made now if it was not yet; `beat` is called now and then meanwhile.

    A base that was built in as many shards has it ready. A crash leaves a hidden directory that is removed next time.
    Raises SegmentError for a base of which no part can be taken, OSError where it did not work this time.
    """
    part = part_directory(base_dir, version, shard)
    if part.is_dir() or shard.count == 1:
        return part
    base = Base.open(base_dir / version, verify=False)  # says what is wrong with it before a process is started
    if (ready := _ready_part(base, shard)) is not None:
        return ready
    part.parent.mkdir(parents=True, exist_ok=True)
    with (part.parent / "lock").open("ab") as lock:
        while not part.is_dir():
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # another process of this shard is making it
                beat()
                time.sleep(_BEAT_SECONDS)
                continue
            _make(PartOrder(base_dir / version, part, shard, catalog), base_dir, beat)
    return part


def discard_part(base_dir: Path, directory: Path) -> bool:
    """Remove a damaged part, so that it is made again from its base; tell whether the directory is a part at all."""
    if directory.parent.parent != base_dir / PARTS:
        return False
    remove_tree(directory)
    return True


def _ready_part(base: Base, shard: Shard) -> Path | None:
    """Return the segment of a base that is a shard's part, None where it was built in other shards.

    Whoever built it spread documents as `shard_of` says; some of them are looked at to be sure of it.
    """
    if len(base.segments) != shard.count:
        return None
    segment = base.segments[shard.number]
    some = range(0, segment.count, max(1, segment.count // _LOOKED_AT))
    if not all(shard.has(segment.document_id(internal)) for internal in some):
        return None
    return segment.directory


def _make(order: PartOrder, base_dir: Path, beat: Callable[[], None]) -> None:
    shelf = order.part.parent
    for other in shelf.iterdir():
        if other.is_dir() and (other.name.startswith(".part-") or not (base_dir / other.name).is_dir()):
            remove_tree(other)
    hidden = shelf / f".part-{uuid.uuid4().hex}"
    with (shelf / "words").open("w+b") as words:
        process = subprocess.Popen(
            [sys.executable, "-c", _COMMAND], cwd=_ROOT, stdin=subprocess.PIPE, stdout=words, stderr=words
        )
        if process.stdin is not None:
            process.stdin.write(pickle.dumps(replace(order, part=hidden)))
            process.stdin.close()
        while (code := _wait(process)) is None:
            beat()
        if code != 0:
            words.seek(0)
            said = words.read().decode(errors="replace").strip()[-_WORDS:]
            sentence = f"shard {order.shard} could not take its part of {order.base}: exit {code}: {said}"
            raise SegmentError(sentence) if code == _UNUSABLE else OSError(sentence)
    hidden.rename(order.part)


def _wait(process: subprocess.Popen[bytes]) -> int | None:
    try:
        return process.wait(_BEAT_SECONDS)
    except subprocess.TimeoutExpired:
        return None


def write_part(order: PartOrder) -> None:
    """Write a shard's part of a base: its documents with their versions, the base's snapshot and positions."""
    base = Base.open(order.base, verify=True)

    def documents() -> Iterator[tuple[str, int, bytes]]:
        for segment in base.segments:
            for internal in range(segment.count):
                document_id = segment.document_id(internal)
                if order.shard.has(document_id):
                    yield document_id, segment.version(internal), segment.body(internal)

    manifest = base.manifest
    writer = SegmentWriter(order.part, order.catalog)
    writer.write(documents(), manifest.snapshot_ts, manifest.delta_positions, manifest.budget_positions)


def main() -> None:
    """Do one order."""
    order: PartOrder = pickle.load(sys.stdin.buffer)
    os.nice(_NICE)
    try:
        write_part(order)
    except ManasError as error:
        print(f"{type(error).__name__}: {error}")
        raise SystemExit(_UNUSABLE) from error
