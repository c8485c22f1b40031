"""Published base indexes at one address: a directory that servers read, or one or S3 from which they copy.

A base is a directory of files and its manifest, which is written last; which one is in service says the object
`CURRENT`, moved in one step. Whatever was begun and has no manifest is never listed, and the next build removes it.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import asdict, dataclass
from typing import Any

import structlog

from batch_workflows._objects_errors import ObjectDamaged, ObjectMissing
from batch_workflows.objects import Objects
from manas import (
    MANIFEST,
    BaseInfo,
    Manifest,
    SegmentCorrupt,
    SegmentError,
    SegmentMissing,
    current_base,
    list_bases,
    parse_manifest,
    prune_bases,
    publish,
    rollback,
    seal_manifest,
)
from manas.bases import CURRENT
from messaging.home import Home

BUILDING = ".building-"
"""Begins the names of what is being built; everything whose name begins with a dot is no base."""
_REMEMBERED = "bases.address"


@dataclass(frozen=True, slots=True)
class Verified:
    """A base whose every file is what its manifest says."""

    version: str
    files: int
    bytes: int
    documents: int
    shards: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return a form for JSON."""
        return asdict(self)


class BaseStore:
    """Base indexes at one address. One build at a time writes there; any number of readers."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects

    @classmethod
    def of(cls, home: Home, address: str = "") -> BaseStore:
        """Open the store at an address; "": the one that the home remembers, else the home. Raises BadAddress."""
        return cls(Objects(address or remembered_address(home) or home.base))

    def building(self, version: str) -> Objects:
        """Return where a base is to be built: on S3 in its final place, since nothing there can be renamed."""
        return self.objects.below(version if self.objects.local is None else BUILDING + version)

    def current(self) -> str | None:
        """Return the version in service, None before the first publication. Raises ObjectsError."""
        if self.objects.local is not None:
            return current_base(self.objects.local)
        try:
            return self.objects.read(CURRENT).decode().strip() or None
        except ObjectMissing:
            return None

    def bases(self) -> list[BaseInfo]:
        """Return all published bases, oldest first, unreadable ones with their problem. Raises ObjectsError."""
        if self.objects.local is not None:
            return list_bases(self.objects.local)
        current, bases = self.current(), []
        for version in self._versions():
            try:
                bases.append(BaseInfo(version, version == current, self.manifest(version)))
            except SegmentMissing:
                continue  # being built, or left by a build that was killed
            except SegmentError as error:
                bases.append(BaseInfo(version, version == current, None, str(error)))
        return bases

    def manifest(self, version: str) -> Manifest:
        """Return the manifest of a base. Raises SegmentMissing, SegmentCorrupt, SegmentFormat, ObjectsError."""
        name = f"{version}/{MANIFEST}"
        try:
            data = self.objects.read(name)
        except ObjectMissing:
            raise SegmentMissing(f"{self.objects.address} has no base {version!r}") from None
        return parse_manifest(data, f"{self.objects.address}/{name}")

    def publish(self, version: str, manifest: Manifest) -> str:
        """Put what was built in `building(version)` in service: its manifest, then the pointer. Return its version.

        Every file is there and as large as the manifest says, or ObjectDamaged is raised and the old base stays; in a
        directory the checksums are compared as well. A crash leaves the pointer where it was, or moved.
        """
        built = self.building(version)
        check_sizes(built, manifest)
        _, data = seal_manifest(manifest)
        built.write(MANIFEST, data)
        if self.objects.local is not None and built.local is not None:
            return publish(self.objects.local, built.local, version=version)
        self.objects.write(CURRENT, f"{version}\n".encode())
        return version

    def rollback(self, version: str | None = None) -> str:
        """Put an earlier base (default: the one before the current) back in service, if it is whole; return it.

        Raises SegmentMissing when there is none, SegmentCorrupt or ObjectDamaged; the pointer then stays.
        """
        if self.objects.local is not None:
            return rollback(self.objects.local, version)
        names = [base.version for base in self.bases()]
        if version is None:
            current = self.current()
            earlier = [name for name in names if current is not None and name < current]
            if not earlier:
                raise SegmentMissing(f"{self.objects.address} has no base before {current}; there are {names}")
            version = earlier[-1]
        elif version not in names:
            raise SegmentMissing(f"{self.objects.address} has no base {version!r}; there are {names}")
        self.verify(version)
        self.objects.write(CURRENT, f"{version}\n".encode())
        return version

    def verify(self, version: str | None = None) -> Verified:
        """Read every file of a base (default: the one in service) again and recompute checksums and counts.

        Raises ObjectDamaged naming all files that are not what the manifest says, SegmentMissing, SegmentCorrupt.
        """
        started = time.monotonic()
        wanted = version or self.current()
        if wanted is None:
            raise SegmentMissing(f"{self.objects.address} has no base index yet; build one")
        manifest = self.manifest(wanted)
        base = self.objects.below(wanted)
        there = base.names()
        damaged = []
        for name, entry in manifest.files.items():
            if name not in there:
                damaged.append((name, "is missing"))
            elif there[name] != entry.bytes:
                damaged.append((name, f"has {there[name]} bytes instead of {entry.bytes}"))
            elif _blake2b(base, name) != entry.blake2b:
                damaged.append((name, "checksum differs"))
        if damaged:
            what = "; ".join(f"{name}: {problem}" for name, problem in damaged)
            raise ObjectDamaged(f"{base.address}", f"{what}; roll back to another base, or build one")
        self._check_counts(base, manifest)
        size = sum(entry.bytes for entry in manifest.files.values())
        seconds = round(time.monotonic() - started, 3)
        return Verified(wanted, len(manifest.files), size, manifest.documents, max(1, len(manifest.shards)), seconds)

    def prune(self, keep: int) -> list[str]:
        """Remove all but the newest `keep` bases, never the one in service; return the versions removed."""
        if self.objects.local is not None:
            return prune_bases(self.objects.local, keep)
        names, current = [base.version for base in self.bases()], self.current()
        removed = [name for name in names[: max(0, len(names) - keep)] if name != current]
        for name in removed:
            self.objects.delete(f"{name}/{MANIFEST}")  # first, so that nobody begins to copy it
            self.objects.remove(name)
        return removed

    def clean(self, spare: str = "") -> list[str]:
        """Remove what interrupted builds left, and return it; only for who holds the lock of building.

        `spare` is the version of a build that goes on.
        """
        left = []
        if self.objects.local is not None:
            left = [d for d in self.objects.directories() if d.startswith((BUILDING, ".incoming-", ".removed-"))]
        else:
            left = [d for d in self.objects.directories() if d.startswith(BUILDING)]
            for version in self._versions():
                if not self.objects.has(f"{version}/{MANIFEST}"):
                    left.append(version)
        if spare:
            left = [name for name in left if name not in spared(spare)]
        for name in left:
            self.objects.remove(name)
        if uploads := self.objects.abort_uploads():
            left.append(f"{uploads} unfinished uploads")
        if left:
            structlog.get_logger().info("base_store.cleaned", address=str(self.objects.address), left=left)
        return left

    def _versions(self) -> list[str]:
        return [name for name in self.objects.directories() if not name.startswith(".")]

    def _check_counts(self, base: Objects, manifest: Manifest) -> None:
        documents = 0
        for shard in manifest.shards or ("",):
            prefix = f"{shard}/" if shard else ""
            own = parse_manifest(base.read(f"{prefix}{MANIFEST}"), f"{base.address}/{prefix}{MANIFEST}")
            counts = {name: manifest.files[f"{prefix}{name}"].bytes / width for name, width in own.widths().items()}
            if set(counts.values()) != {own.documents}:
                raise SegmentCorrupt(f"{base.address}/{shard}", f"has {own.documents} documents, and files of {counts}")
            documents += own.documents
        if documents != manifest.documents:
            raise SegmentCorrupt(str(base.address), f"has {documents} documents instead of {manifest.documents}")


def spool_of(version: str) -> str:
    """Return where the tasks of a build leave documents for each other."""
    return f"{BUILDING}{version}-spool"


def spared(version: str) -> frozenset[str]:
    """Return the names of what belongs to the build of a version."""
    return frozenset((version, BUILDING + version, spool_of(version)))


def check_sizes(built: Objects, manifest: Manifest) -> None:
    """Compare what is at a place with a manifest: names and sizes. Raises ObjectDamaged naming the first file."""
    there = built.names()
    for name, entry in manifest.files.items():
        if there.get(name) != entry.bytes:
            has = f"has {there[name]} bytes instead of {entry.bytes}" if name in there else "is missing"
            raise ObjectDamaged(f"{built.address}/{name}", f"{has}; build the base again")


def remembered_address(home: Home) -> str:
    """Return where the bases of a home are published, "" if in the home itself."""
    try:
        return (home.root / _REMEMBERED).read_text().strip()
    except FileNotFoundError:
        return ""


def remember_address(home: Home, address: str) -> None:
    """Publish the bases of a home at an address from now on, and have its servers follow it. "": in the home itself.

    Raises BadAddress, and then nothing is changed.
    """
    file = home.root / _REMEMBERED
    if not address or Objects(address).local == home.base:
        file.unlink(missing_ok=True)
        return
    part = file.with_suffix(".part")
    part.write_text(f"{Objects(address).address}\n")
    part.replace(file)


def _blake2b(objects: Objects, name: str) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for chunk in objects.chunks(name):
        digest.update(chunk)
    return digest.hexdigest()
