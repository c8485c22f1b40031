"""What only the embedded log promises: its file, its processes, its failures."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest

import messaging
from messaging import EmbeddedLog, LogUnavailable, OutRecord, _wake
from tests.messaging.log_backends import ROOT


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EmbeddedLog]:
    """Return an embedded log with topic t of one partition."""
    with EmbeddedLog(tmp_path / "log", tmp_path / "wake") as log:
        log.ensure_topic("t", 1)
        yield log


def run(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Start Python on some code."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_exported_names_exist() -> None:
    """Everything in __all__ can be imported, and the list is sorted."""
    assert [name for name in messaging.__all__ if not hasattr(messaging, name)] == []
    assert messaging.__all__ == sorted(messaging.__all__)


def test_publish_wakes_without_the_safety_net(log: EmbeddedLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """A blocked poll and a blocked wait return by the hint of a publish alone."""
    monkeypatch.setattr(_wake, "SAFETY_NET_S", 60.0)
    consumer = log.consumer("g", ["t"])
    answers: dict[str, object] = {}
    threads = [
        threading.Thread(target=lambda: answers.update(polled=[r.key for r in consumer.poll(1, 60)])),
        threading.Thread(target=lambda: answers.update(waited=log.wait(["t"], {}, 60))),
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 120
    while len(list((log._wake_dir / "t").iterdir())) < 2:
        assert time.monotonic() < deadline
    began = time.monotonic()
    log.publish([OutRecord("t", "k", b"")])
    for thread in threads:
        thread.join(120)
    assert time.monotonic() - began < 5
    assert answers == {"polled": ["k"], "waited": True}


def test_publishes_of_waiting_threads_share_one_fsync(log: EmbeddedLog) -> None:
    """Threads that publish while a transaction is under way are all stored by the next one or two."""
    held, release = threading.Event(), threading.Event()

    def block(txn: object) -> None:
        held.set()
        release.wait(30)

    blocker = threading.Thread(target=lambda: log._env.write(block))
    blocker.start()
    assert held.wait(120)
    publishers = [threading.Thread(target=log.publish, args=([OutRecord("t", "k", b"")],)) for _ in range(20)]
    for thread in publishers:
        thread.start()
    deadline = time.monotonic() + 120
    while len(log._env._queue) < 19:  # one leads and is blocked in LMDB
        assert time.monotonic() < deadline
    before = log.statistics()["durable_writes"]
    release.set()
    for thread in [blocker, *publishers]:
        thread.join(120)
    assert log.end_offsets("t") == {0: 20}
    assert log.statistics()["durable_writes"] - before == 3  # the blocker's, the leader's, and one for the other 19


def test_failure_reaches_every_thread_of_the_group(log: EmbeddedLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the shared transaction fails, every publisher in it gets the error and nothing of any is stored."""
    real = log._env._store
    gate = threading.Event()

    def fail_once_full(txn: lmdb.Transaction, group: list[object]) -> None:
        gate.wait(30)
        real(txn, group)  # type: ignore[arg-type]
        raise lmdb.DiskError("no space")

    monkeypatch.setattr(log._env, "_store", fail_once_full)
    errors: list[LogUnavailable] = []

    def publish() -> None:
        try:
            log.publish([OutRecord("t", "k", b"")])
        except LogUnavailable as error:
            errors.append(error)

    threads = [threading.Thread(target=publish) for _ in range(6)]
    for thread in threads:
        thread.start()
    gate.set()
    for thread in threads:
        thread.join(120)
    assert len(errors) == 6
    assert log.end_offsets("t") == {0: 0}
    monkeypatch.undo()
    log.publish([OutRecord("t", "k", b"")])
    assert log.end_offsets("t") == {0: 1}


def test_full_disk_is_an_error_and_recoverable(tmp_path: Path) -> None:
    """When the file cannot grow, publish raises LogUnavailable and stores nothing; with room again it goes on."""
    code = """
import resource, signal, sys
from pathlib import Path
from messaging import EmbeddedLog, LogUnavailable, OutRecord
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
root = Path(sys.argv[1])
log = EmbeddedLog(root / "log", root / "wake")
log.ensure_topic("t", 1)
resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, resource.RLIM_INFINITY))
published = 0
try:
    while True:
        log.publish([OutRecord("t", "k", bytes(100_000))] * 3)
        published += 3
except LogUnavailable as error:
    assert "full disk" in str(error), error
assert 0 < published < 60, published
assert log.end_offsets("t") == {0: published}
assert len(log.read("t", 0, 0, 1000)) == published
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
log.publish([OutRecord("t", "k", bytes(100_000))] * 3)
assert log.end_offsets("t") == {0: published + 3}
print("ok")
"""
    with run(code, tmp_path) as process:
        assert process.communicate(timeout=60)[0] == "ok\n"
    with EmbeddedLog(tmp_path / "log", tmp_path / "wake") as log:
        end = log.end_offsets("t")[0]
        assert len(log.read("t", 0, 0, 1000)) == end


def test_handles_of_one_process_share_the_file(tmp_path: Path) -> None:
    """Two handles on one path, also by another spelling, see each other's records; closing one leaves the other."""
    first = EmbeddedLog(tmp_path / "log", tmp_path / "wake")
    second = EmbeddedLog(tmp_path / "x" / ".." / "log", tmp_path / "wake")
    first.ensure_topic("t", 1)
    first.publish([OutRecord("t", "k", b"1")])
    first.close()
    second.publish([OutRecord("t", "k", b"2")])
    assert [record.value for record in second.read("t", 0, 0, 10)] == [b"1", b"2"]
    second.close()


