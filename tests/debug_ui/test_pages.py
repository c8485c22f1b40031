"""Pages and JSON, asked over HTTP without a browser: content, escaping, and who is refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from starlette.testclient import TestClient

from catalog import LaneName
from debug_ui.app import create_app
from manas import Broker, Index, ManasUnavailable, shard_of
from messaging import OutRecord
from messaging.dead_letters import dead_letter, out_record
from messaging.headers import new_header, now_us
from messaging.proto import adsindex_pb2 as pb
from messaging.topics import BUDGETS, DELTAS, UPDATES
from tests.debug_ui.pipeline import Pipeline


@pytest.fixture
def client(pipeline: Pipeline) -> Iterator[TestClient]:
    """A client of the application."""
    with TestClient(create_app(pipeline.backends), base_url="http://127.0.0.1:8080") as opened:
        yield opened


def broken_letter(pipeline: Pipeline) -> pb.EntityUpdate:
    """Dead-letter an update of campaign 1 that would be valid, as a stage with a bug would have."""
    update = pb.EntityUpdate(
        header=new_header(LaneName.HIGH, now_us()), table="campaign", row="1", source_version=1, source="ads_db"
    )
    letter = dead_letter(
        "updater",
        "conflict_limit",
        "campaign/1: <b>still</b> conflicting",
        header=update.header,
        table="campaign",
        row="1",
        payload=update.SerializeToString(),
        payload_type="EntityUpdate",
    )
    pipeline.log.publish([out_record(letter)])
    return update


@pytest.mark.parametrize(
    ("kind", "entity_id"),
    [
        ("advertiser", "1"),
        ("campaign", "1"),
        ("ad_group", "10"),
        ("ad", "100"),
        ("pin", "pin-100"),
        ("image", "img-100"),
        ("document", "100"),
    ],
)
def test_every_kind_has_a_page_and_json(client: TestClient, kind: str, entity_id: str) -> None:
    """Every kind of entity can be opened, and the JSON says the same."""
    page = client.get(f"/entity/{kind}/{entity_id}")
    assert page.status_code == 200
    assert "Storage Repo" in page.text
    view = client.get(f"/api/entity/{kind}/{entity_id}?history=true").json()
    assert (view["kind"], view["id"]) == (kind, entity_id)
    assert all(c["current"]["commit_ts"] for c in view["columns"] if c["current"])


def test_names_are_escaped(client: TestClient) -> None:
    """Markup in a name comes out as text, on the entity's page and among search results."""
    for page in (client.get("/entity/advertiser/1"), client.get("/", params={"q": "Acme"})):
        assert "Acme &amp; &lt;Sons&gt;" in page.text
        assert "<Sons>" not in page.text


def test_query_is_escaped(client: TestClient) -> None:
    """What a person typed is shown as text."""
    page = client.get("/", params={"q": '"><script>alert(1)</script>'})
    assert page.status_code == 200 and "<script>" not in page.text


def test_campaign_page_shows_the_chain_first(client: TestClient, pipeline: Pipeline) -> None:
    """The diagnosis stands above the rows, with the command that repairs."""
    pipeline.sql("UPDATE campaigns SET status = 'PAUSED' WHERE id = 1")
    text = client.get("/entity/campaign/1").text
    assert text.index("cause: campaign") < text.index("Storage Repo")
    assert "UPDATE campaigns SET status = &#39;ACTIVE&#39; WHERE id = 1" in text
    assert client.get("/api/why/campaign/1").json()["cause"] == "campaign"


def test_free_search_finds_names_and_ids(client: TestClient) -> None:
    """Names, titles and ids are found; an id that fits one entity alone opens it."""
    assert "Campaign 2" in client.get("/", params={"q": "campaign 2"}).text
    assert "pin-300" in client.get("/", params={"q": "number 300"}).text
    assert "Nothing in the ads DB" in client.get("/", params={"q": "100%"}).text
    found = client.get("/", params={"q": "pin-100"}, follow_redirects=False)
    assert (found.status_code, found.headers["location"]) == (303, "/entity/pin/pin-100")


