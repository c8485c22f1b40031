"""kill -9 in the middle of a sync, again and again: the next run finishes the work."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

from batch_workflows.runs import RunStore
from tests.batch_workflows.sync_support import Chaos, filled, rebuilt, state_of
from tests.debug_ui.pipeline import Pipeline
from tests.support import ROOT

KILLS = 4
WORKER = Path(__file__).with_name("sync_worker.py")


def start(home: Path) -> subprocess.Popen[str]:
    """Start a sync of a home, and return when it begins."""
    command = [sys.executable, str(WORKER), str(home)]
    process = subprocess.Popen(
        command, cwd=ROOT, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin"}, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    while line := process.stdout.readline():
        if line.startswith("begun"):
            return process
    raise AssertionError("the sync did not begin")


def test_a_killed_sync_is_finished_by_the_next(tmp_path: Path) -> None:
    """Killed at random moments of its run, a sync leaves nothing worse; the run that is let through mends all."""
    random_ = random.Random(1)
    pipeline = filled(tmp_path / "home")
    chaos = Chaos(pipeline, 100)
    chaos.all(2)
    pipeline.close()
    killed = 0
    for _ in range(KILLS):
        process = start(tmp_path / "home")
        time.sleep(random_.random() * 0.8)
        if process.poll() is None:
            process.kill()
            killed += 1
        process.wait()
    process = start(tmp_path / "home")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "done" in out
    pipeline = Pipeline.open(tmp_path / "home", capture=False)
    clean = rebuilt(pipeline, tmp_path / "clean")
    try:
        assert state_of(pipeline) == state_of(clean), chaos.done
        runs = RunStore(pipeline.backends.repo).runs("sync", 100)
        assert sum(len(run.attempts) for run in runs) >= killed, "the kills came before the runs"
    finally:
        clean.close()
        pipeline.close()
