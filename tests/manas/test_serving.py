"""The service over gRPC: batches, health, deadlines, shards behind a broker, and processes that share a port."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from manas import InvalidRequest, ManasClient, ManasUnavailable, NotServing, _service, open_local_index, publish, server
from manas._ranking import Ranked
from manas._search import _widening
from manas._serving_settings import BrokerSettings, InvalidSetting, ServingSettings
from manas.broker import Broker
from messaging.api import Log
from messaging.embedded import open_embedded_log
from messaging.home import Home
from messaging.metrics import StageMetrics
from messaging.proto import adsindex_pb2 as pb
from messaging.proto import adsindex_pb2_grpc as rpc
from messaging.rpc import open_channel, reserve_shared_port
from messaging.stage import StageContext
from messaging.topics import DELTAS, ensure_topics
from tests.manas.support import (
    CATALOG,
    VALUES,
    budget,
    delta,
    document,
    embedding,
    ids,
    log_records,
    tombstone,
    write_segment,
)
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

    def __init__(self, home: Home, log: Log, worker: int, **settings: str) -> None:
        self.metrics = StageMetrics(home.metrics, f"manas-{worker}")
        self.stop, self.ready = threading.Event(), threading.Event()
        self.port = int(settings.get("port", 0))
        context = StageContext("manas", worker, home, CATALOG, log, self.metrics, self.stop, self._on_ready)
        context.settings.update(settings)
        self._thread = threading.Thread(target=server.run, args=(context,))
        self._thread.start()

    def _on_ready(self, port: int) -> None:
        self.port = port
        self.ready.set()

    def client(self, **options: Any) -> ManasClient:
        """Wait until it is ready and connect."""
        assert self.ready.wait(60)
        return ManasClient(self.port, CATALOG, **options)

    def close(self) -> None:
        """Stop it."""
        self.stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()


@pytest.fixture
def start(home: Home, log: Log) -> Iterator[Callable[..., Stage]]:
    """Return a function that starts the stage; all are stopped at the end."""
    stages: list[Stage] = []

    def starter(**settings: str) -> Stage:
        stages.append(Stage(home, log, len(stages), **settings))
        return stages[-1]

    yield starter
    for stage in stages:
        stage.close()


def _until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.01)


def test_batch_has_every_answer_in_its_place(log: Log, start: Callable[..., Stage]) -> None:
    """A batch gives what single calls give, with the error of a bad request in its place; options hold for all."""
    docs = [delta(document(i, bid_account_micros=i * 1_000_000, terms=[f"w{i % 3}"]), 5) for i in range(1, 50)]
    log.publish(log_records(budget(1), *docs))
    with start().client() as client:
        wanted = [{**BROWSE, "text": f"w{i % 3}"} for i in range(6)]
        assert client.search_batch(wanted, 4) == [client.search(request, 4) for request in wanted]
        [good, bad, _] = client.search_batch([BROWSE, {"agee": 1}, BROWSE], 2)
        assert isinstance(bad, InvalidRequest)
        assert "unknown key 'agee'" in str(bad)
        assert isinstance(good, dict)
        assert ids(good) == [49, 48]
        assert client.search_batch([]) == []
        [paged] = client.search_batch([{**BROWSE, "page_token": ""}], 2)
        assert isinstance(paged, dict)
        second = client.search({**BROWSE, "page_token": paged["page_token"]}, 2)
        assert ids(second) == [47, 46]
        [short] = client.get(["7"], ["title"])
        assert len(short.body) < len(docs[6].body)
        with pytest.raises(InvalidRequest, match="no field 'nothing'"):
            client.get(["7"], ["nothing"])


def test_deadline_gives_what_was_found_and_says_so(
    home: Home, log: Log, start: Callable[..., Stage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search whose time is up returns the best so far as partial, alone and in a batch, and not an error."""
    monkeypatch.setattr("manas._runner._SLICE_BLOCKS", 1)
    log.publish(log_records(budget(1)))
    docs = [document(i, bid_account_micros=i * 1_000_000) for i in range(1, 4_001)]
    publish(home.base, write_segment(tmp_path, docs, snapshot_ts=5, positions=log.end_offsets(DELTAS)))
    with start().client() as client:
        whole = client.search(BROWSE, 5, timeout_s=20.0)
        assert (whole["partial"], whole["total"]) == (False, 4_000)
        for no_time in (1e-9, 0.0):
            gone = client.search(BROWSE, 5, timeout_s=no_time)
            assert (gone["partial"], gone["hits"]) == (True, [])
        assert client.search_batch([BROWSE], 5, timeout_s=0.0) == [gone]
        monkeypatch.setattr("manas._runner.time", Clock())
        hurried = client.search(BROWSE, 5, timeout_s=20.0)
        [batched] = client.search_batch([BROWSE], 5, timeout_s=20.0)
        assert hurried == batched
        assert hurried["partial"]
        assert hurried["total_is_lower_bound"]
        assert hurried["total"] == 1_024
        assert ids(hurried) == ids(whole) == [4_000, 3_999, 3_998, 3_997, 3_996]


