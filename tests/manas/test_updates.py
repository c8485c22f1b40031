"""Deltas, budgets and swaps: the newest version wins in any order, and nothing grows without bound."""

from __future__ import annotations

import random
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from manas import Index, InvalidDocument, Outcome, Segment, is_funded
from messaging.proto import adsindex_pb2 as pb
from tests.manas.support import (
    AT,
    CATALOG,
    T0,
    VALUES,
    budget,
    check_answer,
    delta,
    document,
    embedding,
    ids,
    make_index,
    tombstone,
    write_segment,
)

BROWSE = {**dict.fromkeys(VALUES, "*"), "at": AT}


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 9), st.booleans()), max_size=20),
    st.randoms(use_true_random=False),
    st.lists(st.integers(0, 19), max_size=10),
)
def test_newest_version_wins_in_any_order_and_with_repeats(
    history: list[tuple[int, int, bool]], shuffle: random.Random, repeats: list[int]
) -> None:
    """However deltas are shuffled and repeated, every document ends at its newest version."""
    messages = {}
    for ad_id, version, deleted in history:
        doc = document(ad_id, bid_account_micros=version * 1_000_000 + ad_id)
        messages[ad_id, version] = tombstone(ad_id, version) if deleted else delta(doc, version)
    newest = {ad: max(v for a, v in messages if a == ad) for ad, _ in messages}
    alive = {ad: version for ad, version in newest.items() if not messages[ad, version].deleted}
    sent = list(messages.values())
    sent += [sent[i % len(sent)] for i in repeats if sent]
    shuffle.shuffle(sent)
    index = make_index()
    outcomes = [index.apply_documents([message])[0] for message in sent]
    hits = index.search(BROWSE, 0)["hits"]
    assert {h["ad_id"]: h["score"] for h in hits} == {ad: v + ad / 1_000_000 for ad, v in alive.items()}
    assert outcomes.count(Outcome.APPLIED) <= len(messages)
    for served in index.get([str(ad) for ad in newest]):
        assert served.version == newest[int(served.document_id)]
        assert (served.found, served.deleted) == (
            int(served.document_id) in alive,
            int(served.document_id) not in alive,
        )


def test_outcomes_say_why_a_delta_was_ignored(tmp_path: Path) -> None:
    """Covered by the base, older than the known one, or the known one itself: each is told apart."""
    index = make_index(segment=Segment.open(write_segment(tmp_path, [document(1)], snapshot_ts=100)))
    sent = [
        delta(document(1), 100),
        tombstone(2, 99),
        delta(document(1), 200),
        delta(document(1), 200),
        tombstone(1, 150),
    ]
    assert index.apply_documents(sent) == ["covered", "covered", "applied", "duplicate", "stale"]
    assert index.stats()["outcomes"] == {"covered": 2, "applied": 1, "duplicate": 1, "stale": 1}


@pytest.mark.parametrize(
    "bad",
    [
        pb.DocumentDelta(document_id="", version=1),
        pb.DocumentDelta(document_id="1", version=0),
        pb.DocumentDelta(document_id="one", version=1, deleted=True),
        pb.DocumentDelta(document_id="1", version=1, body=b"\xff"),
        pb.DocumentDelta(document_id="01", version=1, body=delta(document(1), 1).body),
    ],
)
def test_malformed_delta_is_refused_and_changes_nothing(bad: pb.DocumentDelta) -> None:
    """A batch with a malformed delta raises before any of it is applied."""
    index = make_index()
    with pytest.raises(InvalidDocument):
        index.apply_documents([delta(document(5), 1), bad])
    assert index.search(BROWSE)["total"] == 0


def test_slots_of_replaced_and_deleted_documents_are_used_again() -> None:
    """Ten thousand replacements and deletions of 50 ads take no more room than 50 ads, in postings too."""
    index = make_index()
    for version in range(1, 201):
        docs = [document(i, terms=[f"v{version}"], embedding=embedding(version % 7 + i)) for i in range(1, 51)]
        index.apply_documents([delta(d, 2 * version) for d in docs])
        if version % 10 == 0:
            index.apply_documents([tombstone(i, 2 * version + 1) for i in range(1, 26)])
    stats = index.stats()["delta"]
    assert stats == {"documents": 25, "tombstones": 25, "slots": 50}
    layer: Any = index._view.delta
    assert set(layer._postings["terms"]) == {"v200"}


