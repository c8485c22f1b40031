"""What the tests of Manas share: random documents and requests, deltas, bases, and the comparison with brute force."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from catalog import Catalog, load_catalog
from catalog.documents import encode_document
from manas import Index, PlannerLimits, Segment, SegmentWriter, VectorBuild
from manas._follower import Follower
from messaging.api import OutRecord
from messaging.proto import adsindex_pb2 as pb
from messaging.topics import BUDGETS, DELTAS
from tests.manas import reference

CATALOG: Catalog = load_catalog()
T0 = 1_767_225_600_000_000  # 2026-01-01T00:00:00Z
AT = "2026-01-01T00:00:10"
SECOND = 1_000_000
WORDS = ("red", "blue", "shoe", "sofa", "lamp")
VALUES: dict[str, tuple[Any, ...]] = {
    "age": ("18-24", "30-34"),
    "gender": ("M", "F"),
    "interests": (15, 16, 17),
    "country": ("US", "FR"),
    "language": ("en",),
    "device": ("phone", "desktop"),
}
_numbers = itertools.count()


def embedding(seed: int) -> bytes:
    """Return a vector that depends on the seed alone; seed 0 gives the zero vector."""
    vector = np.random.default_rng(seed).standard_normal(64) if seed else np.zeros(64)
    return vector.astype("<f4").tobytes()


def document(ad_id: int, **fields: Any) -> dict[str, Any]:
    """Return a document that every request without conditions gets, with some fields set otherwise."""
    targeting = [f"{name}=*" for name in VALUES]
    plain = {"ad_id": ad_id, "ad_group_id": 1, "campaign_id": 1, "advertiser_id": 1, "pin_id": "p", "title": "t"}
    return {**plain, "bid_account_micros": 1_000_000, "targeting": targeting, "embedding": embedding(1), **fields}


def delta(doc: Mapping[str, Any], version: int) -> pb.DocumentDelta:
    """Return the delta that brings a document."""
    return pb.DocumentDelta(document_id=str(doc["ad_id"]), version=version, body=encode_document(doc))


def tombstone(ad_id: int, version: int) -> pb.DocumentDelta:
    """Return the delta that deletes a document."""
    return pb.DocumentDelta(document_id=str(ad_id), version=version, deleted=True)


def budget(campaign_id: int, version: int = 1, **fields: Any) -> pb.BudgetState:
    """Return a budget state; without further fields nothing limits it."""
    return pb.BudgetState(campaign_id=str(campaign_id), version=version, **fields)


def log_records(*messages: pb.DocumentDelta | pb.BudgetState) -> list[OutRecord]:
    """Return deltas and budget states as records for the log."""
    return [
        OutRecord(DELTAS, m.document_id, m.SerializeToString())
        if isinstance(m, pb.DocumentDelta)
        else OutRecord(BUDGETS, m.campaign_id, m.SerializeToString())
        for m in messages
    ]


def until(follower: Follower, condition: Callable[[], Any]) -> None:
    """Let a follower go on, with the base that it loads beside, until something is so."""
    for _ in range(2_000):
        follower.step()
        if condition():
            return
        if follower._loader._loading is not None:
            follower._loader._loading.join()
    raise AssertionError("did not happen")


def write_segment(
    directory: Path,
    docs: Iterable[Mapping[str, Any]],
    *,
    version: int = 1,
    snapshot_ts: int = 100,
    positions: Mapping[int, int] | None = None,
    vectors: VectorBuild | None = None,
    catalog: Catalog = CATALOG,
) -> Path:
    """Write documents, all of one version, as a segment in a new directory below `directory`."""
    target = directory / f"built-{next(_numbers)}"
    writer = SegmentWriter(target, catalog, vectors=vectors)
    writer.write(((str(d["ad_id"]), version, encode_document(d)) for d in docs), snapshot_ts, positions or {}, {})
    return target


def make_index(
    docs: Iterable[Mapping[str, Any]] = (),
    segment: Segment | None = None,
    *,
    funded: Iterable[int] = (1,),
    limits: PlannerLimits | None = None,
) -> Index:
    """Return an index of a base and documents published after it, with unlimited budgets for some campaigns."""
    index = Index(CATALOG, segment, limits=limits)
    index.apply_budgets([budget(c) for c in funded])
    index.apply_documents([delta(d, 1_000) for d in docs])
    return index


def ids(answer: Mapping[str, Any]) -> list[int]:
    """Return the ad ids of an answer in order."""
    return [hit["ad_id"] for hit in answer["hits"]]


def check_answer(
    index: Index,
    docs: dict[str, dict[str, Any]],
    budgets: dict[str, dict[str, int]],
    request: dict[str, Any],
    k: int,
) -> None:
    """Assert that the index answers as brute force does."""
    answer = index.search(request, k)
    hits, total = reference.search(docs, budgets, request, k)
    assert answer["total"] == total
    if "vector" not in request and "similar_to" not in request:
        assert [(h["ad_id"], h["score"]) for h in answer["hits"]] == hits
        return
    # Vectors are kept as float32 of length 1: near-equal similarities may come in the other order.
    assert [h["score"] for h in answer["hits"]] == [pytest_approx(score) for _, score in hits]
    every = dict(reference.search(docs, budgets, {k: v for k, v in request.items() if k != "max_per_advertiser"}, 0)[0])
    for hit in answer["hits"]:
        assert hit["score"] == pytest_approx(every[int(hit["ad_id"])])
    assert len(set(ids(answer))) == len(answer["hits"])


def pytest_approx(value: float) -> Any:
    """Return `value` with the tolerance of float32 vectors."""
    import pytest

    return pytest.approx(value, abs=1e-5)


def _optional(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


def _targeting() -> st.SearchStrategy[list[str]]:
    per_dimension = []
    for name, values in VALUES.items():
        accepted = st.just([f"{name}=*"]) | st.lists(st.sampled_from([f"{name}={v}" for v in values]), unique=True)
        excluded = st.lists(st.sampled_from([f"!{name}={v}" for v in values]), max_size=1)
        per_dimension.append(
            st.one_of(st.just([f"{name}=*"]), st.tuples(accepted, excluded).map(lambda p: p[0] + p[1]))
        )
    return st.tuples(*per_dimension).map(lambda parts: sorted(itertools.chain(*parts)))


def documents(ad_ids: st.SearchStrategy[int]) -> st.SearchStrategy[dict[str, Any]]:
    """Return a strategy of documents with small value ranges, so that requests hit and values collide."""
    moments = st.integers(T0 + 8 * SECOND, T0 + 12 * SECOND)
    return st.fixed_dictionaries(
        {
            "ad_id": ad_ids,
            "campaign_id": st.integers(1, 4),
            "advertiser_id": st.integers(1, 3),
            "bid_account_micros": _optional(st.sampled_from([0, 333_333, 1_000_000, 2_500_001])),
            "quality": _optional(st.sampled_from([0.0, 0.1, 0.7, 1.0, 1.9])),
            "starts_us": _optional(moments),
            "ends_us": _optional(moments),
            "targeting": _targeting(),
            "price_micros": _optional(st.sampled_from([0, 9_990_000, 10_000_000, 10_000_001, 25_000_000])),
            "currency": _optional(st.sampled_from(["USD", "EUR"])),
            "terms": _optional(st.lists(st.sampled_from(WORDS), unique=True).map(sorted)),
            "categories": _optional(st.lists(st.sampled_from(["home", "toys"]), unique=True)),
            "interests": _optional(st.lists(st.sampled_from([15, 16]), unique=True)),
            "objective": _optional(st.sampled_from(["SALES", "REACH"])),
            "embedding": _optional(st.integers(0, 5).map(embedding)),
        }
    )


def _filters() -> st.SearchStrategy[dict[str, Any]]:
    terms = st.sampled_from(
        [
            {"term": {"field": f, "value": v}}
            for f, v in [
                ("categories", "home"), ("categories", "nothing"), ("interests", 15), ("objective", "REACH"),
                ("campaign_id", 2), ("terms", "red"), ("targeting", "age=30-34"), ("ad_id", 3),
            ]
        ]
    )  # fmt: skip
    limits = st.sampled_from([-1, 0, 0.1, 0.7, 333_333, 333_333.5, 9_990_000, 10_000_000.0, 1e30, -1e30])
    bounds = st.one_of(
        st.fixed_dictionaries({"gte": limits}), st.fixed_dictionaries({"gt": limits}),
        st.fixed_dictionaries({"lte": limits}), st.fixed_dictionaries({"gt": limits, "lt": limits}),
    )  # fmt: skip
    fields = st.sampled_from(["bid_account_micros", "price_micros", "quality", "ends_us"])
    ranges = st.tuples(fields, bounds).map(lambda p: {"range": {"field": p[0], **p[1]}})
    return st.recursive(
        terms | ranges,
        lambda inner: st.one_of(
            st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"and": parts}),
            st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"or": parts}),
            inner.map(lambda part: {"not": part}),
        ),
        max_leaves=5,
    )


def requests() -> st.SearchStrategy[dict[str, Any]]:
    """Return a strategy of valid requests; `similar_to` is left to the test, which knows the ads."""
    said: dict[str, st.SearchStrategy[Any]] = {}
    for name, values in VALUES.items():
        one = st.sampled_from(values)
        said[name] = st.just("*") | (st.lists(one, max_size=2) | one if name == "interests" else one)
    low = st.sampled_from([0, 9.99, 10])
    prices = st.one_of(
        st.fixed_dictionaries({"min": low}),
        st.fixed_dictionaries({"max": st.sampled_from([9.99, 10, 10.0000005, 25])}),
        st.fixed_dictionaries({"min": low, "max": st.just(25), "currency": st.sampled_from(["USD", "EUR"])}),
    )
    numbers = st.integers(1, 5).map(lambda seed: np.frombuffer(embedding(seed), "<f4").tolist())
    optional = {
        **said,
        "price": prices,
        "text": st.lists(st.sampled_from([*WORDS, "unheard"]), min_size=1, max_size=3).map(" ".join),
        "filter": _filters(),
        "vector": numbers,
        "max_per_advertiser": st.integers(1, 2),
    }
    browse = st.just(dict.fromkeys(VALUES, "*"))  # without it, almost no request would match anything
    own = st.fixed_dictionaries({"at": st.just(AT)}, optional=optional)
    return st.tuples(st.just({}) | browse, own).map(lambda parts: {**parts[0], **parts[1]})
