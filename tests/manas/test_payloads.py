"""Payloads of posting lists: what documents say is what lists carry, and light scores with them are exact."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from catalog import InvalidCatalog, load_catalog
from catalog.documents import encode_document
from manas import CatalogMismatch, Index, InvalidDocument, InvalidRequest, Segment
from manas._bits import padded
from manas._postings import Posting
from manas._program import compile_program
from manas._request import RequestParser
from manas._runner import Runner
from manas._schema import DocumentSchema
from manas._segment_view import SegmentView
from manas._static_scores import StaticScores
from messaging.proto import adsindex_pb2 as pb
from tests.manas.scoring_support import SCORED, corpus, light, matching, ordered, payload
from tests.manas.support import AT, CATALOG, VALUES, WORDS, budget, delta, document, tombstone, write_segment

COUNT = 5_000
"""Five blocks of 1,024 ids, the last of them not full."""
BUDGETS: dict[str, dict[str, int]] = {"1": {}, "2": {"daily_micros": 10, "spent_today_micros": 10}}
BROWSE = {"at": AT, **dict.fromkeys(VALUES, "*")}
Served = tuple[Index, dict[str, dict[str, Any]], Segment]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """An index of a base with replaced and deleted documents, and what it must hold."""
    docs = corpus(COUNT, 7)
    segment = Segment.open(write_segment(tmp_path_factory.mktemp("payloads"), docs.values(), catalog=SCORED))
    index = Index(SCORED, segment)
    index.apply_budgets([budget(int(campaign), **state) for campaign, state in BUDGETS.items()])
    other = corpus(COUNT, 8)
    rng = random.Random(9)
    changed = rng.sample(sorted(docs), 80)
    for ad_id in changed[:50]:
        docs[ad_id] = other[ad_id]
    index.apply_documents([delta(docs[ad_id], 200) for ad_id in changed[:50]])
    index.apply_documents([tombstone(int(ad_id), 200) for ad_id in changed[50:]])
    for ad_id in changed[50:]:
        del docs[ad_id]
    yield index, docs, segment


def _boosts() -> st.SearchStrategy[list[dict[str, Any]]]:
    weights = st.sampled_from((0, 0.001, 0.01, 1, 2.5, 100, -0.5, -1))
    values = st.one_of(
        st.integers(1, 60).map(lambda value: ("interests", value)),
        st.just(("interests", 15)),
        st.sampled_from(("home", "toys", "rare", "unheard")).map(lambda value: ("categories", value)),
        st.sampled_from(WORDS).map(lambda value: ("terms", value)),
        st.integers(1, 40).map(lambda value: ("advertiser_id", value)),
    )
    one = st.tuples(values, weights).map(lambda p: {"field": p[0][0], "value": p[0][1], "weight": p[1]})
    return st.lists(one, max_size=4)


REQUESTS = st.fixed_dictionaries(
    {"boost": _boosts()},
    optional={
        "text": st.lists(st.sampled_from([*WORDS, "unheard"]), min_size=1, max_size=3).map(" ".join),
        "filter": st.sampled_from(
            [
                {"term": {"field": "categories", "value": "home"}},
                {"not": {"term": {"field": "interests", "value": 15}}},
                {"range": {"field": "price_micros", "gte": 1}},
                {"term": {"field": "advertiser_id", "value": 3}},
            ]
        ),
        "country": st.sampled_from(VALUES["country"]),
    },
).map(lambda own: {**BROWSE, **own})


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(REQUESTS, st.sampled_from((1, 10, 100, 2_000)), st.booleans())
def test_light_scores_with_payloads_are_those_of_brute_force(
    served: Served, request_: dict[str, Any], k: int, counting: bool
) -> None:
    """Words and boosts of dense and split lists, with and without payloads, in base and delta, counted or stopped."""
    index, docs, _ = served
    found = matching(docs, BUDGETS, request_)
    answer = index.search(request_, k, counting=counting)
    assert [(hit["ad_id"], hit["score"]) for hit in answer["hits"]] == ordered(light(docs, found, request_))[:k]
    assert answer["total"] == len(found) or (not counting and answer["total"] < len(found))


def test_lists_carry_what_documents_say(served: Served) -> None:
    """Every payload of every list of both kinds comes back, by place and by any set of ids."""
    _, _, segment = served
    docs = corpus(COUNT, 7)
    by_id = [docs[segment.document_id(internal)] for internal in range(segment.count)]
    kinds = set()
    rng = np.random.default_rng(1)
    for field, values in (
        ("interests", range(1, 60)),
        ("terms", WORDS),
        ("categories", ("home", "toys", "rare")),
        ("advertiser_id", (1, 2)),
    ):
        for value in values:
            posting = segment.posting(field, str(value))
            assert posting is not None
            wanted = np.array([payload(doc, field, value) for doc in by_id])
            everybody = np.arange(segment.count, dtype=np.uint32)
            assert (posting.payloads_of(everybody) == wanted).all()
            some = rng.permutation(segment.count)[:100].astype(np.uint32)
            assert (posting.payloads_of(some) == wanted[some]).all()
            kinds.add((posting.dense is not None, posting.payloads is not None))
            if posting.payloads is not None:
                assert posting.payloads.values.tolist() == wanted[posting.ids].tolist()
                assert posting.payloads.bounds.max() == wanted.max()
    assert kinds == {(True, True), (False, True), (True, False)}


def test_manifest_and_explain_say_kinds_and_sizes(served: Served) -> None:
    """The manifest has numbers and bytes per field and their sum, and explain has every list that adds to scores."""
    index, _, segment = served
    fields = segment.manifest.postings_by_field
    assert fields["interests"]["dense_lists"] > 5
    assert fields["interests"]["split_lists"] > 5
    postings = sum(len(doc.get("interests") or ()) for doc in corpus(COUNT, 7).values())
    assert fields["interests"]["payload_bytes"] == 4 * postings
    assert "payload_bytes" not in fields["advertiser_id"]
    for name, total in segment.manifest.postings.items():
        assert total == sum(sizes.get(name, 0) for sizes in fields.values())
    files = segment.manifest.files
    lists = segment.manifest.postings
    assert 0 < files["postings.dense"].bytes < lists["dense_bytes"]  # the rarer dense lists are kept packed
    assert files["postings.dense"].bytes + files["postings.packed"].bytes == lists["dense_bytes"] + lists["split_bytes"]
    boosts = [{"field": "interests", "value": value, "weight": 2} for value in (15, 40)]
    plan = index.explain({**BROWSE, "boost": boosts}, 3)["plan"]
    common, rare = (boost["lists"]["base"] for boost in plan["boosts"])
    assert (common["kind"], rare["kind"]) == ("dense", "split")
    assert rare["payload_bytes"] == 4 * rare["ids"]
    assert 900 < common["most"] <= 1_000
    stats = index.stats()["base"]
    assert stats["postings"] == segment.manifest.postings


@pytest.mark.parametrize("share", [0.0, 0.01, 1.0])
def test_moved_scores_stay_exact_and_still_end_early(served: Served, share: float) -> None:
    """After bids have moved under an order of ids that stays, the best by score and payloads are exact."""
    _, _, segment = served
    view = SegmentView(segment)
    runner = Runner()
    parser = RequestParser(DocumentSchema(SCORED))
    rng = np.random.default_rng(3)
    skipped = 0
    for _ in range(40):
        values = np.full(padded(segment.count), -np.inf)
        own = segment.scores.values[: segment.count].copy()
        moved = rng.random(segment.count) < share
        own[moved] *= rng.lognormal(sigma=0.5, size=int(moved.sum()))
        values[: segment.count] = own
        scores = StaticScores.of(values, segment.scores.ties, ordered=False)
        text = {} if rng.random() < 0.3 else {"filter": {"term": {"field": "objective", "value": "REACH"}}}
        query = parser.parse({**BROWSE, **text})
        clauses = [c.clause for c in query.conditions if c.name == "filter"]
        lists: list[tuple[Posting, float]] = []
        for value in rng.choice([15, 15, 3, 40, 59], size=int(rng.integers(0, 4))).tolist():
            posting = segment.posting("interests", str(value))
            assert posting is not None
            lists.append((posting, float(rng.choice([0.0001, 0.002, 1.0, -0.001]))))
        program = compile_program(view, clauses)
        words, count, _ = runner.match(program, scores.blocks)
        matches = np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little")).astype(np.uint32)
        bonus = np.zeros(len(matches))
        for posting, weight in lists:
            bonus += weight * posting.payloads_of(matches)
        wanted = values[matches] + bonus
        for k in (1, 20, 500):
            order = np.lexsort((segment.scores.ties[matches], -wanted))[:k]
            best = runner.best(program, scores, k, lists, counting=False)
            assert best.ids.tolist() == matches[order].tolist()
            assert best.scores.tolist() == wanted[order].tolist()
            assert best.matched <= count
            skipped += scores.blocks - best.blocks
            after = (float(wanted[order[-1]]), int(segment.scores.ties[matches[order[-1]]]))
            more = runner.best(program, scores, k, lists, counting=False, after=after)
            order = np.lexsort((segment.scores.ties[matches], -wanted))[k : 2 * k]
            assert more.ids.tolist() == matches[order].tolist()
    assert skipped > 0


def test_a_large_payload_far_down_is_found_without_looking_at_all_blocks(served: Served) -> None:
    """Bounds are kept per block: a block is looked at for its own largest payload, not for another block's."""
    _, _, segment = served
    view, runner = SegmentView(segment), Runner()
    last = segment.count - 1
    posting = replace(Posting.of(np.array([last], np.uint32)), payloads=None)
    program = compile_program(view, [])
    best = runner.best(program, segment.scores, 1, [(posting, 1e6)], counting=False)
    assert best.ids.tolist() == [last]
    assert best.blocks == 2  # the first, and the one with the list


