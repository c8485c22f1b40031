"""The manifest: what a segment contains, up to when, and the size and checksum of every file.

Written last, so a directory without one is a build that never finished. It carries a checksum of itself.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from catalog import Serving
from manas._exceptions import SegmentCorrupt, SegmentFormat, SegmentMissing
from manas._packed import Packing, id_bytes

FORMAT_VERSION = 5
MANIFEST = "manifest.json"
_CHUNK = 1 << 20


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Size and BLAKE2b-128 of one file."""

    bytes: int
    blake2b: str


class FieldFormat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a field was indexed when the segment was built."""

    index: str
    type: str
    dims: int = 0
    payload: str = ""
    """Field that its postings' payloads come from."""
    family: str = "body"
    """Family of the forward index that has it."""


class StoredFamily(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the blocks of one family of the forward index come to when they are expanded."""

    bytes: int
    longest: int
    """Bytes of the longest."""


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Description of a segment."""

    format_version: int
    catalog: str
    fingerprint: str
    documents: int
    snapshot_ts: int
    """Every document version at or before it is in the segment; deltas at or before it are ignored."""
    delta_positions: dict[int, int]
    """Partition of the delta topic -> first offset to apply."""
    budget_positions: dict[int, int]
    """Partition of the budgets topic -> next offset when the snapshot was taken. Followers read that topic from its
    start (it is compacted by key), so this only dates the base."""
    coverage: dict[str, float]
    """Field -> share of documents that have it, 0..1."""
    fields: dict[str, FieldFormat]
    postings: dict[str, int]
    """Number of terms, number and bytes of dense and of split posting lists, bytes of payloads and of their bounds."""
    postings_by_field: dict[str, dict[str, int]]
    """The same for each field."""
    files: dict[str, FileEntry]
    created_at: str
    """ISO time, UTC."""
    stored: dict[str, StoredFamily] = {}
    """By family."""
    packed: dict[str, Packing] = {}
    """File -> how its whole numbers are stored."""
    keys: tuple[str, ...] = ()
    """Fields in which every document has its own id and nothing else: they have no lists, the ids find the document."""
    shards: tuple[str, ...] = ()
    """Directories of the segments that a base consists of; none where it is one segment itself."""
    static: dict[str, str] | msgspec.UnsetType = msgspec.UNSET
    """Role -> field that the static scores were made of; left out by builders before there was this key."""
    checksum: str = ""
    """BLAKE2b-128 of this manifest with an empty checksum."""

    def widths(self) -> dict[str, int]:
        """Return the files of a segment that have one entry for each document, and an entry's bytes."""
        return {"ids.order": id_bytes(self.documents), "versions": self.packed["versions"].bytes}


def static_roles(serving: Serving) -> dict[str, str]:
    """Return the roles that static scores go by, each with its field: a score counts only without a bid."""
    first = {"bid": serving.bid} if serving.bid is not None else {"score": serving.score}
    return {role: field for role, field in {**first, "quality": serving.quality}.items() if field is not None}


def write_manifest(directory: Path, manifest: Manifest) -> Manifest:
    """Write the manifest with its checksum and return it; the caller syncs the directory."""
    sealed, data = seal_manifest(manifest)
    (directory / MANIFEST).write_bytes(data)
    return sealed


def seal_manifest(manifest: Manifest) -> tuple[Manifest, bytes]:
    """Return the manifest with its checksum, and the contents of its file."""
    sealed = msgspec.structs.replace(manifest, checksum=_seal(manifest))
    return sealed, msgspec.json.format(msgspec.json.encode(sealed), indent=1)


def read_manifest(directory: Path) -> Manifest:
    """Read a segment's manifest. Raises SegmentMissing, SegmentCorrupt, SegmentFormat."""
    file = directory / MANIFEST
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        raise SegmentMissing(f"{directory} has no {MANIFEST}: the build never finished; build the base again") from None
    return parse_manifest(data, str(file))


def parse_manifest(data: bytes, file: str) -> Manifest:
    """Return the manifest that a file holds; `file` is for errors. Raises SegmentCorrupt, SegmentFormat."""
    try:
        version = msgspec.json.decode(data, type=dict[str, msgspec.Raw]).get("format_version")
        if version is not None and bytes(version) != str(FORMAT_VERSION).encode() and bytes(version).isdigit():
            raise SegmentFormat(
                f"{file} has format {bytes(version).decode()}, this code reads {FORMAT_VERSION}; build the base again"
            )
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SegmentCorrupt(file, f"not a manifest ({error})") from None
    if manifest.checksum != _seal(manifest):
        raise SegmentCorrupt(file, "its contents do not match its own checksum")
    return manifest


def check_files(directory: Path, manifest: Manifest, *, verify: bool) -> None:
    """Compare every file with the manifest: sizes, and with `verify` checksums. Raises SegmentCorrupt."""
    for name, entry in manifest.files.items():
        file = directory / name
        if not file.is_file():
            raise SegmentCorrupt(str(file), "is missing")
        if (size := file.stat().st_size) != entry.bytes:
            raise SegmentCorrupt(str(file), f"has {size} bytes instead of {entry.bytes}")
        if verify and file_entry(file).blake2b != entry.blake2b:
            raise SegmentCorrupt(str(file), "checksum differs")


def file_entry(file: Path) -> FileEntry:
    """Return size and checksum of a file."""
    digest, size = hashlib.blake2b(digest_size=16), 0
    with file.open("rb") as handle:
        while chunk := handle.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return FileEntry(size, digest.hexdigest())


def _seal(manifest: Manifest) -> str:
    plain = msgspec.json.encode(msgspec.structs.replace(manifest, checksum=""))
    return hashlib.blake2b(plain, digest_size=16).hexdigest()
