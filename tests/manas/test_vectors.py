"""Filtered nearest neighbours: recall at every selectivity, every way of search, and layers merged exactly."""

from __future__ import annotations

import gzip
import random
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from catalog import Catalog
from manas import Index, PlannerLimits, Segment, SegmentCorrupt, VectorBuild, Way
from manas._bits import ids_of, words_of
from manas._clauses import Condition, HasVector
from manas._segment_view import SegmentView
from manas._vector_files import graph_links, write_vectors
from manas._vector_scratch import Room, ScratchPool
from manas._vector_store import SegmentVectors, open_vectors
from manas.kernels.vector_layout import NO_ROW, Near
from tests.manas.support import (
    CATALOG,
    VALUES,
    budget,
    delta,
    document,
    embedding,
    ids,
    make_index,
    tombstone,
    write_segment,
)
from tests.manas.vector_sets import CLUSTERED, SHARES, WEAK, Matrix, filters, vectors

BROWSE = dict.fromkeys(VALUES, "*")
COUNT = 10_000
QUERIES = 12
K = 10


class _Set:
    """Vectors of a segment under scattered internal ids, with lists and a graph."""

    def __init__(self, directory: Path, noise: float) -> None:
        self.noise = noise
        self.matrix = vectors(COUNT, noise)
        self.queries = vectors(QUERIES, noise, draw=1)
        self.documents = COUNT + COUNT // 4
        rng = np.random.default_rng(3)
        self.ids = rng.permutation(self.documents)[:COUNT].astype(np.uint32)
        self.plan = write_vectors(
            directory, "v", 64, self.ids, self.matrix, self.documents, VectorBuild(lists_from=1_000, graph_micros=0)
        )
        self.store: SegmentVectors = open_vectors(directory, "v", 64, self.documents)

    def ask(self, query: Matrix, mask: np.ndarray[Any, Any], k: int, only: Way | None) -> tuple[float, int, Way]:
        """Return recall, number of answers and the way taken. Checks that answers pass and have true similarities."""
        survivors = int(mask.sum())
        words = words_of(self.ids[mask], self.documents)
        found = self.store.nearest(query, words, survivors, k, exact_survivors=0, only=only)
        if found.found is not None:
            assert (np.diff(found.scores) <= 0).all(), "what a kernel finds is in order"
        similar = self.matrix @ query
        row_of = np.full(self.documents, -1)
        row_of[self.ids] = np.arange(COUNT)
        best = np.argsort(-found.scores, kind="stable")[:k]
        rows = row_of[found.ids[best]]
        assert mask[rows].all()
        assert len(set(rows.tolist())) == len(rows)
        np.testing.assert_allclose(found.scores[best], similar[rows], atol=1e-5)
        wanted = min(k, survivors)
        bar = np.partition(similar[mask], survivors - wanted)[survivors - wanted]
        return float((similar[rows] >= bar - 1e-6).sum()) / wanted, len(rows), found.way


