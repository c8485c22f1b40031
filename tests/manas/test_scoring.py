"""The second phase: expressions mean what they say, and the best candidates are ordered by them exactly."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manas import Index, InvalidRequest, Segment
from manas._expression import MAX_LENGTH, Vocabulary, parse_expression
from manas._schema import DocumentSchema
from manas._scoring import CandidateColumns, vocabulary
from tests.manas.scoring_support import SCORED, corpus, diverse, light, matching, ordered, payload
from tests.manas.support import AT, SECOND, T0, VALUES, budget, delta, embedding, tombstone, write_segment

BUDGETS: dict[str, dict[str, int]] = {"1": {}, "2": {}}
BROWSE: dict[str, Any] = {"at": AT, **dict.fromkeys(VALUES, "*")}
NAMES = vocabulary(DocumentSchema(SCORED))
Served = tuple[Index, dict[str, dict[str, Any]]]
Doc = dict[str, Any]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """An index of a base and deltas, and what it must hold."""
    docs = corpus(3_000, 17)
    segment = Segment.open(write_segment(tmp_path_factory.mktemp("scoring"), docs.values(), catalog=SCORED))
    index = Index(SCORED, segment)
    index.apply_budgets([budget(int(campaign)) for campaign in BUDGETS])
    other = corpus(3_000, 18)
    for ad_id in list(docs)[::50]:
        docs[ad_id] = other[ad_id]
        index.apply_documents([delta(docs[ad_id], 200)])
    for ad_id in list(docs)[7::100]:
        del docs[ad_id]
        index.apply_documents([tombstone(int(ad_id), 200)])
    yield index, docs


def _quality(doc: Doc) -> float:
    return 1.0 if doc.get("quality") is None else float(doc["quality"])


def _bid(doc: Doc) -> float:
    return (doc.get("bid_account_micros") or 0) / 1e6


def _likes(doc: Doc, request: dict[str, Any]) -> float:
    boosted = sum(b["weight"] * payload(doc, "interests", b["value"]) for b in request.get("boost", []))
    said = request.get("interests", [])
    said = [] if said == "*" else said if isinstance(said, list) else [said]
    return float(boosted + sum(f"interests={value}" in doc["targeting"] for value in said))


MEANINGS: dict[str, Callable[[Doc, dict[str, Any], float], float]] = {
    "bid * pow(quality, 0.5) + 2 * match(interests)": lambda d, r, _: (
        _bid(d) * float(np.power(_quality(d), 0.5)) + 2 * _likes(d, r)
    ),
    "light": lambda d, r, own: own,
    "-light": lambda d, r, own: -own,
    "price / 10 - bid": lambda d, r, _: (d.get("price_micros") or 0) / 1e6 / 10 - _bid(d),
    "if(has(price_micros), clamp(price_micros, 5e6, 1e7), -1)": lambda d, r, _: (
        -1.0 if d.get("price_micros") is None else min(max(float(d["price_micros"]), 5e6), 1e7)
    ),
    "default(quality, -3) + (price_micros >= 9990000) * 10": lambda d, r, _: (
        (-3.0 if d.get("quality") is None else d["quality"]) + 10.0 * ((d.get("price_micros") or 0) >= 9_990_000)
    ),
    "(at_us - starts_us) / 1e6 * has(starts_us)": lambda d, r, _: (
        0.0 if d.get("starts_us") is None else (T0 + 10 * SECOND - d["starts_us"]) / 1e6
    ),
    "7": lambda d, r, _: 7.0,
}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(sorted(MEANINGS)),
    st.sampled_from((1, 10, 60, 0)),
    st.sampled_from((None, 60, 500, 50_000)),
    st.sampled_from((None, 1, 2)),
    st.fixed_dictionaries(
        {},
        optional={
            "text": st.sampled_from(["red", "sofa lamp"]),
            "boost": st.just([{"field": "interests", "value": 15, "weight": 0.25}]),
            "interests": st.sampled_from([15, [16, 17]]),
            "filter": st.just({"term": {"field": "categories", "value": "home"}}),
        },
    ),
)
def test_answers_are_the_best_of_the_candidates(
    served: Served, score: str, k: int, rerank: int | None, most: int | None, own: dict[str, Any]
) -> None:
    """The best n by light score, put into the order of the expression by plain loops, then cut and diversified."""
    index, docs = served
    request = {**BROWSE, **own, "score": score}
    request |= {} if rerank is None else {"rerank": rerank}
    request |= {} if most is None else {"max_per_advertiser": most}
    found = matching(docs, BUDGETS, request)
    candidates = ordered(light(docs, found, request))
    candidates = candidates[: rerank or (len(candidates) if k == 0 else max(100, 4 * k))]
    full = {ad_id: MEANINGS[score](docs[str(ad_id)], request, own_light) for ad_id, own_light in candidates}
    wanted = diverse(ordered(full), docs, most)
    answer = index.search(request, k)
    assert answer["total"] == len(found)
    assert [(hit["ad_id"], hit["score"]) for hit in answer["hits"]] == (wanted[:k] if k else wanted)


def test_python_function_scores_arrays(served: Served) -> None:
    """In process, a function gets the candidates as arrays and reads of documents what it wants."""
    index, docs = served
    seen: list[int] = []

    def score(columns: CandidateColumns) -> Any:
        titles = [len(fields["title"]) for fields in columns.fields(("title",))]
        seen.append(len(columns))
        assert columns.keys.tolist() == [ad_id for ad_id, _ in ordered(light(docs, found, BROWSE))[:300]]
        return columns["price_micros"] + np.array(titles)

    found = matching(docs, BUDGETS, BROWSE)
    answer = index.search(BROWSE, 75, score=score)
    wanted = {
        ad_id: float((docs[str(ad_id)].get("price_micros") or 0) + len(docs[str(ad_id)]["title"]))
        for ad_id, _ in ordered(light(docs, found, BROWSE))[:300]
    }
    assert [(hit["ad_id"], hit["score"]) for hit in answer["hits"]] == ordered(wanted)[:75]
    assert seen == [300]
    with pytest.raises(InvalidRequest, match=r"300 numbers are expected, the function gave shape \(2,\)"):
        index.search(BROWSE, 75, score=lambda columns: [1, 2])
    with pytest.raises(InvalidRequest, match="no number 'title'"):
        index.search(BROWSE, 75, score=lambda columns: columns["title"])


def test_neighbours_can_be_scored_in_full(served: Served) -> None:
    """With a vector, the first phase is the similarity, and `light` is it."""
    index, docs = served
    vector = np.frombuffer(embedding(5), "<f4").tolist()
    plain = index.search({**BROWSE, "vector": vector}, 100)["hits"]
    full = index.search({**BROWSE, "vector": vector, "score": "light * (bid > 1)", "rerank": 100}, 10)["hits"]
    wanted = {int(hit["ad_id"]): hit["score"] * (_bid(docs[str(hit["ad_id"])]) > 1) for hit in plain}
    assert [(hit["ad_id"], hit["score"]) for hit in full] == ordered(wanted)[:10]


def test_explain_says_how_the_second_phase_went(served: Served) -> None:
    """The plan has the expression and the number of candidates; an ad outside of them learns that it was not one."""
    index, docs = served
    request = {**BROWSE, "score": "bid", "rerank": 20}
    order = [ad_id for ad_id, _ in ordered(light(docs, matching(docs, BUDGETS, request), request))]
    explained = index.explain(request, 10, order[20])
    assert explained["plan"]["second_phase"] == {"candidates": 20, "score": "bid"}
    assert explained["ad"]["why"].startswith("rerank: its light score is not among the best 20")
    assert not explained["ad"]["in_answer"]
    inside = index.explain(request, 20, order[19])["ad"]
    assert inside["in_answer"]
    assert inside["score"] == _bid(docs[str(order[19])])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("bid +", r"character 6: a number, a name or '\(' is expected, got 'the end'"),
        ("bid * $x", r"character 7: '\$' means nothing here"),
        ("bid * colour", r"character 7: no number 'colour'; there are at_us, bid, "),
        ("2 * sqrt", r"character 5: no number 'sqrt'.*sqrt is a function, write sqrt\(\.\.\.\)"),
        ("pow(bid)", "character 1: pow takes 2 arguments, got 1"),
        ("eval(1)", "character 1: no function 'eval'; there are abs, "),
        ("match(nobody)", "character 7: no field or dimension 'nobody' to match; there are "),
        ("match(2)", "character 7: match takes a name, got '2'"),
        ("default(bid, bid)", "character 14: default takes a number"),
        ("(bid", r"character 5: '\)' is expected, got 'the end'"),
        ("bid quality", "character 5: unexpected 'quality'; an operator or the end is expected"),
        ("1 < bid < 2", "character 9: comparisons cannot be chained"),
        ("bid ** 2", r"character 6: a number, a name or '\(' is expected, got '\*'"),
        ("(" * 60 + "1" + ")" * 60, "character 51: nested deeper than 50"),
        ("-" * 1_500 + "bid.x", r"character 1504: '\.' means nothing here"),
        ("1 + " * 600 + "1", f"2401 characters; at most {MAX_LENGTH}"),
        ("", "an expression like"),
        (5, "an expression like"),
        ("__import__", "character 1: no number '__import__'"),
    ],
)
def test_what_makes_no_sense_is_named_with_its_place(served: Served, text: Any, words: str) -> None:
    """Every fault of an expression has the character at which it stops making sense."""
    with pytest.raises(InvalidRequest, match=words):
        served[0].search({**BROWSE, "score": text})


def test_long_sums_and_signs_do_not_exhaust_the_stack(served: Served) -> None:
    """The longest expressions of every shape are answered or refused in words."""
    index, _ = served
    assert index.search({**BROWSE, "score": "+".join(["1"] * 1_000)}, 1)["hits"][0]["score"] == 1_000.0
    assert index.search({**BROWSE, "score": "-" * 1_999 + "1"}, 1)["hits"][0]["score"] == -1.0


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"rerank": 10}, "there is no second phase; give score"),
        ({"score": "bid", "rerank": 9}, "9 candidates cannot give 10 hits"),
        ({"score": "bid", "rerank": 0}, "a whole number from 1"),
        ({"score": "bid", "rerank": 100_001}, "a whole number from 1 to 100000"),
        ({"score": "bid", "rerank": True}, "a whole number from 1"),
    ],
)
def test_second_phase_is_checked(served: Served, request_: dict[str, Any], words: str) -> None:
    """A number of candidates without a second phase, or too few of them, is refused."""
    with pytest.raises(InvalidRequest, match=words):
        served[0].search({**BROWSE, **request_}, 10)


class _Plain:
    """Three candidates with plain numbers."""

    light = np.array([3.0, 2.0, 1.0])
    at_us = 5

    def __len__(self) -> int:
        return 3

    def number(self, name: str, missing: float | None = None) -> Any:
        return {"x": np.array([-1.0, 0.0, 4.0]), "y": np.array([2.0, 0.5, 1e308])}[name]

    def has(self, name: str) -> Any:
        return np.array([1.0, 0.0, 1.0])

    def match(self, name: str) -> Any:
        return np.array([0.0, 1.0, 2.0])


def _trees() -> st.SearchStrategy[tuple[str, Callable[[float, float], float]]]:
    """Return a strategy of (expression, the same as a function of x and y)."""
    leaves = st.one_of(
        st.just(("x", lambda x, y: x)),
        st.just(("y", lambda x, y: y)),
        st.sampled_from([0.0, 1.0, 2.5, 1e-3]).map(lambda c: (repr(c), lambda x, y: c)),
    )

    def divided(a: float, b: float) -> float:
        if b == 0:
            return math.nan if a == 0 or math.isnan(a) else math.copysign(math.inf, a) * math.copysign(1, b)
        return a / b

    def grow(inner: Any) -> Any:
        pairs = st.tuples(inner, inner)
        return st.one_of(
            pairs.map(lambda p: (f"({p[0][0]} + {p[1][0]})", lambda x, y: p[0][1](x, y) + p[1][1](x, y))),
            pairs.map(lambda p: (f"({p[0][0]}-{p[1][0]})", lambda x, y: p[0][1](x, y) - p[1][1](x, y))),
            pairs.map(lambda p: (f"({p[0][0]} *{p[1][0]})", lambda x, y: p[0][1](x, y) * p[1][1](x, y))),
            pairs.map(lambda p: (f"({p[0][0]} / {p[1][0]})", lambda x, y: divided(p[0][1](x, y), p[1][1](x, y)))),
            pairs.map(lambda p: (f"({p[0][0]} < {p[1][0]})", lambda x, y: float(p[0][1](x, y) < p[1][1](x, y)))),
            pairs.map(lambda p: (
                f"if({p[0][0]} >= {p[1][0]}, {p[0][0]}, -{p[1][0]})",
                lambda x, y: p[0][1](x, y) if p[0][1](x, y) >= p[1][1](x, y) else -p[1][1](x, y),
            )),
            inner.map(lambda p: (f"-{p[0]}", lambda x, y: -p[1](x, y))),
            inner.map(lambda p: (f"abs({p[0]})", lambda x, y: abs(p[1](x, y)))),
        )  # fmt: skip

    return st.recursive(leaves, grow, max_leaves=8)


@settings(max_examples=200, deadline=None)
@given(_trees())
def test_expressions_compute_what_python_computes(tree: tuple[str, Callable[[float, float], float]]) -> None:
    """Random trees of operators and functions; what is no number or infinite becomes the largest float of its sign."""
    text, meaning = tree
    got = parse_expression(text, Vocabulary(frozenset({"x", "y"}), frozenset()))(_Plain()).tolist()
    largest = float(np.finfo(np.float64).max)
    wanted = []
    for x, y in ((-1.0, 2.0), (0.0, 0.5), (4.0, 1e308)):
        value = meaning(x, y)
        wanted.append(-largest if math.isnan(value) else max(-largest, min(largest, value)))
    assert got == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("1 - 2 - 3", -4.0),
        ("2 + 3 * 4 / 6 - 1", 3.0),
        ("-2 * -3", 6.0),
        ("2 - -3", 5.0),
        ("1 + 1 < 3", 1.0),
        ("min(3, 2) + max(1, 5)", 7.0),
        ("pow(2, 10)", 1024.0),
        ("log(exp(2)) + log1p(0) + log10(100)", 4.0),
        ("sqrt(9) + floor(1.9) + ceil(1.1)", 6.0),
        ("clamp(7, 1, 5) + clamp(-7, 1, 5)", 6.0),
        (".5 + 5. + 1e1", 15.5),
        ("log(-1)", -float(np.finfo(np.float64).max)),
        ("1 / 0", float(np.finfo(np.float64).max)),
        ("(1 == 1) + (1 != 1) + (2 >= 2) + (2 > 2)", 2.0),
    ],
)
def test_operators_bind_as_usual(text: str, wanted: float) -> None:
    """Precedence, association, signs and every function have their usual meaning."""
    assert parse_expression(text, NAMES)(_Plain()).tolist() == [wanted] * 3
