"""A base index goes on where a killed builder was: what is finished, whole and of one snapshot is not done again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from batch_workflows import _base_checkpoint
from batch_workflows._exceptions import BaseRefused, RunStopped
from batch_workflows.base_index import Hooks
from batch_workflows.base_store import BUILDING, spool_of
from messaging.topics import DELTAS
from storage_repo import RepoSchema
from storage_repo.embedded import EmbeddedRepo
from storage_repo.embedded._clock import SystemClock
from tests.argus.world import ADVERTISER, IMAGE
from tests.batch_workflows.base_support import CHECKED, Built
from tests.support import ROOT

ADS, RANGES = 120, 4
STAYS = Hooks(begun=lambda _version: None)


@pytest.fixture
def built(tmp_path: Path) -> Iterator[Built]:
    """A home with ads."""
    opened = Built(tmp_path)
    opened.fill(ADS, settle=True)
    yield opened
    opened.close()


class Later(SystemClock):
    """The machine's clocks, an hour ahead."""

    def steady_us(self) -> int:
        """Return microseconds of a clock that never jumps."""
        return super().steady_us() + 3_600_000_000


class Builders:
    """Starts builders from a process that has imported all."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.batch_workflows.base_halted"]
        self._nursery = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def killed(self, built: Built, units: int) -> str:
        """Kill a builder by SIGKILL after so many units of work, and return the version that it was at."""
        assert self._nursery.stdin is not None and self._nursery.stdout is not None
        self._nursery.stdin.write(f"{units} {built.root}\n")
        pid, version = self._nursery.stdout.readline().split()
        assert "halted" in (line := self._nursery.stdout.readline()), line
        os.kill(int(pid), signal.SIGKILL)
        assert self._nursery.stdout.readline() == "ended\n"
        return version

    def close(self) -> None:
        """End the process that starts them."""
        self._nursery.communicate()


@pytest.fixture(scope="module")
def builders() -> Iterator[Builders]:
    """What starts builders and kills them."""
    with closing(Builders()) as found:
        yield found


def files_of(built: Built, version: str) -> dict[str, str]:
    """Return the checksums of a base's files, without the manifests, which tell the time."""
    manifest = built.store.manifest(version)
    return {name: entry.blake2b for name, entry in manifest.files.items() if not name.endswith("manifest.json")}


def left_over(built: Built) -> list[str]:
    """Return what builds have left."""
    return sorted(path.name for path in built.home.base.glob(f"{BUILDING}*") if path.is_dir())


def resumed(built: Built, version: str, **options: Any) -> Any:
    """Go on with a build."""
    return built.build(hooks=STAYS, **{**CHECKED, "resume": version, **options})


@pytest.mark.parametrize(("units", "ranges", "shards"), [(1, 1, 0), (RANGES, RANGES, 0), (RANGES + 1, RANGES, 1)])
def test_what_was_finished_is_kept(built: Built, builders: Builders, units: int, ranges: int, shards: int) -> None:
    """Killed after a range, after the last one, after a shard: the base is byte for byte what it would have been."""
    version = builders.killed(built, units)
    report = resumed(built, version)
    assert (report.kept_ranges, report.kept_shards, report.begun_anew) == (ranges, shards, "")
    assert (report.base_version, report.documents, report.rows, left_over(built)) == (version, ADS, ADS, [])
    built.store.verify(version)
    whole = built.build(**CHECKED)
    assert files_of(built, version) == files_of(built, whole.base_version)
    assert (report.coverage, report.bytes) == (whole.coverage, whole.bytes)


def test_it_stays_at_its_snapshot_and_its_place_in_the_log(built: Built, builders: Builders) -> None:
    """What is written between kill and resumption is not in the base, and lies in the deltas that follow it."""
    version = builders.killed(built, 2)
    before = built.expected(ADS)
    ends = built.log.end_offsets(DELTAS)
    built.world.put("pin", "p7", title="Written after the kill")
    built.world.settle()
    resumed(built, version)
    assert built.served(version) == before
    assert built.expected(ADS) != before
    assert built.store.manifest(version).delta_positions == ends