def test_deadline_ends_similarity_with_filters_too(
    home: Home, log: Log, start: Callable[..., Stage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever part of a hybrid search is cut short, filter or neighbours, the answer is partial and says so."""
    monkeypatch.setattr("manas._runner._SLICE_BLOCKS", 1)
    log.publish(log_records(budget(1)))
    docs = [document(i, embedding=embedding(i), price_micros=i * 1_000_000) for i in range(1, 2_501)]
    publish(home.base, write_segment(tmp_path, docs, snapshot_ts=5, positions=log.end_offsets(DELTAS)))
    log.publish(log_records(delta(document(9_001, embedding=embedding(7), price_micros=1), 6)))
    hybrid = {**BROWSE, "similar_to": 7, "price": {"max": 2_000}}
    with start().client() as client:
        whole = client.search(hybrid, 5, timeout_s=20.0)
        assert (whole["partial"], whole["total"], whole["hits"][0]["ad_id"]) == (False, 2_000, 9_001)
        for more in ({}, {"max_per_advertiser": 1}, {"score": "price"}):
            gone = client.search({**hybrid, **more}, 5, timeout_s=1e-9)
            assert (gone["partial"], gone["total_is_lower_bound"], ids(gone)) == (True, True, [9_001])
        monkeypatch.setattr("manas._runner.time", Clock())
        hurried = client.search(hybrid, 5, timeout_s=20.0)
        assert (hurried["partial"], hurried["total"] < 2_000) == (True, True)
        assert len(hurried["hits"]) == 5


def test_diversity_that_is_cut_short_keeps_what_it_had() -> None:
    """A wider search that its deadline ends early does not take away hits of the narrower one before."""

    def ranked(count: int, *, complete: bool) -> Ranked:
        found = np.arange(count)
        scores = np.ones(count)
        return Ranked(scores, found, found, found.astype(np.uint32), False, (), 99, False, complete)

    rounds = [ranked(4, complete=True), ranked(1, complete=False)]
    kept, chosen = _widening(lambda limit: rounds.pop(0), lambda found: range(len(found.ids) // 2), 4, 3)
    assert (list(chosen), kept.complete, len(kept.ids)) == ([0, 1], False, 4)


class Clock:
    """In time at the first look of every search, and much too late at the second."""

    def __init__(self) -> None:
        self._late = True

    def monotonic(self) -> float:
        """Return a time long ago, or never."""
        self._late = not self._late
        return float("inf") if self._late else 0.0


def test_deadline_of_the_call_counts_where_it_is_near() -> None:
    """The search ends in time for the reply; a caller with seconds left is no reason to look at the clock."""

    class Call:
        def __init__(self, left: float | None) -> None:
            self._left = left

        def time_remaining(self) -> float | None:
            return self._left

    assert _service.deadline_of(Call(None)) is None  # type: ignore[arg-type]
    assert _service.deadline_of(Call(10.0)) is None  # type: ignore[arg-type]
    for left in (0.5, 0.01):
        deadline = _service.deadline_of(Call(left))  # type: ignore[arg-type]
        assert deadline is not None
        assert 0 < deadline - time.monotonic() < left


def test_health_says_what_is_wrong_while_searches_are_refused(
    home: Home, log: Log, start: Callable[..., Stage], tmp_path: Path
) -> None:
    """Before the base is there searches are refused with the reason, and health has it; then it serves."""
    log.publish(log_records(budget(1), *(delta(document(i), 5) for i in range(1, 21))))
    for partition, end in log.end_offsets(DELTAS).items():
        log.trim(DELTAS, partition, end)
    with reserve_shared_port() as holder:
        port = holder.getsockname()[1]
    stage = start(port=str(port))
    with ManasClient(port, CATALOG) as client:
        _until(lambda: _health(client).get("status") == "starting" and "oldest kept" in client.health()["problem"])
        with pytest.raises(NotServing, match="build a newer base"):
            client.search(BROWSE)
        with pytest.raises(NotServing, match="build a newer base"):
            client.search_batch([BROWSE])
        assert client.stats()["documents"] == 0
        docs = [document(i) for i in range(1, 21)]
        version = publish(home.base, write_segment(tmp_path, docs, snapshot_ts=5, positions=log.end_offsets(DELTAS)))
        assert stage.ready.wait(60)
        _until(lambda: client.health()["verification"] == "verified")
        assert client.health() == {
            "status": "serving", "problem": "", "base_version": version, "shard": "0/1", "verification": "verified",
        }  # fmt: skip
        assert client.search(BROWSE)["total"] == 20


def _health(client: ManasClient) -> dict[str, str]:
    try:
        return client.health()
    except ManasUnavailable:
        return {}


def test_gap_while_serving_is_said_with_every_answer(
    home: Home, log: Log, start: Callable[..., Stage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the log loses deltas before they are read, answers go on and say what they lack, until a newer base."""
    log.publish(log_records(budget(1), *(delta(document(i), 5) for i in range(1, 21))))
    with start().client() as client:
        assert "problem" not in client.search(BROWSE)
        held = threading.Event()
        real = log.read

        def read(topic: str, partition: int, offset: int, most: int) -> Any:
            held.wait()
            return real(topic, partition, offset, most)

        monkeypatch.setattr(log, "read", read)
        log.publish(log_records(*(delta(document(i), 6) for i in range(21, 41))))
        for partition, end in log.end_offsets(DELTAS).items():
            log.trim(DELTAS, partition, end)
        held.set()
        _until(lambda: "problem" in client.search(BROWSE))
        answer = client.search(BROWSE)
        assert "deltas are missing until a newer base" in answer["problem"]
        assert client.health()["status"] == "incomplete"
        docs = [document(i) for i in range(1, 41)]
        publish(home.base, write_segment(tmp_path, docs, snapshot_ts=6, positions=log.end_offsets(DELTAS)))
        _until(lambda: "problem" not in client.search(BROWSE))
        assert client.search(BROWSE)["total"] == 40
        assert client.health()["status"] == "serving"


def test_shards_take_their_parts_of_the_base_and_answer_together(
    home: Home, log: Log, start: Callable[..., Stage], tmp_path: Path
) -> None:
    """Two servers with one home each keep their own documents of base and log; a broker gives the whole."""
    docs = [document(i, bid_account_micros=i * 1_000_000, terms=[f"w{i % 3}"]) for i in range(1, 61)]
    log.publish(log_records(budget(1), *(delta(d, 5) for d in docs)))
    publish(home.base, write_segment(tmp_path, docs, snapshot_ts=5, positions=log.end_offsets(DELTAS)))
    log.publish(log_records(delta(document(61, bid_account_micros=90_000_000), 6), tombstone(60, 6)))
    stages = [start(shard=f"{n}/2", fold_documents="1") for n in range(2)]
    with stages[0].client() as one, stages[1].client() as two, Broker(CATALOG, [one, two]) as broker:
        local = open_local_index(home, CATALOG, log)
        for request in (BROWSE, {**BROWSE, "text": "w1 w2"}, {**BROWSE, "similar_to": 7}):
            assert broker.search(request, 9) == local.search(request, 9)
        held = [one.stats()["documents"], two.stats()["documents"]]
        assert sum(held) == 60
        assert min(held) > 10
        assert [h["shard"] for h in (one.health(), two.health())] == ["0/2", "1/2"]
        later = [document(i, bid_account_micros=1) for i in range(1, 11)]
        positions, based = log.end_offsets(DELTAS), one.health()["base_version"]
        log.publish(log_records(*(delta(document(i), 8) for i in range(101, 121))))
        _until(lambda: broker.search(BROWSE, 0)["total"] == 80)
        # Both have read these and must replay them onto the new base, each its own.
        publish(home.base, write_segment(tmp_path, later, snapshot_ts=7, positions=positions))
        _until(lambda: based not in {one.health()["base_version"], two.health()["base_version"]})
        assert broker.search(BROWSE, 0)["total"] == 30
        stages[1].close()
        answer = broker.search(BROWSE, 0)
        assert list(answer["missing_shards"]) == ["1/2"]
        assert answer["partial"]


def test_processes_share_a_port_and_the_mapped_base(home: Home, log: Log, tmp_path: Path) -> None:
    """Connections to one port reach both processes, which answer alike; with one killed the port still answers."""
    docs = [document(i) for i in range(1, 41)]
    log.publish(log_records(budget(1)))
    publish(home.base, write_segment(tmp_path, docs, snapshot_ts=5, positions=log.end_offsets(DELTAS)))
    log.publish(log_records(tombstone(3, 9)))
    with reserve_shared_port() as holder:
        port = str(holder.getsockname()[1])
        settings = [f"port={port}", "shared_port=true"]
        command = [sys.executable, "-m", "tests.manas.server_worker", str(home.root), *settings]
        processes = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        try:
            for process in processes:
                assert process.stdout is not None
                assert next(line for line in process.stdout if line.strip().isdigit()).strip() == port
            with ManasClient(int(port), CATALOG, connections=16) as client:
                answers = [client.search(BROWSE, 0) for _ in range(32)]
                assert all(answer == answers[0] for answer in answers)
                assert answers[0]["total"] == 39
                pids = {client.stats()["process"] for _ in range(32)}
                assert pids == {process.pid for process in processes}
            processes[0].kill()
            processes[0].wait()
            with ManasClient(int(port), CATALOG, connections=4) as client:
                assert {client.search(BROWSE, 0)["total"] for _ in range(8)} == {39}
        finally:
            for process in processes:
                process.kill()
                process.wait()


def test_request_that_is_not_json_is_an_argument_error(log: Log, start: Callable[..., Stage]) -> None:
    """Other clients than ours get INVALID_ARGUMENT with a sentence, alone and inside a batch."""
    log.publish(log_records(budget(1), delta(document(1), 5)))
    stage = start()
    stage.client().close()
    with open_channel(stage.port) as channel:
        stub = rpc.ManasStub(channel)
        with pytest.raises(grpc.RpcError) as raised:
            stub.Search(pb.SearchRequest(request_json="{"))
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        reply = stub.SearchBatch(pb.SearchBatchRequest(requests=[pb.SearchRequest(request_json="{")]))
        assert "not JSON" in reply.replies[0].error


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"fold_documents": "0"}, "fold_documents: a whole number from 1"),
        ({"port": "99999"}, "port: a whole number"),
        ({"shared_port": "true"}, "set port as well"),
        ({"base_fallback": "yes"}, "base_fallback: true or false"),
        ({"shard": "2/2"}, "shard: NUMBER/COUNT"),
    ],
)
def test_settings_that_cannot_be_used_are_named(given: dict[str, str], words: str) -> None:
    """A wrong setting stops the start with a sentence."""
    with pytest.raises(InvalidSetting, match=words):
        ServingSettings.parse(given)
    assert ServingSettings.parse({"ads_db": "x"}) == ServingSettings()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "shards: a whole number from 1 to 64"),
        ({"shards": "65"}, "shards: a whole number from 1 to 64"),
        ({"shards": "2", "shard_deadline_s": "0"}, "shard_deadline_s: seconds above 0"),
        ({"shards": "2", "shard_deadline_s": "nan"}, "shard_deadline_s: seconds above 0"),
        ({"shards": "2", "port": "-1"}, "port: a whole number"),
    ],
)
def test_settings_of_a_broker_that_cannot_be_used_are_named(given: dict[str, str], words: str) -> None:
    """A wrong setting stops its start with a sentence."""
    with pytest.raises(InvalidSetting, match=words):
        BrokerSettings.parse(given)
    assert BrokerSettings.parse({"shards": "2", "shard_deadline_s": "0.25"}) == BrokerSettings(2, 0.25)
