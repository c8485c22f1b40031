"""A base index: one segment, or several over which the documents are spread by a hash of their id.

Shards are built side by side by several processes or machines; a search asks all of them, as it asks base and delta.
The base's manifest lists every file of every shard, so that one look over it finds whatever is damaged.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from catalog import Catalog
from manas._exceptions import SegmentCorrupt, SegmentError
from manas._manifest import MANIFEST, FileEntry, Manifest, StoredFamily, check_files, read_manifest
from manas.segment import Segment


def shard_of(document_id: str, shards: int) -> int:
    """Return a document's shard, 0..shards - 1: the BLAKE2b-64 of its id (little-endian) modulo their number."""
    digest = hashlib.blake2b(document_id.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") % shards


class Base:
    """A base index opened for reading; safe for threads."""

    def __init__(self, directory: Path, manifest: Manifest, segments: Sequence[Segment]) -> None:
        """Use `Base.open`."""
        self.directory, self.manifest, self.segments = directory, manifest, tuple(segments)

    @classmethod
    def open(cls, directory: Path, verify: bool = True) -> Base:
        """Map a base's files after comparing them with its manifest: sizes always, checksums if `verify`.

        Raises SegmentMissing, SegmentFormat, or SegmentCorrupt naming the file.
        """
        manifest = read_manifest(directory)
        check_files(directory, manifest, verify=verify)
        if not manifest.shards:
            return cls(directory, manifest, (Segment.open(directory, verify=False),))
        segments = [Segment.open(directory / name, verify=False) for name in manifest.shards]
        found = sum(segment.count for segment in segments)
        if found != manifest.documents:
            raise SegmentCorrupt(str(directory), f"its shards have {found} documents instead of {manifest.documents}")
        return cls(directory, manifest, segments)

    def check_catalog(self, catalog: Catalog) -> list[str]:
        """Return the declared fields that this base does not know. Raises CatalogMismatch where it contradicts."""
        return list(dict.fromkeys(name for segment in self.segments for name in segment.check_catalog(catalog)))


def base_manifest(shards: Mapping[str, tuple[Manifest, FileEntry]]) -> Manifest:
    """Return the manifest, not sealed yet, of a base that consists of segments built at one snapshot.

    `shards` are directory names with each one's manifest and the size and checksum of its manifest's file.
    Raises SegmentError when the segments do not belong together.
    """
    manifests = [manifest for manifest, _ in shards.values()]
    first = manifests[0]
    for manifest in manifests:
        for name in (
            "catalog",
            "fingerprint",
            "snapshot_ts",
            "delta_positions",
            "budget_positions",
            "fields",
            "static",
        ):
            if getattr(manifest, name) != getattr(first, name):
                raise SegmentError(f"shards of one base have different values of {name}; build the base again")
    documents = sum(manifest.documents for manifest in manifests)
    held: Counter[str] = Counter()
    postings: Counter[str] = Counter()
    stored: dict[str, StoredFamily] = {}
    for manifest in manifests:
        for name, share in manifest.coverage.items():
            held[name] += round(share * manifest.documents)
        postings.update(manifest.postings)
        for name, own in manifest.stored.items():
            so_far = stored.get(name, StoredFamily(0, 0))
            stored[name] = StoredFamily(so_far.bytes + own.bytes, max(so_far.longest, own.longest))
    return msgspec.structs.replace(
        first,
        documents=documents,
        coverage={name: held[name] / documents if documents else 0.0 for name in first.coverage},
        postings=dict(postings),
        stored=stored,
        files={
            f"{shard}/{name}": file
            for shard, (manifest, own) in shards.items()
            for name, file in {**manifest.files, MANIFEST: own}.items()
        },
        shards=tuple(shards),
        checksum="",
    )
