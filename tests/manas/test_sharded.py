"""Real products behind a broker and two or three shard servers over gRPC: the answers of one index, byte for byte."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from catalog.text import unique_terms
from manas import (
    MANIFEST,
    Base,
    Index,
    InvalidRequest,
    ManasClient,
    ManasUnavailable,
    NotServing,
    base_manifest,
    broker_server,
    file_entry,
    open_local_index,
    publish,
    seal_manifest,
    server,
    shard_of,
)
from manas.shards import PARTS, Shard, ensure_part
from messaging.api import Log, OutRecord
from messaging.embedded import open_embedded_log
from messaging.home import Home
from messaging.metrics import StageMetrics
from messaging.rpc import reserve_shared_port
from messaging.stage import StageContext
from messaging.topics import DEAD_LETTERS, DELTAS, ensure_topics
from tests.manas.support import AT, CATALOG, VALUES, budget, delta, document, log_records, tombstone, write_segment

BROWSE: dict[str, Any] = {**dict.fromkeys(VALUES, "*"), "at": AT}
CATEGORY = {"term": {"field": "category", "value": "Musical_Instruments"}}
RATED = {"range": {"field": "quality", "gte": 4}}
VECTORS = 1_500
"""Products that have one: few enough that every way to search them is exact."""


@pytest.fixture(scope="module")
def products(data: Path) -> list[dict[str, Any]]:
    """Twelve thousand products of 40 campaigns and 50 advertisers."""
    file = data / "vespa_product_feed" / "data_0_1_0.json.zst"
    lines = subprocess.run(["zstd", "-dc", str(file)], check=True, capture_output=True).stdout.splitlines()
    rng = np.random.default_rng(7)
    docs = []
    for number, line in enumerate(lines[:24_000:2]):
        fields = json.loads(line)["fields"]
        own = {"price_micros": fields["price"] * 10_000, "quality": float(fields["average_rating"]), "currency": "USD"}
        own |= {"category": fields["category"], "terms": unique_terms(fields["title"]), "embedding": None}
        own |= {"campaign_id": fields["id"] % 40, "advertiser_id": fields["id"] % 50}
        if number % 8 == 0 and number // 8 < VECTORS:
            own["embedding"] = rng.standard_normal(64).astype("<f4").tobytes()
        docs.append(document(fields["id"], **own, impressions=fields["quantity"]))
    return docs


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, products: list[dict[str, Any]]) -> Home:
    """A home whose base has most products; the rest came since, some are deleted, campaigns have caps or no budget."""
    directory = tmp_path_factory.mktemp("sharded")
    home = Home.open(directory / "home")
    with open_embedded_log(home.log, home.wake) as log:
        ensure_topics(log)
        log.publish(log_records(*(budget(c, frequency_cap_day=3) for c in range(2, 40)), budget(1, daily_micros=1)))
        publish(home.base, write_segment(directory, products[:11_000], positions=log.end_offsets(DELTAS)))
        changed = [{**doc, "bid_account_micros": 3_000_000} for doc in products[:300]]
        log.publish(log_records(*(delta(doc, 200) for doc in (*products[11_000:], *changed))))
        log.publish(log_records(*(tombstone(doc["ad_id"], 300) for doc in products[600:700])))
    return home


class Stage:
    """A stage in a thread of this process."""

    def __init__(
        self,
        home: Home,
        log: Log,
        name: str,
        worker: int,
        run: Callable[[StageContext], None],
        *,
        metrics: Path | None = None,
        **own: str,
    ) -> None:
        self.metrics = StageMetrics(metrics or home.metrics, f"{name}-{worker}")
        self.stop, self.ready, self.port = threading.Event(), threading.Event(), 0
        context = StageContext(name, worker, home, CATALOG, log, self.metrics, self.stop, self._on_ready, settings=own)
        self._thread = threading.Thread(target=run, args=(context,))
        self._thread.start()

    def _on_ready(self, port: int) -> None:
        self.port = port
        self.ready.set()

    def close(self) -> None:
        """Stop it."""
        self.stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()


class Cluster:
    """Shard servers and the broker in front of them."""

    def __init__(self, home: Home, log: Log, count: int, *, metrics: Path | None = None, **own: str) -> None:
        self.home, self.log, self.count, self._metrics = home, log, count, metrics
        self.shards: list[Stage | None] = [self.shard(n) for n in range(count)]
        self.generation = [0] * count
        broker = partial(broker_server.run, find=self.find)
        self.broker = Stage(home, log, "broker", 0, broker, metrics=metrics, shards=str(count), **own)

    def shard(self, number: int) -> Stage:
        """Start a shard's server."""
        shard = f"{number}/{self.count}"
        return Stage(self.home, self.log, "manas", number, server.run, metrics=self._metrics, shard=shard)

    def find(self, number: int) -> tuple[int, int] | None:
        """Say where a shard's server is, as the stages' process files do."""
        stage = self.shards[number]
        return (self.generation[number], stage.port) if stage is not None and stage.ready.is_set() else None

    def take_away(self, number: int) -> None:
        """Stop a shard's server."""
        stage, self.shards[number] = self.shards[number], None
        assert stage is not None
        stage.close()

    def bring_back(self, number: int) -> None:
        """Start it again."""
        self.generation[number] += 1
        self.shards[number] = self.shard(number)

    def close(self) -> None:
        """Stop everything."""
        self.broker.close()
        for stage in self.shards:
            if stage is not None:
                stage.close()


