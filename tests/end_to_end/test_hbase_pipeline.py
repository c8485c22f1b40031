"""The real ads over the whole real stack: the bytes of the embedded pipeline, whatever is killed on the way."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cli.backends import open_ads_db
from cli.inprocess import InProcess
from cli.runtime import open_catalog, process_file
from compose import ServerInfo, Stack
from messaging.home import Home
from tests.end_to_end.command import adsindex, answers, as_json, documents, running, settle, until_idle
from tests.end_to_end.oracle import RealAds, request_of
from tests.end_to_end.test_real_ads import Changes, load
from tests.stack_support import QUICK, temporary_stack, up_or_skip

pytestmark = pytest.mark.timeout(1800)

SERVERS = ("mysql", "kafka", "hbase", "thrift", "thrift2", "omid")
VICTIMS = (
    "gateway-0", "updater-0", "argus-0", "wal_proxy-0", "omid", "thrift", "thrift2", "hbase",
)  # fmt: skip
"""Stages come again by `up`, servers by `stack up`."""
PROXIES = 2
BUSY = "UPDATE ad_groups SET bid_micros = bid_micros + {step} WHERE campaign_id = 936"
"""Changes 464 documents, so that there is work in flight when somebody is killed."""


@dataclass(frozen=True)
class Installation:
    """A home on servers of its own, with the service up until `service` is closed."""

    stack: Stack
    home: Path
    service: ExitStack


@pytest.fixture(scope="module")
def installation(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """The whole stack, its topics and tables, and the real ads, loaded into the running service and served."""
    with temporary_stack(QUICK) as stack, ExitStack() as service:
        servers = up_or_skip(stack, SERVERS)
        home = tmp_path_factory.mktemp("hbase") / "home"
        choose_backends(home, servers)
        words = ("--sample", "0", "--ads-db", servers["mysql"].url, "--wal-proxies", str(PROXIES))
        service.enter_context(running(home, *words))
        load(home, RealAds(data))
        settle(home)
        yield Installation(stack, home, service)


class Embedded:
    """The embedded pipeline on a home with nothing outside it: what the real stack is compared with."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def documents(self) -> dict[str, str]:
        """Return the documents when all is done."""
        opened = Home.open(self.home)
        with InProcess(opened, open_catalog(opened)) as pipeline:
            pipeline.until_idle(600)
        return documents(self.home)


