"""The report of what was dropped, as a person sees it: the same over the embedded log and over Kafka."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from catalog import LaneName
from cli.runtime import open_log
from compose import ServerInfo
from messaging import Log, OutRecord
from messaging.home import Home
from messaging.reports import load_counts, next_offsets, report_drops
from messaging.topics import DROPS, SIGNALS, UPDATER_GROUP, UPDATES
from tests.end_to_end.command import adsindex, as_json, running, stage_pids
from tests.updater.support import update

pytestmark = pytest.mark.timeout(900)
EXPECTED = [
    ("dead_letter", "updater", "bad_message", "unknown", 1),
    ("dead_letter", "updater", "unknown_table", "high", 1),
    ("dropped", "updater", "duplicate_update", "high", 1),
    ("dropped", "updater", "stale_update", "high", 2),
]


def test_report_is_the_same_on_both_logs_and_the_stage_may_be_killed(kafka_server: ServerInfo, tmp_path: Path) -> None:
    """Stale, repeated, refused and unreadable updates are listed by reason and lane, alike on both logs; on Kafka the
    stage that counts them is among those that run, and killing it changes no number."""
    embedded, kafka = tmp_path / "embedded", tmp_path / "kafka"
    as_json("topics", "apply", "--log", f"{kafka_server.url}/d{uuid.uuid4().hex[:8]}-", home=kafka)
    with running(embedded), open_log(Home.open(embedded)) as log:
        _drop_some(log)
        assert _report(embedded) == EXPECTED
        assert "reports-0" not in stage_pids(embedded)
    with running(kafka), open_log(Home.open(kafka)) as log:
        _drop_some(log)
        assert _report(kafka) == EXPECTED
        _wait(lambda: len(load_counts(log)) == len(EXPECTED))
        before = stage_pids(kafka)["reports-0"]
        os.kill(before, signal.SIGKILL)
        _publish(log, update("pin", "p1", 1, {"id": "p1"}))
        _wait(lambda: stage_pids(kafka, ready=True).get("reports-0", before) != before)
        stages = {stage["process"]: stage for stage in as_json("status", home=kafka)["stages"]}
        assert stages["reports-0"]["alive"]
        assert stages["reports-0"]["restarts"] == 1
        end = log.end_offsets(DROPS)[0]
        _wait(lambda: next_offsets(load_counts(log))[DROPS] == end)
        assert [count for *_, count in _report(kafka)] == [1, 1, 1, 3]
    text = adsindex("report", "drops", "--day", "today", home=kafka).stdout
    for word in ("stale_update", "updater", "high", "pin/p1", "no loss", "replay"):
        assert word in text
    assert adsindex("report", "drops", "--day", "2001-01-01", home=kafka).stdout == "nothing was dropped\n"


def _drop_some(log: Log) -> None:
    _publish(log, update("pin", "p1", 5, {"id": "p1"}))
    for version in (5, 4, 3):
        _publish(log, update("pin", "p1", version, {"id": "p1"}))
    _publish(log, update("no_such_table", "1", 1, {}))
    log.publish([OutRecord(SIGNALS, "x", b"\xff\xff")])
    _wait(lambda: sum(line.count for line in report_drops(log)) == sum(count for *_, count in EXPECTED))


def _publish(log: Log, message: Any) -> None:
    """Publish an update and wait until it is dealt with: of one batch, only the newest of a row is looked at."""
    topic = UPDATES[LaneName.HIGH]
    log.publish([OutRecord(topic, message.row, message.SerializeToString())])
    _wait(lambda: log.committed(UPDATER_GROUP, topic) == log.end_offsets(topic))


def _report(home: Path) -> list[tuple[str, str, str, str, int]]:
    lines = as_json("report", "drops", home=home)["drops"]
    return [(x["kind"], x["stage"], x["reason"], x["lane"], x["count"]) for x in lines]


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 280
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
