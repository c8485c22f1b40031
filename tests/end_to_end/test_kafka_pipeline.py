"""The real ads through MySQL and Kafka: the same documents and answers as embedded, also with parts of it killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from contextlib import closing
from pathlib import Path

from cli.runtime import process_file
from compose import Stack
from messaging.home import Home
from tests.end_to_end.command import adsindex, as_json, documents, environment, running, until_idle
from tests.end_to_end.oracle import RealAds
from tests.end_to_end.test_real_ads import check_answers, load
from tests.gateway.mysql_support import Ads
from tests.stack_support import up_or_skip
from tests.support import ROOT

RENAME = "UPDATE ads SET name = {} WHERE id % 3 = {}"
VICTIMS = ("gateway-0", "kafka", "updater-0", "argus-0")


def test_real_ads_over_mysql_and_kafka_with_parts_killed(own_stack: Stack, data: Path, tmp_path: Path) -> None:
    """Gateway, broker, Updater and Argus are killed -9 one after the other while the ads are loaded and changed; in the
    end documents and answers are those of the embedded pipeline, nothing was dropped, and the snapshot is proved."""
    servers = up_or_skip(own_stack, ["mysql", "kafka"])
    real = RealAds(data)
    embedded, home = tmp_path / "embedded", tmp_path / "kafka"
    load(embedded, real)
    for rest in range(3):
        adsindex("sql", RENAME.format("name || '!'", rest), home=embedded)
    until_idle(embedded)

    log = f"{servers['kafka'].url}/e{uuid.uuid4().hex[:8]}-"
    with closing(Ads(servers["mysql"].url)) as ads:
        as_json("topics", "apply", "--log", log, home=home)
        with running(home, "--ads-db", ads.url, "--log", log, "--sample", "0"):
            adsindex("load", real.products_csv, "--mapping", "flipkart_products", home=home)
            loading = subprocess.Popen(
                [sys.executable, "-m", "cli.main", "load", str(real.ads_csv), "--mapping", "kag_facebook_ads",
                 "--home", str(home)], cwd=ROOT, env=environment(),
            )  # fmt: skip
            _end(home, own_stack, VICTIMS[0])
            assert loading.wait(120) == 0
            for rest, victim in enumerate(VICTIMS[1:]):
                ads.run(RENAME.format("CONCAT(name, '!')", rest))
                _end(home, own_stack, victim)
        report = until_idle(home)
        assert report["dropped"].get("too_old", 0) == 0
        assert report["dead_lettered"] == {}
        assert report["documents"] == len(real.ads)
        assert documents(home) == documents(embedded)
        check_answers(home, tmp_path, real, {ad["ad_id"]: (ad["age"], ad["gender"], ad["interest"]) for ad in real.ads})
        proof = as_json("report", "snapshot", home=home)
        assert (proof["equal"], proof["differ"], proof["too_many"]) == (True, [], [])
        assert proof["ranges"] > 3
        ads.run("UPDATE ads SET name = 'while the Gateway is down' LIMIT 1")
        assert adsindex("report", "snapshot", home=home, check=False).returncode == 1


def _end(home: Path, stack: Stack, victim: str) -> None:
    """Kill a process of the pipeline, which its supervisor starts again, or the broker, which is started here."""
    if victim == "kafka":
        stack.kill("kafka")
        stack.restart("kafka")
        return
    deadline = time.monotonic() + 120
    while (values := process_file(Home.open(home), victim).read()) is None:
        assert time.monotonic() < deadline, f"{victim} does not run"
        time.sleep(0.05)
    os.kill(int(values["pid"]), signal.SIGKILL)