@pytest.fixture(scope="module", params=[CLUSTERED, WEAK], ids=["clustered", "weak"])
def vector_set(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> _Set:
    """Ten thousand vectors with lists and a graph."""
    return _Set(tmp_path_factory.mktemp("vectors"), request.param)


@pytest.mark.parametrize("only", [None, *Way], ids=["planned", *Way])
def test_recall_at_every_selectivity_with_filters_of_every_kind(vector_set: _Set, only: Way | None) -> None:
    """Recall@10 is at least 0.95 and min(k, survivors) come back, whatever the filter and whichever way is taken."""
    recalls: dict[tuple[float, str], list[float]] = defaultdict(list)
    ways: set[Way] = set()
    for share in SHARES:
        for query in vector_set.queries:
            for kind, mask in filters(vector_set.matrix, query, share):
                recall, count, way = vector_set.ask(query, mask, K, only)
                assert count == min(K, int(mask.sum()))
                recalls[share, kind].append(recall)
                ways.add(way)
    for case, each in recalls.items():
        assert np.mean(each) >= 0.95, case
    if only is not None:
        assert only in ways, "the test must see this way taken"
    if only is Way.EXACT:
        assert all(recall == 1 for each in recalls.values() for recall in each)


@pytest.mark.parametrize(("k", "queries"), [(1, 60), (100, 8), (2_000, 4)])
def test_recall_at_other_k(vector_set: _Set, k: int, queries: int) -> None:
    """One answer, a hundred and two thousand are found as surely as ten."""
    for share in (0.01, 0.2, 1.0):
        recalls = []
        for query in vectors(queries, vector_set.noise, draw=2):
            for _, mask in filters(vector_set.matrix, query, share):
                recall, count, _ = vector_set.ask(query, mask, k, None)
                assert count == min(k, int(mask.sum()))
                recalls.append(recall)
        assert np.mean(recalls) >= 0.95, share


@pytest.mark.parametrize("by_codes", [False, True], ids=["tests first", "codes first"])
def test_lists_with_and_without_codes_find_the_nearest(vector_set: _Set, by_codes: bool) -> None:
    """When no list may be passed over, codes lose nothing: the answer is that of comparing everything that passes."""
    table = vector_set.store.table
    for share in (0.001, 0.02, 0.3, 1.0):
        for query in vector_set.queries:
            for _, mask in filters(vector_set.matrix, query, share):
                words, survivors = words_of(vector_set.ids[mask], vector_set.documents), int(mask.sum())
                wanted = min(K, survivors)
                found = table.probe(query, words, survivors, wanted, 1e3, 1e3, by_codes=by_codes)
                truth = np.sort(table.scan(query, words, wanted).scores)
                np.testing.assert_array_equal(np.sort(found.scores), truth)
                assert found.looked > 0.9 * COUNT
                assert found.complete
                if by_codes and share == 1.0:
                    assert found.compared < COUNT / 10, "codes are to keep most vectors from being compared"


def test_codes_of_queries_that_are_all_in_few_dimensions(vector_set: _Set) -> None:
    """Queries along one axis, of one sign, or of zeros are answered by codes as exactly as any other."""
    table, everything = vector_set.store.table, words_of(vector_set.ids, vector_set.documents)
    axis, ones = np.zeros(64, np.float32), np.full(64, 1 / 8, np.float32)
    axis[7] = -1
    for query in (axis, ones, np.zeros(64, np.float32)):
        found = table.probe(query, everything, COUNT, K, 1e3, 1e3, by_codes=True)
        truth = table.scan(query, everything, K)
        np.testing.assert_array_equal(np.sort(found.scores), np.sort(truth.scores))


def _sliced(vector_set: _Set) -> SegmentVectors:
    """Return the same vectors, searched in slices so small that every way takes several."""
    store = vector_set.store
    return SegmentVectors(replace(store.table, slice_rows=64), store.plan, vector_set.documents)


@pytest.mark.parametrize("only", Way)
def test_deadline_returns_the_best_until_then_and_says_so(vector_set: _Set, only: Way) -> None:
    """Past its deadline a search does one slice of work; what it returns passes and is marked as not complete."""
    mask = np.arange(COUNT) % 10 < (2 if only is Way.WALK else 9)
    words, survivors = words_of(vector_set.ids[mask], vector_set.documents), int(mask.sum())
    for query in vector_set.queries[:3]:
        ask = partial(_sliced(vector_set).nearest, query, words, survivors, K, exact_survivors=0, only=only)
        late, whole, free = ask(deadline=time.monotonic() - 1), ask(deadline=time.monotonic() + 60), ask()
        assert (late.complete, whole.complete, free.complete) == (False, True, True)
        assert late.way is whole.way is free.way is only
        assert set(late.ids.tolist()) <= set(vector_set.ids[mask].tolist())
        assert len(late.ids) > 0
        assert late.scores.max() <= free.scores.max()
        assert "the deadline came first" in late.words()
        np.testing.assert_array_equal(np.sort(whole.scores), np.sort(free.scores))


def test_deadline_cuts_an_answer_of_everything_short(vector_set: _Set) -> None:
    """Where all are wanted, those compared until the deadline come, and no more."""
    everything = words_of(vector_set.ids, vector_set.documents)
    ask = partial(_sliced(vector_set).nearest, vector_set.queries[0], everything, COUNT, 0, exact_survivors=0)
    late = ask(deadline=time.monotonic() - 1)
    assert not late.complete
    assert len(late.ids) == 64
    assert len(ask(deadline=time.monotonic() + 60).ids) == len(ask().ids) == COUNT


def test_planner_scans_few_survivors_and_not_many(vector_set: _Set) -> None:
    """A filter that leaves few is answered exactly; without a filter most vectors are never compared."""
    query = vector_set.queries[0]
    for survivors, way in ((50, {Way.EXACT}), (COUNT, {Way.LISTS, Way.WALK, Way.POST_FILTER})):
        words = words_of(vector_set.ids[:survivors], vector_set.documents)
        found = vector_set.store.nearest(query, words, survivors, K, exact_survivors=0)
        assert found.way in way
        assert f"{Way.EXACT} " in found.words().split("estimated")[1], "the words carry the estimates"


def test_same_vectors_give_the_same_files(tmp_path: Path) -> None:
    """Lists and their calibration depend on the vectors alone."""
    matrix = vectors(3_000, CLUSTERED)
    plans = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        plans.append(
            write_vectors(
                tmp_path / name,
                "v",
                64,
                np.arange(3_000, dtype=np.uint32),
                matrix,
                3_000,
                VectorBuild(lists_from=1_000),
            )
        )
    assert plans[0] == plans[1]
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name


def test_graph_links_lead_to_near_rows() -> None:
    """Almost every row's nearest neighbour is among its links, which are rows, not the row itself, and padded."""
    matrix = vectors(800, WEAK)
    links = graph_links(matrix)
    assert (links[links != NO_ROW] < 800).all()
    assert all(row not in own for row, own in enumerate(links))
    similar = matrix @ matrix.T
    np.fill_diagonal(similar, -9)
    nearest = similar.argmax(axis=1)
    assert np.mean([near in own for near, own in zip(nearest, links, strict=True)]) > 0.95


def test_plan_of_another_version_or_cut_file_is_refused(tmp_path: Path) -> None:
    """A plan that this code does not know, and sizes that do not fit it, are named."""
    plan = write_vectors(tmp_path, "v", 64, np.arange(100, dtype=np.uint32), vectors(100, WEAK), 100, VectorBuild())
    file = tmp_path / "vectors.v.plan"
    file.write_bytes(msgspec.json.encode(msgspec.structs.replace(plan, version=99)))
    with pytest.raises(ValueError, match=r"vectors\.v\.plan is of version 99"):
        open_vectors(tmp_path, "v", 64, 100)
    file.write_bytes(msgspec.json.encode(msgspec.structs.replace(plan, vectors=101)))
    with pytest.raises(ValueError, match=r"vectors\.v\.matrix has"):
        open_vectors(tmp_path, "v", 64, 100)


def test_segment_whose_vectors_do_not_fit_is_corrupt(tmp_path: Path) -> None:
    """What `open_vectors` refuses is a corrupt segment to whoever opens it without verification."""
    built = write_segment(tmp_path, [document(i) for i in range(5)])
    (built / "vectors.embedding.plan").write_bytes(
        b"{" + b" " * (len((built / "vectors.embedding.plan").read_bytes()) - 1)
    )
    with pytest.raises(SegmentCorrupt, match=r"vectors\.embedding\.plan"):
        Segment.open(built, verify=False)


# ---- through the index: layers, documents without vectors, real data ----


def _request(vector: Matrix | bytes, **own: Any) -> dict[str, Any]:
    numbers = np.frombuffer(vector, "<f4") if isinstance(vector, bytes) else vector
    return {**BROWSE, "vector": numbers.tolist(), **own}


@pytest.mark.parametrize("only", [None, Way.LISTS, Way.POST_FILTER])
def test_newest_vectors_win_and_deleted_ones_never_come(tmp_path: Path, only: Way | None) -> None:
    """Replaced, added, removed and deleted vectors over a base with lists and graph: as brute force over what lives."""
    rng = random.Random(4)
    rows = vectors(4_000, CLUSTERED)
    alive: dict[int, Matrix | None] = {i: rows[i] if i % 10 else None for i in range(2_000)}
    docs = [document(i, embedding=None if v is None else v.tobytes()) for i, v in alive.items()]
    built = write_segment(tmp_path, docs, vectors=VectorBuild(lists_from=500, graph_micros=0))
    index = Index(CATALOG, Segment.open(built), limits=PlannerLimits(exact_survivors=0, only=only))
    index.apply_budgets([budget(1)])
    version = 1_000
    spare = iter(range(2_000, 4_000))
    recalls = []
    for _ in range(12):
        for _ in range(60):
            version += 1
            ad_id = rng.randrange(2_200)
            match rng.randrange(4):
                case 0:
                    index.apply_documents([tombstone(ad_id, version)])
                    alive.pop(ad_id, None)
                case 1:
                    index.apply_documents([delta(document(ad_id, embedding=None), version)])
                    alive[ad_id] = None
                case _:
                    alive[ad_id] = new = rows[next(spare)]
                    index.apply_documents([delta(document(ad_id, embedding=new.tobytes()), version)])
        held = {ad_id: v for ad_id, v in alive.items() if v is not None}
        numbers, matrix = np.array(list(held)), np.stack(list(held.values()))
        for query in vectors(3, CLUSTERED, draw=version):
            answer = index.search(_request(query), K)
            similar = matrix @ query
            wanted = set(numbers[np.argsort(-similar)[:K]].tolist())
            assert answer["total"] == len(held)
            assert set(ids(answer)) <= held.keys()
            assert len(answer["hits"]) == K
            for hit in answer["hits"]:
                assert hit["score"] == pytest.approx(float(held[int(hit["ad_id"])] @ query), abs=1e-5)
            recalls.append(len(wanted.intersection(ids(answer))) / K)
    assert np.mean(recalls) >= 0.95
    if only is None:
        return
    plan = index.explain(_request(rows[0]), K)["plan"]
    assert plan["layers"][0]["ranking"].startswith(only)


def test_query_for_vectors_alone_misses_what_was_hidden_since(tmp_path: Path) -> None:
    """What matches no other condition is kept, until a newer layer hides some of it."""
    docs = [document(i, embedding=embedding(i) if i % 3 else None) for i in range(1, 201)]
    view = SegmentView(Segment.open(write_segment(tmp_path, docs)))
    alive = {i for i in range(1, 201) if i % 3}
    for gone in (None, 7, 9, 200):
        if gone is not None:
            view.hide(str(gone))
            alive.discard(gone)
        wanted = sorted(view.layer.internal(str(i)) or 0 for i in alive)
        for _ in range(2):
            words, count, whole = view.matching([Condition("vector", HasVector("embedding"), "")])
            assert ids_of(words).tolist() == wanted
            assert (count, whole) == (len(alive), True)


def test_equal_vectors_are_ordered_by_document_id_in_every_layer(tmp_path: Path) -> None:
    """Five hundred ads with one vector, in the base alone and with a delta: the smallest ids come, in order."""
    docs = [document(i, embedding=embedding(1), bid_account_micros=1_000_000 + i) for i in range(1, 501)]
    for build in (VectorBuild(), VectorBuild(lists_from=2)):
        segment = Segment.open(write_segment(tmp_path, docs[::2], vectors=build))
        index = make_index(docs[1::2], segment)
        for k in (1, 5, 40, 300):
            assert ids(index.search(_request(embedding(1)), k)) == list(range(1, k + 1))
        alone = make_index([], segment)
        for k in (1, 5, 40, 0):
            assert ids(alone.search(_request(embedding(1)), k)) == [doc["ad_id"] for doc in docs[::2]][: k or None]


def test_a_walk_that_gave_up_is_no_answer(vector_set: _Set, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of its budget it may have k neighbours that are not the nearest: lists or a comparison of all answer."""
    monkeypatch.setattr("manas._vector_store.WALK_BUDGET", 20)
    mask, recalls = np.ones(COUNT, bool), []
    for query in vector_set.queries:
        recall, count, way = vector_set.ask(query, mask, 3, Way.POST_FILTER)
        assert (count, way in (Way.LISTS, Way.EXACT)) == (3, True)
        recalls.append(recall)
        found = vector_set.store.nearest(
            query, words_of(vector_set.ids, vector_set.documents), COUNT, 3, exact_survivors=0, only=Way.POST_FILTER
        )
        assert found.failed is not None
        assert len(found.failed.ids) >= 3, "the walk must have had enough to be mistaken for an answer"
    assert np.mean(recalls) >= 0.95


def test_memory_of_a_search_belongs_to_it_until_it_is_given_back() -> None:
    """Searches at the same time have memory of their own; what is given back is used again, by one at a time."""
    pool, room, fixed = ScratchPool(), Room({Near.BUFFER_AT: 4}), np.zeros(Near.COUNT, np.int64)
    one, other = pool.take("k", fixed, 5, room), pool.take("k", fixed, 5, room)
    assert one is not other
    pool.give("k", 5, room, one)
    assert pool.take("k", fixed, 5, room) is one
    third = pool.take("k", fixed, 5, room)
    assert third is not one
    for mine in (one, other, third):
        pool.give("k", 5, room, mine)
    assert len({id(pool.take("k", fixed, 5, room)) for _ in range(3)}) == 3
    assert pool.take("k", fixed, 6, room).ids.size == 6


def test_replaced_vector_of_the_delta_is_found_at_its_new_place() -> None:
    """A slot's vector is replaced, taken away and given again; every answer is by what it is now."""
    index = make_index([document(i, embedding=embedding(i)) for i in range(1, 1_501)])
    index.apply_documents([delta(document(7, embedding=embedding(5_000)), 2_000)])
    assert ids(index.search(_request(embedding(5_000)), 1)) == [7]
    index.apply_documents([delta(document(7, embedding=None), 2_001), tombstone(9, 2_001)])
    answer = index.search(_request(embedding(5_000)), 0)
    assert len(answer["hits"]) == 1_498
    assert not {7, 9} & set(ids(answer))
    index.apply_documents([delta(document(7, embedding=embedding(7)), 2_002)])
    assert ids(index.search(_request(embedding(7)), 1)) == [7]


def test_two_vector_fields_are_searched_apart(tmp_path: Path) -> None:
    """Each field has its own vectors, documents and deltas; a document may have both, one or none."""
    fields = dict(CATALOG.fields)
    column = replace(fields["embedding"].column, dims=16)
    fields["picture"] = replace(fields["embedding"], name="picture", column=column)
    catalog = replace(CATALOG, fields=fields)
    texts, pictures = vectors(1_200, CLUSTERED), vectors(1_200, CLUSTERED, dims=16)
    docs = {
        i: document(
            i,
            embedding=texts[i].tobytes() if i % 3 else None,
            picture=pictures[i].tobytes() if i % 4 else None,
        )
        for i in range(1_200)
    }
    build = VectorBuild(lists_from=500)
    segment = Segment.open(write_segment(tmp_path, docs.values(), catalog=catalog, vectors=build))
    index = Index(catalog, segment, limits=PlannerLimits(exact_survivors=0))
    index.apply_budgets([budget(1)])
    docs[8] = {**docs[8], "picture": pictures[1].tobytes()}
    docs[9] = {**docs[9], "picture": None}
    index.apply_documents([delta(docs[i], 200) for i in (8, 9)])
    found = 0
    for field, rows in (("embedding", texts), ("picture", pictures)):
        for ad_id in (1, 5, 7, 11):
            held = [i for i, doc in docs.items() if doc[field] is not None and i != ad_id]
            own = np.stack([np.frombuffer(docs[i][field], "<f4") for i in held])
            best = {held[place] for place in np.argsort(-(own @ rows[ad_id]), kind="stable")[:K].tolist()}
            answer = index.search({**BROWSE, "similar_to": ad_id, "vector_field": field}, K)
            assert answer["total"] == len(held)
            assert set(ids(answer)) <= set(held)
            found += len(best.intersection(ids(answer)))
    assert found >= 0.9 * 8 * K
    assert ids(index.search(_request(pictures[1], vector_field="picture"), 2)) == [1, 8]
    assert 8 not in ids(index.search(_request(pictures[8], vector_field="picture"), 2))
    everything = index.search(_request(pictures[9], vector_field="picture"), 0)
    assert 9 not in ids(everything)


@pytest.fixture(scope="module")
def digits(
    data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Mapping[str, Index], Matrix, np.ndarray[Any, Any]]:
    """Ten thousand images of 14 x 14 pixels: an index with lists, one with a graph; unit vectors; labels."""
    folder = data / "mnist_t10k"
    pixels = np.frombuffer(gzip.decompress((folder / "t10k-images-idx3-ubyte.gz").read_bytes())[16:], np.uint8)
    labels = np.frombuffer(gzip.decompress((folder / "t10k-labels-idx1-ubyte.gz").read_bytes())[8:], np.uint8)
    small = pixels.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4)).reshape(-1, 196).astype("<f4")
    catalog = _with_dims(196)
    docs = [
        document(i, embedding=small[i].tobytes(), category=str(labels[i]), impressions=i % 1_000)
        for i in range(len(small))
    ]
    indexes = {}
    for name, build in (("lists", VectorBuild(lists_from=1_000)), ("graph", VectorBuild(1_000, graph_micros=0))):
        directory = tmp_path_factory.mktemp(name)
        built = write_segment(directory, docs[:9_000], catalog=catalog, vectors=build)
        index = Index(catalog, Segment.open(built), limits=PlannerLimits(exact_survivors=0))
        index.apply_budgets([budget(1)])
        index.apply_documents([delta(d, 1_000) for d in docs[8_800:]])
        indexes[name] = index
    return indexes, small / np.linalg.norm(small, axis=1, keepdims=True), labels


