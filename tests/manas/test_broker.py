"""Many shards answer as one index of all documents does, and say who is missing."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manas import Index, InvalidRequest, ManasClient, ManasError, ManasUnavailable
from manas._base import shard_of
from manas._common import Ask, Common
from manas._ranking import idf
from manas.api import Answer, Hit
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


_SCORED = {"score": "bid - quality", "rerank": 20}


@pytest.mark.parametrize(
    "more",
    [{}, {"max_per_advertiser": 2}, {"text": "red blue"}, _SCORED, {**_SCORED, "max_per_advertiser": 1}],
)
def test_pages_of_shards_are_the_pages_of_one_index(more: dict[str, Any]) -> None:
    """Page after page, the broker gives what one index gives, until there is no more."""
    docs = [
        document(i, bid_account_micros=i % 5, advertiser_id=i % 9, quality=i / 7, terms=["red"] if i % 3 else ["blue"])
        for i in range(1, 60)
    ]
    whole, parts = _indexes(docs, 3)
    request: dict[str, Any] = {**dict.fromkeys(VALUES, "*"), **more, "at": AT}
    with Broker(CATALOG, parts) as broker:
        everything = whole.search(request, 0)["hits"]
        token, pages = "", list[Hit]()
        while True:
            size = 7 if len(pages) % 2 else 8
            answer = broker.search({**request, "page_token": token}, size)
            assert answer == whole.search({**request, "page_token": token}, size)
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

    def search_each(self, asks: Sequence[Ask], **options: Any) -> list[Answer | ManasError]:
        """Wait, then answer."""
        self.gate.wait(20)
        return self._index.search_each(asks, **options)

    def statistics(self, requests: Sequence[Mapping[str, Any]]) -> Common:
        """Answer at once."""
        return self._index.statistics(requests)

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


def test_a_connection_that_is_closed_under_a_request_is_a_missing_shard() -> None:
    """While a shard's server is found anew its old connection is closed: whoever was about to use it goes on."""
    _, parts = _indexes([document(i) for i in range(1, 31)], 2)
    closed = ManasClient(1, CATALOG)
    closed.close()
    with Broker(CATALOG, [parts[0], closed]) as broker:
        answer = broker.search(BROWSE, 0)
        assert answer["total"] == parts[0].documents()
        assert answer["missing_shards"] == {"1/2": "the connection to the Manas server on port 1 is closed"}
        assert answer["partial"]


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


def test_diversity_looks_further_until_there_are_enough() -> None:
    """The best sixty ads share one advertiser: the others are found behind them, however far that is."""
    docs = [document(i, bid_account_micros=i * 1_000_000, advertiser_id=max(0, 20 - i)) for i in range(1, 81)]
    whole, parts = _indexes(docs, 3)
    request = {**BROWSE, "max_per_advertiser": 1}
    with Broker(CATALOG, parts) as broker:
        assert ids(broker.search(request, 4)) == [80, 19, 18, 17]
        for k in (1, 4, 20, 21, 0):
            assert broker.search(request, k) == whole.search(request, k)


def test_a_shard_that_hangs_keeps_no_other_waiting() -> None:
    """Its own threads are used up; the others answer at once, and it answers again when it goes on."""
    docs = [document(i) for i in range(1, 31)]
    _, parts = _indexes(docs, 2)
    slow = Slow(parts[0])
    with Broker(CATALOG, [slow, parts[1]], concurrent=1) as broker:
        for _ in range(3):
            answer = broker.search(BROWSE, 0, timeout_s=0.05)
            assert answer["missing_shards"] == {"0/2": "no answer before the deadline"}
            assert answer["total"] == parts[1].documents()
        slow.gate.set()
        while broker.search(BROWSE, 0, timeout_s=5.0)["partial"]:
            pass
        assert broker.search(BROWSE, 0)["total"] == 30


class Hanging:
    """A shard that answers nothing until it is let."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self.gate = threading.Event()

    def __getattr__(self, name: str) -> Any:
        def late(*args: Any, **options: Any) -> Any:
            self.gate.wait(20)
            return getattr(self._index, name)(*args, **options)

        return late


class Timed:
    """A shard that notes how long each search may take."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self.given: list[float] = []

    def search_each(self, asks: Sequence[Ask], **options: Any) -> list[Answer | ManasError]:
        """Note the time, and take as long as there is need."""
        self.given.append(options.pop("timeout_s"))
        return self._index.search_each(asks, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._index, name)


