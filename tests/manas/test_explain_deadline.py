"""`explain` takes a deadline as `search` does, says what it has cut, and says nothing that it does not know."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.main import app
from manas import Index, Segment, _service, publish
from manas._base import shard_of
from manas._ranking import idf
from manas._runner import Runner
from manas._service import Service, State
from manas.broker import Broker
from messaging.embedded import open_embedded_log
from messaging.home import Home
from messaging.proto import adsindex_pb2 as pb
from messaging.topics import DELTAS, ensure_topics
from tests.manas.support import (
    AT,
    CATALOG,
    VALUES,
    budget,
    delta,
    document,
    embedding,
    ids,
    log_records,
    make_index,
    write_segment,
)

BROWSE = {**dict.fromkeys(VALUES, "*"), "at": AT}
ADS = 3_000
ALL_CUT = ["answer", "rank of the ad", "counts"]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """An index of a base of three blocks: the higher the id, the better."""
    docs = [
        document(i, bid_account_micros=i * 1_000_000, embedding=embedding(i), advertiser_id=i % 7)
        for i in range(1, ADS + 1)
    ]
    return make_index([], Segment.open(write_segment(tmp_path_factory.mktemp("deadline"), docs)))


class Clock:
    """In time at the first look of every run over blocks, and much too late at the second."""

    def __init__(self) -> None:
        self._late = True

    def monotonic(self) -> float:
        """Return a time long ago, or never."""
        self._late = not self._late
        return float("inf") if self._late else 0.0


@pytest.mark.parametrize(
    "more", [{}, {"similar_to": 7}, {"max_per_advertiser": 1}, {"score": "bid"}, {"price": {"max": 5}}]
)
def test_no_time_at_all_cuts_everything_but_the_ads_own_steps(index: Index, more: dict[str, Any]) -> None:
    """Whatever is asked for: the answer is partial, the plan names what was cut, and the ad's rank is not guessed."""
    found = index.explain({**BROWSE, **more}, 5, 9, timeout_s=0.0)
    assert found["partial"]
    assert found["plan"]["cut"] == ALL_CUT
    base = found["plan"]["layers"][0]
    assert (base["documents"], base["survivors"]) == (ADS, 0)
    assert all(row["partial"] and row["remaining"] == 0 and "estimate" in row for row in base["clauses"])
    assert (found["ad"]["rank"], found["ad"]["score"], found["ad"]["in_answer"]) == (None, None, False)
    named = [step["clause"] for step in found["ad"]["steps"]]
    assert named[0] == "exists"
    if "price" not in more:  # these ads have none
        assert found["ad"]["why"].startswith("rank: its rank is not known")
        assert [step["clause"] for step in found["ad"]["steps"] if not step["passes"]] == ["rank"]


