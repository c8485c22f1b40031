"""What is peculiar to the embedded engine: its file, its locks, full disks, forks and dead readers."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import lmdb
import pytest
from repo_backends import ORIGIN, ROOT, TABLES, EmbeddedBackend
from repo_fleet import Fleet

from storage_repo import Repo, RepoSchema, StoreUnavailable
from storage_repo.embedded import EmbeddedRepo

pytestmark = pytest.mark.backends("embedded")
X = "control:x"
COMMON = f"""
import os, resource, signal, sys
from pathlib import Path
from storage_repo import Origin, RepoSchema, StoreUnavailable
from storage_repo.embedded import EmbeddedRepo
def open_repo():
    root = Path(sys.argv[1])
    return EmbeddedRepo.open(root / "store", RepoSchema.of({TABLES!r}), wake_dir=root / "wake")
def put(repo, row, value):
    transaction = repo.begin(Origin("test"))
    transaction.put("ad", row, "control:x", value)
    return transaction.commit()
"""


def script(root: Path, body: str) -> subprocess.CompletedProcess[str]:
    """Run a script on the store in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", COMMON + body, str(root)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def installation(tmp_path: Path) -> EmbeddedBackend:
    """Return an empty installation."""
    return EmbeddedBackend(tmp_path)


def put(repo: Repo, row: str, value: bytes) -> int:
    """Commit one cell."""
    transaction = repo.begin(ORIGIN)
    transaction.put("ad", row, X, value)
    return transaction.commit()


def test_full_disk_is_store_unavailable_and_leaves_nothing(installation: EmbeddedBackend) -> None:
    """A write that finds no room raises StoreUnavailable, nothing of it is visible, and later small ones go on."""
    repo = installation.open()
    put(repo, "before", b"1")
    done = script(
        installation.root,
        """
repo = open_repo()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing beyond the limit is then an error like a full disk
room = os.path.getsize(repo._store.path / "data.mdb") + 200_000
resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
transaction = repo.begin(Origin("test"))
for n in range(100):
    transaction.put("ad", f"big-{n}", "control:x", os.urandom(20_000))
try:
    transaction.commit()
except StoreUnavailable as error:
    print(error)
assert put(repo, "after", b"1") == 2
""",
    )
    assert done.returncode == 0, done.stderr
    assert "cannot write to the store" in done.stdout
    assert "check free space" in done.stdout
    assert [row for row, _ in repo.snapshot().scan("ad")] == ["after", "before"]
    assert [change.commit_ts for change in repo.changes(0, 10)] == [1, 2]
    repo.close()