@pytest.mark.parametrize(
    ("state", "funded", "words"),
    [
        (None, False, "no budget is known"),
        ({}, True, "left"),
        ({"deleted": True}, False, "deleted"),
        ({"daily_micros": 10, "spent_today_micros": 9}, True, "left"),
        ({"daily_micros": 10, "spent_today_micros": 10}, False, "today's budget"),
        ({"daily_micros": 0, "spent_today_micros": 10}, True, "left"),
        ({"lifetime_micros": 10, "spent_total_micros": 11}, False, "lifetime budget"),
        ({"daily_micros": 10, "lifetime_micros": 10, "spent_total_micros": 9}, True, "left"),
    ],
)
def test_budget_decides_who_is_returned(state: dict[str, Any] | None, funded: bool, words: str, tmp_path: Path) -> None:
    """Only ads whose campaign has something left are returned, from base and delta alike, and the reason is said."""
    message = None if state is None else budget(7, **state)
    assert is_funded(message)[0] is funded
    assert words in is_funded(message)[1]
    segment = Segment.open(write_segment(tmp_path, [document(1, campaign_id=7), document(2)]))
    index = make_index([document(3, campaign_id=7), document(4)], segment)
    if message is not None:
        index.apply_budgets([message])
    assert sorted(ids(index.search(BROWSE, 0))) == ([1, 2, 3, 4] if funded else [2, 4])


def test_budget_changes_take_effect_by_version_without_new_documents() -> None:
    """Spent, raised, and a late older state: the newest version decides, and no document is touched."""
    index = make_index([document(1)], funded=())
    steps = [
        (budget(1, 5, daily_micros=10), True),
        (budget(1, 7, daily_micros=10, spent_today_micros=10), False),
        (budget(1, 6, daily_micros=10), False),
        (budget(1, 8, daily_micros=20, spent_today_micros=10), True),
        (budget(1, 9, deleted=True), False),
        (budget(1, 8), False),
    ]
    for state, expected in steps:
        index.apply_budgets([state])
        assert (index.search(BROWSE)["total"] == 1) is expected
    assert index.stats()["outcomes"] == {"applied": 1}


@pytest.mark.parametrize(
    ("starts", "ends", "runs"),
    [(None, None, True), (10, None, True), (11, None, False), (None, 10, False), (None, 11, True), (9, 10, False)],
)
def test_schedule_is_judged_by_the_clock_of_the_request(starts: int | None, ends: int | None, runs: bool) -> None:
    """starts <= at < ends, to the second and to the microsecond; a missing limit is open."""
    limits = {
        "starts_us": None if starts is None else T0 + starts * 1_000_000,
        "ends_us": None if ends is None else T0 + ends * 1_000_000,
    }
    index = make_index([document(1, **limits)])
    assert (index.search(BROWSE)["total"] == 1) is runs
    if starts == 11:
        assert index.search({**BROWSE, "at": "2026-01-01T00:00:10.999999"})["total"] == 0
        assert index.search({**BROWSE, "at": "2026-01-01T01:00:11+01:00"})["total"] == 1


def test_readers_never_see_half_a_batch() -> None:
    """While a writer moves 60 ads back and forth between two words, every search finds all of them or none."""
    index = make_index([document(i, terms=["a"]) for i in range(1, 61)])
    stop = threading.Event()
    seen: list[int] = []

    def read() -> None:
        while not stop.is_set():
            seen.append(index.search({**BROWSE, "text": "a"}, 0)["total"])
            seen.append(index.search({**BROWSE, "text": "b"}, 0)["total"])

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for version in range(2_000, 2_040):
        index.apply_documents([delta(document(i, terms=["ab"[version % 2]]), version) for i in range(1, 61)])
    stop.set()
    for reader in readers:
        reader.join()
    assert set(seen) <= {0, 60}
    assert len(seen) > 4


def test_swap_takes_over_budgets_that_changed_while_the_base_was_loaded(tmp_path: Path) -> None:
    """Budgets spent or refilled between the making of a view and its swap count at once after it."""
    docs = [document(1, campaign_id=1), document(2, campaign_id=2)]
    index = make_index(docs, funded=(1,))
    view = index.new_view(Segment.open(write_segment(tmp_path, docs, snapshot_ts=2_000)), "later")
    index.apply_budgets([budget(1, 2, deleted=True), budget(2, 1)])
    later = delta(document(3, campaign_id=2), 3_000)
    index.apply_documents([later])
    answerable_us = index.get(["3"])[0].answerable_us
    index.apply([index.prepare(later)], view)
    index.swap(view)
    assert sorted(ids(index.search(BROWSE, 0))) == [2, 3]
    assert index.get(["3"])[0].answerable_us == answerable_us > 0