@pytest.mark.parametrize("what", ["spool", "shard"])
def test_what_is_damaged_is_done_again(built: Built, builders: Builders, what: str) -> None:
    """A checksum that differs: that range, or that shard, and no other."""
    version = builders.killed(built, RANGES + 1)
    folder = built.home.base / (spool_of(version) if what == "spool" else f"{BUILDING}{version}/shard-000")
    victim = folder / ("000001-001" if what == "spool" else "versions")
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    report = resumed(built, version)
    assert (report.kept_ranges, report.kept_shards) == ((RANGES - 1, 1) if what == "spool" else (RANGES, 0))
    assert built.served(version) == built.expected(ADS)


def test_other_rules_begin_anew_and_say_so(built: Built, builders: Builders) -> None:
    """Another catalogue, other code or parameters: nothing is kept, and nothing is left of it."""
    version = builders.killed(built, 2)
    report = resumed(built, version, code_version="a newer one")
    assert report.begun_anew == "the code changed meanwhile"
    assert (report.kept_ranges, report.documents, left_over(built)) == (0, ADS, [])
    assert report.base_version != version


def test_one_of_long_ago_is_begun_anew(built: Built, builders: Builders, monkeypatch: pytest.MonkeyPatch) -> None:
    """A schedule that comes hours after the kill wants the newest rows."""
    version = builders.killed(built, 2)
    monkeypatch.setattr(_base_checkpoint, "MAX_AGE_S", 0.0)
    assert "minutes ago" in resumed(built, version).begun_anew


def test_a_snapshot_that_is_gone_begins_anew_and_says_so(built: Built, builders: Builders) -> None:
    """An hour later its pin has ended, and its versions may have been collected."""
    version = builders.killed(built, 2)
    built.world.put("image", "i2", **IMAGE)
    schema = RepoSchema.of(built.world.catalog.repo_tables())
    with closing(EmbeddedRepo.open(built.home.store, schema, wake_dir=built.home.wake, clock=Later())) as later:
        later.collect_garbage()
    report = resumed(built, version)
    assert "its snapshot cannot be read any more" in report.begun_anew
    assert (report.kept_ranges, report.documents, left_over(built)) == (0, ADS, [])


def test_a_build_that_is_not_to_be_gone_on_with_takes_nothing(built: Built, builders: Builders) -> None:
    """A new run wants the newest rows: it removes what the killed one left."""
    version = builders.killed(built, RANGES + 1)
    assert len(left_over(built)) == 2
    report = built.build(**CHECKED)
    assert (report.kept_ranges, report.base_version != version, left_over(built)) == (0, True, [])


def test_a_checkpoint_that_does_not_parse_begins_anew(built: Built, builders: Builders) -> None:
    """Half a file, as a power cut may leave it."""
    version = builders.killed(built, 2)
    file = built.home.base / spool_of(version) / "checkpoint.json"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert "its checkpoint cannot be read" in resumed(built, version).begun_anew


def test_an_ended_run_keeps_its_work_unless_a_gate_refused_it(built: Built) -> None:
    """An error in the middle leaves all for the next attempt; a refusal is a verdict, and leaves nothing."""
    built_one = False

    def progress(done: int, total: int | None, unit: str) -> None:
        nonlocal built_one
        built_one = unit == "shards"

    def check() -> None:
        if built_one:
            raise RunStopped("told to")

    versions: list[str] = []
    with pytest.raises(RunStopped):
        built.build(hooks=Hooks(progress, check, begun=versions.append), **CHECKED)
    assert len(left_over(built)) == 2
    report = resumed(built, versions[0])
    assert (report.kept_ranges, report.kept_shards) == (RANGES, 1)
    built.world.put("advertiser", 1, **{**ADVERTISER, "status": "PAUSED"})
    with pytest.raises(BaseRefused):
        built.build(hooks=STAYS, **CHECKED)
    assert left_over(built) == []
    assert built.store.current() == versions[0]
