"""The stage with a real log: follows, swaps bases, reports what is wrong, and survives kill -9."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from catalog import LaneName
from manas import (
    Index,
    IndexIncomplete,
    InvalidRequest,
    ManasClient,
    ManasUnavailable,
    SegmentCorrupt,
    open_local_index,
    publish,
    rollback,
)
from manas._follower import GROUP, Follower
from manas._loading import BATCH
from manas.server import run
from messaging.api import Log, OutRecord
from messaging.embedded import open_embedded_log
from messaging.headers import leave, new_header, now_us
from messaging.home import Home
from messaging.metrics import StageMetrics
from messaging.proto import adsindex_pb2 as pb
from messaging.reports import report_drops
from messaging.stage import StageContext
from messaging.topics import BUDGETS, DEAD_LETTERS, DELTAS, ensure_topics
from tests.manas.support import CATALOG, VALUES, budget, delta, document, ids, tombstone, write_segment
from tests.support import ROOT

BROWSE = dict.fromkeys(VALUES, "*")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """Return an empty home."""
    return Home.open(tmp_path / "home")


@pytest.fixture
def log(home: Home) -> Iterator[Log]:
    """Return the home's log with all topics."""
    log = open_embedded_log(home.log, home.wake)
    ensure_topics(log)
    yield log
    log.close()


class Stage:
    """The stage in a thread of this process."""

    def __init__(self, home: Home, log: Log) -> None:
        self.metrics = StageMetrics(home.metrics, "manas")
        self.stop = threading.Event()
        self.ready = threading.Event()
        self.port = 0
        self._context = StageContext("manas", 0, home, CATALOG, log, self.metrics, self.stop, self._on_ready)
        self._thread = threading.Thread(target=run, args=(self._context,))
        self._thread.start()

    def _on_ready(self, port: int) -> None:
        self.port = port
        self.ready.set()

    def client(self) -> ManasClient:
        """Wait until it is ready and connect."""
        assert self.ready.wait(120)
        return ManasClient(self.port, CATALOG)

    def close(self) -> None:
        """Stop it."""
        self.stop.set()
        self._thread.join(120)
        assert not self._thread.is_alive()


@pytest.fixture
def start(home: Home, log: Log) -> Iterator[Callable[[], Stage]]:
    """Return a function that starts the stage; all are stopped at the end."""
    stages: list[Stage] = []

    def starter() -> Stage:
        stages.append(Stage(home, log))
        return stages[-1]

    yield starter
    for stage in stages:
        stage.close()


def _publish(log: Log, *messages: pb.DocumentDelta | pb.BudgetState) -> None:
    records = []
    for message in messages:
        if isinstance(message, pb.DocumentDelta):
            records.append(OutRecord(DELTAS, message.document_id, message.SerializeToString()))
        else:
            records.append(OutRecord(BUDGETS, message.campaign_id, message.SerializeToString()))
    log.publish(records)


