"""Deltas become folded segments: memory stays bounded, a start goes on from them, and damage is named."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from catalog import LaneName
from manas import Index, IndexIncomplete, NotServing, Outcome, open_local_index, publish, rollback
from manas import _folder as folder_module
from manas._base import Base
from manas._fold import FoldOrder, fold, write_rows
from manas._folder import FOLDS, FoldLimits
from manas._follower import Follower
from manas._loading import BATCH, fold_files
from manas._serving_settings import ServingSettings
from manas._verify import Verifier
from manas._view import View
from manas.index import PreparedDelta
from messaging.api import Log
from messaging.embedded import open_embedded_log
from messaging.headers import new_header, now_us
from messaging.home import Home
from messaging.metrics import StageMetrics
from messaging.topics import DELTAS, ensure_topics
from tests.manas.support import (
    CATALOG,
    VALUES,
    budget,
    delta,
    document,
    ids,
    log_records,
    tombstone,
    until,
    write_segment,
)

BROWSE = dict.fromkeys(VALUES, "*")
LIMITS = FoldLimits(documents=20, most_documents=1_040)


class Process:
    """Folds in this process when it is told to."""

    hold = False

    def __init__(self, order: FoldOrder, words: Path) -> None:
        self._order = order
        self._done = False

    def poll(self) -> int | None:
        """Fold unless held."""
        if not Process.hold and not self._done:
            fold(self._order)
            self._done = True
        return 0 if self._done else None

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Do not wait."""
        return self.poll()

    def kill(self) -> None:
        """Do nothing."""


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> type[Process]:
    """Fold in this process."""
    monkeypatch.setattr(folder_module, "start_process", Process)
    monkeypatch.setattr("manas._loading._CHECK_BASE_SECONDS", 0.0)
    Process.hold = False
    return Process


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """Return an empty home."""
    return Home.open(tmp_path / "home")


@pytest.fixture
def log(home: Home) -> Iterator[Log]:
    """Return the home's log with all topics."""
    log = open_embedded_log(home.log, home.wake)
    ensure_topics(log)
    yield log
    log.close()


@pytest.fixture
def follow(home: Home, log: Log) -> Iterator[Callable[..., Follower]]:
    """Return a function that starts a follower of a new index; all are closed at the end."""
    followers: list[Follower] = []

    def starter(limits: FoldLimits = LIMITS, **settings: Any) -> Follower:
        index = Index(CATALOG)
        metrics = StageMetrics(home.metrics, "manas")
        follower = Follower(home.base, log, index, metrics, settings=ServingSettings(fold=limits, **settings))
        followers.append(follower)
        follower.start()
        return follower

    yield starter
    for follower in followers:
        follower.close()


def _fill(log: Log, count: int, *, version: int = 5, first: int = 1) -> None:
    messages = [delta(document(i, terms=[f"w{i % 7}"]), version) for i in range(first, first + count)]
    log.publish(log_records(budget(1), *messages))


def _settle(follower: Follower) -> Index:
    follower.catch_up()
    view = follower._index.view
    assert follower._folder is not None
    while view.frozen is not None or len(view.delta.entries) >= follower._folder.limits.documents:
        follower.step()
        follower._folder.wait(0.05)
    return follower._index


def _flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def _set_file(home: Home, version: str = "none") -> Path:
    return home.base / FOLDS / "0" / version / "SET"


def test_bytes_are_bounded_as_well_as_documents(
    log: Log, follow: Callable[..., Follower], inline: type[Process]
) -> None:
    """Few large documents are folded for their bytes, and nothing is read beyond the bytes that are declared."""
    limits = FoldLimits(documents=10_000, most_documents=40_000, bytes=4_000_000, most_bytes=9_000_000)
    log.publish(log_records(budget(1)))
    large = "x" * 10_000
    for first in range(0, 3_000, 500):
        log.publish(log_records(*(delta(document(i, title=large), 5) for i in range(first + 1, first + 501))))
    follower = follow(limits)
    index, inline.hold = follower._index, True
    most = 0
    for _ in range(100):
        follower.step()
        deltas = [delta for delta in (index.view.delta, index.view.frozen) if delta is not None]
        most = max(most, sum(delta.bytes for delta in deltas))
    batch = BATCH * 11_000
    assert limits.most_bytes < most <= limits.most_bytes + batch
    assert follower.describe()["folding"]["running"]
    inline.hold = False
    _settle(follower)
    while index.view.delta.bytes >= limits.bytes or index.view.frozen is not None:
        follower.step()
    assert index.search(BROWSE, 0)["total"] == 3_000


