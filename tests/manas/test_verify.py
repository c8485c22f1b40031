"""Checksums compared in the background: whatever is damaged is named, and answering keeps half of the core."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from manas import FileEntry, file_entry
from manas._verify import Verifier

NAMES = ("first", "second", "third")
LARGE = 64 << 20


@pytest.fixture
def verifier() -> Iterator[Verifier]:
    """Return a verifier that is closed at the end."""
    made = Verifier()
    yield made
    made.close()


def _listed(directory: Path, size: int = 100_000) -> tuple[Path, dict[str, FileEntry]]:
    directory.mkdir()
    for name in NAMES:
        (directory / name).write_bytes(name.encode() * (size // len(name)))
    return directory, {name: file_entry(directory / name) for name in NAMES}


def _flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def _as_directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_flip, "checksum differs"),
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "bytes instead of"),
        (lambda file: file.unlink(), "is missing"),
        (_as_directory, "cannot be read"),
    ],
)
def test_whatever_file_is_damaged_is_named(
    verifier: Verifier, tmp_path: Path, name: str, damage: Callable[[Path], object], words: str
) -> None:
    """Every file is read to its last byte; the first damaged one is named with what is wrong and what to do."""
    whole, listed = _listed(tmp_path / "whole"), _listed(tmp_path / "damaged")
    damage(tmp_path / "damaged" / name)
    verifier.start([whole, listed])
    verifier.wait()
    assert verifier.corrupt is not None
    directory, error = verifier.corrupt
    assert directory == tmp_path / "damaged"
    assert error.file == str(tmp_path / "damaged" / name)
    assert words in str(error)
    assert "roll back" in str(error)
    assert verifier.state() == "corrupt"
    verifier.add([_listed(tmp_path / "more")])
    verifier.wait()
    assert verifier.corrupt == (directory, error), "nothing is read after it"


def test_files_that_went_with_their_directory_are_no_damage(verifier: Verifier, tmp_path: Path) -> None:
    """A base that was pruned while it is mapped can be used to the end."""
    listed = _listed(tmp_path / "pruned")
    shutil.rmtree(tmp_path / "pruned")
    verifier.start([listed])
    verifier.wait()
    assert (verifier.corrupt, verifier.state()) == (None, "verified")


class Watched(threading.Event):
    """Counts the seconds that were waited for."""

    waited = 0.0

    def wait(self, timeout: float | None = None) -> bool:
        """Count, and wait."""
        Watched.waited += timeout or 0.0
        return super().wait(timeout)


def test_nothing_is_verified_before_it_was_read_and_half_of_a_core_is_left(
    verifier: Verifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says that it is verifying until the end, and waits as long as it computes."""
    monkeypatch.setattr("manas._verify.threading.Event", Watched)
    with (tmp_path / "large").open("wb") as handle:
        handle.truncate(LARGE)
    listed = (tmp_path, {"large": file_entry(tmp_path / "large")})
    used = time.process_time()
    verifier.start([listed])
    assert (verifier.state(), verifier.pending_bytes, verifier.verified_bytes) == ("verifying", LARGE, 0)
    verifier.wait()
    assert Watched.waited > 0.7 * (time.process_time() - used)
    assert (verifier.state(), verifier.pending_bytes, verifier.verified_bytes) == ("verified", 0, LARGE)
    verifier.start([listed])
    verifier.close()
    assert verifier.verified_bytes == 0, "closed in the middle of a file"


def test_a_new_start_forgets_what_was_found_and_more_can_be_added(verifier: Verifier, tmp_path: Path) -> None:
    """After another base was put in service the damage of the one before is forgotten; what is added is read too."""
    damaged, whole = _listed(tmp_path / "damaged"), _listed(tmp_path / "whole")
    _flip(tmp_path / "damaged" / "third")
    verifier.start([damaged])
    verifier.wait()
    assert verifier.state() == "corrupt"
    verifier.start([whole])
    verifier.wait()
    assert (verifier.corrupt, verifier.state()) == (None, "verified")
    verifier.add([damaged])
    verifier.wait()
    assert verifier.state() == "corrupt"
