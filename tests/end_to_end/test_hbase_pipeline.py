"""The real ads over the whole real stack: the bytes of the embedded pipeline, whatever is killed on the way."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cli.runtime import process_file
from compose import ServerInfo, Stack
from messaging.home import Home
from tests.end_to_end.command import adsindex, answers, as_json, documents, running, until_idle
from tests.end_to_end.oracle import RealAds, request_of
from tests.end_to_end.test_real_ads import Changes, load
from tests.stack_support import temporary_stack, up_or_skip

pytestmark = pytest.mark.timeout(1800)

SERVERS = ("mysql", "kafka", "hbase", "thrift", "thrift2", "omid")
VICTIMS = (
    "gateway-0", "updater-0", "argus-0", "wal_proxy-0", "omid", "thrift", "thrift2", "hbase",
)  # fmt: skip
"""Stages come again by `up`, servers by `stack up`."""
BUSY = "UPDATE ad_groups SET bid_micros = bid_micros + {step} WHERE campaign_id = 936"
"""Changes 464 documents, so that there is work in flight when somebody is killed."""


@dataclass(frozen=True)
class Installation:
    """A home on servers of its own."""

    stack: Stack
    home: Path


@pytest.fixture(scope="module")
def installation(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """The whole stack, its topics and tables, and the real ads, served."""
    with temporary_stack() as stack:
        servers = up_or_skip(stack, SERVERS)
        home = tmp_path_factory.mktemp("hbase") / "home"
        set_up(home, servers)
        load(home, RealAds(data))
        until_idle(home)
        yield Installation(stack, home)


@pytest.fixture(scope="module")
def embedded(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with the same ads and nothing outside it."""
    home = tmp_path_factory.mktemp("embedded") / "home"
    load(home, RealAds(data))
    until_idle(home)
    return home


def set_up(home: Path, servers: dict[str, ServerInfo]) -> None:
    """Choose the backends as an operator does: topics, tables, ads DB."""
    assert as_json("topics", "apply", "--log", servers["kafka"].url, home=home)["ok"]
    missing = adsindex("repo", "check", "--repo", servers["hbase"].url, home=home, check=False)
    assert missing.returncode == 1
    assert "ad_document: the table is missing" in missing.stdout
    refused = adsindex("up", "--until-idle", "--sample", "0", home=home, check=False)
    assert refused.returncode == 1
    assert "repo apply" in refused.stderr
    assert as_json("repo", "apply", home=home)["ok"]
    assert as_json("repo", "check", home=home) == {"ok": True, "differences": []}
    until_idle(home, "--sample", "0", "--ads-db", servers["mysql"].url)


def assert_same(installation: Installation, embedded: Path) -> None:
    """Stored and served documents are those of the embedded pipeline, byte for byte."""
    wanted = documents(embedded)
    for found in (documents(installation.home), documents(installation.home, "--served")):
        assert {ad for ad in wanted.keys() | found.keys() if wanted.get(ad) != found.get(ad)} == set()


def test_documents_are_those_of_the_embedded_pipeline(installation: Installation, embedded: Path) -> None:
    """From MySQL through Kafka and HBase, the bytes of every document are the same."""
    assert len(documents(embedded)) == 1143
    assert_same(installation, embedded)


def test_history_comes_from_the_versions_in_hbase(installation: Installation, data: Path) -> None:
    """`show` has each version of a column, its exact timestamp and its writer; the base index keeps it exact too."""
    home, ad = installation.home, RealAds(data).ads[0]
    group = ad["fb_campaign_id"]
    for bid in (11_000_000, 12_000_000):
        adsindex("sql", f"UPDATE ad_groups SET bid_micros = {bid} WHERE id = {group}", home=home)
        until_idle(home)
    view = as_json("show", "ad_group", group, "--history", home=home)
    [column] = [c for c in view["columns"] if c["name"] == "bid_micros"]
    assert [version["value"] for version in column["history"]][:2] == [12_000_000, 11_000_000]
    stamps = [version["commit_ts"] for version in column["history"]]
    assert stamps == sorted(stamps, reverse=True)
    assert all(1 << 60 < stamp < view["repo_ts"] and stamp % 50 == 0 for stamp in stamps)
    assert {version["writer"]["stage"] for version in column["history"]} == {"updater"}
    shown = adsindex("show", "ad_group", group, "--history", home=home).stdout
    assert str(stamps[0]) in shown
    document = as_json("show", "ad", ad["ad_id"], home=home)["document"]
    assert document["version"] > stamps[0]
    built = as_json("workflow", "run", "base-index", home=home)
    assert built["differing"] == 0
    assert as_json("show", "ad", ad["ad_id"], home=home)["serving"]["version"] == built["snapshot_ts"]


def test_search_answers_as_the_csv_demands(installation: Installation, data: Path, tmp_path: Path) -> None:
    """Every combination of age, gender and interest is answered with exactly the ads that demand it."""
    real = RealAds(data)
    wanted = real.by_combination()
    found = answers(installation.home, [request_of(c) for c in wanted], tmp_path)
    assert dict(zip(wanted, found, strict=True)) == wanted


@pytest.mark.stress
def test_documents_are_byte_equal_when_everything_has_been_killed(
    installation: Installation, embedded: Path, data: Path
) -> None:
    """Each stage and each server is killed -9 while changes flow; in the end nothing is missing, dropped or old."""
    changes = Changes(RealAds(data)).statements()[:5]  # the sixth is in SQLite's own SQL
    steps = range(1, len(VICTIMS) + 1)
    adsindex("sql", "; ".join([*changes, *(BUSY.format(step=step) for step in steps)]), home=embedded)
    group = RealAds(data).ads[0]["fb_campaign_id"]  # the test of history has left another bid there
    adsindex("sql", f"UPDATE ad_groups SET bid_micros = 12000000 WHERE id = {group}", home=embedded)
    adsindex("sql", f"UPDATE ad_groups SET bid_micros = 12000000 WHERE id = {group}", home=installation.home)
    until_idle(embedded)
    with running(installation.home):
        adsindex("sql", "; ".join(changes), home=installation.home)
        for step, victim in zip(steps, VICTIMS, strict=True):
            adsindex("sql", BUSY.format(step=step), home=installation.home)
            time.sleep(0.2 * step)  # the schedule of the killer, not a wait for something to happen
            kill(installation, victim)
    report = until_idle(installation.home)
    # What was published just before a kill may be published again: serving counts it, and it changes nothing.
    assert {reason for reason in report["dropped"] if not reason.startswith("duplicate_")} == set()
    assert report["dead_lettered"] == {}
    assert_same(installation, embedded)


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


def test_the_wal_proxy_s_state_is_shown(installation: Installation) -> None:
    """Peers, instances and queues, as text and as JSON; off and on again by command."""
    home = installation.home
    [peer] = as_json("walproxy", "status", home=home)["peers"]
    assert (peer["id"], peer["enabled"], peer["serial"], peer["ours"]) == ("adsindex", True, True, True)
    assert {"ad", "campaign", "_probe"} <= set(peer["tables"])
    text = adsindex("walproxy", "status", home=home).stdout
    assert "peer adsindex (this installation, enabled, serial)" in text
    adsindex("walproxy", "disable", home=home)
    assert "this installation, DISABLED" in adsindex("walproxy", "status", home=home).stdout
    adsindex("walproxy", "enable", home=home)
    assert json.loads(adsindex("walproxy", "status", "--json", home=home).stdout)["peers"][0]["enabled"]