def test_what_is_cut_on_the_way_says_so(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """With time for a block in each part, counts are lower bounds and hits the best so far; an ad among them is in."""
    monkeypatch.setattr("manas._runner._SLICE_BLOCKS", 1)
    monkeypatch.setattr("manas._runner.time", Clock())
    found = index.explain(BROWSE, 3, ADS, timeout_s=20.0)
    assert (found["partial"], found["total"], ids(found)) == (True, 1_024, [ADS, ADS - 1, ADS - 2])
    assert found["plan"]["cut"] == ALL_CUT
    base = found["plan"]["layers"][0]
    assert base["survivors"] == 1_024
    assert {row["remaining"] for row in base["clauses"]} == {1_024}
    assert all(row["partial"] for row in base["clauses"])
    assert (found["ad"]["in_answer"], found["ad"]["rank"]) == (True, None)


@pytest.mark.parametrize("more", [{}, {"similar_to": 7}, {"score": "bid"}])
def test_enough_time_cuts_nothing(index: Index, more: dict[str, Any]) -> None:
    """An explanation that has its time is the one without a deadline."""
    found = index.explain({**BROWSE, **more}, 5, 9, timeout_s=60.0)
    assert found == index.explain({**BROWSE, **more}, 5, 9)
    assert "cut" not in found["plan"]
    assert found["ad"]["rank"] is not None or more


def test_everything_that_fits_is_looked_for_under_the_deadline(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search for all that fits looks at the clock in every pass over the blocks, not only in the last."""
    given: list[float | None] = []

    def watched(name: str) -> None:
        run = getattr(Runner, name)

        def call(self: Runner, *args: Any, deadline: float | None = None, **options: Any) -> Any:
            given.append(deadline)
            return run(self, *args, deadline=deadline, **options)

        monkeypatch.setattr(Runner, name, call)

    watched("match")
    watched("best")
    assert index.search(BROWSE, 0, timeout_s=60.0)["total"] == ADS
    assert given
    assert None not in given


def test_the_wait_for_its_turn_counts() -> None:
    """Behind somebody who holds the index an explanation comes back in its time, with nothing explained."""
    held = make_index([document(1)])
    with ThreadPoolExecutor(1) as pool, held._lock:
        found = pool.submit(held.explain, BROWSE, 5, 1, timeout_s=0.02).result(20)
    assert found["plan"] == {"layers": [], "cut": ALL_CUT}
    assert (found["partial"], found["hits"], "ad" in found) == (True, [], False)
    assert held.explain(BROWSE, 5, 1, timeout_s=60.0)["ad"]["in_answer"]


def test_the_calls_deadline_counts_where_it_is_near(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service gives an explanation the request's own time, or what is left of a caller's who is in a hurry."""

    class Call:
        def __init__(self, left: float | None) -> None:
            self._left = left

        def time_remaining(self) -> float | None:
            return self._left

    service = Service(index, None, State(""), pb.HealthReply)  # type: ignore[arg-type]
    monkeypatch.setattr(_service, "_WAY_BACK_SECONDS", 60.0)
    for timeout_s, left, cut in ((0.0, None, False), (1e-9, None, True), (0.0, 1e-9, True), (60.0, 50.0, False)):
        asked = pb.SearchRequest(request_json="{}", k=5, explain=True, timeout_s=timeout_s)
        assert service.Search(asked, Call(left)).partial is cut  # type: ignore[arg-type]


class Hanging:
    """A shard that explains nothing until it is let."""

    def __init__(self, part: Index) -> None:
        self._part = part
        self.gate = threading.Event()

    def explain(self, *args: Any, **options: Any) -> dict[str, Any]:
        """Take longer than everybody has."""
        self.gate.wait(20)
        return self._part.explain(*args, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)


def _parts(docs: Sequence[dict[str, Any]], count: int) -> list[Index]:
    parts = [make_index([]) for _ in range(count)]
    for doc in docs:
        parts[shard_of(str(doc["ad_id"]), count)].apply_documents([delta(doc, 5)])
    return parts


def test_a_broker_shares_the_time_and_names_who_was_late() -> None:
    """A shard that hangs costs its plan, not the explanation; with time everything is there, words asked once."""
    docs = [document(i, bid_account_micros=i * 1_000_000, terms=["red"]) for i in range(1, 31)]
    parts = _parts(docs, 2)
    asked = {**BROWSE, "text": "red"}
    mine = next(i for i in range(30, 0, -1) if shard_of(str(i), 2) == 1)
    hanging = Hanging(parts[0])
    with Broker(CATALOG, [hanging, parts[1]]) as broker:
        started = time.monotonic()
        found = broker.explain(asked, 5, mine, timeout_s=1.0)
        assert time.monotonic() - started < 8, "the ten seconds of a broker without a deadline"
        hanging.gate.set()
        assert found["plan"]["shards"].keys() == {"1/2"}
        assert "plan of shard 0/2: no answer before the deadline" in found["plan"]["cut"]
        assert found["ad"]["shard"] == "1/2"
    with Broker(CATALOG, parts) as broker:
        found = broker.explain(asked, 5, mine, timeout_s=60.0)
        assert "cut" not in found["plan"]
        assert found["plan"]["shards"].keys() == {"0/2", "1/2"}
        assert {plan["boosts"][0]["weight"] for plan in found["plan"]["shards"].values()} == {idf(30, 30)}
        assert found["ad"]["rank"] == 31 - mine
        assert found == broker.explain(asked, 5, mine)


def test_a_broker_says_what_its_shards_have_cut(index: Index) -> None:
    """Without time for the shards' blocks the plan and those of the shards say so; the ad's rank stays unknown."""
    with Broker(CATALOG, [index]) as broker:
        found = broker.explain(BROWSE, 5, 9, timeout_s=0.0)
        assert found["partial"]
        assert found["plan"]["cut"] == ["answer", "rank of the ad"]
        assert found["plan"]["shards"]["0/1"]["cut"] == ALL_CUT
        assert (found["ad"]["rank"], found["ad"]["in_answer"]) == (None, False)


def test_the_command_says_what_was_cut(tmp_path: Path) -> None:
    """`search --explain --timeout-s` ends in time and prints what there was no time for; with time, nothing."""
    home = Home.open(tmp_path / "home")
    log = open_embedded_log(home.log, home.wake)
    ensure_topics(log)
    log.publish(log_records(budget(1)))
    docs = [document(i) for i in range(1, 50)]
    publish(home.base, write_segment(tmp_path, docs, snapshot_ts=5, positions=log.end_offsets(DELTAS)))
    log.close()
    words = ["search", "--home", str(home.root), "--request", json.dumps(BROWSE), "--explain", "--ad", "9"]
    said = CliRunner().invoke(app, [*words, "--timeout-s", "0"], catch_exceptions=False).stdout
    assert "partial: the deadline came first" in said
    assert "the deadline cut: answer, rank of the ad, counts" in said
    assert "the deadline" not in CliRunner().invoke(app, [*words, "--timeout-s", "60"], catch_exceptions=False).stdout
