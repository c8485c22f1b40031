"""A shard's part of a base, damaged or not to be had: made again from the base, tried again, or refused by name."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest

from manas import Index, NotServing, SegmentCorrupt, SegmentError, publish, server, shards
from manas import _loading as loading
from manas._base import Base
from manas._folder import FoldLimits
from manas._follower import Follower
from manas._service import State
from manas._serving_settings import ServingSettings
from manas._verify import Verifier
from manas.segment import Segment
from manas.shards import PartOrder, Shard, ensure_part, part_directory, write_part
from messaging.api import Log
from messaging.embedded import open_embedded_log
from messaging.home import Home
from messaging.metrics import StageMetrics
from messaging.topics import ensure_topics
from tests.manas.support import CATALOG, VALUES, budget, document, log_records, until, write_segment

BROWSE = dict.fromkeys(VALUES, "*")
HALF = Shard(0, 2)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """Return an empty home."""
    return Home.open(tmp_path / "home")


@pytest.fixture
def log(home: Home) -> Iterator[Log]:
    """Return the home's log with a budget in it."""
    with closing(open_embedded_log(home.log, home.wake)) as log:
        ensure_topics(log)
        log.publish(log_records(budget(1)))
        yield log


@pytest.fixture
def follow(home: Home, log: Log, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Follower]]:
    """Return a function that starts a follower of a new index of a shard."""
    monkeypatch.setattr(loading, "_CHECK_BASE_SECONDS", 0.0)
    monkeypatch.setattr(server, "_RETRY_SECONDS", 0.0)
    with ExitStack() as stack:

        def starter(shard: Shard = HALF, *, waiting: bool = False, **options: Any) -> Follower:
            settings = ServingSettings(fold=FoldLimits(), shard=shard, **options)
            follower = stack.enter_context(
                closing(Follower(home.base, log, Index(CATALOG, shard=shard), settings=settings))
            )
            if waiting:  # as the server does
                beats: list[int] = []
                metrics = StageMetrics(home.metrics, "manas")
                stage = SimpleNamespace(stop=Event(), metrics=metrics, beat=lambda: beats.append(1))
                assert server._start(follower, stage, State())  # type: ignore[arg-type]
                assert (len(beats), metrics.counters["waiting_for_base"]) == (2, 1)
            else:
                follower.start()
            follower.catch_up()
            return follower

        yield starter


def _publish(home: Home, tmp_path: Path, count: int, snapshot_ts: int) -> str:
    docs = [document(i) for i in range(1, count + 1)]
    return publish(home.base, write_segment(tmp_path, docs, snapshot_ts=snapshot_ts))


def _flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_a_damaged_part_is_made_again_from_its_base(
    home: Home, tmp_path: Path, follow: Callable[..., Follower]
) -> None:
    """A flipped byte stops searches until the part is there again; a file cut short is noticed before any search."""
    version = _publish(home, tmp_path, 40, 100)
    part = part_directory(home.base, version, HALF)
    write_part(PartOrder(home.base / version, part, HALF, CATALOG))
    follower = follow()
    index, loader = follower._index, follower._loader
    total = index.search(BROWSE, 0)["total"]
    assert 0 < total < 40
    loader.verifier.wait()
    whole = (part / "versions").read_bytes()
    _flip(part / "versions")
    loader.verifier.start([(part, index.view.base_layers["base"].manifest.files)])
    loader.verifier.wait()
    follower.step()
    with pytest.raises(NotServing, match="versions: checksum differs"):
        index.search(BROWSE)
    assert "it is made again" in loader.problem
    until(follower, lambda: not index.refusal)
    assert (index.search(BROWSE, 0)["total"], loader.problem) == (total, "")
    assert (part / "versions").read_bytes() == whole
    loader.verifier.wait()
    assert loader.verifier.state() == "verified"
    follower.close()
    (part / "versions").write_bytes(whole[:-1])
    assert follow()._index.search(BROWSE, 0)["total"] == total


