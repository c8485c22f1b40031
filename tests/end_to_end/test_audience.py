"""An ad with a predicate, a circle and weekly hours goes from the ads DB to the answer, and what is wrong does not."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from batch_workflows.base_index import build_base_index
from catalog import load_catalog
from cli.inprocess import InProcess
from manas import open_local_index
from messaging.dead_letters import parse
from messaging.home import Home
from messaging.proto import adsindex_pb2 as pb
from messaging.topics import DEAD_LETTERS
from tests.end_to_end.command import adsindex, as_json
from tests.support import ROOT

CATALOG = ROOT / "examples" / "audience" / "audience.yaml"
TABLES = """
CREATE TABLE campaign (id INTEGER PRIMARY KEY, name TEXT, budget_daily_micros INTEGER, spent_today_micros INTEGER,
                       cap_day INTEGER, cap_week INTEGER);
CREATE TABLE ad (id INTEGER PRIMARY KEY, campaign_id INTEGER, bid REAL, audience TEXT, area TEXT, place TEXT,
                 hours TEXT);
INSERT INTO campaign VALUES (1, 'Clubs', 1000000, 0, 2, NULL), (2, 'Shops', 1000000, 0, NULL, NULL);
INSERT INTO ad VALUES
  (1, 1, 3.5, '(age in [25..34] and interest in {golf, tennis}) or (country = UK and not device = tablet)',
   '[{"lat": 51.5, "lon": -0.12, "km": 25}]', '51.5, -0.12', 'mon-fri 8-18 @ Europe/London'),
  (2, 2, 2.0, NULL, NULL, '48.86, 2.35', NULL),
  (3, 2, 1.0, 'country = UK', NULL, NULL, NULL);
"""
GOLFER = {"at": "2026-07-06T16:59:59", "age": 30, "interest": ["golf"], "position": {"lat": 51.4, "lon": -0.1}}
"""A Monday, 17:59:59 in London."""


def new_home(folder: Path) -> Home:
    """Return a home with the three ads in its ads DB."""
    home = Home.open(folder / "home")
    with closing(sqlite3.connect(home.ads_db)) as connection:
        connection.executescript(TABLES)
    return home


@pytest.fixture
def pipeline(tmp_path: Path) -> Iterator[InProcess]:
    """The example running in this process, with three ads."""
    with InProcess(new_home(tmp_path), load_catalog(CATALOG)) as running:
        running.until_idle()
        yield running


def ads(pipeline: InProcess, **changes: Any) -> list[int]:
    """Return the ads that the golfer gets, best first; None takes a key away."""
    request = {key: value for key, value in {**GOLFER, **changes}.items() if value is not None}
    return [int(hit["ad_id"]) for hit in pipeline.backends.serving.search(request, 0)["hits"]]


def test_whom_where_when_and_how_often(pipeline: InProcess) -> None:
    """Each condition lets the ad through or stops it by what the request says, and so do a base and the local index."""
    cases: list[tuple[dict[str, Any], list[int]]] = [
        ({}, [1, 2]),
        ({"age": 35}, [2]),
        ({"age": 35, "country": "UK"}, [2, 3]),
        ({"age": 35, "country": "UK", "device": "phone"}, [1, 2, 3]),
        ({"age": None, "interest": "*", "country": "UK"}, [2, 3]),
        ({"age": "*", "interest": ["chess", "tennis"]}, [1, 2]),
        ({"position": {"lat": 52.5, "lon": -1.9}}, [2]),
        ({"position": None}, [2]),
        ({"position": "*"}, [1, 2]),
        ({"at": "2026-07-06T17:00:00"}, [2]),
        ({"at": "2026-12-07T17:59:59"}, [1, 2]),
        ({"seen": {"1": {"day": 2}}}, [2]),
        ({"near": {"lat": 48.85, "lon": 2.34, "km": 5}}, [2]),
    ]
    for changes, expected in cases:
        assert ads(pipeline, **changes) == expected, changes
    backends = pipeline.backends
    report = build_base_index(pipeline.home, pipeline.catalog, backends.repo, backends.log)
    assert (report.documents, report.differing) == (3, 0)
    index = open_local_index(pipeline.home, pipeline.catalog, backends.log)
    for changes, expected in cases:
        request = {key: value for key, value in {**GOLFER, **changes}.items() if value is not None}
        assert [hit["ad_id"] for hit in index.search(request, 0)["hits"]] == expected, changes


def test_what_is_not_understood_does_not_serve(pipeline: InProcess) -> None:
    """A bad predicate is one counted dead letter with the place of the fault, and blocks its ad until it is mended."""
    sql = pipeline.backends.ads_db.execute
    sql("UPDATE ad SET audience = 'age in [25..' WHERE id = 1")
    sql("UPDATE ad SET area = '[]', hours = 'mon 8-18' WHERE id = 2")
    pipeline.until_idle()
    assert ads(pipeline) == []
    records = pipeline.backends.log.read(DEAD_LETTERS, 0, 0, 100)
    letters = {letter.reason: letter for letter in (parse(pb.DeadLetter, record) for record in records)}
    assert letters.keys() == {"bad_predicate", "bad_circles", "bad_hours"}
    assert "ad.audience: not a predicate at character 13: expected a value of age" in letters["bad_predicate"].error
    assert (letters["bad_predicate"].table, letters["bad_predicate"].row) == ("ad", "1")
    sql("UPDATE ad SET audience = 'age in [25..30]' WHERE id = 1")
    pipeline.until_idle()
    assert ads(pipeline) == [1]
    sql("UPDATE ad SET area = NULL, hours = NULL WHERE id = 2")
    pipeline.until_idle()
    assert ads(pipeline) == [1, 2]


def test_a_cap_changes_in_place(pipeline: InProcess) -> None:
    """Another cap of a campaign is obeyed at once, and no ad is written for it."""
    before = pipeline.backends.serving.get(["1"])[0].version
    assert ads(pipeline, seen={"1": {"day": 2}}) == [2]
    pipeline.backends.ads_db.execute("UPDATE campaign SET cap_day = 3 WHERE id = 1")
    pipeline.until_idle()
    assert ads(pipeline, seen={"1": {"day": 2}}) == [1, 2]
    assert pipeline.backends.serving.get(["1"])[0].version == before


def test_the_command_line_answers_and_explains(tmp_path: Path) -> None:
    """`adsindex search` takes the same request, and says clause by clause why an ad is not in the answer."""
    home = new_home(tmp_path).root
    adsindex("up", "--until-idle", "--sample", "0", "--catalog", CATALOG, "--json", home=home)
    found = as_json("search", "--request", json.dumps(GOLFER), "-k", "0", home=home)
    assert [hit["ad_id"] for hit in found["hits"]] == [1, 2]
    asked = json.dumps({**GOLFER, "age": 35})
    why = as_json("search", "--request", asked, "-k", "0", "--ad", "1", home=home)
    steps = {step["clause"]: step for step in why["ad"]["steps"]}
    assert not why["ad"]["in_answer"] and steps["area"]["passes"] and steps["hours"]["passes"]
    assert "is unknown; the request does not say country, device" in steps["predicate"]["evidence"]
    assert [part["is"] for part in steps["predicate"]["tree"]["parts"]] == ["false", "unknown"]
    refused = adsindex("search", "--request", '{"position": {"lat": 99, "lon": 0}}', home=home, check=False)
    assert refused.returncode != 0 and "position: latitude 99" in refused.stderr
