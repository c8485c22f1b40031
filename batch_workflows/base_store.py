"""Published base indexes at one address: a directory that servers read, or one or S3 from which they copy.

A base is a directory of files and its manifest, which is written last; which one is in service says the object
`CURRENT`, moved in one step. Whatever was begun and has no manifest is never listed, and the next build removes it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import msgspec
import structlog

from batch_workflows._base_options import BASES_KEPT
from batch_workflows._objects_errors import BadAddress, ObjectDamaged, ObjectMissing
from batch_workflows.objects import Objects
from manas import (
    MANIFEST,
    BaseInfo,
    Manifest,
    SegmentCorrupt,
    SegmentError,
    SegmentMissing,
    current_base,
    is_version,
    list_bases,
    parse_manifest,
    prune_bases,
    publish,
    rollback,
    seal_manifest,
    sweep_bases,
)
from manas.bases import CURRENT, ROLLED_BACK, rollback_target, rolled_back, rolled_back_after, to_prune
from messaging.home import Home

BUILDING = ".building-"
"""Begins the names of what is being built; everything whose name begins with a dot is no base."""
_REMEMBERED, _KEPT = "bases.address", "bases.kept.json"


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
        """Raises BadAddress for a whole bucket: bases share a place with nothing else."""
        if objects.local is None and "/" not in objects.address.path:
            raise BadAddress(f"{objects.address}: bases need a prefix of their own, s3://{objects.address.path}/bases")
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
        """Put an earlier base back in service, if it is whole; return it. The one that was in service is passed over
        when the next bad base is rolled back from (default: the newest earlier one that nobody rolled back from).

        Raises SegmentMissing when there is none, SegmentCorrupt or ObjectDamaged; the pointer then stays.
        """
        if self.objects.local is not None:
            return rollback(self.objects.local, version)
        names, current, bad = [base.version for base in self.bases()], self.current(), self.rolled_back()
        version = rollback_target(names, current, bad, version, str(self.objects.address))
        self.verify(version)
        left = rolled_back_after(names, current, bad, version)
        self.objects.write(ROLLED_BACK, "".join(f"{name}\n" for name in left).encode())
        self.objects.write(CURRENT, f"{version}\n".encode())
        return version

    def rolled_back(self) -> frozenset[str]:
        """Return the versions that were rolled back from. Raises ObjectsError."""
        if self.objects.local is not None:
            return rolled_back(self.objects.local)
        try:
            return frozenset(self.objects.read(ROLLED_BACK).decode().split())
        except ObjectMissing:
            return frozenset()

    def verify(
        self, version: str | None = None, reached: Callable[[int, int], None] = lambda _done, _total: None
    ) -> Verified:
        """Read every file of a base (default: the one in service) again and recompute checksums and counts.

        `reached` is called with the bytes read and those there are, and may raise to end it.
        Raises ObjectDamaged naming all files that are not what the manifest says, SegmentMissing, SegmentCorrupt.
        """
        started = time.monotonic()
        wanted = version or self.current()
        if wanted is None:
            raise SegmentMissing(f"{self.objects.address} has no base index yet; build one")
        manifest = self.manifest(wanted)
        base = self.objects.below(wanted)
        there = base.names()
        damaged, total, done = [], sum(entry.bytes for entry in manifest.files.values()), 0

        def some(count: int) -> None:
            nonlocal done
            done += count
            reached(done, total)

        for name, entry in manifest.files.items():
            if name not in there:
                damaged.append((name, "is missing"))
            elif there[name] != entry.bytes:
                damaged.append((name, f"has {there[name]} bytes instead of {entry.bytes}"))
            elif _blake2b(base, name, some) != entry.blake2b:
                damaged.append((name, "checksum differs"))
        if damaged:
            what = "; ".join(f"{name}: {problem}" for name, problem in damaged)
            raise ObjectDamaged(f"{base.address}", f"{what}; roll back to another base, or build one")
        self._check_counts(base, manifest)
        size = sum(entry.bytes for entry in manifest.files.values())
        seconds = round(time.monotonic() - started, 3)
        return Verified(wanted, len(manifest.files), size, manifest.documents, max(1, len(manifest.shards)), seconds)

    def prune(self, keep: int) -> list[str]:
        """Remove all but the newest `keep` bases that nobody rolled back from, the one in service and the last that was
        rolled back from; return the versions removed."""
        if self.objects.local is not None:
            return prune_bases(self.objects.local, keep)
        removed = to_prune([base.version for base in self.bases()], self.current(), self.rolled_back(), keep)
        for name in removed:
            self.objects.delete(f"{name}/{MANIFEST}")  # first, so that nobody begins to copy it
            self.objects.remove(name)
        return removed

    def clean(self, spare: str = "") -> list[str]:
        """Remove what interrupted builds left, and return it; only for who holds the lock of building.

        `spare` is the version of a build that goes on. Nothing is touched whose name no build has given.
        """
        left = [name for name in self.objects.directories() if _is_building(name)]
        if self.objects.local is not None:
            sweep_bases(self.objects.local)
        else:
            left += [name for name in self._versions() if not self.objects.has(f"{name}/{MANIFEST}")]
        if spare:
            left = [name for name in left if name not in spared(spare)]
        for name in left:
            self.objects.remove(name)
        if uploads := self.objects.abort_uploads(of=lambda name: _of_bases(name.partition("/")[0])):
            left.append(f"{uploads} unfinished uploads")
        if left:
            structlog.get_logger().info("base_store.cleaned", address=str(self.objects.address), left=left)
        return left

    def _versions(self) -> list[str]:
        return [name for name in self.objects.directories() if is_version(name)]

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


def _is_building(name: str) -> bool:
    """Say whether a name is one that `building` or `spool_of` gives."""
    return name.startswith(BUILDING) and is_version(name.removeprefix(BUILDING).removesuffix("-spool"))


def _of_bases(name: str) -> bool:
    return is_version(name) or _is_building(name) or name == CURRENT


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
    if not address or BaseStore(Objects(address)).objects.local == home.base:
        file.unlink(missing_ok=True)
        return
    part = file.with_suffix(".part")
    part.write_text(f"{Objects(address).address}\n")
    part.replace(file)


class Kept(msgspec.Struct):
    """What retention in a home has to know of the bases that its builds publish."""

    keep: int = BASES_KEPT
    """Bases that stay in the home, as the last build that published there was asked."""
    floor: dict[int, int] | None = None
    """Where bases are elsewhere: the first delta per partition that one of them needs, when the last was published."""


def kept_by(home: Home) -> Kept:
    """Return what the builds of a home left for retention."""
    try:
        return msgspec.json.decode((home.root / _KEPT).read_bytes(), type=Kept)
    except FileNotFoundError:
        return Kept()


def remember_kept(home: Home, store: BaseStore, keep: int) -> None:
    """Tell retention what a build has published and what was asked to stay. Raises ObjectsError.

    Only of the address that the home's servers follow: bases elsewhere are none of theirs.
    """
    if store.objects.address != BaseStore.of(home).objects.address:
        return
    known = Kept(keep)
    if store.objects.local != home.base:
        known = Kept(kept_by(home).keep, _first_deltas([base.manifest for base in store.bases()]))
    part = home.root / f"{_KEPT}.part"
    part.write_bytes(msgspec.json.encode(known))
    part.replace(home.root / _KEPT)


def _first_deltas(manifests: Sequence[Manifest | None]) -> dict[int, int]:
    """Return the first delta per partition that one of some bases needs; of one that cannot be read, all."""
    partitions = {partition for manifest in manifests if manifest is not None for partition in manifest.delta_positions}
    known = [{} if manifest is None else manifest.delta_positions for manifest in manifests]
    return {partition: min(positions.get(partition, 0) for positions in known) for partition in partitions}


def _blake2b(objects: Objects, name: str, read: Callable[[int], None]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for chunk in objects.chunks(name):
        digest.update(chunk)
        read(len(chunk))
    return digest.hexdigest()
