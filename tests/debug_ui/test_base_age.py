"""The health view warns before a broker forgets what the base index lacks."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from cli.backends import backends
from cli.settings import choose
from compose import ServerInfo
from debug_ui import pipeline_status
from debug_ui._base_age import BASE_DAYS, base_problem
from manas._manifest import FORMAT_VERSION, Manifest, write_manifest
from messaging import OutRecord, open_embedded_log
from messaging.headers import now_us
from messaging.home import Home
from messaging.kafka import open_kafka_log
from messaging.topics import DELTAS, ensure_topics

DAYS_US = 24 * 3600 * 1_000_000
VERSION = "20260101T000000.000000Z-1"
DELTA = [OutRecord(DELTAS, "1", b"")]


def put_base_in_service(base_dir: Path, positions: dict[int, int]) -> None:
    """Publish an empty base that has every delta before the positions."""
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        catalog="",
        fingerprint="",
        documents=0,
        snapshot_ts=0,
        delta_positions=positions,
        budget_positions={},
        coverage={},
        fields={},
        files={},
        postings={},
        postings_by_field={},
        created_at="2026-01-01T00:00:00+00:00",
    )
    (base_dir / VERSION).mkdir(parents=True)
    write_manifest(base_dir / VERSION, manifest)
    (base_dir / "CURRENT").write_text(VERSION)


def test_old_or_missing_base_is_told_in_time(
    kafka_server: ServerInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Kafka, deltas in no base are a problem after BASE_DAYS, and at once when some are gone; `status` says so."""
    home = Home.open(tmp_path)
    url = f"{kafka_server.url}/t{uuid.uuid4().hex[:10]}-"
    with open_kafka_log(url) as log:
        ensure_topics(log)
        later = now_us() + BASE_DAYS * DAYS_US + DAYS_US // 2
        assert base_problem(log, home.base, later) is None, "nothing was published"
        log.publish(DELTA)
        assert base_problem(log, home.base, now_us()) is None
        told = base_problem(log, home.base, later)
        assert told is not None
        assert told.startswith(f"there is no base index: document changes of {BASE_DAYS} days are in none, and the log")
        choose(home, log=url)
        with backends(home) as opened:
            assert not any("base index" in problem for problem in pipeline_status(opened).problems)
            with monkeypatch.context() as patch:
                patch.setattr("debug_ui.health.now_us", lambda: later)
                assert pipeline_status(opened).problems[0] == told
        ends = log.end_offsets(DELTAS)
        put_base_in_service(home.base, ends)
        assert base_problem(log, home.base, later) is None, "the base has all of them"
        log.publish(DELTA)
        assert "the base index is old" in str(base_problem(log, home.base, later))
        ends = log.end_offsets(DELTAS)
        for partition, end in ends.items():
            log.trim(DELTAS, partition, end)
        assert "cannot start anew" in str(base_problem(log, home.base, now_us()))


def test_embedded_log_keeps_what_the_base_lacks(tmp_path: Path) -> None:
    """There a base may be as old as it likes."""
    with open_embedded_log(tmp_path / "log", tmp_path / "wake") as log:
        ensure_topics(log)
        log.publish(DELTA)
        assert base_problem(log, tmp_path / "base", now_us() + 100 * DAYS_US) is None