def test_forked_child_is_refused(tmp_path: Path) -> None:
    """A child made by fork() gets LogUnavailable from the inherited log and from opening the path, not corruption."""
    code = """
import os, sys
from pathlib import Path
from messaging import EmbeddedLog, LogUnavailable, OutRecord
root = Path(sys.argv[1])
log = EmbeddedLog(root / "log", root / "wake")
log.ensure_topic("t", 1)
if (child := os.fork()) == 0:
    refused = 0
    for use in (lambda: log.publish([OutRecord("t", "k", b"")]), lambda: log.read("t", 0, 0, 1),
                lambda: EmbeddedLog(root / "log", root / "wake")):
        try:
            use()
        except LogUnavailable as error:
            refused += "fork" in str(error)
    os._exit(refused)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
log.publish([OutRecord("t", "k", b"")])
print(log.end_offsets("t"))
"""
    with run(code, tmp_path) as process:
        assert process.communicate(timeout=60)[0] == "3\n{0: 1}\n"


def test_what_is_no_log_is_refused(tmp_path: Path) -> None:
    """A file that is no LMDB file, a path that is a file, and a layout of another release are clear errors."""
    (tmp_path / "garbage").mkdir()
    (tmp_path / "garbage" / "data.mdb").write_bytes(b"x" * 9000)
    (tmp_path / "file").touch()
    EmbeddedLog(tmp_path / "future", tmp_path / "wake").close()
    with lmdb.open(str(tmp_path / "future"), max_dbs=16) as env, env.begin(write=True) as txn:
        txn.put(b"format", b"\0\0\0\x63", db=env.open_db(b"meta", txn=txn))
    for name, words in (("garbage", "not an LMDB file"), ("file", "file"), ("future", "layout 00000063")):
        for _ in range(2):  # a failed opening leaves nothing behind that would change the answer
            with pytest.raises(LogUnavailable, match=words):
                EmbeddedLog(tmp_path / name, tmp_path / "wake")


def test_missing_record_is_damage_not_a_gap(log: EmbeddedLog) -> None:
    """A record missing between start and end raises instead of being skipped."""
    log.publish([OutRecord("t", "k", b"%d" % n) for n in range(5)])
    with log._env._lmdb.begin(write=True) as txn:
        assert txn.delete(b"\0\0\0\0" + (2).to_bytes(8, "big"), db=log._env.records)
    with pytest.raises(LogUnavailable, match=r"record 2 of t\[0\] is missing"):
        log.read("t", 0, 0, 10)
    assert len(log.read("t", 0, 3, 10)) == 2


def test_reader_killed_in_a_transaction_is_cleared(log: EmbeddedLog) -> None:
    """The slot of a process killed while reading is cleared by a later publish, so that it does not pin the file."""
    code = """
import sys
from pathlib import Path
from messaging._embedded_env import Environment
with Environment.acquire(Path(sys.argv[1])).reading() as txn:
    print("ready", flush=True)
    sys.stdin.read()
"""
    with run(code, log._env.path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.kill()
        process.wait()
    assert str(process.pid) in log._env._lmdb.readers()
    log._env._next_reader_check = 0.0
    log.publish([OutRecord("t", "k", b"")])
    assert str(process.pid) not in log._env._lmdb.readers()


def test_trimmed_space_is_used_again(log: EmbeddedLog) -> None:
    """A log that is trimmed as fast as it is filled does not grow."""
    batch = [OutRecord("t", "k", os.urandom(1000)) for _ in range(500)]
    sizes = []
    for _ in range(12):
        log.publish(batch)
        log.trim("t", 0, log.end_offsets("t")[0] - 100)
        sizes.append(log.statistics()["file_bytes"])
    assert sizes[-1] <= sizes[3]
    assert log.statistics()["records_kept"] == 100


def test_trim_of_many_records_leaves_the_rest(log: EmbeddedLog) -> None:
    """A trim larger than one transaction removes exactly the records below the offset."""
    log.publish([OutRecord("t", "k", b"%d" % n) for n in range(12_000)])
    assert log.trim("t", 0, 11_000) == 11_000
    assert [int(r.value) for r in log.read("t", 0, 11_000, 2000)] == list(range(11_000, 12_000))
    assert log.statistics()["records_kept"] == 1000


def test_poll_is_bounded_in_bytes(log: EmbeddedLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """A poll of large records ends early and the next one goes on."""
    monkeypatch.setattr("messaging._embedded_consumer._POLL_BYTES", 250_000)
    log.publish([OutRecord("t", "k", bytes([n]) * 100_000) for n in range(7)])
    consumer = log.consumer("g", ["t"])
    polls = [[record.value[0] for record in consumer.poll(100, 1)] for _ in range(3)]
    assert polls == [[0, 1, 2], [3, 4, 5], [6]]


def test_large_records_leave_room_for_lower_lanes(log: EmbeddedLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """A poll that is full of bytes long before it is full of records has records of every topic that waits."""
    monkeypatch.setattr("messaging._embedded_consumer._POLL_BYTES", 250_000)
    log.ensure_topic("low", 1)
    log.publish([OutRecord("t", "k", b"x" * 100_000)] * 9 + [OutRecord("low", "k", bytes([n])) for n in range(4)])
    consumer = log.consumer("g", ["t", "low"])
    polled = consumer.poll(32, 1)
    assert [record.topic for record in polled] == ["t"] * 3 + ["low"] * 4
    assert len(consumer.poll(32, 1)) == 3
