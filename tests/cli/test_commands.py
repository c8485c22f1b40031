"""The commands as a person types them: on a running home, on one at rest, and with wrong input."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from typer.main import get_command
from typer.testing import CliRunner

from argus import CannotPause
from cli.main import app
from cli.runtime import open_log
from cli.search import _warnings
from messaging.home import Home
from messaging.switches import Switches, set_switch
from tests.end_to_end.command import adsindex, as_json, documents, running, stage_pids, until_idle

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home at rest with a generated sample of 200 ads."""
    home = tmp_path_factory.mktemp("commands") / "home"
    report = until_idle(home, "--sample", "200", "--seed", "3")
    assert 100 < report["documents"] <= 200
    assert set(report) >= {"documents", "latency_ms", "conflicts", "retries", "dropped", "dead_lettered"}
    lane = next(iter(report["latency_ms"].values()))
    assert {"p50", "p90", "p99"} <= set(lane["total"])
    return home


def test_every_reading_command_works_without_a_running_service(home: Path) -> None:
    """search, show, status, why and documents answer from the home's files when nothing runs."""
    answer = as_json("search", "--request", '{"age": "*", "gender": "*", "interests": "*", "country": "*", '
                     '"device": "*", "language": "*"}', "-k", "0", home=home)  # fmt: skip
    assert answer["total"] == len(answer["hits"]) > 0
    ad = answer["hits"][0]["ad_id"]
    assert str(ad) in documents(home)
    for kind, identifier in (("ad", str(ad)), ("document", str(ad)), ("campaign", "1001"), ("advertiser", "1")):
        assert as_json("show", kind, identifier, home=home)
    assert as_json("status", home=home)["documents"] == len(documents(home))
    assert as_json("why", "campaign", "1001", home=home)["steps"]
    scored = as_json("search", "--request", '{"age": "*", "gender": "*", "interests": "*", "country": "*", '
                     '"device": "*", "language": "*"}', "-k", "5", "--score", "7 + 0 * bid", "--rerank", "50",
                     home=home)["hits"]  # fmt: skip
    assert {hit["score"] for hit in scored} == {7.0}
    assert [hit["ad_id"] for hit in scored] == sorted(hit["ad_id"] for hit in scored)
    explained = as_json("search", "--request", "{}", "--explain", "--ad", str(ad), home=home)
    assert "plan" in explained and "ad" in explained


def test_two_homes_do_not_see_each_other(home: Path, tmp_path: Path) -> None:
    """A second home starts empty and stays so, whatever the first one holds."""
    other = tmp_path / "other"
    found = as_json("search", "--request", "{}", home=other)
    assert found == {"hits": [], "total": 0, "total_is_lower_bound": False, "partial": False}
    assert as_json("sql", "SELECT count(*) FROM ads", home=other)["rows"] == [[0]]
    assert documents(home)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("search", "--request", '{"colour": "red"}'), ("colour", "country")),
        (("search", "--request", "{"), ("not JSON",)),
        (("search", "--request", '{"filter": ' + '{"not": ' * 3000 + "1" + "}" * 3001), ("nested",)),
        (("search", "--request", "[" * 100_000), ("nested",)),
        (("search",), ("--request",)),
        (("search", "--request", "{}", "--score", "bid +"), ("score, character 6",)),
        (("show", "campain", "1"), ("campain", "campaign")),
        (("show", "ad", "987654321"), ("987654321",)),
        (("why", "campaign", "987654321"), ("987654321",)),
        (("sql", "UPDATE campaings SET status = 'PAUSED'"), ("campaings",)),
        (("load", "nowhere.csv", "--mapping", "kag_facebook_ads"), ("nowhere.csv",)),
        (("load", "nowhere.csv", "--mapping", "no_such_mapping"), ("no_such_mapping",)),
        (("workflow", "run", "base-indx"), ("base-indx", "base-index")),
        (("workflow", "run", "refresh", "--table", "adz"), ("adz",)),
        (("workflow", "run", "refresh", "--ids", "987654321"), ("987654321",)),
        (("up", "--catalog", "nowhere.yaml"), ("nowhere.yaml",)),
    ],
)
def test_wrong_input_is_one_clear_sentence(home: Path, words: tuple[str, ...], told: tuple[str, ...]) -> None:
    """What is wrong is named on standard error, without a traceback, and the exit code is not 0."""
    done = adsindex(*words, home=home, check=False)
    assert done.returncode != 0
    assert all(word in done.stderr for word in told), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("place", ["/proc/nope", "a-file"])
def test_a_home_that_cannot_be_is_one_clear_sentence(tmp_path: Path, place: str) -> None:
    """A home below a file, or where nothing can be made, is named; no traceback."""
    (tmp_path / "a-file").write_text("x")
    done = adsindex("status", home=tmp_path / place if place == "a-file" else Path(place), check=False)
    assert done.returncode == 1 and place.strip("/") in done.stderr and "Traceback" not in done.stderr


def test_a_request_file_names_the_line_that_is_wrong(home: Path, tmp_path: Path) -> None:
    """The good lines before a bad one are answered, and the bad one is named."""
    file = tmp_path / "requests.jsonl"
    file.write_text('{}\n{"text": "tea"}\n{"colour": 1}\n')
    done = adsindex("search", "--requests", file, "--json", home=home, check=False)
    assert len(done.stdout.splitlines()) == 2
    assert f"{file}:3" in done.stderr and done.returncode == 1


