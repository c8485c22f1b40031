"""Backfill of a signal from CSV and Parquet by the Updater's RPC: values, rejects with lines, rate, kills."""

from __future__ import annotations

import csv
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch_workflows import BadParameters, RunStopped, TooManyFailures, UpdaterAway, backfill
from batch_workflows._runs_model import Policy
from batch_workflows.execution import Stop, execute
from batch_workflows.runs import Outcome, RunRequest, RunStore
from catalog import Catalog
from catalog.model import DELETED, SOURCE_VERSION, signal_version_cell
from catalog.values import decode, encode
from messaging import open_embedded_log
from messaging.switches import set_switch
from messaging.topics import ensure_topics
from storage_repo import Origin
from tests.batch_workflows.parquet_support import TYPES, catalogue, open_with
from tests.batch_workflows.run_support import Opened, run
from tests.support import ROOT
from updater.core import UpdaterCore
from updater.rpc import serve

ADS = 700


class Service:
    """A home with ads, and the Updater's RPC on it."""

    def __init__(self, root: Path) -> None:
        root.mkdir()
        self.catalog = catalogue(root, **TYPES)
        opened = open_with(root / "home", self.catalog)
        log = open_embedded_log(opened.home.log, opened.home.wake)
        ensure_topics(log)
        self.opened: Opened = replace(opened, log=log)
        for start in range(0, ADS, 500):
            transaction = opened.repo.begin(Origin("test"))
            for number in range(start, min(ADS, start + 500)):
                transaction.put("ad", str(number), SOURCE_VERSION, encode(1))
            transaction.commit()
        self.server: Any = None
        self.up()

    def up(self) -> None:
        """Start the RPC, as the stage does, and say where it is."""
        self.server, port = serve(UpdaterCore(self.opened.repo, self.catalog, "test"))
        (self.opened.home.run / "updater-0.json").write_text(json.dumps({"port": port, "state": "ready", "pid": 1}))

    def down(self) -> None:
        """Stop the RPC."""
        self.server.stop(grace=None).wait()
        (self.opened.home.run / "updater-0.json").unlink()

    def column(self, name: str) -> dict[str, Any]:
        """Return ad -> value of a column, of those that have one."""
        cell = self.catalog.tables["ad"].columns[name].cell
        rows = self.opened.repo.snapshot().scan("ad", columns=[cell])
        return {row: decode(cells[cell]) for row, cells in rows}


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """A home whose Updater answers."""
    made = Service(tmp_path / "service")
    yield made
    made.server.stop(grace=None).wait()
    made.opened.repo.close()
    made.opened.log.close()


def write_csv(file: Path, header: list[str], rows: list[list[Any]]) -> Path:
    """Write a CSV."""
    with file.open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([header, *rows])
    return file


def test_every_type_from_csv_and_parquet(service: Service, tmp_path: Path) -> None:
    """A column of every type reads the same from CSV (lists as JSON) and from typed Parquet, and null takes back."""
    values: dict[str, tuple[str, Any, Any]] = {  # in CSV, in Parquet, in the Repo
        "quality": ("0.25", 0.25, 0.25),
        "seen_at": ("2026-03-01 12:00:00", 1772366400000000, 1772366400000000),
        "adult": ("true", True, True),
        "labels": ('["b", "é"]', ["b", "é"], ["b", "é"]),
        "codes": ("[3, -1]", [3, -1], [3, -1]),
        "raw": ("AP8=", b"\x00\xff", b"\x00\xff"),
        "notes": ('{"a": 1}', '{"a": 1}', '{"a": 1}'),
        "embedding2": ("[1, 0.5, -2, 0]", [1.0, 0.5, -2.0, 0.0], b"\0\0\x80?\0\0\0?\0\0\0\xc0\0\0\0\0"),
        "caption": ("two\nlines, quoted", "two\nlines, quoted", "two\nlines, quoted"),
    }
    assert values.keys() == TYPES.keys()
    file = write_csv(tmp_path / "a.csv", ["id", *values], [["7", *(v[0] for v in values.values())]])
    done = run(service.opened, "backfill", file=str(file), table="ad", signal="extra", version=5)
    assert done.counts["applied"] == 1 and done.failed == 0, done.failures
    parquet = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist([{"id": 8, **{n: v[1] for n, v in values.items()}}]), parquet)
    assert run(service.opened, "backfill", file=str(parquet), table="ad", signal="extra").failed == 0
    for name, (_, _, stored) in values.items():
        assert service.column(name) == {"7": stored, "8": stored}, name
    file = write_csv(tmp_path / "b.csv", ["ad", "score"], [["7", ""]])
    asked: dict[str, Any] = {"table": "ad", "signal": "extra", "key": "ad", "columns": {"score": "quality"}}
    assert run(service.opened, "backfill", file=str(file), **asked).counts["applied"] == 1
    assert service.column("quality") == {"8": 0.25}


