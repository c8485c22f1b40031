"""Committed changes become notifications: the right columns, once each, with the timeline of their cause."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from catalog import Catalog, LaneName, load_catalog
from messaging import Log, Position, open_embedded_log
from messaging.headers import leave, new_header
from messaging.home import Home
from messaging.metrics import StageMetrics
from messaging.proto import adsindex_pb2 as pb
from messaging.stage import StageContext
from messaging.topics import LANE_OF, NOTIFICATIONS, REPO_FEED, WAL_PROXY_GROUP, ensure_topics
from storage_repo import CommittedChange, Origin, Repo, RepoSchema, RowChange, StoreUnavailable, wal_proxy
from storage_repo.embedded import EmbeddedRepo

ROOT = Path(__file__).resolve().parents[2]
WATCHED = {"ad": frozenset({"control:status", "control:name"}), "pin": frozenset({"content:title"})}
CATALOG = load_catalog()


def header(lane: LaneName = LaneName.HIGH) -> pb.Header:
    """Make the header of an update that the Gateway has sent on."""
    return leave(new_header(lane, 1_000, "trace-1"), "gateway", 2_000, 3_000)


def origin(lane: LaneName = LaneName.HIGH, hops: bytes | None = None) -> Origin:
    """Make the origin of a commit by the Updater."""
    sent_on = leave(header(lane), "updater", 4_000, 5_000)
    return Origin("updater", "ads_db", "v1", "trace-1", sent_on.lane, 1_000, hops or sent_on.SerializeToString())


def change(*rows: RowChange, by: Origin | None = None) -> CommittedChange:
    """Make a committed change at time 6,000 with timestamp 9."""
    return CommittedChange(9, 6_000, by or origin(), rows)


def notified(*changes: CommittedChange) -> list[pb.Notification]:
    """Run the core on changes, entered at 7,000."""
    return wal_proxy.ChangeNotifier(CATALOG, WATCHED).notifications(changes, 7_000)


def test_only_watched_columns_are_named() -> None:
    """A row without watched columns gives nothing; of the others only the watched columns are named."""
    found = notified(
        change(
            RowChange("ad", "1", ("control:status", "control:pin_id", "meta:source_version")),
            RowChange("ad", "2", ("control:pin_id",)),
            RowChange("ad_by_pin", "p\x1f1", ("meta:ref",)),
            RowChange("image", "i", ("content:url",)),
            RowChange("pin", "p", ("content:title",)),
        )
    )
    assert [(n.table, n.row, list(n.columns)) for n in found] == [("ad", "1", ["status"]), ("pin", "p", ["title"])]
    assert {(n.commit_ts, n.writer) for n in found} == {(9, "updater/ads_db")}


def test_every_transaction_gives_its_own_notification_of_a_row() -> None:
    """One row changed by two transactions is notified twice: each is a hint with its own cause."""
    row = RowChange("ad", "1", ("control:status", "control:name"))
    assert len(notified(change(row), change(row))) == 2


def test_the_timeline_goes_on() -> None:
    """Trace, origin and hops are those of the cause; the writer left at the commit, and the proxy adds its hop."""
    found = notified(change(RowChange("ad", "1", ("control:status",))))[0].header
    assert (found.trace_id, found.origin_us, found.lane) == ("trace-1", 1_000, pb.LANE_HIGH)
    assert [(h.stage, h.entered_us, h.left_us) for h in found.hops[:2]] == [
        ("gateway", 2_000, 3_000),
        ("updater", 4_000, 6_000),
    ]
    assert found.hops[2].stage == "wal_proxy"
    assert found.hops[2].entered_us == 7_000
    assert len(found.hops) == 3


@pytest.mark.parametrize("lane", list(LaneName))
def test_the_lane_is_that_of_the_cause(lane: LaneName) -> None:
    """Whatever the update's lane was, its notification is in the same."""
    found = notified(change(RowChange("ad", "1", ("control:status",)), by=origin(lane)))
    assert LANE_OF[found[0].header.lane] is lane


@pytest.mark.parametrize("hops", [b"", b"\xff\xff\xff"])
def test_a_writer_without_a_usable_header_is_notified_all_the_same(hops: bytes) -> None:
    """Missing or spoilt hops cost the timeline, never the notification; no lane is the lowest."""
    row = RowChange("ad", "1", ("control:status",))
    found = notified(change(row, by=Origin("sync", trace_id="t", origin_us=50, hops=hops)))[0]
    assert (found.header.trace_id, found.header.origin_us, found.writer) == ("t", 50, "sync")
    assert found.header.lane == pb.LANE_LOW
    assert [h.stage for h in found.header.hops] == ["wal_proxy"]
    assert notified(change(row, by=Origin("sync", hops=hops)))[0].header.origin_us == 6_000


def open_repo(home: Home, catalog: Catalog) -> Repo:
    """Open the home's store."""
    return EmbeddedRepo.open(home.store, RepoSchema.of(catalog.repo_tables()), wake_dir=home.wake)


