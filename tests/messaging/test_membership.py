"""Sharing partitions by file locks (messaging._membership)."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from messaging._membership import Share
from tests.messaging.log_backends import ROOT


@pytest.mark.parametrize("members", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("partitions", [1, 4, 6])
def test_quotas_add_up(tmp_path: Path, partitions: int, members: int) -> None:
    """Quotas differ by at most one and add up to all partitions, for any number of members."""
    shares = [Share(tmp_path, partitions, "m") for _ in range(members)]
    quotas = [share.quota() for share in shares]
    assert sum(quotas) == partitions
    assert max(quotas) - min(quotas) <= 1
    for share in shares:
        share.leave()


def test_odd_partitions_go_to_different_members(tmp_path: Path) -> None:
    """Over many topics with one partition each, no member gets them all."""
    shares = [[Share(tmp_path / f"topic{n}", 1, name) for n in range(30)] for name in ("a", "b")]
    quotas = [sum(share.quota() for share in member) for member in shares]
    assert sum(quotas) == 30
    assert min(quotas) > 0
    for share in (share for member in shares for share in member):
        share.leave()


def test_partition_has_one_owner(tmp_path: Path) -> None:
    """A partition owned by one member cannot be taken by another until it is released."""
    a, b = Share(tmp_path, 3, "a"), Share(tmp_path, 3, "b")
    assert len(a.take(2)) == 2
    (last,) = b.take(3)
    assert sorted([*a.held(), last]) == [0, 1, 2]
    given = a.held()[0]
    a.release(given)
    assert b.take(3) == [given]
    a.leave()
    assert len(b.take(3)) == 1
    assert b.held() == [0, 1, 2]
    b.leave()


def test_killed_members_partitions_are_free_at_once(tmp_path: Path) -> None:
    """After kill -9 its locks are gone, it counts no more, and its file is removed."""
    code = (
        "import sys, pathlib; from messaging._membership import Share;"
        "s = Share(pathlib.Path(sys.argv[1]), 4, 'victim'); print(s.take(4), flush=True); sys.stdin.read()"
    )
    share = Share(tmp_path, 4, "survivor")
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().count(",") == 3
        assert share.quota() == 2
        assert share.take(2) == []
        process.kill()
        process.wait()
    assert share.quota() == 4
    assert len(share.take(4)) == 4
    assert [path.name for path in tmp_path.glob("member-*victim*")] == []
    share.leave()


def test_member_whose_file_was_removed_joins_again(tmp_path: Path) -> None:
    """A member that lost its file counts itself again at its next look."""
    a, b = Share(tmp_path, 2, "a"), Share(tmp_path, 2, "b")
    next(tmp_path.glob("member-a-*")).unlink()
    assert b.quota() == 2
    assert a.quota() == 1
    assert b.quota() == 1
    a.leave()
    b.leave()


def test_joining_member_is_not_taken_for_dead(tmp_path: Path) -> None:
    """Members that look around all the time never remove the file of one that is just joining."""
    watcher = Share(tmp_path, 8, "watcher")
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            watcher.quota()

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for _ in range(200):
            share = Share(tmp_path, 8, "m")
            assert len(list(tmp_path.glob("member-m-*"))) == 1
            share.leave()
    finally:
        stop.set()
        thread.join()
    watcher.leave()