@pytest.fixture(scope="module")
def embedded(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Embedded:
    """The embedded pipeline with the same ads."""
    home = tmp_path_factory.mktemp("embedded") / "home"
    load(home, RealAds(data))
    return Embedded(home)


def choose_backends(home: Path, servers: dict[str, ServerInfo]) -> None:
    """Choose log and Repo as an operator does; without its tables the Repo is refused."""
    assert as_json("topics", "apply", "--log", servers["kafka"].url, home=home)["ok"]
    missing = adsindex("repo", "check", "--repo", servers["hbase"].url, home=home, check=False)
    assert missing.returncode == 1
    assert "ad_document: the table is missing" in missing.stdout
    refused = adsindex("up", "--until-idle", "--sample", "0", home=home, check=False)
    assert refused.returncode == 1
    assert "repo apply" in refused.stderr
    assert as_json("repo", "apply", home=home)["ok"]
    assert as_json("repo", "check", home=home) == {"ok": True, "differences": []}


def assert_same(home: Path, wanted: dict[str, str]) -> None:
    """Stored and served documents are these, byte for byte."""
    for found in (documents(home), documents(home, "--served")):
        assert {ad for ad in wanted.keys() | found.keys() if wanted.get(ad) != found.get(ad)} == set()


def test_documents_are_those_of_the_embedded_pipeline(installation: Installation, embedded: Embedded) -> None:
    """From MySQL through Kafka and HBase, the bytes of every document are the same."""
    wanted = embedded.documents()
    assert len(wanted) == 1143
    assert_same(installation.home, wanted)


def test_history_comes_from_the_versions_in_hbase(installation: Installation, data: Path) -> None:
    """`show` has each version of a column, its exact timestamp and its writer; the base index keeps it exact too."""
    home, ad = installation.home, RealAds(data).ads[0]
    group = ad["fb_campaign_id"]
    for bid in (11_000_000, 12_000_000):
        adsindex("sql", f"UPDATE ad_groups SET bid_micros = {bid} WHERE id = {group}", home=home)
        settle(home)
    view = as_json("show", "ad_group", group, "--history", home=home)
    [column] = [c for c in view["columns"] if c["name"] == "bid_micros"]
    assert [version["value"] for version in column["history"]][:2] == [12_000_000, 11_000_000]
    stamps = [version["commit_ts"] for version in column["history"]]
    assert stamps == sorted(stamps, reverse=True)
    assert all(1 << 60 < stamp < view["repo_ts"] and stamp % 50 == 0 for stamp in stamps)
    assert {version["writer"]["stage"] for version in column["history"]} == {"updater"}
    shown = adsindex("show", "ad_group", group, "--history", home=home).stdout
    assert str(stamps[0]) in shown
    before = as_json("show", "ad", ad["ad_id"], home=home)
    assert before["document"]["version"] > stamps[0]
    built = as_json("workflow", "run", "base-index", home=home)
    assert built["differing"] == 0
    deadline = time.monotonic() + 120
    while (version := as_json("show", "ad", ad["ad_id"], home=home)["serving"]["version"]) != built["snapshot_ts"]:
        assert time.monotonic() < deadline, f"serving has {version}, the base index is of {built['snapshot_ts']}"


def test_search_answers_as_the_csv_demands(installation: Installation, data: Path, tmp_path: Path) -> None:
    """Every combination of age, gender and interest is answered with exactly the ads that demand it."""
    real = RealAds(data)
    wanted = real.by_combination()
    found = answers(installation.home, [request_of(c) for c in wanted], tmp_path)
    assert dict(zip(wanted, found, strict=True)) == wanted


def test_the_wal_proxies_state_is_shown(installation: Installation) -> None:
    """Peers, instances and queues, as text and as JSON; off and on again by command."""
    home = installation.home
    peer = own_peer(home)
    assert (peer["id"], peer["enabled"], peer["serial"], peer["ours"]) == ("adsindex", True, True, True)
    assert {"ad", "campaign", "_probe"} <= set(peer["tables"])
    assert len(peer["instances"]) == PROXIES, "`up --wal-proxies` has HBase share its edits among them"
    adsindex("walproxy", "disable", home=home)
    assert "peer adsindex (this installation, DISABLED, serial)" in adsindex("walproxy", "status", home=home).stdout
    adsindex("walproxy", "enable", home=home)
    assert own_peer(home)["enabled"]


def own_peer(home: Path) -> dict[str, Any]:
    """Return what `walproxy status` says of this installation's peer, the only one."""
    [peer] = as_json("walproxy", "status", home=home)["peers"]
    found: dict[str, Any] = peer
    return found


@pytest.mark.stress
def test_documents_are_byte_equal_when_everything_has_been_killed(
    installation: Installation, embedded: Embedded, data: Path
) -> None:
    """Each stage and each server is killed -9 while changes flow; in the end nothing is missing, dropped or old.

    Also one of two WAL proxies, which the other one, and then another process, stands in for.
    """
    home = installation.home
    changes = Changes(RealAds(data)).statements()[:5]  # the sixth is in SQLite's own SQL
    steps = range(1, len(VICTIMS) + 1)
    group = RealAds(data).ads[0]["fb_campaign_id"]  # the test of history has left another bid there
    same_bid = f"UPDATE ad_groups SET bid_micros = 12000000 WHERE id = {group}"
    change(embedded.home, "; ".join([same_bid, *changes, *(BUSY.format(step=step) for step in steps)]))
    wanted = embedded.documents()
    change(home, "; ".join([same_bid, *changes]))
    for step, victim in zip(steps, VICTIMS, strict=True):
        change(home, BUSY.format(step=step))
        time.sleep(0.2 * step)  # the schedule of the killer, not a wait for something to happen
        kill(installation, victim)
    installation.service.close()
    report = until_idle(home)
    # What was published just before a kill may be published again, also where a later update of the same row had been
    # published too (these change one row again and again): it is counted, and it changes nothing.
    told = {reason for reason in report["dropped"] if not reason.startswith(("duplicate_", "stale_update:"))}
    assert told == set()
    assert report["dead_lettered"] == {}
    assert_same(home, wanted)


def change(home: Path, statement: str) -> None:
    """Run SQL on the ads DB as `sql` does, without the seconds that a command takes to start."""
    ads_db = open_ads_db(Home.open(home))
    try:
        ads_db.execute(statement)
    finally:
        ads_db.close()


def kill(installation: Installation, victim: str) -> None:
    """Kill a stage or a server; return when servers are back (stages, `up` starts again by itself)."""
    if victim in SERVERS:
        installation.stack.kill(victim)
        installation.stack.up(SERVERS)
        return
    deadline = time.monotonic() + 120
    while (values := process_file(Home.open(installation.home), victim).read()) is None:
        assert time.monotonic() < deadline, f"{victim} does not run"
        time.sleep(0.05)
    os.kill(int(values["pid"]), signal.SIGKILL)
