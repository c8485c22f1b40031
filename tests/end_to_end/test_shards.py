"""`up --shards`: servers that share out the documents, a broker that everything else asks, and one of them killed."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from catalog import load_catalog
from cli.backends import backends
from cli.idle import IdleWatch, outstanding
from cli.runtime import CommandError, serving_port
from cli.settings import MAX_SHARDS, Settings
from cli.supervisor import plan
from debug_ui.health import pipeline_status
from manas import ManasClient, open_local_index
from manas._serving_settings import MAX_SHARDS as MOST_OF_MANAS
from manas.api import Answer
from messaging.home import Home
from tests.end_to_end.command import adsindex, as_json, running, stage_pids

BROWSE: dict[str, Any] = {"at": datetime.now(UTC).isoformat(), **dict.fromkeys(load_catalog().dimensions, "*")}


def _text(answer: Answer) -> str:
    return json.dumps(answer, default=list)


def _until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)


def test_everything_goes_through_the_broker_and_a_killed_shard_comes_back(tmp_path: Path) -> None:
    """Loaded by two shards, answered as by one index; without a shard partial and named; whole after its restart."""
    home = Home.open(tmp_path / "home")
    catalog = load_catalog()
    requests = [BROWSE, {**BROWSE, "max_per_advertiser": 1}, {**BROWSE, "score": "bid * quality"}]
    requests.append({**BROWSE, "text": "the a of and new"})
    with running(home.root, "--sample", "150", "--shards", "2"):
        _until(lambda: serving_port(home))
        assert Settings.load(home).shards == 2
        with backends(home) as opened:
            watch = IdleWatch()
            _until(lambda: watch.look(outstanding(opened, opened.serving.stats()["positions"], certain=True)))
            whole = open_local_index(home, catalog, opened.log)
        assert whole.search(BROWSE, 0)["total"] > 40
        port = serving_port(home)
        assert port is not None
        assert stage_pids(home.root).keys() >= {"manas-0", "manas-1", "broker-0"}
        with ManasClient(port, catalog, timeout_s=60) as client:
            for request in requests:
                assert _text(client.search(request, 50)) == _text(whole.search(request, 50))
            held = [stats["documents"] for stats in client.stats()["shards"].values()]
            assert sum(held) == whole.documents()
            assert min(held) > 30
            first = whole.search(BROWSE, 1)["hits"][0]["ad_id"]
            asked = as_json("search", "--request", json.dumps(BROWSE), "--ad", str(first), home=home.root)
            assert asked["ad"]["in_answer"]
            assert asked["ad"]["shard"] in ("0/2", "1/2")
            killed = stage_pids(home.root)["manas-1"]
            os.kill(killed, signal.SIGKILL)
            while not (answer := client.search(BROWSE, 5))["partial"]:
                assert stage_pids(home.root).get("manas-1") == killed, "started again before anybody noticed"
            assert list(answer["missing_shards"]) == ["1/2"]
            assert 0 < len(answer["hits"]) <= 5
            _until(lambda: not client.search(BROWSE, 5)["partial"])
            assert _text(client.search(BROWSE, 50)) == _text(whole.search(BROWSE, 50))
            adsindex("sql", f"UPDATE ads SET status = 'PAUSED' WHERE id = {first}", home=home.root)
            _until(lambda: client.search(BROWSE, 1)["hits"][0]["ad_id"] != first)
            with backends(home) as opened:
                status = pipeline_status(opened)
            assert status.documents == sum(stats["documents"] for stats in client.stats()["shards"].values())
            assert any("manas-1 has been restarted" in problem for problem in status.problems)
            assert {stage.process for stage in status.stages if stage.alive} >= {"manas-0", "manas-1", "broker-0"}


def test_a_shard_has_one_process() -> None:
    """Both ways to use several processes at once are refused in words; every shard gets what is set for Manas."""
    with pytest.raises(CommandError, match="either --shards or --manas-processes"):
        plan(1, manas_processes=2, shards=2)
    assert MAX_SHARDS == MOST_OF_MANAS
    shards = [managed for managed in plan(1, [("manas", "base_fallback=true")], shards=3) if managed.stage == "manas"]
    assert [managed.settings for managed in shards] == [("base_fallback=true", f"shard={n}/3") for n in range(3)]
