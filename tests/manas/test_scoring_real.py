"""Scoring of real products and over gRPC, against independent loops."""

from __future__ import annotations

import json
import subprocess
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from catalog.documents import decode_document, encode_document
from catalog.text import analyze
from manas import Index, InvalidRequest, ManasClient, Segment, publish
from manas.server import run
from messaging.api import OutRecord
from messaging.embedded import open_embedded_log
from messaging.home import Home
from messaging.metrics import StageMetrics
from messaging.stage import StageContext
from messaging.topics import BUDGETS, ensure_topics
from tests.manas.scoring_support import SCORED, diverse, light, matching, ordered
from tests.manas.support import AT, CATALOG, VALUES, budget, delta, document, write_segment

BROWSE: dict[str, Any] = {"at": AT, **dict.fromkeys(VALUES, "*")}


@pytest.fixture(scope="module")
def products(data: Path) -> list[dict[str, Any]]:
    """Three thousand products; a word's payload is how often the title and the description have it."""
    file = data / "vespa_product_feed" / "data_0_1_0.json.zst"
    lines = subprocess.run(["zstd", "-dc", str(file)], check=True, capture_output=True).stdout.splitlines()
    docs = []
    for line in lines[::8][:3_000]:
        fields = json.loads(line)["fields"]
        words = Counter(analyze(f"{fields['title']} {fields.get('description', '')}"))
        own = {"price_micros": fields["price"] * 10_000, "quality": float(fields["average_rating"])}
        own |= {
            "category": fields["category"],
            "terms": sorted(words),
            "frequencies": [words[w] for w in sorted(words)],
        }
        docs.append(document(fields["id"], **own, advertiser_id=fields["id"] % 50))
    return docs


def test_products_by_word_counts_and_expression(products: list[dict[str, Any]], tmp_path: Path) -> None:
    """Word counts as payloads, then rating against price, page by page, over base and delta."""
    segment = Segment.open(write_segment(tmp_path, products[:2_500], catalog=SCORED))
    index = Index(SCORED, segment)
    index.apply_budgets([budget(1)])
    index.apply_documents([delta(doc, 1_000) for doc in products[2_000:]])
    alive = {str(doc["ad_id"]): doc for doc in products}
    for text, most in (("guitar strings", None), ("wooden puzzle", 2), ("the", None), ("the", 3)):
        request = {**BROWSE, "text": text} | ({} if most is None else {"max_per_advertiser": most})
        found = matching(alive, {"1": {}}, request)
        by_light = ordered(light(alive, found, request))
        wanted = diverse(by_light, alive, most)
        assert len(wanted) > 20
        answer = index.search(request, 50)
        assert [(hit["ad_id"], hit["score"]) for hit in answer["hits"]] == wanted[:50]
        assert answer["total"] == len(found)
        scored = {**request, "score": "pow(quality, 2) * match(terms) - price / 10", "rerank": 200}
        full = {}
        for ad_id, own in by_light[:200]:
            doc = alive[str(ad_id)]
            text_score = own - doc["bid_account_micros"] / 1e6 * doc["quality"]
            full[ad_id] = doc["quality"] ** 2 * text_score - doc["price_micros"] / 1e6 / 10
        wanted = diverse(ordered(full), alive, most)
        token, hits = "", []
        while True:
            answer = index.search({**scored, "page_token": token}, 30)
            hits += answer["hits"]
            token = answer["page_token"]
            if not token:
                break
        assert [hit["score"] for hit in hits] == pytest.approx([score for _, score in wanted])
        assert {hit["ad_id"] for hit in hits} == {ad_id for ad_id, _ in wanted}


def test_scoring_and_pages_over_grpc(tmp_path: Path) -> None:
    """Expressions, boosts, pages and single fields travel to the server and back; faults come back in words."""
    home = Home.open(tmp_path / "home")
    docs = [document(i, quality=i / 10, interests=[i % 3], title=f"t{i}") for i in range(1, 31)]
    publish(home.base, write_segment(tmp_path, docs))
    log = open_embedded_log(home.log, home.wake)
    ensure_topics(log)
    log.publish([OutRecord(BUDGETS, "1", budget(1).SerializeToString())])
    stop, ready, ports = threading.Event(), threading.Event(), []

    def on_ready(port: int) -> None:
        ports.append(port)
        ready.set()

    context = StageContext("manas", 0, home, CATALOG, log, StageMetrics(home.metrics, "manas"), stop, on_ready)
    thread = threading.Thread(target=run, args=(context,))
    thread.start()
    try:
        assert ready.wait(120)
        with ManasClient(ports[0], CATALOG) as client:
            score = "0 - bid * quality + 100 * match(interests)"
            boost = [{"field": "interests", "value": 1, "weight": 1}]
            request = {**BROWSE, "score": score, "boost": boost, "page_token": ""}
            wanted = sorted(((100 if i % 3 == 1 else 0) - i / 10, -i) for i in range(1, 31))[::-1]
            hits, token = [], ""
            for _ in range(5):
                answer = client.search({**request, "page_token": token}, 7)
                hits += [(hit["score"], -int(hit["ad_id"])) for hit in answer["hits"]]
                token = answer["page_token"]
            assert token == ""
            assert hits == wanted
            assert "page_token" not in client.search(BROWSE, 7)
            assert client.explain({**BROWSE, "score": score}, 3)["plan"]["second_phase"]["score"] == score
            (served,) = client.get(["4"], ("title", "interests"))
            assert decode_document(served.body) == {"title": "t4", "interests": [1]}
            assert client.get(["4"])[0].body == encode_document(docs[3])
            with pytest.raises(InvalidRequest, match="score, character 5"):
                client.search({**BROWSE, "score": "bid ? 1"})
            with pytest.raises(InvalidRequest, match="no field 'colour'"):
                client.get(["4"], ("colour",))
    finally:
        stop.set()
        thread.join(120)
        log.close()
    assert not thread.is_alive()