def test_rejects_are_counted_with_their_lines(service: Service, tmp_path: Path) -> None:
    """Each bad line is counted by its reason and named; the good ones around it are stored."""
    file = tmp_path / "bad.csv"
    file.write_bytes(
        b"id,quality,caption\n"
        b"1,0.5,good\n"
        b"2,much,good\n"  # 3
        b",0.5,good\n"  # 4
        b"3,0.5\n"  # 5
        b"999999,0.5,good\n"  # 6
        b"4,0.5,\xff\xfe\n"  # 7
        b'5,0.5,"open\nstill"x\n'  # 9
        b"6,nan,good\n"  # 10
        b"7,0.75,good\n"
        b"\n"
        + b"8,0.5," + b"a" * 70_000 + b"\n"  # 13
        + b"9" * 500 + b",0.5,good\n"  # 14
        b"10,1e3,last\n"
    )  # fmt: skip
    gone = service.opened.repo.begin(Origin("test"))
    gone.put("ad", "10", DELETED, encode(True))
    gone.commit()
    done = run(service.opened, "backfill", file=str(file), table="ad", signal="extra")
    found = {f.reason: [e.split(":")[0] for e in f.examples] for f in done.failures}
    assert found == {
        "bad_type": ["line 3", "line 10"],
        "no_key": ["line 4"],
        "wrong_number_of_fields": ["line 5"],
        "no_such_row": ["line 6", "line 14", "line 15"],
        "invalid_utf8": ["line 7"],
        "malformed_csv": ["line 9"],
        "value_too_large": ["line 13"],
    }
    assert service.column("quality") == {"1": 0.5, "7": 0.75}
    assert done.counts["applied"] == 2 and done.counts["rejected"] == 10 == done.failed
    assert done.outcome is Outcome.SUCCEEDED and "the policy is to go on" in done.said


def test_policy_stops_a_backfill(service: Service, tmp_path: Path) -> None:
    """With the policy to stop, the first bad line ends the run and is named."""
    file = write_csv(tmp_path / "a.csv", ["id", "quality"], [["1", "x"], ["2", "0.5"]])
    request = RunRequest(
        workflow="backfill", parameters={"file": str(file), "table": "ad", "signal": "extra"},
        policy=Policy(on_error="stop"),
    )  # fmt: skip
    with pytest.raises(TooManyFailures, match="line 2: bad_type"):
        execute(service.opened, request)
    assert RunStore(service.opened.repo).get("backfill-1").outcome is Outcome.FAILED
    assert service.column("quality") == {}