def test_failed_group_fails_every_thread(installation: EmbeddedBackend) -> None:
    """When the durable write fails, every thread that shared it gets the error, and the next commit works."""
    repo = installation.open()
    assert isinstance(repo, EmbeddedRepo)
    env = repo._store.env

    class Failing:
        def __init__(self) -> None:
            self.failures = 3

        def begin(self, *args: object, **kwargs: object) -> object:
            if kwargs.get("write") and self.failures > 0:
                self.failures -= 1
                raise lmdb.DiskError("no space left")
            return env.begin(*args, **kwargs)  # type: ignore[call-overload]

    errors: list[str] = []
    transactions = [repo.begin(ORIGIN) for _ in range(6)]
    repo._store.env = Failing()  # type: ignore[assignment]

    def commit(n: int) -> None:
        transactions[n].put("ad", f"{n}", X, b"1")
        try:
            transactions[n].commit()
        except StoreUnavailable as error:
            errors.append(str(error))

    threads = [threading.Thread(target=commit, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    repo._store.env = env
    stored = len(list(repo.snapshot().scan("ad")))
    assert 3 <= len(errors) <= 6
    assert stored == 6 - len(errors) == repo.last_commit_ts()
    assert put(repo, "next", b"1") == stored + 1
    repo.close()


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    """A store of another format, a file that is no store, and a path that is no directory say what to do."""
    schema = RepoSchema.of(TABLES)
    EmbeddedRepo.open(tmp_path / "newer", schema, wake_dir=tmp_path).close()
    with lmdb.open(str(tmp_path / "newer"), max_dbs=16) as env, env.begin(write=True) as txn:
        txn.put(b"format", b"adsindex-store-99", db=env.open_db(b"meta", txn=txn))
    with pytest.raises(StoreUnavailable, match=r"adsindex-store-99.*open it with the version that wrote it"):
        EmbeddedRepo.open(tmp_path / "newer", schema, wake_dir=tmp_path)

    (tmp_path / "garbage").mkdir()
    (tmp_path / "garbage" / "data.mdb").write_bytes(b"not a database" * 1000)
    with pytest.raises(StoreUnavailable, match=r"not a store of this program.*move it away"):
        EmbeddedRepo.open(tmp_path / "garbage", schema, wake_dir=tmp_path)

    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable, match="check free space, permissions"):
        EmbeddedRepo.open(tmp_path / "file", schema, wake_dir=tmp_path)


def test_forked_children_are_refused(installation: EmbeddedBackend) -> None:
    """A child made by fork() cannot use the parent's repo and does not disturb the parent."""
    done = script(
        installation.root,
        """
repo = open_repo()
snapshot = repo.snapshot()
put(repo, "parent", b"1")
child = os.fork()
if child == 0:
    for use in (lambda: snapshot.get("ad", "parent"), lambda: put(repo, "child", b"1")):
        try:
            use()
        except StoreUnavailable as error:
            assert "before fork()" in str(error)
        else:
            os._exit(3)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert put(repo, "parent", b"2") == 2
repo.close()
""",
    )
    assert done.returncode == 0, done.stderr


def test_dead_readers_and_writers_block_nobody(installation: EmbeddedBackend) -> None:
    """A process killed inside a read and a write transaction leaves no lock, no data and, after collection, no slot."""
    repo = installation.open()
    assert isinstance(repo, EmbeddedRepo)
    put(repo, "1", b"1")
    done = script(
        installation.root,
        """
repo = open_repo()
reading = repo._store.env.begin()
reading.get(b"state", db=repo._store.meta)
writing = repo._store.env.begin(write=True)
writing.put(b"torn", b"x" * 100, db=repo._store.current)
os.kill(os.getpid(), signal.SIGKILL)
""",
    )
    assert done.returncode == -9, done.stderr
    assert put(repo, "1", b"2") == 2
    assert repo.statistics()["cells"] == 1
    repo.collect_garbage()
    own = f" {os.getpid()} "
    slots = repo._store.env.readers().splitlines()[1:]
    assert all(own in f" {slot} " for slot in slots), slots
    repo.close()


def test_no_read_transaction_outlives_a_call(installation: EmbeddedBackend) -> None:
    """Between two calls, also in the middle of a scan, nothing pins the file's free pages."""
    repo = installation.open()
    assert isinstance(repo, EmbeddedRepo)
    for n in range(300):
        transaction = repo.begin(ORIGIN)
        transaction.put("ad", f"{n}", X, b"1")
        if n % 100 == 99:
            transaction.commit()
    transaction = repo.begin(ORIGIN)
    for n in range(600):
        transaction.put("ad", f"{n:03d}", X, b"1")
    transaction.commit()
    scan = repo.snapshot().scan("ad")
    next(scan)
    repo.snapshot().get("ad", "1")
    open_transaction = repo.begin(ORIGIN)
    open_transaction.get_many([("ad", "1"), ("ad", "2")])
    slots = repo._store.env.readers().splitlines()[1:]
    assert all(slot.split()[2] == "-" for slot in slots), slots
    repo.close()


def test_unusable_wake_directory_does_not_fail_commits(installation: EmbeddedBackend) -> None:
    """A commit that cannot wake anybody is a commit all the same, and is counted."""
    repo = installation.open()
    (installation.root / "wake").write_text("not a directory")
    assert put(repo, "1", b"1") == 1
    assert repo.statistics()["wake_failures"] == 1
    assert repo.wait_for_changes(0, 10)
    with pytest.raises(StoreUnavailable, match="cannot wait in"):
        repo.wait_for_changes(1, 10)
    repo.close()


def test_concurrent_first_opens(fleet: Fleet) -> None:
    """Processes that create one store at the same moment all come up and agree on the tables."""
    workers = [fleet.start("stamp", count=2) for _ in range(4)]
    assert [worker.finish() for worker in workers] == [0] * 4
    repo = fleet.backend.open()
    assert len(repo.changes(0, 1000)) == repo.last_commit_ts() > 0
    assert {row.table for change in repo.changes(0, 1000) for row in change.rows} == {"ad", "campaign"}
    repo.close()
