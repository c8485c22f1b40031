"""Many shards answer as one index of all documents does, and say who is missing."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manas import Index, InvalidRequest, ManasUnavailable
from manas._base import shard_of
from manas._common import Common
from manas.api import Answer
from manas.broker import Broker
from manas.shards import Shard
from tests.manas.support import AT, CATALOG, VALUES, budget, delta, document, documents, ids, requests

BROWSE = {**dict.fromkeys(VALUES, "*"), "at": AT}


def _indexes(docs: Sequence[Mapping[str, Any]], count: int) -> tuple[Index, list[Index]]:
    """Return an index of everything, and one per shard."""
    whole, parts = Index(CATALOG), [Index(CATALOG) for _ in range(count)]
    for index in (whole, *parts):
        index.apply_budgets([budget(c) for c in (1, 2, 3)])
    for doc in docs:
        message = delta(doc, 5)
        whole.apply_documents([message])
        parts[shard_of(message.document_id, count)].apply_documents([message])
    return whole, parts


@settings(max_examples=60, deadline=None)
@given(
    st.lists(documents(st.integers(1, 40)), max_size=25, unique_by=lambda d: d["ad_id"]),
    st.lists(requests(), min_size=1, max_size=4),
    st.integers(0, 5),
    st.integers(1, 4),
)
def test_shards_answer_as_one_index(
    docs: list[dict[str, Any]], asked: list[dict[str, Any]], k: int, count: int
) -> None:
    """Hits, scores (rare words weigh what they weigh over all documents), ties, totals, and diversity are the same."""
    whole, parts = _indexes(docs, count)
    with Broker(CATALOG, parts) as broker:
        for request in asked:
            assert broker.search(request, k) == whole.search(request, k)
        if docs:
            similar = {**BROWSE, "similar_to": docs[0]["ad_id"]}
            if docs[0].get("embedding"):
                assert broker.search(similar, k) == whole.search(similar, k)
            else:
                with pytest.raises(InvalidRequest, match="similar_to"):
                    broker.search(similar, k)


@pytest.mark.parametrize("more", [{}, {"max_per_advertiser": 2}, {"text": "red blue"}])
def test_pages_of_shards_are_the_pages_of_one_index(more: dict[str, Any]) -> None:
    """Page after page, the broker gives what one index gives, until there is no more."""
    docs = [
        document(i, bid_account_micros=i % 5, advertiser_id=i % 9, terms=["red"] if i % 3 else ["blue"])
        for i in range(1, 60)
    ]
    whole, parts = _indexes(docs, 3)
    request: dict[str, Any] = {**dict.fromkeys(VALUES, "*"), **more}
    with Broker(CATALOG, parts) as broker:
        everything = whole.search(request, 0)["hits"]
        token, pages = "", []
        while True:
            answer = broker.search({**request, "page_token": token}, 7)
            pages += answer["hits"]
            if not (token := answer["page_token"]):
                break
            with pytest.raises(InvalidRequest, match="belongs to another request"):
                broker.search({**request, "age": "18-24", "page_token": token}, 7)
        assert pages == everything


class Slow:
    """A shard that answers when it is let."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self.gate = threading.Event()

    def search(self, request: Mapping[str, Any], k: int = 10, **options: Any) -> Answer:
        """Wait, then answer."""
        self.gate.wait(20)
        return self._index.search(request, k, **options)

    def statistics(self, request: Mapping[str, Any]) -> Common:
        """Answer at once."""
        return self._index.statistics(request)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._index, name)


class Down:
    """A shard that cannot be reached."""

    def __getattr__(self, name: str) -> Any:
        def refuse(*args: Any, **options: Any) -> Any:
            raise ManasUnavailable("connection refused")

        return refuse