def test_unknown_kind_and_id_are_clear_errors(client: TestClient) -> None:
    """What does not exist is a 404 that says what there is."""
    assert client.get("/entity/campaign/999").status_code == 404
    answer = client.get("/api/entity/banana/1")
    assert answer.status_code == 404 and "advertiser, campaign" in answer.json()["error"]
    assert client.get("/api/entity/campaign/abc").status_code == 400
    assert client.get("/api/why/pin/pin-100").status_code == 400


def test_search_by_fields(client: TestClient) -> None:
    """The form's fields make a request, hits carry title, price, bid and score, and an ad is explained."""
    fields = {"age": "30-34", "gender": "M", "interests": "16", "k": "3", "ad": "301"}
    text = client.get("/search", params=fields).text
    assert "3 of 6 ads that fit" in text and "Sturdy shoes number 100" in text and "100.00 USD" in text
    assert "below the first 3" in text


class Down:
    """A shard that cannot be reached."""

    def __getattr__(self, name: str) -> Any:
        def refuse(*args: Any, **options: Any) -> Any:
            raise ManasUnavailable("connection refused")

        return refuse


def test_search_says_which_shards_are_missing(pipeline: Pipeline) -> None:
    """Behind a broker with a shard that is down: on the page, in JSON, and among the problems of the health page."""
    half = Index(pipeline.backends.catalog)
    half.apply_budgets(pb.BudgetState.FromString(r.value) for r in pipeline.backends.log.read(BUDGETS, 0, 0, 100))
    for partition in pipeline.backends.log.end_offsets(DELTAS):
        deltas = [pb.DocumentDelta.FromString(r.value) for r in pipeline.backends.log.read(DELTAS, partition, 0, 100)]
        half.apply_documents(delta for delta in deltas if shard_of(delta.document_id, 2) == 0)
    request = {"json": '{"age": "30-34", "gender": "M", "interests": [16]}'}
    with Broker(pipeline.backends.catalog, [half, Down()]) as broker:
        app = create_app(replace(pipeline.backends, serving=broker))
        with TestClient(app, base_url="http://127.0.0.1:8080") as client:
            assert "Partial: shard 1/2 is missing: connection refused" in client.get("/search", params=request).text
            answer = client.get("/api/search", params=request).json()
            assert (answer["partial"], answer["missing_shards"]) == (True, {"1/2": "connection refused"})
            assert 0 < answer["total"] < 6
            assert "shard 1/2 is missing: connection refused" in client.get("/health").text


def test_search_by_json(client: TestClient) -> None:
    """The JSON editor takes any request, and a faulty one is named with what would be valid."""
    request = '{"age": "30-34", "gender": "M", "interests": [20], "price": {"max": 150}}'
    assert "2 of 2 ads that fit" in client.get("/search", params={"json": request}).text
    assert client.get("/api/search", params={"json": request}).json()["total"] == 2
    for bad in ("{", "[]", '{"planet": "Mars"}', '{"k": ' + "[" * 2000):
        answer = client.get("/search", params={"json": bad})
        assert answer.status_code == 400 and "banner bad" in answer.text
    assert client.get("/search", params={"interests": "sixteen"}).status_code == 400


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "10.0.0.7:8080", "localhost.evil"])
def test_foreign_host_names_are_refused(client: TestClient, host: str) -> None:
    """A name that is not loopback gets nothing: a page of another site cannot read by DNS rebinding."""
    assert client.get("/", headers={"host": host}).status_code == 421
    assert client.get("/api/status", headers={"host": host}).status_code == 421


@pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1", "[::1]:8080", "LOCALHOST"])
def test_loopback_names_are_answered(client: TestClient, host: str) -> None:
    """Every way to write this machine's own name works."""
    assert client.get("/static/icon.svg", headers={"host": host}).status_code == 200


def test_input_is_bounded(client: TestClient) -> None:
    """Long addresses, many results and long words are refused, not worked on."""
    assert client.get("/", params={"q": "x" * 401}).status_code == 422
    assert client.get("/search", params={"k": 100_000, "age": "1"}).status_code == 422
    assert client.get("/search", params={"json": "x" * 20_000}).status_code == 414
    assert client.get("/entity/campaign/" + "9" * 500).status_code in (400, 404)