class Lifecycle(RuleBasedStateMachine):
    """Deltas, budgets, base builds, swaps and rollbacks in any order against a dictionary of documents."""

    def __init__(self) -> None:
        super().__init__()
        self._directory = tempfile.TemporaryDirectory()
        self._index = Index(CATALOG)
        self._clock = 0
        self._log: list[pb.DocumentDelta] = []
        self._docs: dict[str, dict[str, Any]] = {}
        self._budgets: dict[str, dict[str, int]] = {}
        self._bases: list[Path] = []

    def teardown(self) -> None:
        """Remove the files."""
        self._directory.cleanup()

    @initialize()
    def fund(self) -> None:
        """Start with one funded campaign."""
        self.spend(1, 0)

    @rule(ad_id=st.integers(1, 6), campaign=st.integers(1, 3), bid=st.integers(0, 3), seed=st.integers(0, 3))
    def upsert(self, ad_id: int, campaign: int, bid: int, seed: int) -> None:
        """Publish a document."""
        self._clock += 1
        doc = document(
            ad_id, campaign_id=campaign, bid_account_micros=bid, embedding=embedding(seed), terms=[f"w{bid}"]
        )
        self._docs[str(ad_id)] = doc
        self._send(delta(doc, self._clock))

    @rule(ad_id=st.integers(1, 6))
    def delete(self, ad_id: int) -> None:
        """Delete a document, known or not."""
        self._clock += 1
        self._docs.pop(str(ad_id), None)
        self._send(tombstone(ad_id, self._clock))

    @precondition(lambda self: self._log)
    @rule(data=st.data())
    def redeliver(self, data: st.DataObject) -> None:
        """Deliver an old delta once more."""
        self._index.apply_documents([data.draw(st.sampled_from(self._log))])

    @rule(campaign=st.integers(1, 3), spent=st.integers(0, 1))
    def spend(self, campaign: int, spent: int) -> None:
        """Change a campaign's budget."""
        self._clock += 1
        state = {"daily_micros": 1, "spent_today_micros": spent}
        self._budgets[str(campaign)] = state
        self._index.apply_budgets([budget(campaign, self._clock, **state)])

    @rule(swap=st.booleans())
    def build(self, swap: bool) -> None:
        """Build a base of the present documents, perhaps to be swapped in only later."""
        docs = list(self._docs.values())
        base = write_segment(Path(self._directory.name), docs, version=self._clock, snapshot_ts=self._clock)
        self._bases.append(base)
        if swap:
            self._swap(base)

    @precondition(lambda self: self._bases)
    @rule(data=st.data())
    def swap_any(self, data: st.DataObject) -> None:
        """Swap to any base ever built: forward, or a rollback."""
        self._swap(data.draw(st.sampled_from(self._bases)))

    @invariant()
    def answers_as_the_dictionary(self) -> None:
        """Search, get and counts follow the dictionary."""
        check_answer(self._index, self._docs, self._budgets, BROWSE, 0)
        check_answer(self._index, self._docs, self._budgets, {**BROWSE, "text": "w1 w2"}, 2)
        if "1" in self._docs:
            check_answer(self._index, self._docs, self._budgets, {**BROWSE, "similar_to": 1}, 3)
        assert self._index.documents() == len(self._docs)
        for served in self._index.get([str(i) for i in range(1, 7)]):
            expected = self._docs.get(served.document_id)
            assert served.found is (expected is not None)
            assert served.body == (delta(expected, 1).body if expected else b"")

    def _send(self, message: pb.DocumentDelta) -> None:
        self._log.append(message)
        self._index.apply_documents([message])

    def _swap(self, base: Path) -> None:
        view = self._index.new_view(Segment.open(base), base.name)
        self._index.apply([self._index.prepare(message) for message in self._log], view)
        self._index.swap(view)
        assert self._index.base_version == base.name


TestLifecycle = Lifecycle.TestCase
TestLifecycle.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