def test_payloads_that_do_not_fit_are_named(tmp_path: Path) -> None:
    """Other lengths, negative, infinite or no numbers are refused, alike in a base and as a delta."""
    for given_, words in (
        ([1], "has 1 payloads for 2 terms"),
        ([1, -1], "payloads are numbers from 0"),
        ([1, 1e39], "payloads are numbers from 0"),
        ([1, float("nan")], "payloads are numbers from 0"),
        (["1", "2"], "payloads are numbers from 0"),
        ([True, 1], "payloads are numbers from 0"),
        ("much", "payloads are numbers from 0"),
    ):
        doc = document(5, interests=[15, 16], affinities=given_)
        with pytest.raises(InvalidDocument, match=f"document 5: field affinities: {words}"):
            write_segment(tmp_path, [document(4), doc], catalog=SCORED)
        with pytest.raises(InvalidDocument, match=f"document 5: field affinities: {words}"):
            Index(SCORED).apply_documents([pb.DocumentDelta(document_id="5", version=9, body=encode_document(doc))])


def test_of_a_term_that_comes_twice_the_larger_payload_counts(tmp_path: Path) -> None:
    """A document that has a term twice is in its list once, in base and delta."""
    doc = document(1, interests=[15, 15, 16], affinities=[2, 7, 1])
    boost = [{"field": "interests", "value": 15, "weight": 1}]
    segment = Segment.open(write_segment(tmp_path, [doc], catalog=SCORED))
    for index in (Index(SCORED, segment), Index(SCORED)):
        index.apply_budgets([budget(1)])
        if index.documents() == 0:
            index.apply_documents([delta(doc, 200)])
        answer = index.search({**BROWSE, "boost": boost})
        assert answer["hits"] == [{"ad_id": 1, "score": 8.0}]


