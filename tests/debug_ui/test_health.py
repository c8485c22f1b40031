"""The pipeline's state is counted from what is there, not from what should be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

from debug_ui import pipeline_status
from messaging.dead_letters import dead_letter, out_record
from messaging.metrics import StageMetrics
from tests.debug_ui.pipeline import Pipeline


def waiting(pipeline: Pipeline) -> dict[str, int]:
    """Return what waits, by place, without places where nothing does."""
    return {lag.place: lag.waiting for lag in pipeline_status(pipeline.backends).lags if lag.waiting}


def test_lag_moves_from_place_to_place(pipeline: Pipeline) -> None:
    """A change waits before the stage that has not run, and nowhere once all have."""
    assert waiting(pipeline) == {} and pipeline_status(pipeline.backends).idle
    pipeline.sql("UPDATE ad_groups SET bid_micros = 3000000 WHERE id = 10")
    assert waiting(pipeline) == {"ads DB change feed": 1}
    pipeline.gateway()
    assert waiting(pipeline) == {"updates.high": 1}
    pipeline.updater()
    assert set(waiting(pipeline)) == {"Repo change feed"}
    pipeline.wal_proxy()
    assert waiting(pipeline) == {"notifications.high": 1}
    pipeline.run("wal_proxy", "argus")
    assert waiting(pipeline) == {"serving.deltas": 2}
    pipeline.run()
    assert waiting(pipeline) == {}


def test_figures_come_from_metrics_and_log(pipeline: Pipeline) -> None:
    """Latencies, conflicts, drops and dead letters are those that stages counted."""
    metrics = StageMetrics(pipeline.backends.home.metrics, "updater-0")
    metrics.count("conflicts", 3)
    metrics.count("dropped:stale_update", 2)
    metrics.count("dead_letters:bad_type")
    metrics.flush(force=True)
    pipeline.log.publish([out_record(dead_letter("updater", "bad_type", "no number"))])
    status = pipeline_status(pipeline.backends)
    assert (status.conflicts, status.dropped, status.dead_lettered) == (3, {"stale_update": 2}, {"bad_type": 1})
    assert [(c.stage, c.reason, c.count) for c in status.dead_letters] == [("updater", "bad_type", 1)]
    assert [(r.lane, r.part, r.count) for r in status.latency] == [("high", "total", 6)]
    assert status.documents == 6 and status.repo["last_commit_ts"] > 0
    rates = {rate.topic: rate.per_second for rate in status.throughput}
    assert rates["serving.deltas"] in (0, 6 / 60)  # by whether the home was filled within the last minute
    pipeline.sql("UPDATE ad_groups SET bid_micros = 3000000 WHERE id = 10")
    pipeline.run()
    grown = {rate.topic: rate.per_second for rate in pipeline_status(pipeline.backends).throughput}
    assert grown["serving.deltas"] in (2 / 60, 8 / 60)
    as_json = json.loads(json.dumps(status.to_json()))
    assert as_json["latency_ms"]["high"]["total"]["count"] == 6 and as_json["documents"] == 6


def test_dead_processes_are_seen(pipeline: Pipeline) -> None:
    """A process file whose process is gone is dead, one whose process lives is alive."""
    gone = subprocess.Popen([sys.executable, "-c", "pass"])
    gone.wait()
    run = pipeline.backends.home.run
    common = {"worker": 0, "port": 0, "started_at": time.time(), "restarts": 0, "state": "ready"}
    (run / "argus-0.json").write_text(json.dumps({"process": "argus-0", "stage": "argus", "pid": gone.pid, **common}))
    (run / "updater-0.json").write_text(
        json.dumps({"process": "updater-0", "stage": "updater", "pid": os.getpid(), **common})
    )
    status = pipeline_status(pipeline.backends)
    assert [(s.process, s.alive, s.state) for s in status.stages] == [
        ("updater-0", True, "ready"),
        ("argus-0", False, "dead"),
    ]
    assert any("argus-0 is dead" in problem for problem in status.problems)
    assert not status.up