def test_what_has_to_be_known_first_leaves_time_for_the_search() -> None:
    """While a shard hangs, the others' ads are there for requests with words too, and beside one that needs it."""
    docs = [document(i, terms=["red"]) for i in range(1, 31)]
    _, parts = _indexes(docs, 2)
    hanging, timed = Hanging(parts[0]), Timed(parts[1])
    away = next(d["ad_id"] for d in docs if shard_of(str(d["ad_id"]), 2) == 0)
    with Broker(CATALOG, [hanging, timed], concurrent=8) as broker:
        worded, similar = {**BROWSE, "text": "red"}, {**BROWSE, "similar_to": away}
        answer = broker.search(worded, 0, timeout_s=0.4)
        assert answer["total"] == parts[1].documents()
        assert answer["missing_shards"] == {"0/2": "no answer before the deadline"}
        plain, both, failed = broker.search_batch([BROWSE, worded, similar], 0, timeout_s=0.4)
        assert isinstance(failed, ManasUnavailable)
        for one in (plain, both):
            assert not isinstance(one, ManasError)
            assert one["total"] == parts[1].documents()
        assert all(given > 0 for given in timed.given), "a healthy shard was left no time"
        assert len(timed.given) == 2
        hanging.gate.set()


def test_a_shard_that_is_cut_short_makes_the_answer_partial() -> None:
    """Its own mark of a deadline is the answer's; nobody is missing."""
    _, parts = _indexes([document(i) for i in range(1, 31)], 2)

    class Hurried(Slow):
        def search_each(self, asks: Sequence[Ask], **options: Any) -> list[Answer | ManasError]:
            return [
                answer if isinstance(answer, ManasError) else {**answer, "partial": True}
                for answer in self._index.search_each(asks, **options)
            ]

    with Broker(CATALOG, [parts[0], Hurried(parts[1])]) as broker:
        for request in (BROWSE, {**BROWSE, "max_per_advertiser": 1}):
            answer = broker.search(request, 3)
            assert answer["partial"]
            assert "missing_shards" not in answer
            assert answer["hits"]


def test_a_batch_shares_its_time_and_its_counts() -> None:
    """Each request has what those before it have left; words weigh by the counts that are said for all of them."""
    waits: list[float | None] = []

    class Watched(Index):
        def search(self, *args: Any, **options: Any) -> Answer:
            waits.append(options["timeout_s"])
            time.sleep(0.02)
            return super().search(*args, **options)

    index = Watched(CATALOG)
    index.apply_budgets([budget(1)])
    index.apply_documents([delta(document(1, terms=["red"]), 5)])
    asks = [Ask({**BROWSE, "text": "red"}), Ask({"agee": 1}), Ask({**BROWSE, "text": "red"})]
    answers = index.search_each(asks, shared=Common(1_000, {"red": 1}), timeout_s=0.03)
    assert isinstance(answers[1], InvalidRequest)
    assert isinstance(answers[0], dict)
    assert answers[0]["hits"][0]["score"] == pytest.approx(1 + idf(1_000, 1))
    assert waits[0] is not None
    assert 0.02 < waits[0] <= 0.03
    assert waits[2] == 0.0


def test_an_ad_ranks_among_all_and_not_in_its_shard() -> None:
    """What is said of an ad is what one index says, whether it is in, behind, crowded out or not a candidate."""
    docs = [document(i, bid_account_micros=i * 1_000_000, advertiser_id=i % 4, quality=1 / i) for i in range(1, 31)]
    whole, parts = _indexes(docs, 3)
    with Broker(CATALOG, parts) as broker:
        for more in ({}, {"max_per_advertiser": 1}, {"score": "quality", "rerank": 10}, {"similar_to": 30}):
            for ad_id in (1, 12, 25, 29, 30, 404):
                found = broker.explain({**BROWSE, **more}, 6, ad_id)["ad"]
                assert found.pop("shard") == f"{shard_of(str(ad_id), 3)}/3"
                assert found == whole.explain({**BROWSE, **more}, 6, ad_id)["ad"]


def test_positions_are_those_that_all_shards_have_reached() -> None:
    """The slowest counts; a partition that one has no position of, as while it starts, has been reached by nobody."""
    _, parts = _indexes([document(1)], 3)
    positions: list[Mapping[str, Any]] = [{"d": {0: 7, 1: 3}, "b": {0: 1}}, {"d": {0: 5, 1: 4}, "b": {0: 2}}, {}]
    with Broker(CATALOG, parts) as broker:
        for index, own in zip(parts, positions, strict=True):
            index.describe = lambda own=own: {"positions": own}  # type: ignore[misc]
        assert broker.stats()["positions"] == {"d": {"0": 0, "1": 0}, "b": {"0": 0}}
        parts[2].describe = lambda: {"positions": positions[0]}
        assert broker.stats()["positions"] == {"d": {"0": 5, "1": 3}, "b": {"0": 1}}


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
