"""The embedded store's file read in order beside a workflow."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import structlog
from structlog.testing import capture_logs

from messaging.home import Home
from storage_repo import Origin, RepoSchema
from storage_repo.embedded import EmbeddedRepo, _read_ahead
from storage_repo.embedded._read_ahead import free_memory, reading_ahead

_SIZE = 9 << 20


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is worth reading."""
    monkeypatch.setattr(_read_ahead, "SMALL", 1 << 20)
    path = tmp_path / "data.mdb"
    path.write_bytes(bytes(_SIZE))
    return path


def wait_for(thread_name: str) -> None:
    """Wait until a thread has ended."""
    deadline = time.monotonic() + 60
    while any(thread.name == thread_name for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_all_of_a_file_is_read_once(file: Path) -> None:
    """Beside the block, to the last byte, and told in one event."""
    with capture_logs() as logs, reading_ahead(file) as ahead:
        wait_for("read-ahead")
    assert (ahead.bytes_read, ahead.left_out) == (_SIZE, "")
    (event,) = logs
    assert (event["event"], event["bytes_read"], event["of"]) == ("repo.read_ahead", _SIZE, _SIZE)


def test_it_ends_with_the_block(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that is done before the file is read leaves no thread behind, and the event says so."""
    monkeypatch.setattr(_read_ahead, "STEP", 16)
    with capture_logs() as logs, reading_ahead(file) as ahead:
        pass
    assert not any(thread.name == "read-ahead" for thread in threading.enumerate())
    assert ahead.bytes_read < _SIZE
    assert [event["left_out"] for event in logs] == ["stopped"]


@pytest.mark.parametrize(("free", "why"), [(_SIZE, "larger than 70%"), (0, "larger than 70% of 0 free bytes")])
def test_what_does_not_fit_into_memory_is_left_out(
    file: Path, monkeypatch: pytest.MonkeyPatch, free: int, why: str
) -> None:
    """Its first pages would be gone again before anybody looks at them; that is told."""
    monkeypatch.setattr(_read_ahead, "free_memory", lambda: free)
    with capture_logs() as logs, reading_ahead(file) as ahead:
        assert not any(thread.name == "read-ahead" for thread in threading.enumerate())
    assert ahead.bytes_read == 0
    assert why in ahead.left_out and logs[0]["left_out"] == ahead.left_out


def test_a_store_announces_a_bulk_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small store is left alone; of a larger one all is read, and reading it beside changes nothing."""
    home = Home.open(tmp_path)
    with structlog.testing.capture_logs() as logs:
        repo = EmbeddedRepo.open(home.store, RepoSchema.of([("ad", ("f",))]), wake_dir=home.wake)
        try:
            with repo.bulk_read() as ahead:
                assert ahead.left_out == "small"
            assert logs == []
            monkeypatch.setattr(_read_ahead, "SMALL", 0)
            with repo.bulk_read() as ahead:
                transaction = repo.begin(Origin("test"))
                transaction.put("ad", "1", "f:x", b"1")
                transaction.commit()
                wait_for("read-ahead")
            assert ahead.bytes_read >= ahead.size > 0
            assert repo.snapshot().get("ad", "1") == {"f:x": b"1"}
        finally:
            repo.close()


def test_free_memory_is_told() -> None:
    """In bytes, and plausible."""
    assert 1 << 20 < free_memory() < 1 << 50
