"""Folded segments on disk: what deltas became, above a base or above older folded segments.

One directory per folded segment. It holds `segment/` (an ordinary segment: the documents that are alive) and:

| file | content |
| --- | --- |
| `entries.keys` | ascending uint64 by entry: BLAKE2b-64 of its document id, little-endian |
| `entries.ids.blob`, `.offsets` | by entry: id of a document that a delta brought or deleted; uint64 offsets, n + 1 |
| `entries.versions`, `entries.answerable` | int64 by entry: version, and when it was first answerable (0: unknown) |
| `entries.slots` | int64 by entry: internal id in `segment/`, -1 for a tombstone |
| `entries.headers.blob`, `.offsets` | header of the delta that brought it, serialized |
| `hides.LAYER` | ascending uint32 ids in a lower layer ("base", or a folded segment) that these replace |
| `fold.json` | names the lower layers, sizes and checksums; written last |

`SET` beside the directories names the folded segments in use, oldest first. It is replaced by a rename: a crash leaves
the old set or the new one, and directories that no set names, which the next start removes.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from array import array
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from manas._delta import Entry
from manas._exceptions import SegmentCorrupt, SegmentMissing, passes
from manas._layer import Ids
from manas._manifest import FileEntry, file_entry
from manas._verify import check_sizes
from manas.segment import Segment

BASE_LAYER = "base"


def base_layer(number: int) -> str:
    """Return how a segment of the base is called, numbered from 0: "base" where there is one."""
    return BASE_LAYER if number == 0 else f"{BASE_LAYER}-{number}"


SEGMENT = "segment"
SET = "SET"
_FOLD = "fold.json"
FOLD_FORMAT = 1


class FoldManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Description of a folded segment."""

    format_version: int
    entries: int
    hides: tuple[str, ...]
    """Lower layers, oldest first."""
    files: dict[str, FileEntry]
    checksum: str = ""