def test_a_new_base_is_caught_up_within_the_limit(
    home: Home,
    log: Log,
    follow: Callable[..., Follower],
    inline: type[Process],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the log has since a base that is loaded aside is folded on the way, too, and never all in memory."""
    limits = FoldLimits(documents=20, most_documents=100)
    _fill(log, 900)
    follower = follow(limits)
    index = _settle(follower)
    applied, sizes = index.apply, []

    def watched(deltas: Iterable[PreparedDelta], view: View | None = None, **options: Any) -> list[Outcome]:
        outcomes = applied(deltas, view, **options)
        if view is not None:
            sizes.append(len(view.delta.entries))
        return outcomes

    monkeypatch.setattr(index, "apply", watched)
    version = publish(home.base, write_segment(tmp_path, [], snapshot_ts=1))
    while index.base_version != version:
        follower.step()
        follower.wait(0.01)
    assert 20 <= max(sizes) <= limits.most_documents
    assert index.search(BROWSE, 0)["total"] == 900


def test_no_more_than_declared_is_in_memory_while_a_folding_takes_long(
    log: Log, follow: Callable[..., Follower], inline: type[Process]
) -> None:
    """However many deltas come, both deltas together stay below the limit; all is answered after the folding."""
    _fill(log, 3_000)
    follower = follow()
    index, inline.hold = follower._index, True
    most = 0
    for _ in range(400):
        follower.step()
        frozen = index.view.frozen
        most = max(most, len(index.view.delta.entries) + (len(frozen.entries) if frozen else 0))
    assert LIMITS.documents < most <= LIMITS.most_documents
    held = index.search(BROWSE, 0)["total"]
    assert held <= LIMITS.most_documents
    inline.hold = False
    frozen = index.view.frozen
    assert frozen is not None
    _settle(follower)
    while follower._folder is not None and follower._folder._spent is not None:
        follower.step()
    assert (frozen._documents, frozen.entries) == ([], {}), "what was folded is freed, a portion at a time"
    assert index.search(BROWSE, 0)["total"] == 3_000
    assert len(index.view.delta.entries) < LIMITS.documents
    assert index.search({**BROWSE, "text": "w3"}, 0)["total"] == len(range(3, 3_001, 7))


def test_start_goes_on_from_the_folded_segments_and_not_from_the_base(
    home: Home, log: Log, follow: Callable[..., Follower], inline: type[Process]
) -> None:
    """What is folded is not read again: the log may forget it, and documents keep trace and time of their delta."""
    message = delta(document(7, bid_account_micros=9_000_000), 9)
    message.header.CopyFrom(new_header(LaneName.HIGH, now_us(), "abc"))
    _fill(log, 100)
    log.publish(log_records(message, tombstone(8, 9), tombstone(555, 9)))
    index = _settle(first := follow())
    [before] = index.get(["7"])
    reach = first._index.view.folds[-1].segment.manifest.delta_positions
    folded = sum(reach.values())
    assert folded >= 100
    first.close()
    for partition, offset in reach.items():
        log.trim(DELTAS, partition, offset)
    second = follow()
    assert second._positions[DELTAS] == reach
    _settle(second)
    assert sum(second._index.stats()["outcomes"].values()) == 103 - folded
    again = second._index
    assert again.search(BROWSE, 0) == index.search(BROWSE, 0)
    [after] = again.get(["7"])
    assert (after.trace_id, after.body, after.layer) == ("abc", before.body, "delta")
    assert after.answerable_us == before.answerable_us > 0
    assert [d.deleted for d in again.get(["8", "555"])] == [True, True]
    assert open_local_index(home, CATALOG, log).search(BROWSE, 0) == index.search(BROWSE, 0)


def test_folded_changes_hide_the_base_after_a_restart(
    home: Home, log: Log, tmp_path: Path, follow: Callable[..., Follower], inline: type[Process]
) -> None:
    """What folded segments replace or delete in the base, and in each other, stays hidden for the next server."""
    _fill(log, 60)
    _based(home, log, tmp_path, 60, 5)
    first = follow()
    for version, changed in ((6, range(1, 41)), (7, range(31, 54))):
        messages = [delta(document(i, terms=[f"v{version}"]), version) for i in changed]
        log.publish(log_records(*messages, tombstone(changed[0], version + 10), tombstone(60, 20)))
        _settle(first)
    index = first._index
    assert len(index.view.folds) == 2
    first.close()
    second = follow()
    assert len(second._index.view.folds) == 2
    for asked in (first, second):
        index = _settle(asked)
        assert index.search(BROWSE, 0)["total"] == 57
        assert sorted(ids(index.search({**BROWSE, "text": "v6"}, 0))) == list(range(2, 31))
        assert sorted(ids(index.search({**BROWSE, "text": "v7"}, 0))) == list(range(32, 54))
        assert index.documents() == 57


def test_changes_that_arrive_during_a_folding_win_over_it(
    log: Log, follow: Callable[..., Follower], inline: type[Process]
) -> None:
    """A document replaced or deleted while its older version is being folded is found once, before and after."""
    _fill(log, 30)
    follower = follow()
    inline.hold = True
    follower.catch_up()
    index = follower._index
    assert index.view.frozen is not None
    changed = [delta(document(i, terms=["late"]), 9) for i in range(1, 6)]
    log.publish(log_records(*changed, *(tombstone(i, 9) for i in range(6, 11))))
    for release in (False, True):
        inline.hold = not release
        follower.catch_up()
        while release and index.view.frozen is not None:
            follower.step()
        assert index.search(BROWSE, 0)["total"] == 25
        assert sorted(ids(index.search({**BROWSE, "text": "late"}, 0))) == [1, 2, 3, 4, 5]
        assert sorted(ids(index.search({**BROWSE, "text": "w1"}, 0))) == [15, 22, 29]
    assert len(index.view.folds) == 1
    assert len(index.view.delta.entries) == 10


def test_old_versions_lose_against_folded_ones(
    log: Log, follow: Callable[..., Follower], inline: type[Process]
) -> None:
    """Stale, repeated and newer deltas are told apart whatever layer holds the known version."""
    _fill(log, 25)
    index = _settle(follow())
    assert len(index.view.folds) == 1
    sent = [delta(document(3), 4), delta(document(3), 5), tombstone(4, 5), tombstone(4, 6), delta(document(4), 6)]
    outcomes = index.apply_documents([*sent, delta(document(4, terms=["late"]), 7)])
    assert outcomes == ["stale", "duplicate", "duplicate", "applied", "duplicate", "applied"]
    assert index.search(BROWSE, 0)["total"] == 25
    assert ids(index.search({**BROWSE, "text": "late"}, 0)) == [4]


def test_folded_segments_are_few(home: Home, log: Log, follow: Callable[..., Follower], inline: type[Process]) -> None:
    """A document is written again about log2(all / one delta) times, and there are no more segments than that."""
    follower = follow(FoldLimits(documents=10, most_documents=2_000))
    for start in range(1, 321, 10):
        _fill(log, 10, first=start)
        _settle(follower)
    sizes = [len(f) for f in follower._index.view.folds]
    assert follower._folder is not None
    assert follower._folder.folded == 32
    assert sum(sizes) == 320
    assert len(sizes) <= 6
    assert all(older > younger for older, younger in pairwise(sizes))
    directory = _set_file(home).parent
    assert len([p for p in directory.iterdir() if p.is_dir()]) == len(sizes)


def test_failed_folding_is_said_and_tried_again(
    log: Log, follow: Callable[..., Follower], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that dies costs nothing but time: answers go on, stats say what it said, and the next one succeeds."""
    real = folder_module.start_process

    def broken(order: FoldOrder, words: Path) -> Any:
        order.input.write_bytes(b"\x05\x00\x00\x00junk!")
        return real(order, words)

    monkeypatch.setattr(folder_module, "start_process", broken)
    _fill(log, 30)
    follower = follow()
    follower.catch_up()
    assert follower._folder is not None
    while not follower.describe()["folding"]["problem"]:
        follower.step()
        follower._folder.wait(0.05)
    assert "Expected `array`" in follower.describe()["folding"]["problem"]
    assert follower._index.search(BROWSE, 0)["total"] == 30
    monkeypatch.setattr(folder_module, "start_process", real)
    monkeypatch.setattr(folder_module, "_RETRY_SECONDS", 0.0)
    follower._folder._retry_at = 0.0
    index = _settle(follower)
    assert follower.describe()["folding"]["problem"] == ""
    assert [len(f) for f in index.view.folds] == [30]
    assert index.search(BROWSE, 0)["total"] == 30


def test_failed_folding_leaves_nothing_behind(
    home: Home, log: Log, follow: Callable[..., Follower], inline: type[Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a process dies late or rows do not fit on the disk, again and again: only what is in use stays there."""
    real_rows, real_start = write_rows, folder_module.start_process
    _fill(log, 30)
    follower = follow()
    _settle(follower)
    used = {path for path in (home.base / FOLDS).rglob("*") if ".removed" not in str(path)}
    monkeypatch.setattr(folder_module, "_RETRY_SECONDS", 0.0)
    folder = follower._folder
    assert folder is not None

    def late(order: FoldOrder, words: Path) -> Any:
        fold(order)  # all is written, and then it dies
        words.write_text("killed at the end")
        return subprocess.Popen(["false"])

    def full(handle: Any, rows: list[Any]) -> None:
        real_rows(handle, rows)  # what the buffer still has cannot be written either when it is closed
        os.close(handle.fileno())
        raise OSError(errno.ENOSPC, "No space left on device")

    _fill(log, 40, first=100)
    for name, failing in (("start_process", late), ("write_rows", full)):
        monkeypatch.setattr(folder_module, name, failing)
        for _ in range(3):
            folder.problem = ""
            while not folder.problem:
                follower.step()
                folder.wait(0.05)
            assert set((home.base / FOLDS).rglob("*")) == used, folder.problem
    assert "No space left on device" in folder.problem
    monkeypatch.setattr(folder_module, "write_rows", real_rows)
    monkeypatch.setattr(folder_module, "start_process", real_start)
    assert _settle(follower).search(BROWSE, 0)["total"] == 70
    assert folder.problem == ""


def test_failing_foldings_are_tried_ever_more_seldom(
    log: Log, follow: Callable[..., Follower], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five seconds, ten, twenty, up to a minute: what fails for good does not keep the disk busy."""

    def broken(order: FoldOrder, words: Path) -> Any:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(folder_module, "start_process", broken)
    _fill(log, 30)
    follower = follow()
    folder, now = follower._folder, [1_000.0]
    assert folder is not None
    monkeypatch.setattr("manas._folder.time.monotonic", lambda: now[0])
    waits = list[float]()
    while len(waits) < 6:
        follower.step()
        if folder._retry_at > now[0]:
            waits.append(folder._retry_at - now[0])
            now[0] = folder._retry_at
    assert waits == [5.0, 10.0, 20.0, 40.0, 60.0, 60.0]


@pytest.mark.parametrize("damage", ["cut", "gone", "other log", "set"])
def test_folded_segments_that_cannot_be_used_are_named_and_the_log_is_read(
    home: Home, log: Log, follow: Callable[..., Follower], inline: type[Process], damage: str
) -> None:
    """A truncated or missing file, or a log that ends before: named at the start, which then reads from the base on."""
    _fill(log, 60)
    first = follow()
    _settle(first)
    [folded] = [f.directory for f in first._index.view.folds][:1]
    first.close()
    match damage:
        case "cut":
            named = "entries.versions"
            (folded / named).write_bytes((folded / named).read_bytes()[:-1])
        case "gone":
            named = "manifest.json"
            (folded / "segment" / named).unlink()
        case "set":
            named = "SET"
            _flip(_set_file(home))
        case _:
            named = "it is another log"
            manifest = folded.parent / "SET"
            assert manifest.is_file()
            log.close()
            for file in sorted(home.log.rglob("*"), reverse=True):
                file.unlink() if file.is_file() else file.rmdir()
            again = open_embedded_log(home.log, home.wake)
            ensure_topics(again)
            _fill(again, 10)
            index = Index(CATALOG)
            other = Follower(home.base, again, index, settings=ServingSettings(fold=LIMITS))
            other.start()
            assert named in other._loader.problem
            _settle(other)
            assert index.search(BROWSE, 0)["total"] == 10
            other.close()
            again.close()
            return
    second = follow()
    assert named in second._loader.problem
    index = _settle(second)
    assert index.search(BROWSE, 0)["total"] == 60
    assert second.describe()["problem"] == second._loader.problem
    second.close()
    third = follow()
    assert third._loader.problem == ""
    reach = _settle(third).view.folds[-1].segment.manifest.delta_positions
    third.close()
    for partition, offset in reach.items():
        log.trim(DELTAS, partition, offset)
    _set_file(home).unlink()
    with pytest.raises(IndexIncomplete, match="build a newer base"):
        follow()


def _based(home: Home, log: Log, tmp_path: Path, count: int, snapshot_ts: int) -> str:
    docs = [document(i) for i in range(1, count + 1)]
    return publish(home.base, write_segment(tmp_path, docs, snapshot_ts=snapshot_ts, positions=log.end_offsets(DELTAS)))


def _verified(follower: Follower) -> None:
    follower._loader.verifier.wait()


def test_flipped_byte_is_found_after_the_start_and_the_base_refused_by_name(
    home: Home, log: Log, tmp_path: Path, follow: Callable[..., Follower], inline: type[Process]
) -> None:
    """Checksums are compared while serving; a damaged base is served no longer, and nothing else in its place."""
    _fill(log, 10)
    first = _based(home, log, tmp_path, 10, 5)
    second = _based(home, log, tmp_path, 10, 6)
    file = home.base / second / "versions"
    whole = file.read_bytes()
    _flip(file)
    follower = follow()
    follower.catch_up()
    index = follower._index
    _verified(follower)
    for _ in range(3):
        follower.step()
    with pytest.raises(NotServing, match=r"versions: checksum differs"):
        index.search(BROWSE)
    assert "versions" in follower.describe()["problem"]
    assert follower._metrics is not None
    assert follower._metrics.counters["base_refused"] == 1
    assert index.get(["3"])[0].found
    _fill(log, 1, version=9, first=11)
    file.write_bytes(whole)
    rollback(home.base, second)
    until(follower, lambda: not index.refusal)
    assert (index.base_version, index.search(BROWSE, 0)["total"], follower._loader.problem) == (second, 11, "")
    assert first < second


def test_flipped_byte_with_fallback_declared_puts_the_base_before_in_service(
    home: Home, log: Log, tmp_path: Path, follow: Callable[..., Follower], inline: type[Process]
) -> None:
    """Where the settings say so, the newest whole base takes over with its deltas, and the damage is still said."""
    _fill(log, 10)
    first = _based(home, log, tmp_path, 10, 5)
    _fill(log, 1, version=6, first=11)
    second = _based(home, log, tmp_path, 11, 6)
    _flip(home.base / second / "versions")
    follower = follow(base_fallback=True)
    follower.catch_up()
    assert follower._index.base_version == second
    _verified(follower)
    until(follower, lambda: follower._index.base_version == first)
    assert follower._index.search(BROWSE, 0)["total"] == 11
    assert f"base {second} is refused" in follower.describe()["problem"]
    assert "versions: checksum differs" in follower.describe()["problem"]


def test_flipped_byte_in_a_folded_segment_has_the_log_read_again(
    home: Home, log: Log, follow: Callable[..., Follower], inline: type[Process]
) -> None:
    """Folded segments can be made anew: answers are refused only until the log is read, and the file is named."""
    _fill(log, 60)
    first = follow()
    [*_, folded] = _settle(first).view.folds
    first.close()
    _flip(folded.directory / "segment" / "versions")
    follower = follow()
    follower.catch_up()
    _verified(follower)
    seen: list[str] = []

    def recovered() -> bool:
        seen.append(follower._index.refusal)
        return any(seen) and not follower._index.refusal

    until(follower, recovered)
    assert any("versions: checksum differs" in words for words in seen)
    assert _settle(follower).search(BROWSE, 0)["total"] == 60
    _verified(follower)
    assert follower._loader.verifier.state() == "verified"
    follower.step()
    assert not follower._index.refusal


def test_a_base_of_another_log_is_refused_and_one_of_this_log_is_taken(
    home: Home, log: Log, tmp_path: Path, follow: Callable[..., Follower], inline: type[Process]
) -> None:
    """Where a base reaches beyond the log's end, what the log has would be passed over: said, and nothing is served."""
    _fill(log, 10)
    publish(home.base, write_segment(tmp_path, [document(1)], snapshot_ts=100, positions={0: 1_000}))
    with pytest.raises(
        IndexIncomplete, match=r"reaches to offset 1000, the log ends at \d+: the base is of another log"
    ):
        follow()
    own = _based(home, log, tmp_path, 10, 5)
    follower = follow()
    assert follower._index.base_version == own
    publish(home.base, write_segment(tmp_path, [document(1)], snapshot_ts=101, positions={3: 1_000}))
    until(follower, lambda: "of another log" in follower.describe()["problem"])
    assert follower._index.base_version == own


def test_what_is_removed_while_it_is_verified_is_no_damage(
    log: Log, follow: Callable[..., Follower], inline: type[Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Merged segments are removed file by file: a checksum wanted in between must not condemn what is in service."""
    follower = follow()
    for first in range(1, 60, 20):
        _fill(log, 20, first=first)
        _settle(follower)
    real, seen = shutil.rmtree, list[Any]()

    def slowly(directory: Path, *args: Any, **options: Any) -> None:
        next(directory.rglob("versions")).unlink()
        verifier.start(before)
        verifier.wait()
        seen.append(verifier.corrupt)
        real(directory, *args, **options)

    before, verifier = fold_files(follower._index.view.folds), Verifier()
    monkeypatch.setattr(shutil, "rmtree", slowly)
    _fill(log, 200, first=100)
    _settle(follower)
    assert seen
    assert not any(seen)


def test_a_swap_waits_for_little_whatever_came_while_the_base_was_loaded(
    home: Home, log: Log, tmp_path: Path, follow: Callable[..., Follower], inline: type[Process], monkeypatch: Any
) -> None:
    """What comes during a load is applied aside as well; the thread that keeps answers fresh is left a batch."""
    _fill(log, 10)
    limits = FoldLimits(documents=200, most_documents=2 * BATCH)
    follower, released = follow(limits), threading.Event()
    follower.catch_up()
    real, applied = Index.apply, list[int]()

    def counted(index: Index, deltas: Iterable[PreparedDelta], view: View | None = None, **options: Any) -> Any:
        given = list(deltas)
        if view is not None and threading.current_thread() is threading.main_thread():
            applied.append(len(given))
        return real(index, given, view, **options)

    def slowly(directory: Path, **options: Any) -> Any:
        released.wait(20)
        return opened(directory, **options)

    opened = Base.open
    monkeypatch.setattr(Index, "apply", counted)
    version = _based(home, log, tmp_path, 10, 5)
    monkeypatch.setattr(Base, "open", slowly)
    while follower._loader._loading is None:
        follower.step()
    _fill(log, 2_500, version=7, first=1_000)
    follower.catch_up()
    released.set()
    until(follower, lambda: follower._index.base_version == version)
    assert sum(applied) <= BATCH, "the follower's thread had to catch up"
    assert _settle(follower).search(BROWSE, 0)["total"] == 2_510


def test_what_was_folded_is_verified_as_well(log: Log, follow: Callable[..., Follower], inline: type[Process]) -> None:
    """A folded segment is read once after it was made, as a base is after it was opened."""
    _fill(log, 30)
    follower = follow()
    index = _settle(follower)
    follower.step()
    follower._loader.verifier.wait()
    size = sum(entry.bytes for _, files in fold_files(index.view.folds) for entry in files.values())
    assert size > 0
    assert follower.describe()["verification"] == {"state": "verified", "bytes": size, "pending": 0}


def test_two_servers_of_one_home_fold_apart(log: Log, follow: Callable[..., Follower], inline: type[Process]) -> None:
    """Each takes a slot of its own, and a successor finds that of the one that has gone."""
    _fill(log, 30)
    first, second = follow(), follow()
    assert _settle(first).search(BROWSE, 0) == _settle(second).search(BROWSE, 0)
    spaces = [f._loader._space.directory.name for f in (first, second) if f._loader._space is not None]
    assert spaces == ["0", "1"]
    first.close()
    third = follow()
    assert third._loader._space is not None
    assert third._loader._space.directory.name == "0"
    assert len(third._index.view.folds) == 1