def context(home: Home, log: Log, catalog: Catalog, ready: Callable[[int], None]) -> StageContext:
    """Return what the stage is given."""
    metrics = StageMetrics(home.metrics, "wal_proxy-0")
    return StageContext("wal_proxy", 0, home, catalog, log, metrics, threading.Event(), ready)


class Proxy:
    """The stage in a thread."""

    def __init__(self, home: Home, log: Log, repo: Repo) -> None:
        self._ready = threading.Event()
        self._context = context(home, log, CATALOG, lambda port: self._ready.set())
        self._thread = threading.Thread(target=wal_proxy.run, args=(self._context, repo, WATCHED))

    def __enter__(self) -> None:
        self._thread.start()
        assert self._ready.wait(120)

    def __exit__(self, *exc: object) -> None:
        self._context.stop.set()
        self._thread.join(120)
        assert not self._thread.is_alive()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """An empty home."""
    return Home.open(tmp_path)


@pytest.fixture
def log(home: Home) -> Iterator[Log]:
    """The home's log with all topics."""
    log = open_embedded_log(home.log, home.wake)
    ensure_topics(log)
    yield log
    log.close()


@pytest.fixture
def store(home: Home) -> Iterator[Repo]:
    """The home's store."""
    repo = open_repo(home, CATALOG)
    yield repo
    repo.close()


def write(repo: Repo, rng: random.Random, count: int) -> None:
    """Commit random changes of watched and unwatched cells of a few rows, in any lane."""
    for _ in range(count):
        transaction = repo.begin(origin(rng.choice(list(LaneName))))
        for row in rng.sample(range(20), rng.randint(1, 3)):
            for column in rng.sample(["control:status", "control:name", "control:pin_id"], rng.randint(1, 3)):
                if rng.random() < 0.2:
                    transaction.delete("ad", str(row), column)
                else:
                    transaction.put("ad", str(row), column, rng.randbytes(4))
        transaction.put("image", str(rng.randrange(5)), "content:url", b"x")
        transaction.commit()


def wait_until_notified(log: Log, upto: int) -> None:
    """Wait until the feed's stored position has reached a commit, 30 s at most."""
    tick = threading.Event()
    for _ in range(3_000):
        if log.committed(WAL_PROXY_GROUP, REPO_FEED)[0] >= upto:
            return
        tick.wait(0.01)
    raise AssertionError(f"notified up to {log.committed(WAL_PROXY_GROUP, REPO_FEED)} after 30 s, not {upto}")


def in_log(log: Log) -> Counter[tuple[int, str, str, int]]:
    """Count (commit_ts, row, column, lane) over all notification topics."""
    found: Counter[tuple[int, str, str, int]] = Counter()
    for lane, topic in NOTIFICATIONS.items():
        for partition in range(log.topics()[topic]):
            for record in log.read(topic, partition, 0, 100_000):
                message = pb.Notification.FromString(record.value)
                assert LANE_OF[message.header.lane] is lane
                assert record.key == f"{message.table}/{message.row}"
                found.update(
                    (message.commit_ts, message.row, column, message.header.lane) for column in message.columns
                )
    return found


def recounted(repo: Repo) -> Counter[tuple[int, str, str, int]]:
    """Count the same from the history of every cell: exactly what was committed."""
    return Counter(
        (version.commit_ts, str(row), column.split(":")[1], version.origin.lane)
        for row in range(20)
        for column, versions in repo.history("ad", str(row)).items()
        if column in WATCHED["ad"]
        for version in versions
        if version.origin is not None
    )


def test_notifications_are_exactly_the_committed_changes(home: Home, log: Log, store: Repo) -> None:
    """While others commit and some abort, every committed watched cell is notified once, and nothing else."""
    rng = random.Random(7)
    with Proxy(home, log, store):
        write(store, rng, 40)
        aborted = store.begin(origin())
        aborted.put("ad", "1", "control:status", b"never")
        aborted.abort()
        write(store, rng, 40)
        wait_until_notified(log, store.last_commit_ts())
    assert in_log(log) == recounted(store)


def test_the_proxy_goes_on_where_it_was_stopped(home: Home, log: Log, store: Repo) -> None:
    """What was committed while it was stopped is notified later; nothing is notified twice."""
    rng = random.Random(8)
    for _ in range(3):
        with Proxy(home, log, store):
            write(store, rng, 10)
        write(store, rng, 10)
    with Proxy(home, log, store):
        wait_until_notified(log, store.last_commit_ts())
    assert in_log(log) == recounted(store)


def test_a_log_that_is_ahead_of_its_store_is_refused(home: Home, log: Log, store: Repo) -> None:
    """A store that was replaced by an older one is an error at start, never a silent gap."""
    log.publish([], [Position(WAL_PROXY_GROUP, REPO_FEED, 0, 100)])
    with pytest.raises(StoreUnavailable, match="up to commit 100, but the Repo's newest is 0"):
        wal_proxy.run(context(home, log, CATALOG, lambda port: None), store, WATCHED)


