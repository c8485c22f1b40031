"""Bases on a real S3 server: published by one step, kept, verified, rolled back, copied and served from a home."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from batch_workflows import base_mirror
from batch_workflows._exceptions import BaseRefused
from batch_workflows._objects_errors import BadAddress, ObjectDamaged, ObjectsUnavailable
from batch_workflows.base_gates import GateLimits
from batch_workflows.base_index import Hooks
from batch_workflows.base_mirror import MIRRORING, mirror
from batch_workflows.base_store import BaseStore, remember_address, remembered_address
from batch_workflows.engines import InlineEngine, LocalEngine
from batch_workflows.objects import Address, Objects
from compose import ServerInfo, Stack
from manas import MANIFEST, SegmentCorrupt, SegmentMissing, current_base
from messaging.home import Home
from messaging.metrics import StageMetrics
from messaging.stage import StageContext
from tests.argus.world import PIN
from tests.batch_workflows.base_support import Built, documents_of, files_of
from tests.batch_workflows.s3_support import account, new_bucket, s3
from tests.stack_support import up_or_skip

__all__ = ["account", "s3"]

ADS = 240


@pytest.fixture
def built(tmp_path: Path) -> Iterator[Built]:
    """A home with documents."""
    made = Built(tmp_path / "home")
    made.fill(ADS)
    yield made
    made.close()


@pytest.fixture
def server_home(tmp_path: Path) -> Home:
    """The home of a server elsewhere, that has no Repo."""
    return Home.open(tmp_path / "server")


def test_a_base_on_s3_is_the_base_that_a_directory_has(built: Built, s3: Address, server_home: Home) -> None:
    """Built by a pool whose processes bring their shards there; what a server copies is the same, byte for byte."""
    here = built.build(engine=InlineEngine(), shards=2, range_rows=100)
    pool = LocalEngine(2)
    there = built.build(engine=pool, address=str(s3), shards=2, range_rows=100)
    pool.close()
    store = BaseStore(Objects(s3))
    assert there.address == str(s3)
    assert [(b.version, b.current) for b in store.bases()] == [(there.base_version, True)]
    assert store.verify().documents == ADS
    assert current_base(built.home.base) == here.base_version, "the home's own base is another matter"
    assert mirror(store, server_home) == there.base_version
    assert mirror(store, server_home) is None
    assert files_of(server_home.base / there.base_version) == files_of(built.home.base / here.base_version)
    assert documents_of(server_home.base / there.base_version) == built.expected(ADS)


def test_nothing_is_visible_before_the_pointer_moves(built: Built, s3: Address) -> None:
    """While shards go up there is no base to list; a refused one, or one that its run stops, leaves no object."""
    store, seen = BaseStore(Objects(s3)), []

    def look() -> None:
        seen.append((store.current(), store.bases(), len(store.objects.names())))

    first = built.build(engine=InlineEngine(), address=str(s3), hooks=Hooks(check=look))
    assert [(current, bases) for current, bases, _ in seen] == [(None, [])] * len(seen)
    assert seen[-1][2] > 20, "the files were there already when the pointer was about to be moved"

    def stop() -> None:
        if len(store.objects.names()) > len(before):
            raise RuntimeError("told to stop")

    before = store.objects.names()
    with pytest.raises(RuntimeError):
        built.build(engine=InlineEngine(), address=str(s3), hooks=Hooks(check=stop))
    with pytest.raises(BaseRefused, match="documents, but base"):
        built.build(engine=InlineEngine(), address=str(s3), limits=GateLimits(max_growth=0.5))
    assert store.objects.names() == before
    assert store.current() == first.base_version


def test_what_a_killed_build_left_is_removed_by_the_next(built: Built, s3: Address) -> None:
    """Files without a manifest, the spool, and parts of an unfinished upload; bases and foreign objects stay."""
    first = built.build(engine=InlineEngine(), address=str(s3))
    objects, store = Objects(s3), BaseStore(Objects(s3))
    objects.write("20260101T000000.000000Z-1/shard-000/forward.body.blob", b"half")
    objects.write(".building-20260101T000000.000000Z-1-spool/000000-000", b"documents")
    bucket, _, prefix = s3.path.partition("/")
    objects._fs.call_s3("create_multipart_upload", Bucket=bucket, Key=f"{prefix}/20260101T000000.000000Z-1/x")
    foreign = Objects(f"s3://{bucket}/other?endpoint={s3.endpoint}")
    foreign.write("file", b"1")
    assert [b.version for b in store.bases()] == [first.base_version]
    second = built.build(engine=InlineEngine(), address=str(s3))
    assert objects.directories() == [first.base_version, second.base_version]
    assert objects._fs.list_multipart_uploads(bucket) == []
    assert foreign.names() == {"file": 1}


def test_a_build_touches_nothing_at_its_address_that_is_no_base(built: Built, s3: Address) -> None:
    """Snapshots, others' directories and others' unfinished uploads below the same prefix stay as they are."""
    objects = Objects(s3)
    foreign = ["_days/2026-01-31.json", "ad/day=2026-01-31/part-1-1-00000.parquet", "2024-backup/x", ".building-x/y"]
    for name in foreign:
        objects.write(name, b"theirs")
    bucket, _, prefix = s3.path.partition("/")
    objects._fs.call_s3("create_multipart_upload", Bucket=bucket, Key=f"{prefix}/ad/day=2026-02-01/part")
    for _ in range(2):
        built.build(engine=InlineEngine(), address=str(s3), keep=1)
    assert {name for name in objects.names() if objects.read(name) == b"theirs"} == {*foreign}
    assert len(objects._fs.list_multipart_uploads(bucket)) == 1
    assert len(BaseStore(objects).bases()) == 1


def test_a_whole_bucket_is_no_place_for_bases(built: Built, s3: Address, server_home: Home) -> None:
    """Refused with what to write instead, by a build and by base-address, before anything is looked at."""
    root = f"s3://{s3.path.partition('/')[0]}?endpoint={s3.endpoint}"
    with pytest.raises(BadAddress, match=r"prefix of their own, s3://b-\w+/bases"):
        built.build(engine=InlineEngine(), address=root)
    with pytest.raises(BadAddress):
        remember_address(server_home, root)
    assert remembered_address(server_home) == ""


def test_old_bases_go_and_rollback_takes_only_whole_ones(built: Built, s3: Address, server_home: Home) -> None:
    """The last two are kept; a damaged object is named by verify, and rolling back to it is refused."""
    versions = [built.build(engine=InlineEngine(), address=str(s3), keep=2).base_version for _ in range(3)]
    store = BaseStore(Objects(s3))
    assert [b.version for b in store.bases()] == versions[1:]
    assert store.objects.directories() == versions[1:]
    mirror(store, server_home)
    assert store.rollback() == versions[1] == store.current()
    assert store.rolled_back() == {versions[2]}
    with pytest.raises(SegmentMissing, match=f"{versions[2]} were rolled back from"):
        store.rollback()
    assert mirror(store, server_home) == versions[1] == current_base(server_home.base)
    assert mirror(store, server_home) is None
    assert store.rollback(versions[2]) == versions[2]
    assert mirror(store, server_home) == versions[2], "it has been copied before"
    name = f"{versions[1]}/shard-000/terms.blob"
    data = bytearray(store.objects.read(name))
    data[0] ^= 255
    store.objects.write(name, bytes(data))
    with pytest.raises(ObjectDamaged, match=r"shard-000/terms\.blob: checksum differs"):
        store.rollback()
    assert store.current() == versions[2]
    with pytest.raises(SegmentMissing, match="no base 'v0'"):
        store.rollback("v0")


def test_a_copy_goes_on_where_it_was_interrupted_and_is_verified(
    built: Built, s3: Address, server_home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Complete files are not fetched again; a file damaged on the way is found, and the next look fetches it anew."""
    version = built.build(engine=InlineEngine(), address=str(s3)).base_version
    store, real = BaseStore(Objects(s3)), Objects.get
    fetched: list[str] = []

    def get(self: Objects, name: str, file: Path, size: int = 0) -> None:
        if len(fetched) == 10:
            fetched.append("failed")
            raise ObjectsUnavailable("away")
        fetched.append(name)
        real(self, name, file, size)

    monkeypatch.setattr(Objects, "get", get)
    with pytest.raises(ObjectsUnavailable):
        mirror(store, server_home)
    assert current_base(server_home.base) is None
    copy = server_home.base / f"{MIRRORING}{version}"
    whole = copy / fetched[0]
    whole.write_bytes(bytes(len(whole.read_bytes())))
    del fetched[:]
    fetched.extend(["x"] * 11)
    with pytest.raises(SegmentCorrupt, match="checksum differs"):
        mirror(store, server_home)
    assert len(fetched) - 11 == len(store.manifest(version).files) - 10 + 1, "the ten were not fetched again"
    assert not copy.exists()
    assert mirror(store, server_home) == version
    assert documents_of(server_home.base / version) == built.expected(ADS)