@pytest.mark.parametrize(
    "asked, said",
    [
        ({"table": "adz"}, "no table 'adz'"),
        ({"signal": "extras"}, "no signal 'extras'; it has extra, performance"),
        ({"key": "ad_id"}, "no column 'ad_id' with the key"),
        ({"columns": {"score": "quality"}}, "no column 'score'"),
        ({"columns": {"quality": "qualities"}}, "ad.qualities is no column of signal"),
        ({"file": "none.csv"}, "no file"),
        ({"file": "x.xlsx"}, "reads .csv and .parquet"),
        ({"file": "x.parquet"}, "no Parquet file"),
    ],
)
def test_what_cannot_be_read_is_refused(
    service: Service, tmp_path: Path, asked: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong name of a table, signal, key or column, and a file that is none, end the run before any row is sent."""
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "a.csv", ["id", "quality"], [["1", "0.5"]])
    (tmp_path / "x.xlsx").write_bytes(b"PK")
    (tmp_path / "x.parquet").write_bytes(b"PAR0")
    parameters = {"file": "a.csv", "table": "ad", "signal": "extra"} | asked
    with pytest.raises(BadParameters, match=said):
        run(service.opened, "backfill", **parameters)
    assert service.column("quality") == {}


def test_versions_decide(service: Service, tmp_path: Path) -> None:
    """A row that has a newer version of the signal keeps it, the same file twice changes nothing, a dry run stores
    nothing."""
    file = write_csv(tmp_path / "a.csv", ["id", "quality"], [[n, n / 10] for n in range(5)])
    newer = service.opened.repo.begin(Origin("test"))
    newer.put("ad", "3", signal_version_cell("extra"), encode(11))
    newer.commit()
    asked: dict[str, Any] = {"file": str(file), "table": "ad", "signal": "extra", "version": 10}
    assert run(service.opened, "backfill", **asked, dry_run=True).counts["applied"] == 4
    assert service.column("quality") == {}
    counts = run(service.opened, "backfill", **asked).counts
    assert (counts["applied"], counts["stale"]) == (4, 1)
    assert service.column("quality") == {"0": 0.0, "1": 0.1, "2": 0.2, "4": 0.4}
    counts = run(service.opened, "backfill", **asked).counts
    assert (counts["duplicate"], counts["stale"]) == (4, 1) and "applied" not in counts


def test_updates_are_of_the_low_lane(service: Service, tmp_path: Path) -> None:
    """What the backfill writes names the low lane as its cause, so that nothing else waits for it."""
    file = write_csv(tmp_path / "a.csv", ["id", "quality"], [["1", "0.5"]])
    before = service.opened.repo.last_commit_ts()
    run(service.opened, "backfill", file=str(file), table="ad", signal="extra")
    lanes = {c.origin.lane for c in service.opened.repo.changes(before, 100) if c.origin.stage == "updater"}
    assert lanes == {3}


def test_rate_and_pause(service: Service, tmp_path: Path) -> None:
    """Rows go no faster than asked for, and not at all while the low lane is paused."""
    file = write_csv(tmp_path / "a.csv", ["id", "quality"], [[n, 0.5] for n in range(600)])
    begun = time.monotonic()
    run(service.opened, "backfill", file=str(file), table="ad", signal="extra", rate=400.0)
    assert time.monotonic() - begun >= 600 / 400
    set_switch(service.opened.log, "pause.low", "on", who="test", why="test")
    stop = Stop()
    threading.Timer(1.0, stop.set).start()
    request = RunRequest(workflow="backfill", parameters={"file": str(file), "table": "ad", "signal": "extra"})
    with pytest.raises(RunStopped):
        execute(service.opened, request, stop=stop)
    assert RunStore(service.opened.repo).get("backfill-2").counts == {}


def test_updater_away(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An Updater that is started again is waited for; one that stays away ends the run, which then can be resumed."""
    file = write_csv(tmp_path / "a.csv", ["id", "quality"], [[n, 0.5] for n in range(ADS)])
    asked: dict[str, Any] = {"file": str(file), "table": "ad", "signal": "extra", "rate": 0.0}
    service.down()
    threading.Timer(1.0, service.up).start()
    assert run(service.opened, "backfill", **asked).counts["applied"] == ADS
    service.down()
    monkeypatch.setattr(backfill, "PATIENCE_S", 0.2)
    with pytest.raises(UpdaterAway, match="adsindex up"):
        run(service.opened, "backfill", **asked)
    service.up()
    assert run(service.opened, "backfill", resume=True).outcome is Outcome.SUCCEEDED


def test_kill_and_resume(service: Service, tmp_path: Path) -> None:
    """Killed again and again, the backfill goes on where it was, and stores and counts every row as a whole run does;
    a file that was changed meanwhile is refused."""
    rng = random.Random(5)
    rows = [[n, "bad" if rng.random() < 0.05 else rng.random()] for n in range(ADS)]
    file = write_csv(tmp_path / "a.csv", ["id", "quality"], rows)
    good = {str(n): v for n, v in rows if v != "bad"}
    code = (
        "import sys, json; from pathlib import Path; from dataclasses import replace\n"
        "from batch_workflows import backfill; from catalog import load_catalog\n"
        "from messaging import open_embedded_log\n"
        "from tests.batch_workflows.parquet_support import open_with\n"
        "from tests.batch_workflows.run_support import run\n"
        "backfill.BATCH = 20\n"
        "o = open_with(Path(sys.argv[1]), load_catalog(Path(sys.argv[2])))\n"
        "o = replace(o, log=open_embedded_log(o.home.log, o.home.wake))\n"
        "real = backfill._pause\n"
        "def pause(context, until):\n    real(context, until); print('.', flush=True)\n"
        "backfill._pause = pause\n"
        "run(o, 'backfill', resume=sys.argv[3] == 'resume', **json.loads(sys.argv[4]))\n"
    )
    parameters = {"file": str(file), "table": "ad", "signal": "extra", "rate": 2_000.0}
    for attempt, after in enumerate((3, 6, 1)):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(service.opened.home.root), service.catalog.file,
             "resume" if attempt else "new", json.dumps({} if attempt else parameters)],
            stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert process.stdout is not None
        for _ in range(after):
            assert process.stdout.readline()
        process.kill()
        process.wait()
        process.stdout.close()
    assert 0 < len(service.column("quality")) < len(good)
    done = run(service.opened, "backfill", resume=True)
    assert service.column("quality") == good and len(done.attempts) == 4
    assert done.failed == ADS - len(good) and done.counts["rows"] == ADS
    assert done.counts["applied"] + done.counts.get("duplicate", 0) == len(good)


def test_a_changed_file_is_not_resumed(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Line numbers of another file mean nothing."""
    file = write_csv(tmp_path / "a.csv", ["id", "quality"], [[n, 0.5] for n in range(ADS)])
    service.down()
    monkeypatch.setattr(backfill, "PATIENCE_S", 0.0)
    with pytest.raises(UpdaterAway):
        run(service.opened, "backfill", file=str(file), table="ad", signal="extra")
    service.up()
    write_csv(file, ["id", "quality"], [[0, 0.5]])
    with pytest.raises(BadParameters, match="has changed"):
        run(service.opened, "backfill", resume=True)
    assert isinstance(service.catalog, Catalog)