def _until(condition: Callable[[], Any], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        threading.Event().wait(0.01)


def _traced(message: pb.DocumentDelta, trace_id: str) -> pb.DocumentDelta:
    header = new_header(LaneName.HIGH, now_us() - 5_000, trace_id)
    message.header.CopyFrom(leave(header, "argus", now_us() - 3_000, now_us() - 1_000))
    return message


def test_server_answers_what_the_log_had_at_its_start_and_follows_on(log: Log, start: Callable[[], Stage]) -> None:
    """Everything in the log is answerable once ready; later deltas and budgets follow, with their trace."""
    _publish(log, budget(1), *(delta(document(i), 5) for i in range(1, 1_201)))
    stage = start()
    with stage.client() as client:
        assert client.search(BROWSE, 0)["total"] == 1_200
        applied = client.follow()
        _publish(log, _traced(delta(document(7, bid_account_micros=9_000_000), 6), "abc"))
        arrived = next(applied)
        assert (arrived.document_id, arrived.version, arrived.trace_id, arrived.deleted) == ("7", 6, "abc", False)
        assert client.search(BROWSE, 1)["hits"] == [{"ad_id": 7, "score": 9.0}]
        [served, unknown] = client.get(["7", "x"])
        assert (served.found, served.layer, served.version, served.trace_id) == (True, "delta", 6, "abc")
        assert [h.stage for h in served.hops] == ["argus"]
        assert served.origin_us < served.hops[0].left_us <= served.answerable_us == arrived.answerable_us
        assert served.body == delta(document(7, bid_account_micros=9_000_000), 6).body
        assert not unknown.found
        _publish(log, tombstone(7, 8))
        assert next(applied).deleted
        assert ids(client.search(BROWSE, 1)) == [1]
        _publish(log, budget(1, 2, daily_micros=1, spent_today_micros=1))
        _until(lambda: client.search(BROWSE)["total"] == 0)
        state = client.budget("1")
        assert state is not None
        assert state.spent_today_micros == 1
        assert client.budget("404") is None
        stats = client.stats()
        assert sum(int(n) for n in stats["positions"][DELTAS].values()) == 1_202
        assert stats["positions"][BUDGETS] == {"0": 2}
    stage.close()
    assert stage.metrics.counters["applied"] == 1_202
    latencies = {name: h.count for name, h in stage.metrics.histograms.items()}
    assert latencies == dict.fromkeys(
        [f"latency:high:{part}" for part in ("total", "argus", "queue:argus", "queue:serving")], 1
    )


def test_client_raises_what_the_index_raises(log: Log, start: Callable[[], Stage]) -> None:
    """A bad request is the same error through gRPC as in process; explanations come through; no server is an error."""
    _publish(log, budget(1), delta(document(1), 5))
    stage = start()
    with stage.client() as client:
        with pytest.raises(InvalidRequest, match="unknown key 'agee'; valid are"):
            client.search({"agee": 1})
        for k in (-1, 1 << 40):
            with pytest.raises(InvalidRequest, match="k: a whole number"):
                client.search({}, k)
        found = client.explain({**BROWSE, "age": "30-34"}, 5, 1)
        assert found["ad"]["in_answer"]
        assert {"hits", "total", "total_is_lower_bound", "partial", "plan", "ad"} == set(found)
        stage.close()
        with pytest.raises(ManasUnavailable, match="is it running"):
            client.stats()


def test_malformed_records_become_one_dead_letter_each(log: Log, start: Callable[[], Stage]) -> None:
    """Poison stops nobody, is kept with its reason and payload, and a restart does not report it again."""
    bad = pb.DocumentDelta(document_id="7", version=3, body=b"\xc1")
    log.publish([OutRecord(DELTAS, "7", bad.SerializeToString()), OutRecord(BUDGETS, "1", b"\xff\xff")])
    _publish(log, budget(1), delta(document(1), 5))
    for _ in range(2):
        stage = start()
        with stage.client() as client:
            assert ids(client.search(BROWSE)) == [1]
        stage.close()
        letters = [pb.DeadLetter.FromString(r.value) for r in log.read(DEAD_LETTERS, 0, 0, 10)]
        assert sorted(letter.reason for letter in letters) == ["bad_document", "bad_message"]
    [letter] = [letter for letter in letters if letter.reason == "bad_document"]
    assert (letter.stage, letter.row, letter.topic, letter.payload_type) == ("manas", "7", DELTAS, "DocumentDelta")
    assert pb.DocumentDelta.FromString(letter.payload) == bad
    assert StageMetrics(stage._context.home.metrics, "manas").counters["dead_letters:bad_document"] == 1


def test_what_is_too_old_for_serving_is_in_the_report(home: Home, log: Log) -> None:
    """Stale and repeated documents and budgets are counted by reason and lane, once, also over a restart that reads
    all of them again; what is applied is not."""
    low = pb.Header(lane=pb.LANE_LOW)
    old: list[pb.DocumentDelta | pb.BudgetState] = [delta(document(1), 5), delta(document(1), 4), budget(7, 1)]
    for message in old:
        message.header.CopyFrom(low)
    _publish(log, delta(document(1), 5), delta(document(2), 5), budget(7, 2), *old)
    for _ in range(2):
        follower = Follower(home.base, log, Index(CATALOG), StageMetrics(home.metrics, "manas"))
        follower.start()
        follower.catch_up()
        follower.commit()
    assert [(line.stage, line.reason, line.lane, line.count, line.entities) for line in report_drops(log)] == [
        ("manas", "duplicate_delta", "low", 1, ("delta/1",)),
        ("manas", "stale_budget", "low", 1, ("budget/7",)),
        ("manas", "stale_delta", "low", 1, ("delta/1",)),
    ]


def test_stored_positions_never_go_back_during_a_replay(home: Home, log: Log) -> None:
    """A restart that is killed halfway through its replay does not make old deltas count as new."""
    _publish(log, *(delta(document(i), 5) for i in range(1, 4 * BATCH)))
    metrics = StageMetrics(home.metrics, "manas")
    first = Follower(home.base, log, Index(CATALOG), metrics)
    first.start()
    first.catch_up()
    first.commit()
    stored = log.committed(GROUP, DELTAS)
    assert stored == log.end_offsets(DELTAS)
    assert max(stored.values()) > 100
    _publish(log, *(delta(document(i), 6) for i in range(1, 3 * BATCH)))
    second = Follower(home.base, log, Index(CATALOG), metrics)
    second.start()
    second.step()
    second.commit()
    assert all(log.committed(GROUP, DELTAS)[p] >= offset for p, offset in stored.items())
    second.catch_up()
    second.commit()
    assert log.committed(GROUP, DELTAS) == log.end_offsets(DELTAS)
    assert metrics.counters["applied"] == 4 * BATCH - 1 + 3 * BATCH - 1


def _base(home: Home, tmp_path: Path, log: Log, ad_ids: range, snapshot_ts: int) -> str:
    docs = [document(i) for i in ad_ids]
    return publish(home.base, write_segment(tmp_path, docs, snapshot_ts=snapshot_ts, positions=log.end_offsets(DELTAS)))


def test_new_base_is_swapped_in_refused_when_corrupt_and_rolled_back(
    home: Home, log: Log, start: Callable[[], Stage], tmp_path: Path
) -> None:
    """The server picks a new base up by itself, keeps the old one when the new is damaged, and follows a rollback."""
    _publish(log, budget(1), *(delta(document(i), 5) for i in range(1, 11)))
    first = _base(home, tmp_path, log, range(1, 11), 5)
    with start().client() as client:
        assert client.stats()["base"]["version"] == first
        assert client.stats()["delta"]["documents"] == 0
        _publish(log, delta(document(11), 6), tombstone(1, 7))
        second = _base(home, tmp_path, log, range(2, 12), 7)
        _publish(log, delta(document(12), 8))
        _until(lambda: client.stats()["base"]["version"] == second and client.stats()["documents"] == 11)
        assert sorted(ids(client.search(BROWSE, 0))) == list(range(2, 13))
        assert client.stats()["delta"] == {"documents": 1, "tombstones": 0, "slots": 1}
        assert client.get(["11"])[0].layer == "base"
        third = write_segment(tmp_path, [], snapshot_ts=9)
        version = publish(home.base, third)
        _until(lambda: client.stats()["base"]["version"] == version)  # nothing alive at 9: a base may say so
        assert client.search(BROWSE)["total"] == 0
        damaged = max((home.base / second).iterdir(), key=lambda file: file.stat().st_size)
        damaged.write_bytes(b"")
        (home.base / "CURRENT").write_text(second + "\n")
        _until(lambda: client.stats()["problem"])
        assert damaged.name in client.stats()["problem"]
        assert client.stats()["base"]["version"] == version
        assert rollback(home.base, first) == first
        _until(lambda: client.stats()["base"]["version"] == first)
        assert sorted(ids(client.search(BROWSE, 0))) == list(range(2, 13))
        assert client.stats()["problem"] == ""


def test_swap_does_not_step_back_behind_what_was_answerable(
    home: Home, log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deltas that arrived while a base was being loaded are in the answers from the very moment of the swap."""
    monkeypatch.setattr("manas._loading._CHECK_BASE_SECONDS", 0.0)
    _publish(log, budget(1), *(delta(document(i), 5) for i in range(1, 11)))
    index, metrics = Index(CATALOG), StageMetrics(home.metrics, "manas")
    follower = Follower(home.base, log, index, metrics)
    follower.start()
    follower.catch_up()
    version = _base(home, tmp_path, log, range(1, 11), 5)
    follower.step()
    assert follower._loader._loading is not None
    follower._loader._loading.join()
    _publish(log, delta(document(11), 6), tombstone(1, 6))
    follower.step()
    assert index.base_version == version
    assert sorted(ids(index.search(BROWSE, 0))) == list(range(2, 12))
    follower.catch_up()
    assert metrics.counters["applied"] == 12


def test_damaged_base_is_refused_and_an_older_one_stands_in_only_where_declared(
    home: Home, log: Log, tmp_path: Path
) -> None:
    """With the current base damaged nothing else serves in silence; told to fall back, the problem is still said."""
    _publish(log, budget(1), *(delta(document(i), 5) for i in range(1, 4)))
    first = _base(home, tmp_path, log, range(1, 4), 5)
    _publish(log, delta(document(4), 6))
    second = _base(home, tmp_path, log, range(1, 5), 6)
    (home.base / second / "versions").unlink()
    with pytest.raises(SegmentCorrupt, match=r"versions: is missing"):
        open_local_index(home, CATALOG, log)
    index = open_local_index(home, CATALOG, log, base_fallback=True)
    assert sorted(ids(index.search(BROWSE, 0))) == [1, 2, 3, 4]
    stats = index.stats()
    assert stats["base"]["version"] == first
    assert f"base {second} is refused" in stats["problem"]


def test_server_waits_for_a_base_when_the_log_lost_what_it_needs(
    home: Home, log: Log, start: Callable[[], Stage], tmp_path: Path
) -> None:
    """Deltas that are gone are never passed over in silence: not ready until a base covers the gap."""
    _publish(log, budget(1), *(delta(document(i), 5) for i in range(1, 21)))
    ends = log.end_offsets(DELTAS)
    for partition, end in ends.items():
        log.trim(DELTAS, partition, end)
    with pytest.raises(IndexIncomplete, match="build a newer base"):
        open_local_index(home, CATALOG, log)
    stage = start()
    _until(lambda: stage.metrics.counters["waiting_for_base"] == 1)
    assert not stage.ready.is_set()
    _base(home, tmp_path, log, range(1, 21), 5)
    with stage.client() as client:
        assert client.search(BROWSE)["total"] == 20


def test_server_survives_kill_and_agrees_with_the_local_index(home: Home, log: Log, tmp_path: Path) -> None:
    """After kill -9 between deltas a new process answers exactly as the index built in this process does."""
    _publish(log, budget(1), *(delta(document(i), 5) for i in range(1, 31)))
    command = [sys.executable, "-m", "tests.manas.server_worker", str(home.root)]
    for round_ in range(3):
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            port = next(int(line) for line in process.stdout if line.strip().isdigit())
            with ManasClient(port, CATALOG) as client:
                local = open_local_index(home, CATALOG, log)
                for request in (BROWSE, {**BROWSE, "similar_to": 3}, {**BROWSE, "max_per_advertiser": 4}):
                    assert client.search(request, 0) == local.search(request, 0)
                assert client.get(["3", "29"])[0].body == local.get(["3"])[0].body
                applied = client.follow()
                changed = delta(document(round_ + 3, bid_account_micros=round_), 10 + round_)
                _publish(log, changed, tombstone(30 - round_, 10 + round_))
                assert {next(applied).document_id, next(applied).document_id} == {str(round_ + 3), str(30 - round_)}
        finally:
            process.kill()
            process.wait()
        if round_ == 1:
            _base(home, tmp_path, log, range(1, 29), 11)
    assert len(open_local_index(home, CATALOG, log).search(BROWSE, 0)["hits"]) == 27
