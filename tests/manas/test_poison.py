"""Documents that somebody else's hand wrote: each is either indexed, by delta and base alike, or refused by name."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from catalog.documents import encode_document
from manas import Index, InvalidDocument, Segment, SegmentWriter
from manas._folder import FoldLimits
from manas._follower import Follower
from manas._serving_settings import ServingSettings
from messaging.embedded import open_embedded_log
from messaging.home import Home
from messaging.metrics import StageMetrics
from messaging.proto import adsindex_pb2 as pb
from messaging.topics import DEAD_LETTERS, ensure_topics
from tests.manas import audience
from tests.manas.scoring_support import SCORED
from tests.manas.support import VALUES, budget, delta, document, ids, log_records

HERE, THERE = {"lat": 51.5, "lon": -0.12}, {"lat": -51.5, "lon": -0.12}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("area", [[51.5, -0.12, 1_000]]),
        ("area", [{**HERE, "km": 1}]),
        ("area", {**HERE, "km": 1}),
        ("area", '[{"lat": 51.5, "lon": -0.12, "km": 1}]'),
        ("place", HERE),
        ("place", "51.5, -0.12"),
    ],
)
def test_a_place_in_another_form_is_the_same_place(field: str, value: Any, tmp_path: Path) -> None:
    """Circles and points in every form that is taken are found and explained, in the delta and in a base."""
    bodies = [encode_document({"ad_id": n, "campaign_id": 1, field: value}) for n in (1, 2)]
    SegmentWriter(tmp_path / "base", audience.CATALOG).write([("1", 1, bodies[0])], 9, {}, {})
    index = Index(audience.CATALOG, Segment.open(tmp_path / "base"))
    index.apply_budgets([pb.BudgetState(campaign_id="1", version=1)])
    index.apply_documents([pb.DocumentDelta(document_id="2", version=10, body=bodies[1])])
    for place, found in ((HERE, [1, 2]), (THERE, [])):
        request = {"position": place} if field == "area" else {"near": {**place, "km": 5}}
        assert ids(index.search(request)) == found
        for ad in (1, 2):
            assert index.explain(request, 10, ad)["ad"]["in_answer"] == bool(found)


def _deep(levels: int) -> bytes:
    """Return the body of a document with a list in a list in a list."""
    plain = document(1)
    body = encode_document({**plain, "zz": None})
    return bytes([body[0] + 1]) + body[1:] + b"\xa2zz" + b"\x91" * levels + b"\x01"


TURNED = msgspec.msgpack.encode(dict(sorted(document(1).items(), reverse=True)))


@pytest.mark.parametrize(
    ("body", "words"),
    [(TURNED, "document 1: the body is not canonical: "), (_deep(5_000), "of too many levels of lists or maps")],
)
def test_what_no_segment_can_keep_is_refused_before_it_is_applied(body: bytes, words: str, tmp_path: Path) -> None:
    """A document that a folding would refuse, or that cannot be read, is refused as a delta and by a base alike."""
    with pytest.raises(InvalidDocument, match=words):
        Index(SCORED).apply_documents([pb.DocumentDelta(document_id="1", version=5, body=body)])
    with pytest.raises(InvalidDocument, match=words):
        SegmentWriter(tmp_path / "base", SCORED).write([("1", 1, body)], 9, {}, {})


def test_refused_documents_become_dead_letters_and_foldings_go_on(tmp_path: Path) -> None:
    """Followed from a log, poison is put aside once, and what came with it is served and folded."""
    home = Home.open(tmp_path / "home")
    bad = [pb.DocumentDelta(document_id="1", version=5, body=body) for body in (TURNED, _deep(5_000))]
    with closing(open_embedded_log(home.log, home.wake)) as log:
        ensure_topics(log)
        log.publish(log_records(budget(1), *bad, *(delta(document(n), 5) for n in range(2, 40))))
        index = Index(SCORED)
        settings = ServingSettings(fold=FoldLimits(documents=20, most_documents=1_040))
        with closing(Follower(home.base, log, index, StageMetrics(home.metrics, "manas"), settings=settings)) as own:
            own.start()
            own.catch_up()
            while index.view.frozen is not None:
                own.step()
                own.wait(0.05)
            folding = own.describe()["folding"]
            assert (folding["done"], folding["problem"]) == (1, "")
            assert index.search(dict.fromkeys(VALUES, "*"), 0)["total"] == 38
            letters = [r for p in log.end_offsets(DEAD_LETTERS) for r in log.read(DEAD_LETTERS, p, 0, 10)]
            assert [pb.DeadLetter.FromString(r.value).reason for r in letters] == ["bad_document"] * 2