def test_answer_says_that_it_is_partial_and_which_shards_are_missing() -> None:
    """A shard past its deadline and one that is down are named; the others' ads are there, in order."""
    docs = [document(i, bid_account_micros=i * 1_000_000, terms=["red"]) for i in range(1, 31)]
    _, parts = _indexes(docs, 3)
    slow = Slow(parts[1])
    there = [d["ad_id"] for d in docs if shard_of(str(d["ad_id"]), 3) == 0]
    with Broker(CATALOG, [parts[0], slow, Down()]) as broker:
        for request in (BROWSE, {**BROWSE, "text": "red"}):
            answer = broker.search(request, 0, timeout_s=0.05)
            assert answer["missing_shards"] == {"1/3": "no answer before the deadline", "2/3": "connection refused"}
            assert answer["partial"]
            assert answer["total_is_lower_bound"]
            assert ids(answer) == sorted(there, reverse=True)
        gone = next(d["ad_id"] for d in docs if shard_of(str(d["ad_id"]), 3) == 2)
        with pytest.raises(ManasUnavailable, match="2/3"):
            broker.get([str(gone)])
        with pytest.raises(ManasUnavailable, match="2/3"):
            broker.search({**BROWSE, "similar_to": gone})
        slow.gate.set()
        assert broker.search(BROWSE, 0)["missing_shards"].keys() == {"2/3"}
        stats = broker.stats()
        assert stats["missing_shards"] == {"2/3": "connection refused"}
        assert stats["shards"].keys() == {"0/3", "1/3"}
    with Broker(CATALOG, [Down(), Down()]) as broker, pytest.raises(ManasUnavailable, match="no shard answers"):
        broker.search(BROWSE)


def test_what_belongs_to_one_document_comes_from_its_shard() -> None:
    """Get keeps the order asked, budgets are the newest known, and an explanation is that of the ad's own shard."""
    docs = [document(i, bid_account_micros=i * 1_000_000) for i in range(1, 21)]
    whole, parts = _indexes(docs, 3)
    parts[2].apply_budgets([budget(2, 9, daily_micros=7)])
    with Broker(CATALOG, parts) as broker:
        wanted = ["7", "unknown", "20", "1"]
        assert [d.document_id for d in broker.get(wanted)] == wanted
        assert [d.body for d in broker.get(wanted)] == [d.body for d in whole.get(wanted)]
        state = broker.budget("2")
        assert state is not None
        assert state.version == 9
        assert broker.budget("404") is None
        for ad_id, included in ((20, True), (1, False)):
            found = broker.explain(BROWSE, 3, ad_id)
            assert found["hits"] == whole.search(BROWSE, 3)["hits"]
            assert (found["ad"]["in_answer"], found["ad"]["shard"]) == (included, f"{shard_of(str(ad_id), 3)}/3")
            assert found["plan"]["shards"].keys() == {"0/3", "1/3", "2/3"}
        assert broker.stats()["documents"] == 20


@pytest.mark.parametrize("bad", [{"agee": 1}, {"similar_to": 999}, {"similar_to": []}, {"page_token": "x"}])
def test_bad_request_is_the_same_error_as_of_one_index(bad: dict[str, Any]) -> None:
    """What one index refuses is refused with its words, and no shard counts as missing for it."""
    whole, parts = _indexes([document(1)], 2)
    with pytest.raises(InvalidRequest) as expected:
        whole.search(bad)
    with Broker(CATALOG, parts) as broker, pytest.raises(InvalidRequest) as found:
        broker.search(bad)
    assert str(found.value) == str(expected.value)


def test_documents_are_shared_out_evenly_and_for_good() -> None:
    """The shard of an id is part of what is on disk: it must never change."""
    assert [shard_of(str(i), 4) for i in range(12)] == [0, 2, 3, 2, 1, 3, 3, 3, 3, 2, 2, 1]
    counts = [sum(shard_of(str(i), 4) == n for i in range(4_000)) for n in range(4)]
    assert all(900 < count < 1_100 for count in counts)
    assert str(Shard.parse("1/3")) == "1/3"
    for text in ("3/3", "1", "a/b", "1/0", "-1/2"):
        with pytest.raises(ValueError, match="NUMBER/COUNT"):
            Shard.parse(text)