@contextmanager
def cluster(
    home: Home, count: int, *, metrics: Path | None = None, **own: str
) -> Iterator[tuple[Cluster, ManasClient]]:
    """Run shards and a broker on a home, and connect to the broker once it is ready."""
    with open_embedded_log(home.log, home.wake) as log:
        servers = Cluster(home, log, count, metrics=metrics, **own)
        try:
            assert servers.broker.ready.wait(90)
            with ManasClient(servers.broker.port, CATALOG, timeout_s=60) as client:
                yield servers, client
        finally:
            servers.close()


@pytest.fixture(scope="module")
def whole(home: Home) -> Index:
    """One index of everything."""
    with open_embedded_log(home.log, home.wake) as log:
        return open_local_index(home, CATALOG, log)


@pytest.fixture(scope="module", params=[2, 3])
def served(request: pytest.FixtureRequest, home: Home) -> Iterator[tuple[Cluster, ManasClient]]:
    """Two, then three shards behind a broker, with metrics apart: other tests have clusters on this home meanwhile."""
    metrics = home.root / f"metrics-of-{request.param}"
    metrics.mkdir()
    with cluster(home, request.param, metrics=metrics) as running:
        yield running


def _requests(products: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    embedded = [doc["ad_id"] for doc in products[700:] if doc["embedding"] is not None]
    seen = {str(c): {"day": 3} for c in range(2, 12)}
    return [
        BROWSE,
        {"at": AT},
        {**BROWSE, "filter": {"and": [CATEGORY, RATED]}, "price": {"max": 99.99, "currency": "USD"}},
        {**BROWSE, "text": "guitar strings"},
        {**BROWSE, "text": "wooden puzzle", "max_per_advertiser": 2},
        {**BROWSE, "max_per_advertiser": 1},
        {**BROWSE, "seen": seen},
        {**BROWSE, "similar_to": embedded[3], "price": {"max": 30}},
        {**BROWSE, "similar_to": embedded[9], "filter": RATED, "max_per_advertiser": 1},
        {**BROWSE, "vector": [float(i % 5) for i in range(64)], "text": "the guitar"},
        {**BROWSE, "score": "price * quality"},
        {**BROWSE, "score": "0 - price", "rerank": 150, "text": "guitar"},
        {**BROWSE, "score": "impressions", "max_per_advertiser": 3},
        {**BROWSE, "similar_to": embedded[1], "score": "bid + price", "rerank": 40},
        {**BROWSE, "boost": [{"field": "terms", "value": "guitar", "weight": 5.5}], "text": "blue"},
    ]


def _text(answer: Any) -> str:
    return json.dumps(answer, default=list)


def test_answers_are_those_of_one_index(
    served: tuple[Cluster, ManasClient], whole: Index, products: list[dict[str, Any]]
) -> None:
    """Every kind of request, for ten hits, a hundred, ten thousand and all: hits, scores, ties and totals."""
    _, client = served
    for request in _requests(products):
        for k in (10, 0) if "rerank" in request else (10, 10_000, 0):
            expected = whole.search(request, k)
            assert expected["total"] > 10
            assert _text(client.search(request, k)) == _text(expected), (request, k)


def test_a_batch_is_the_single_answers(
    served: tuple[Cluster, ManasClient], whole: Index, products: list[dict[str, Any]]
) -> None:
    """All requests in one call, with different needs, and with bad ones between them."""
    _, client = served
    asked = _requests(products)
    bad = [{"agee": 1}, {**BROWSE, "similar_to": 999_999_999}, {**BROWSE, "page_token": 7}, [1]]
    answers = client.search_batch([*asked[:5], *bad, *asked[5:]], 25)  # type: ignore[list-item]
    assert _text([*answers[:5], *answers[9:]]) == _text([whole.search(request, 25) for request in asked])
    for request, answer in zip(bad, answers[5:9], strict=True):
        with pytest.raises(InvalidRequest) as expected:
            whole.search(request)  # type: ignore[arg-type]
        assert isinstance(answer, InvalidRequest)
        assert str(answer) == str(expected.value)


@pytest.mark.parametrize("own", [{}, {"max_per_advertiser": 40}, {"text": "the of guitar"}, {"score": "price"}])
def test_pages_to_ten_thousand_are_those_of_one_index(
    served: tuple[Cluster, ManasClient], whole: Index, own: dict[str, Any]
) -> None:
    """Page after page the very same tokens; either side's token continues on the other."""
    _, client = served
    request = {**BROWSE, **own} | ({"rerank": 9_000} if "score" in own else {})
    token, seen = "", 0
    while seen < 10_000:
        expected = whole.search({**request, "page_token": token}, 2_500)
        assert _text(client.search({**request, "page_token": token}, 2_500)) == _text(expected)
        seen += len(expected["hits"])
        if not (token := expected["page_token"]):
            break
    assert seen >= (10_000 if not own else 1_900)


def test_an_ad_is_explained_as_by_one_index(
    served: tuple[Cluster, ManasClient], whole: Index, products: list[dict[str, Any]]
) -> None:
    """Steps, rank and reason are the same whether the ad is in, too far behind, crowded out, or does not fit."""
    servers, client = served
    for request in _requests(products):
        ranked = [hit["ad_id"] for hit in whole.search({**request}, 0)["hits"]]
        for ad_id in (ranked[0], ranked[7], ranked[-1], products[5]["ad_id"], products[650]["ad_id"], 999_999_999):
            expected, found = whole.explain(request, 5, ad_id), client.explain(request, 5, ad_id)
            assert found["ad"].pop("shard").endswith(f"/{servers.count}")
            for explained in (expected, found):  # a shard's layers have other names and other exact counts
                explained["ad"]["steps"][0].pop("evidence")
            assert _text(found["ad"]) == _text(expected["ad"]), request
            assert found["hits"] == expected["hits"]


def test_a_shard_that_goes_away_is_named_and_comes_back(home: Home, whole: Index) -> None:
    """While it is gone answers are partial and name it, documents of others are found; afterwards they are whole."""
    with cluster(home, 2, shard_deadline_s="20") as (servers, client):
        assert client.health()["status"] == "serving"
        expected = whole.search(BROWSE, 20)
        assert client.search(BROWSE, 20) == expected
        stats = client.stats()
        assert stats["documents"] == whole.documents()
        assert {int(p): o for p, o in stats["positions"][DELTAS].items()} == dict(servers.log.end_offsets(DELTAS))
        servers.take_away(1)
        _until(lambda: client.search(BROWSE, 20)["partial"])
        answer = client.search(BROWSE, 20)
        assert list(answer["missing_shards"]) == ["1/2"]
        assert answer["total_is_lower_bound"]
        assert answer["total"] < expected["total"]
        [batched] = client.search_batch([BROWSE], 20)
        assert batched == answer
        health = client.health()
        assert health["status"] == "incomplete"
        assert "shard 1/2" in health["problem"]
        assert client.stats()["positions"] == {}
        assert list(client.stats()["missing_shards"]) == ["1/2"]
        servers.bring_back(1)
        _until(lambda: not client.search(BROWSE, 20)["partial"])
        assert client.search(BROWSE, 20) == expected
        assert servers.broker.metrics.counters["shard_lost"] == 1


def test_broker_refuses_until_all_shards_are_there(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says for whom it waits, takes no server of another shard for it, and after half a minute does without."""
    with reserve_shared_port() as holder:
        port = holder.getsockname()[1]
    with open_embedded_log(home.log, home.wake) as log:
        lone = Stage(home, log, "manas", 0, server.run, shard="0/2")
        broker = None
        try:
            assert lone.ready.wait(60)
            run = partial(broker_server.run, find=lambda _: (1, lone.port))
            broker = Stage(home, log, "broker", 0, run, shards="2", port=str(port))
            with ManasClient(port, CATALOG) as client:
                _until(lambda: "is shard 0/2" in _health(client).get("problem", ""))
                assert client.health()["status"] == "starting"
                with pytest.raises(NotServing, match="looking for shards 1/2"):
                    client.search(BROWSE)
                assert not broker.ready.is_set()
                monkeypatch.setattr(broker_server, "_START_SECONDS", 0.0)
                assert broker.ready.wait(120)
                answer = client.search(BROWSE)
                assert (answer["partial"], list(answer["missing_shards"])) == (True, ["1/2"])
                assert "is shard 0/2" in answer["missing_shards"]["1/2"]
        finally:
            for stage in (broker, lone):
                if stage is not None:
                    stage.close()


def test_what_every_shard_applies_is_followed_in_one_stream(tmp_path: Path) -> None:
    """Documents of all shards come by, once each; the stream ends when a shard goes; counts are of all documents."""
    home = Home.open(tmp_path / "home")
    with cluster(home, 2) as (servers, client):
        applied = client.follow()
        junk = OutRecord(DELTAS, "1", b"\xff\xff")
        servers.log.publish([*log_records(budget(1), *(delta(document(i), 5) for i in range(1, 41))), junk])
        assert sorted(int(next(applied).document_id) for _ in range(40)) == list(range(1, 41))
        _until(lambda: client.search(BROWSE, 0)["total"] == 40)
        counted = [stage.metrics.counters for stage in servers.shards if stage is not None]
        assert sum(counters["applied"] for counters in counted) == 40
        assert min(counters["applied"] for counters in counted) > 5
        assert [counters["budgets_applied"] for counters in counted] == [1, 0]
        _until(lambda: servers.log.end_offsets(DEAD_LETTERS) == {0: 1})
        assert [counters["dead_letters:bad_message"] for counters in counted] == [1, 0]
        assert client.budget("1") is not None
        servers.take_away(1)
        with pytest.raises(ManasUnavailable, match="follow again"):
            next(applied)


def test_positions_of_shards_hold_the_log_and_go_on_when_their_number_changes(tmp_path: Path) -> None:
    """Each shard stores its own; a new one starts where the whole was; those of shards that are no more move along."""
    home = Home.open(tmp_path / "home")
    with open_embedded_log(home.log, home.wake) as log:
        ensure_topics(log)
        docs = [delta(document(i), 5) for i in range(1, 41)]
        log.publish(log_records(budget(1), *docs))
        alone = Stage(home, log, "manas", 0, server.run)
        assert alone.ready.wait(60)
        alone.close()
        assert alone.metrics.counters["applied"] == 40
    with cluster(home, 2) as (servers, client):
        assert client.search(BROWSE, 0)["total"] == 40
        counted = [stage.metrics.counters["applied"] for stage in servers.shards if stage is not None]
        assert counted == [40, 0], "the first has the metrics of the whole; nothing was counted again"
    with open_embedded_log(home.log, home.wake) as log:
        assert log.committed("manas-1", DELTAS) == log.committed("manas", DELTAS) == dict(log.end_offsets(DELTAS))
        log.publish(log_records(delta(document(41), 6)))
        alone = Stage(home, log, "manas", 0, server.run)
        assert alone.ready.wait(60)
        alone.close()
        assert log.committed("manas-1", DELTAS) == dict(log.end_offsets(DELTAS))


def _health(client: ManasClient) -> dict[str, str]:
    try:
        return client.health()
    except ManasUnavailable:
        return {}


def _until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.01)


def test_a_base_built_in_as_many_shards_is_taken_as_it_is(tmp_path: Path) -> None:
    """Its segments are the shards' parts, and nothing is made; a base that was spread otherwise is taken apart."""
    docs = [document(i, bid_account_micros=i) for i in range(1, 61)]
    base_dir = tmp_path / "bases"

    def part_of(version: str, number: int) -> tuple[Path, set[int]]:
        part = ensure_part(base_dir, version, Shard(number, 3), CATALOG)
        segment = Base.open(part).segments[0]
        return part, {int(segment.document_id(internal)) for internal in range(segment.count)}

    fitting = publish(base_dir, _sharded_base(tmp_path / "fitting", docs, lambda i: shard_of(str(i), 3)))
    other = publish(base_dir, _sharded_base(tmp_path / "other", docs, lambda i: i % 3))
    for number in range(3):
        own = {i for i in range(1, 61) if shard_of(str(i), 3) == number}
        assert part_of(fitting, number) == (base_dir / fitting / f"shard-00{number}", own)
    assert not (base_dir / PARTS).exists()
    part, found = part_of(other, 1)
    assert part == base_dir / PARTS / "1-of-3" / other
    assert found == {i for i in range(1, 61) if shard_of(str(i), 3) == 1}


def _sharded_base(directory: Path, docs: Sequence[dict[str, Any]], spread: Callable[[int], int]) -> Path:
    """Build a base of three segments as the batch builder does, but with a spread of one's own."""
    shards = {}
    for number in range(3):
        name = f"shard-00{number}"
        own = [doc for doc in docs if spread(doc["ad_id"]) == number]
        write_segment(directory, own).rename(directory / name)
        shards[name] = (Base.open(directory / name).manifest, file_entry(directory / name / MANIFEST))
    _, data = seal_manifest(base_manifest(shards))
    (directory / MANIFEST).write_bytes(data)
    return directory