def test_the_service_survives_kills_and_stops_without_a_trace(home: Path) -> None:
    """A killed stage comes back; a second `up` is refused; SIGTERM ends every process, and kill -9 of `up` too."""
    with running(home) as up:
        refused = adsindex("up", home=home, check=False)
        assert refused.returncode == 1 and "already up" in refused.stderr
        before = stage_pids(home)
        os.kill(before["argus-0"], signal.SIGKILL)
        deadline = time.monotonic() + 120
        while stage_pids(home, ready=True).get("argus-0") in (None, before["argus-0"]):
            assert time.monotonic() < deadline, "argus did not come back"
            time.sleep(0.05)
        adsindex("sql", "UPDATE campaigns SET status = 'PAUSED' WHERE id = 1001", home=home)
        state = as_json("status", home=home)
        assert {p["process"] for p in state["stages"] if p["alive"]} >= set(before)
        pids = stage_pids(home).values()
    assert up.returncode == 0
    assert not [pid for pid in pids if psutil.pid_exists(pid)]
    with running(home) as up:
        pids = stage_pids(home).values()
        up.kill()
        up.wait(10)
        deadline = time.monotonic() + 120
        while [pid for pid in pids if psutil.pid_exists(pid)]:
            assert time.monotonic() < deadline, "stages outlived the supervisor"
            time.sleep(0.05)
    report = until_idle(home)
    assert report["documents"] == len(documents(home))


def test_refresh_and_rollback_leave_the_answers_as_they_are(home: Path) -> None:
    """Running every handler again changes no document; rolling back to the base before changes no answer."""
    before = documents(home)
    ask = ("search", "--request", '{"age": "*", "gender": "*", "interests": "*"}', "-k", "0", "--json")
    answer = adsindex(*ask, home=home).stdout
    first = as_json("workflow", "run", "base-index", home=home)
    as_json("workflow", "run", "base-index", home=home)
    refreshed = as_json("workflow", "run", "refresh", home=home)
    assert refreshed["by_table"]["ad"] == 200
    until_idle(home)
    assert documents(home) == before
    assert as_json("workflow", "run", "rollback-base", home=home)["base_version"] == first["base_version"]
    assert adsindex(*ask, home=home).stdout == answer
    assert json.loads(answer)["total"] > 0


def test_every_command_has_help() -> None:
    """`--help` of every command and group prints its usage."""
    runner = CliRunner()

    def walk(command: object, path: tuple[str, ...]) -> None:
        result = runner.invoke(app, [*path, "--help"])
        assert result.exit_code == 0 and "Usage" in result.output, (path, result.output, result.exception)
        for name, child in getattr(command, "commands", {}).items():
            walk(child, (*path, name))

    walk(get_command(app), ())


def test_up_until_idle_ends_when_only_switches_hold_something(home: Path) -> None:
    """With a lane paused it ends with exit code 3 and says which switch holds how many; released, they flow."""
    with closing(open_log(Home.open(home))) as log:
        set_switch(log, "pause.high", "on", who="anna", why="storm")
    with closing(sqlite3.connect(home / "ads.db", isolation_level=None)) as connection:
        connection.execute("UPDATE campaigns SET name = name || '!' WHERE id IN (1001, 1002)")
    try:
        ended = adsindex("up", "--until-idle", "--sample", "0", "--json", home=home, check=False)
    finally:
        with closing(open_log(Home.open(home))) as log:
            set_switch(log, "pause.high", "off", who="anna", why="over")
    assert ended.returncode == 3, ended.stderr
    assert "pause.high is on (by anna: storm) and holds 2 in updates.high" in ended.stderr
    assert "./adsindex switch set pause.high off" in ended.stderr
    assert json.loads(ended.stdout)["held"] == [
        {"switch": "pause.high", "value": "on", "place": "updates.high", "count": 2}
    ]
    assert until_idle(home)["held"] == []


def test_a_handler_is_paused_by_command_with_audit(home: Path) -> None:
    """One that must run, or is none, is refused in a sentence; another is paused, in the health as long as it is, and
    in the history for good."""
    for name, said in (("nope", "no handler 'nope'"), ("status_rollup", "what may serve")):
        refused = CliRunner().invoke(
            app, ["switch", "set", f"pause_handler.{name}", "on", "--why", "x", "--home", str(home)]
        )
        assert isinstance(refused.exception, CannotPause) and said in str(refused.exception)
    name = "pause_handler.price"
    adsindex("switch", "set", name, "on", "--why", "slow", "--who", "anna", home=home)
    assert f"switch {name} is on, set by anna: slow" in as_json("status", home=home)["problems"]
    with closing(open_log(Home.open(home))) as log:
        set_switch(log, name, "off", who="ben", why="mended")
        switches = Switches(log)
        switches.refresh(force=True)
        assert [(s.name, s.value, s.who) for s in switches.history][-2:] == [(name, "on", "anna"), (name, "off", "ben")]


def test_what_keeps_an_answer_from_being_whole_is_said() -> None:
    """Missing shards with the reason, a deadline that came first, deltas that the log has lost; else nothing."""
    assert list(_warnings({"partial": False})) == []
    assert list(_warnings({"partial": True})) == ["partial: the deadline came first"]
    answer = {"partial": True, "missing_shards": {"1/2": "not running"}, "problem": "deltas are missing"}
    assert list(_warnings(answer)) == ["partial: shard 1/2 is missing: not running", "problem: deltas are missing"]