def test_a_server_follows_the_address_and_survives_its_absence(
    own_stack: Stack, account: None, built: Built, server_home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stage copies each new base; with S3 killed it counts failures, and the home keeps the base that it has."""
    monkeypatch.setattr(base_mirror, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr("batch_workflows.objects.PATIENCE_SECONDS", 1.0)
    monkeypatch.setattr(Objects.__init__, "__kwdefaults__", {"patience_s": 5.0})
    server: ServerInfo = up_or_skip(own_stack, ["s3"])["s3"]
    address = new_bucket(server)
    remember_address(built.home, str(address))
    remember_address(server_home, str(address))
    assert remembered_address(server_home) == str(address)
    metrics = StageMetrics(server_home.metrics, "bases-0")
    ready = threading.Event()
    context = StageContext(
        "bases", 0, server_home, built.world.catalog, built.log, metrics, threading.Event(), lambda _port: ready.set()
    )
    stage = threading.Thread(target=base_mirror.run, args=(context,))
    stage.start()
    try:
        assert ready.wait(120)
        first = built.build(engine=InlineEngine())
        _until(lambda: current_base(server_home.base) == first.base_version)
        built.world.put("pin", "p1", **{**PIN, "title": "Another title"})
        second = built.build(engine=InlineEngine())
        _until(lambda: current_base(server_home.base) == second.base_version)
        own_stack.kill("s3")
        _until(lambda: metrics.counters["mirror_failures"] > 0)
    finally:
        context.stop.set()
        stage.join()
    assert documents_of(server_home.base / second.base_version) == built.expected(ADS)
    assert metrics.counters["bases_mirrored"] == 2


def test_the_address_of_a_home_can_be_forgotten(built: Built, tmp_path: Path) -> None:
    """A directory elsewhere is an address as well; "" is the home itself again."""
    remember_address(built.home, str(tmp_path / "share"))
    version = built.build().base_version
    assert (tmp_path / "share" / version / MANIFEST).exists()
    assert current_base(tmp_path / "share") == version
    assert mirror(BaseStore.of(built.home), built.home) == version == current_base(built.home.base)
    remember_address(built.home, "")
    assert BaseStore.of(built.home).objects.local == built.home.base


def _until(done: object) -> None:
    assert callable(done)
    deadline = threading.Event()
    for _ in range(3_000):
        if done():
            return
        deadline.wait(0.02)
    raise AssertionError("it did not come true within a minute")
