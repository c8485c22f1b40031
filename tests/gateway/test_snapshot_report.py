"""`report snapshot` on a real MySQL: what it proves, what it refutes, and what a trimmed log cannot say."""

from __future__ import annotations

import json
from typing import Any

from typer.testing import CliRunner

from cli.main import app
from cli.settings import choose
from messaging import Log, OutRecord
from messaging.home import Home
from messaging.proto import adsindex_pb2 as pb
from messaging.topics import UPDATES
from tests.gateway.mysql_support import Ads, seed, stage_on, wait_idle


def report(home: Home) -> tuple[int, dict[str, Any]]:
    """Return the command's exit code and what it says."""
    result = CliRunner().invoke(app, ["report", "snapshot", "--home", str(home.root), "--json"])
    assert result.exit_code in (0, 1, 3), result.output
    said: dict[str, Any] = json.loads(result.output)
    return result.exit_code, said


def trim(log: Log, partition: int) -> set[tuple[str, str]]:
    """Forget everything in a partition of every lane; return the entities that were in it."""
    found = set()
    for topic in UPDATES.values():
        for record in log.read(topic, partition, 0, 100_000):
            update = pb.EntityUpdate.FromString(record.value)
            found.add((update.table, update.row))
        log.trim(topic, partition, log.end_offsets(topic)[partition])
    return found


def test_older_rows_are_not_provable_and_newer_ones_still_are(mysql: Ads, home: Home) -> None:
    """A log that forgot records proves or refutes what it still has, and counts the rest apart, with its own code."""
    seed(mysql, 100)
    choose(home, ads_db=mysql.url)
    with stage_on(home, mysql.url) as (_, log, raised):
        wait_idle(mysql.url, log)
        assert not raised
        assert report(home) == (0, {"equal": True, "ranges": 2, "differ": [], "too_many": [], "not_provable": 0})
        forgotten = trim(log, 0)
        assert 0 < len(forgotten) < 300
        code, said = report(home)
        assert (code, said["equal"], said["differ"], said["not_provable"]) == (3, False, [], len(forgotten))
        plain = CliRunner().invoke(app, ["report", "snapshot", "--home", str(home.root)])
        assert plain.output.startswith("NOT PROVABLE for older rows: ")
        table, row = sorted(forgotten)[0]
        gone = pb.EntityUpdate(table=table, row=row, source_version=1 << 62, deleted=True)
        log.publish([OutRecord(UPDATES[next(iter(UPDATES))], "k", gone.SerializeToString())])
        code, said = report(home)
        assert (code, len(said["differ"]), said["not_provable"]) == (1, 1, len(forgotten) - 1)