class FoldSet(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which folded segments make up what came after a base, oldest first."""

    format_version: int
    base_version: str
    fingerprint: str
    """Of the catalogue that they were written with: with another one they are not used."""
    folds: tuple[str, ...]
    checksum: str = ""


class FoldedSegment(Segment):
    """The segment of a folded one; answers call it "folded"."""

    name = "folded"


class Fold:
    """A folded segment, mapped: read-only and safe for threads."""

    def __init__(self, directory: Path, manifest: FoldManifest, segment: FoldedSegment) -> None:
        """Use `Fold.open`."""
        self.directory = directory
        self.name = directory.name
        self.manifest = manifest
        self.segment = segment
        self.ids = _Blobs(directory, "entries.ids")
        self._headers = _Blobs(directory, "entries.headers")
        self._versions = _mapped(directory / "entries.versions", np.int64)
        self._answerable = _mapped(directory / "entries.answerable", np.int64)
        self._slots = _mapped(directory / "entries.slots", np.int64)
        self._keys = _mapped(directory / "entries.keys", np.uint64)
        for rows in (self._versions, self._answerable, self._slots, self._keys, self.ids, self._headers):
            if len(rows) != len(self):
                raise ValueError(f"{len(rows)} rows for {len(self)} entries")
        self.hides: dict[str, Ids] = {n: _mapped(directory / f"hides.{n}", np.uint32) for n in manifest.hides}

    @classmethod
    def open(cls, directory: Path) -> Fold:
        """Map a folded segment after looking at structure and sizes. Raises a SegmentError naming the file."""
        manifest = _read_sealed(directory / _FOLD, FoldManifest)
        check_sizes(directory, manifest.files)
        segment = FoldedSegment.open(directory / SEGMENT, verify=False)
        try:
            return cls(directory, manifest, segment)
        except (ValueError, KeyError, OSError) as error:
            if passes(error):
                raise
            raise SegmentCorrupt(str(directory), f"files do not fit together ({error})") from error

    def __len__(self) -> int:
        return self.manifest.entries

    @property
    def tombstones(self) -> int:
        """Entries that are deletions."""
        return len(self) - self.segment.count

    def entry(self, document_id: str) -> Entry | None:
        """Return what is known of a document: its slot is the segment's internal id, -1 for a tombstone."""
        wanted = document_id.encode(errors="surrogatepass")
        key = entry_key(wanted)
        place = int(np.searchsorted(self._keys, key))
        while place < len(self._keys) and self._keys[place] == key:
            if self.ids[place] == wanted:
                return self.at(place)
            place += 1
        return None

    def at(self, place: int) -> Entry:
        """Return an entry by its place."""
        version, slot, answerable = self._versions[place], self._slots[place], self._answerable[place]
        return Entry(int(version), int(slot), self._headers[place], int(answerable))

    def document_id(self, place: int) -> str:
        """Return an entry's document id by its place."""
        return self.ids[place].decode(errors="surrogatepass")


def write_entries(directory: Path, entries: Mapping[bytes, Entry], hides: Mapping[str, Ids]) -> None:
    """Write everything of a folded segment but its `segment/`, sync it, and the manifest last."""
    keyed = sorted((entry_key(name), name) for name in entries)
    rows = [entries[name] for _, name in keyed]
    np.array([key for key, _ in keyed], np.uint64).tofile(directory / "entries.keys")
    _write_blobs(directory, "entries.ids", (name for _, name in keyed))
    _write_blobs(directory, "entries.headers", (row.header for row in rows))
    for column, values in (
        ("versions", [row.version for row in rows]),
        ("answerable", [row.answerable_us for row in rows]),
        ("slots", [row.slot for row in rows]),
    ):
        np.array(values, np.int64).tofile(directory / f"entries.{column}")
    for name, ids in hides.items():
        ids.tofile(directory / f"hides.{name}")
    files = sorted(p for p in directory.iterdir() if p.is_file())
    for file in files:
        sync(file)
    manifest = FoldManifest(FOLD_FORMAT, len(rows), tuple(hides), {f.name: file_entry(f) for f in files})
    _write_sealed(directory / _FOLD, manifest)
    sync(directory)


def entry_key(name: bytes) -> np.uint64:
    """Return what entries are sorted by."""
    return np.uint64(int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little"))


def read_set(directory: Path) -> FoldSet | None:
    """Return the set in use, None when nothing was ever folded there. Raises SegmentCorrupt."""
    try:
        found: FoldSet = _read_sealed(directory / SET, FoldSet)
        return found
    except SegmentMissing:
        return None


def write_set(directory: Path, folds: FoldSet) -> None:
    """Replace the set in one step."""
    part = directory / f".{SET}"
    _write_sealed(part, folds)
    part.replace(directory / SET)
    sync(directory)


def sync(path: Path) -> None:
    """Force a file or directory to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _Blobs:
    """Byte strings by place, mapped."""

    def __init__(self, directory: Path, name: str) -> None:
        self._offsets = _mapped(directory / f"{name}.offsets", np.uint64)
        self._blob = _map(directory / f"{name}.blob")
        if len(self._offsets) == 0 or int(self._offsets[-1]) != len(self._blob):
            raise ValueError(f"{name}.offsets do not end at the end of {name}.blob")

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, place: int) -> bytes:
        return self._blob[int(self._offsets[place]) : int(self._offsets[place + 1])]


def _write_blobs(directory: Path, name: str, items: Iterable[bytes]) -> None:
    offsets = array("Q", [0])
    with (directory / f"{name}.blob").open("xb") as blob:
        for item in items:
            blob.write(item)
            offsets.append(offsets[-1] + len(item))
    with (directory / f"{name}.offsets").open("xb") as handle:
        offsets.tofile(handle)


def _map(file: Path) -> mmap.mmap | bytes:
    with file.open("rb") as handle:
        if file.stat().st_size == 0:  # an empty file cannot be mapped
            return b""
        return mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)


def _mapped(file: Path, dtype: Any) -> npt.NDArray[Any]:
    return np.frombuffer(_map(file), dtype=dtype)


def _seal(value: Any) -> str:
    return hashlib.blake2b(msgspec.json.encode(value), digest_size=16).hexdigest()


def _write_sealed(file: Path, value: Any) -> None:
    sealed = msgspec.structs.replace(value, checksum=_seal(msgspec.structs.replace(value, checksum="")))
    file.write_bytes(msgspec.json.format(msgspec.json.encode(sealed), indent=1))
    sync(file)


def _read_sealed(file: Path, kind: Any) -> Any:
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        raise SegmentMissing(f"{file} is missing: the folding never finished") from None
    try:
        value = msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SegmentCorrupt(str(file), f"cannot be read ({error})") from None
    if value.checksum != _seal(msgspec.structs.replace(value, checksum="")):
        raise SegmentCorrupt(str(file), "its contents do not match its own checksum")
    if value.format_version != FOLD_FORMAT:
        raise SegmentCorrupt(str(file), f"has format {value.format_version}, this code reads {FOLD_FORMAT}")
    return value