def test_answers_forbid_foreign_content(client: TestClient) -> None:
    """Every page forbids scripts, frames and foreign content."""
    headers = client.get("/health").headers
    assert "default-src 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"


def test_dead_letter_is_listed_explained_and_replayed(client: TestClient, pipeline: Pipeline) -> None:
    """A dead letter is found by its filters and by its entity, shows its payload, and goes back to its topic."""
    update = broken_letter(pipeline)
    assert "conflict_limit" in client.get("/dead-letters?stage=updater").text
    assert "conflict_limit" not in client.get("/dead-letters?stage=argus").text.split("shown")[1]
    assert "&lt;b&gt;still&lt;/b&gt;" in client.get("/entity/campaign/1").text
    page = client.get("/dead-letters/0/0").text
    assert "source_version" in page
    token = re.search(r'name="csrf_token" value="([^"]+)"', page)
    assert token is not None
    before = pipeline.log.end_offsets(UPDATES[LaneName.HIGH])
    done = client.post("/dead-letters/0/0/replay", data={"csrf_token": token[1]})
    assert done.status_code == 200 and "replayed" in done.text
    after = pipeline.log.end_offsets(UPDATES[LaneName.HIGH])
    partition = next(p for p in after if after[p] != before[p])
    record = pipeline.log.read(UPDATES[LaneName.HIGH], partition, before[partition], 1)[0]
    assert pb.EntityUpdate.FromString(record.value) == update


@pytest.mark.parametrize(
    ("headers", "with_token"),
    [
        ({}, False),
        ({"origin": "http://evil.example"}, True),
        ({"origin": "http://127.0.0.1:9999"}, True),
        ({"sec-fetch-site": "cross-site"}, True),
    ],
)
def test_posts_of_other_sites_are_refused(
    client: TestClient, pipeline: Pipeline, headers: dict[str, str], with_token: bool
) -> None:
    """Without our token, or from another origin, nothing is replayed."""
    broken_letter(pipeline)
    token = re.search(r'name="csrf_token" value="([^"]+)"', client.get("/dead-letters/0/0").text)
    assert token is not None
    before = pipeline.log.end_offsets(UPDATES[LaneName.HIGH])
    data = {"csrf_token": token[1] if with_token else "guess"}
    assert client.post("/dead-letters/0/0/replay", data=data, headers=headers).status_code == 403
    assert pipeline.log.end_offsets(UPDATES[LaneName.HIGH]) == before


def test_letters_that_cannot_be_replayed_say_why(client: TestClient, pipeline: Pipeline) -> None:
    """A letter that came straight from the ads DB has no button, but says what to do; rubbish is shown as such."""
    letter = dead_letter("gateway", "bad_key", "the key is null", table="campaign", row="1")
    letter.topic = "ads_db.changes"
    pipeline.log.publish([out_record(letter), OutRecord("dead_letters", "x", b"\xff\xff\xff")])
    page = client.get("/dead-letters/0/0").text
    assert "Not possible" in page and "correct campaign 1 in the ads DB" in page
    assert client.get("/dead-letters/0/1").status_code == 200
    assert "unreadable" in client.get("/dead-letters").text
    assert client.get("/dead-letters/0/2").status_code == 400


def test_metrics_are_prometheus_text(client: TestClient) -> None:
    """Latency, lag and documents can be scraped."""
    text = client.get("/metrics").text
    assert 'adsindex_latency_seconds_bucket{lane="high",le="+Inf",part="total"} 6.0' in text
    assert 'adsindex_lag{group="gateway",place="ads DB change feed"} 0.0' in text
    assert "adsindex_documents 6.0" in text


def test_dependencies_are_browsed(client: TestClient) -> None:
    """A handler's page says what makes it run, what it writes and which fields that feeds."""
    text = client.get("/dependencies?handler=bid").text
    assert "ad_group.bid_micros" in text and "ad_document.bid_micros" in text and "status_rollup" in text