def _with_dims(dims: int) -> Catalog:
    fields = dict(CATALOG.fields)
    fields["embedding"] = replace(fields["embedding"], column=replace(fields["embedding"].column, dims=dims))
    return replace(CATALOG, fields=fields)


@pytest.mark.parametrize("kind", ["lists", "graph"])
def test_recall_on_images_with_label_filters(
    digits: tuple[Mapping[str, Index], Matrix, np.ndarray[Any, Any]], kind: str
) -> None:
    """Real vectors with filters by share and by label, also by labels other than the query's own."""
    indexes, unit, labels = digits
    index = indexes[kind]
    spread = np.arange(len(unit)) % 1_000
    cases: list[tuple[str, dict[str, Any], Any]] = [
        (f"{share:.1%}", {"range": {"field": "impressions", "lt": round(1_000 * share)}}, spread < round(1_000 * share))
        for share in (0.001, 0.01, 0.1, 0.5, 1.0)
    ]
    cases += [(f"label {n}", {"term": {"field": "category", "value": str(n)}}, labels == n) for n in (1, 8)]
    not_one = {"not": {"term": {"field": "category", "value": "1"}}}
    cases.append(("not 1", not_one, labels != 1))
    approximate = 0
    for name, tree, allowed in cases:
        found = wanted = 0
        for query in range(0, len(unit), 499):
            similarity = np.where(allowed, unit @ unit[query], -9)
            best = np.argsort(-similarity, kind="stable")[:K]
            answer = index.search(_request(unit[query], filter=tree), K)
            assert len(answer["hits"]) == min(K, int(allowed.sum()))
            assert answer["total"] == int(allowed.sum())
            threshold = similarity[best[-1]] - 1e-6
            found += sum(similarity[i] >= threshold for i in ids(answer))
            wanted += len(answer["hits"])
        plan = index.explain(_request(unit[1], filter=tree), K)["plan"]
        approximate += not plan["layers"][0]["ranking"].startswith(Way.EXACT)
        assert found / wanted >= 0.95, name
    assert approximate >= 2, "the test must see more than exact scans"