def test_no_part_of_a_damaged_base_is_made(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong with the base is its own fault and named; a process that just dies may do better another time."""
    version = _publish(home, tmp_path, 10, 100)
    _flip(home.base / version / "versions")
    with pytest.raises(SegmentError, match="versions: checksum differs"):
        ensure_part(home.base, version, HALF, CATALOG)
    monkeypatch.setattr(shards, "_COMMAND", "raise SystemExit(1)")
    with pytest.raises(OSError, match=r"could not take its part of .* exit 1"):
        ensure_part(home.base, version, HALF, CATALOG)


@pytest.mark.parametrize("starting", [True, False])
def test_what_passes_is_tried_again(
    home: Home, tmp_path: Path, follow: Callable[..., Follower], monkeypatch: pytest.MonkeyPatch, *, starting: bool
) -> None:
    """Without a descriptor at the moment a base is not refused: it is loaded a little later, at a start and after."""
    first = _publish(home, tmp_path, 5, 100)
    follower = None if starting else follow(shards.WHOLE)
    second = _publish(home, tmp_path, 8, 101)
    real, failures = Base.open, 2

    def failing(*args: Any, **options: Any) -> Any:
        nonlocal failures
        if failures:
            failures -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return real(*args, **options)

    monkeypatch.setattr(Base, "open", failing)
    if follower is None:
        follower = follow(shards.WHOLE, waiting=True)
    else:
        until(follower, lambda: follower._loader.problem)
        assert follower._index.base_version == first
        assert "cannot be loaded, it is tried again: OSError" in follower._loader.problem
        until(follower, lambda: follower._index.base_version == second)
    assert (follower._loader.problem, failures) == ("", 0)
    assert follower._index.search(BROWSE, 0)["total"] == 8


def test_a_stand_in_that_cannot_be_loaded_now_is_tried_again(
    home: Home, tmp_path: Path, follow: Callable[..., Follower], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the base refused for good, the one before is tried until it is there: nothing else would answer."""
    first = _publish(home, tmp_path, 5, 100)
    second = _publish(home, tmp_path, 8, 101)
    follower = follow(shards.WHOLE, base_fallback=True)
    index, loader = follower._index, follower._loader
    loader.verifier.wait()
    _flip(home.base / second / "versions")
    loader.verifier.start([(home.base / second, index.view.base_layers["base"].manifest.files)])
    loader.verifier.wait()
    real, failures = Base.open, 2

    def failing(*args: Any, **options: Any) -> Any:
        nonlocal failures
        if failures:
            failures -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return real(*args, **options)

    monkeypatch.setattr(Base, "open", failing)
    until(follower, lambda: index.base_version == first)
    assert (failures, index.refusal, index.search(BROWSE, 0)["total"]) == (0, "", 5)
    assert loader.problem.startswith(f"base {second} is refused")


def test_attempts_to_load_are_ever_further_apart(
    home: Home, log: Log, tmp_path: Path, follow: Callable[..., Follower], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a second, one, two, up to a minute; a pointer that moves has it tried at once."""
    follower = follow(shards.WHOLE)
    loader, now = follower._loader, [time.monotonic() + 1_000]
    monkeypatch.setattr(loading, "_CHECK_BASE_SECONDS", 0.5)
    monkeypatch.setattr("manas._loading.time.monotonic", lambda: now[0])
    waits = []
    for _ in range(9):
        loader._refuse("v", OSError(errno.EMFILE, "Too many open files"))
        waits.append(loader._retry_at - now[0])
    assert waits == pytest.approx([0.5, 1, 2, 4, 8, 16, 32, 60, 60])
    version = _publish(home, tmp_path, 5, 100)
    now[0] += 1
    loader.tick({})
    assert loader._loading is not None
    loader._loading.join()
    loaded = loader.tick({})
    assert loaded is not None
    assert loaded.version == version


def test_no_file_is_damaged_for_want_of_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither opening nor verifying takes a passing error for damage."""
    built = write_segment(tmp_path, [document(1)])
    with monkeypatch.context() as patch:
        patch.setattr("manas.segment.PostingLists", _raising(errno.EMFILE))
        with pytest.raises(OSError, match="24"):
            Segment.open(built)
        patch.setattr("manas.segment.PostingLists", _raising(errno.EIO))
        with pytest.raises(SegmentCorrupt):
            Segment.open(built)
    verifier, real, left = Verifier(), Path.open, 3
    files = Segment.open(built).manifest.files
    monkeypatch.setattr("manas._verify._RETRY_SECONDS", 0.0)

    def opened(file: Path, *args: Any, **options: Any) -> Any:
        nonlocal left
        if file.name == "versions" and left:
            left -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return real(file, *args, **options)

    monkeypatch.setattr(Path, "open", opened)
    verifier.start([(built, files)])
    verifier.wait()
    assert (left, verifier.state()) == (0, "verified")


def _raising(number: int) -> Callable[..., Any]:
    def raising(*args: Any, **options: Any) -> Any:
        raise OSError(number, str(number))

    return raising