def test_a_restored_store_is_refused_after_it_has_grown_past_the_position(home: Home, log: Log, store: Repo) -> None:
    """Other commits under the same numbers, more than were notified: an error that names the way out."""
    write(store, random.Random(1), 5)
    store.close()
    shutil.copytree(home.store, home.root / "backup")
    with closing(open_repo(home, CATALOG)) as newer, Proxy(home, log, newer):
        write(newer, random.Random(2), 10)
        wait_until_notified(log, newer.last_commit_ts())
    shutil.rmtree(home.store)
    shutil.copytree(home.root / "backup", home.store)
    with closing(open_repo(home, CATALOG)) as restored:
        with pytest.raises(StoreUnavailable, match="up to commit 15, but the Repo's newest is 5"):
            wal_proxy.check_feed(log, restored)
        write(restored, random.Random(3), 20)
        with pytest.raises(StoreUnavailable, match=r"commit 15 is not the one .* repair-after-restore"):
            wal_proxy.run(context(home, log, CATALOG, lambda port: None), restored, WATCHED)
        assert wal_proxy.accept_store(log, restored) == 25
        before = in_log(log)
        with Proxy(home, log, restored):
            write(restored, random.Random(4), 5)
            wait_until_notified(log, 30)
        assert {commit for commit, *_ in in_log(log) - before} <= set(range(26, 31))


def test_a_mark_whose_position_was_lost_repeats_and_misses_nothing(home: Home, log: Log, store: Repo) -> None:
    """A log that stores positions after records may lose the last one: notifications repeat, nothing is refused."""
    with Proxy(home, log, store):
        write(store, random.Random(1), 5)
        wait_until_notified(log, 5)
    log.set_committed([Position(WAL_PROXY_GROUP, REPO_FEED, 0, 3)])
    assert wal_proxy.check_feed(log, store) == 3
    with Proxy(home, log, store):
        write(store, random.Random(2), 2)
        wait_until_notified(log, 7)
    assert wal_proxy.check_feed(log, store) == 7
    assert set(in_log(log)) == set(recounted(store))


def test_another_store_is_refused(home: Home, log: Log, store: Repo) -> None:
    """A store that was made anew has another id, however many commits it has."""
    with Proxy(home, log, store):
        write(store, random.Random(1), 3)
        wait_until_notified(log, 3)
    identity = store.store_id()
    store.close()
    shutil.rmtree(home.store)
    with closing(open_repo(home, CATALOG)) as other:
        write(other, random.Random(1), 3)
        assert other.store_id() != identity
        with pytest.raises(StoreUnavailable, match=f"belongs to store {identity}"):
            wal_proxy.check_feed(log, other)


def test_an_older_log_is_refused_when_the_store_has_forgotten_the_changes(home: Home, log: Log, store: Repo) -> None:
    """A position whose change record is gone may hide a gap."""
    with Proxy(home, log, store):
        write(store, random.Random(1), 3)
        wait_until_notified(log, 3)
    write(store, random.Random(1), 3)
    assert wal_proxy.check_feed(log, store) == 3
    store.trim_changes(5)
    with pytest.raises(StoreUnavailable, match="commit 3 is not the one"):
        wal_proxy.check_feed(log, store)


def test_a_store_can_leave_numbers_out(store: Repo) -> None:
    """After `advance` every commit is newer than asked for; what was there stays readable, and time never goes back."""
    write(store, random.Random(1), 3)
    before = store.snapshot().get("image", "1")
    store.advance(1_000)
    store.advance(10)
    assert store.last_commit_ts() == 1_000
    assert store.snapshot().get("image", "1") == before
    write(store, random.Random(1), 1)
    assert [c.commit_ts for c in store.changes(0, 10)] == [1, 2, 3, 1_001]
    store.collect_garbage()
    write(store, random.Random(1), 1)
    assert store.last_commit_ts() == 1_002


@pytest.mark.stress
def test_a_killed_proxy_leaves_neither_gap_nor_repetition(home: Home, log: Log, store: Repo) -> None:
    """Killed again and again amid a stream of commits, it still notifies each change exactly once."""
    rng = random.Random(9)
    script = "import sys; sys.path.insert(0, sys.argv[2]); import test_wal_proxy; test_wal_proxy.main(sys.argv[1])"
    kills = 0
    for _ in range(4):
        worker = subprocess.Popen(
            [sys.executable, "-c", script, str(home.root), str(Path(__file__).parent)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"ready\n"
        write(store, rng, rng.randint(5, 40))
        worker.kill()
        kills += worker.wait(30) == -9
        worker.stdout.close()
        write(store, rng, 5)
    with Proxy(home, log, store):
        wait_until_notified(log, store.last_commit_ts())
    assert kills == 4
    assert in_log(log) == recounted(store)


def main(root: str) -> None:
    """Run the stage on a home until somebody kills this process."""
    home = Home.open(Path(root))
    log = open_embedded_log(home.log, home.wake)
    stage = context(home, log, CATALOG, lambda port: print("ready", flush=True))
    wal_proxy.run(stage, open_repo(home, CATALOG), WATCHED)