def test_boosts_are_checked(served: Served) -> None:
    """A boost names a field with terms, a value of its type, and a finite weight."""
    index, _, _ = served
    good = {"field": "interests", "value": 15, "weight": 1}
    for bad, words in (
        ("x", "boost: a list"),
        ([good] * 201, "at most 200"),
        ([{"field": "interests", "value": 15}], "an object with field, value and weight"),
        ([{**good, "field": "quality"}], "no field 'quality' with terms"),
        ([{**good, "value": "15"}], "values of interests are int"),
        ([{**good, "weight": float("inf")}], "the weight of interests 15 is a number"),
        ([{**good, "weight": True}], "the weight of interests 15 is a number"),
    ):
        with pytest.raises(InvalidRequest, match=words):
            index.search({**BROWSE, "boost": bad})


def test_a_base_without_the_declared_payloads_is_refused(tmp_path: Path) -> None:
    """Lists built without payloads cannot be read as if they had some."""
    built = write_segment(tmp_path, [document(1)])
    with pytest.raises(CatalogMismatch, match="interests were built with payload '', the catalogue now says 'affin"):
        Index(SCORED, Segment.open(built))


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        ("interests: {from: ad_document.interests, index: term, payload: nothing}", "no field of this name"),
        ("interests: {from: ad_document.interests, index: term, payload: title}", "must be int or float or list<int>"),
        ("interests: {from: ad_document.interests, payload: clicks}", "postings of terms carry payloads"),
    ],
)
def test_catalogue_names_a_payload_that_cannot_be(tmp_path: Path, edit: str, words: str) -> None:
    """A payload must be a number field beside a field with terms; the fault has the line."""
    text = Path(CATALOG.file).read_text()
    line = "interests: {from: ad_document.interests, index: term}"
    assert line in text
    file = tmp_path / "ads.yaml"
    file.write_text(text.replace(line, line.replace(line, edit)))
    with pytest.raises(InvalidCatalog, match=words):
        load_catalog(file)
    file.write_text(text.replace(line, line[:-1] + ", payload: clicks, family: keys}"))
    field = load_catalog(file).fields["interests"]
    assert (field.payload, field.family) == ("clicks", "keys")
