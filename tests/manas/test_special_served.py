"""Special fields and caps over gRPC: the server answers, explains and refuses as the index does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from manas import Index, InvalidRequest, ManasClient
from manas.server import run
from messaging.api import OutRecord
from messaging.embedded import open_embedded_log
from messaging.home import Home
from messaging.metrics import StageMetrics
from messaging.proto import adsindex_pb2 as pb
from messaging.stage import StageContext
from messaging.topics import BUDGETS, DELTAS, ensure_topics
from tests.manas.audience import CATALOG
from tests.manas.test_special import delta

_READY_SECONDS = 60.0
ADS: list[dict[str, Any]] = [
    {"ad_id": 1, "campaign_id": 1, "tree": ("not", ("set", "device", ["tablet"]))},
    {"ad_id": 2, "campaign_id": 1, "circles": [{"lat": 89.9, "lon": 0.0, "km": 50}]},
    {"ad_id": 3, "campaign_id": 2, "windows": ([(0, 9, 8)], "user"), "point": (0.0, 180.0)},
    {"ad_id": 4, "campaign_id": 2, "point": (51.5, -0.12)},
]
BUDGETS_OF = [pb.BudgetState(campaign_id=str(c), version=1, frequency_cap_week=3) for c in (1, 2)]
REQUESTS: list[dict[str, Any]] = [
    {},
    {"device": "phone", "position": {"lat": 90, "lon": 77}, "time_zone": "Europe/Paris"},
    {"device": "tablet", "position": {"lat": 89.9, "lon": 180}, "time_zone": "Asia/Tokyo"},
    {"device": "*", "position": "*", "time_zone": "*", "seen": {"1": {"week": 3}}},
    {"time_zone": "UTC", "near": {"lat": 0, "lon": -179.9, "km": 20}},
    {"filter": {"or": [{"near": {"field": "place", "lat": 51, "lon": 0, "miles": 50}},
                       {"term": {"field": "campaign_id", "value": 1}}]}, "device": "phone"},
]  # fmt: skip


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ManasClient]:
    """A client of the stage with the ads as deltas, in a thread of this process."""
    home = Home.open(tmp_path_factory.mktemp("served") / "home")
    log = open_embedded_log(home.log, home.wake)
    ensure_topics(log)
    log.publish([OutRecord(DELTAS, d.document_id, d.SerializeToString()) for d in (delta(ad, 5) for ad in ADS)])
    log.publish([OutRecord(BUDGETS, s.campaign_id, s.SerializeToString()) for s in BUDGETS_OF])
    stop, ready, ports = threading.Event(), threading.Event(), []

    def on_ready(port: int | None) -> None:
        ports.append(port)
        ready.set()

    metrics = StageMetrics(home.metrics, "manas")
    context = StageContext("manas", 0, home, CATALOG, log, metrics, stop, on_ready)
    stage = threading.Thread(target=run, args=(context,))
    stage.start()
    try:
        assert ready.wait(_READY_SECONDS)
        with ManasClient(ports[0], CATALOG) as connected:
            yield connected
    finally:
        stop.set()
        stage.join()
        log.close()


@pytest.fixture(scope="module")
def index() -> Index:
    """The same in this process."""
    made = Index(CATALOG)
    made.apply_documents(delta(ad, 5) for ad in ADS)
    made.apply_budgets(BUDGETS_OF)
    return made


@pytest.mark.parametrize("request_", REQUESTS)
def test_the_server_answers_as_the_index(client: ManasClient, index: Index, request_: dict[str, Any]) -> None:
    """Every kind of condition travels in the request, and its explanation comes back whole."""
    wanted = {"at": "2026-01-05T09:30:00", **request_}
    assert client.search(wanted, 0) == index.search(wanted, 0)
    for ad in (1, 2, 3, 4):
        assert client.explain(wanted, 0, ad)["ad"] == index.explain(wanted, 0, ad)["ad"]


def test_the_kinds_differ(index: Index) -> None:
    """The requests of this module do not all get the same ads."""
    answers = [
        tuple(sorted(hit["ad_id"] for hit in index.search({"at": "2026-01-05T09:30:00", **request}, 0)["hits"]))
        for request in REQUESTS
    ]
    assert answers == [(4,), (1, 2, 3, 4), (2, 4), (3, 4), (3,), (1, 4)]


def test_a_bad_request_is_the_callers_fault(client: ManasClient) -> None:
    """The server refuses with the sentence of the index."""
    for bad, words in (
        ({"position": {"lat": 91, "lon": 0}}, "position: latitude 91"),
        ({"seen": 1}, "seen: an object"),
    ):
        with pytest.raises(InvalidRequest, match=words):
            client.search(bad)
