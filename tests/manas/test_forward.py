"""The forward index in families: documents come back whole, and only what is needed of them is read."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest

from catalog.documents import decode_document, encode_document
from manas import Index, InvalidDocument, InvalidRequest, Segment, SegmentWriter
from tests.manas.scoring_support import SCORED, corpus
from tests.manas.support import AT, VALUES, budget, delta, document, write_segment

BROWSE: dict[str, Any] = {"at": AT, **dict.fromkeys(VALUES, "*")}
FAMILIES = ("body", "keys", "shown", "weights")


def _touched(directory: Path) -> dict[str, int]:
    """Return the bytes of each of a directory's mapped files that this process has in memory."""
    found: dict[str, int] = {}
    name = None
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            path = line.split(maxsplit=5)[5] if len(line.split(maxsplit=5)) == 6 else ""
            name = Path(path).name if path.startswith(f"{directory}/") else None
        elif name is not None and line.startswith("Rss:"):
            found[name] = found.get(name, 0) + 1024 * int(line.split()[1])
    return found


@pytest.fixture
def large(tmp_path: Path) -> tuple[Path, dict[str, dict[str, Any]]]:
    """A built segment whose shown texts are large, also when squeezed, and its documents."""
    docs, rng = corpus(1_500, 57), random.Random(57)
    for doc in docs.values():
        doc["link"] = f"https://example.org/{doc['ad_id']}/{rng.randbytes(2_000).hex()}"
        doc["unknown"] = "no field of the catalogue"
    return write_segment(tmp_path, docs.values(), catalog=SCORED), docs


def test_documents_come_back_byte_by_byte_out_of_their_families(large: tuple[Path, dict[str, dict[str, Any]]]) -> None:
    """A document of four families is put together as it came, and single fields are those of the document."""
    built, docs = large
    segment = Segment.open(built)
    for internal in range(segment.count):
        doc = docs[segment.document_id(internal)]
        assert segment.body(internal) == encode_document(doc)
        names = ("link", "advertiser_id", "terms", "price_micros", "no such field")
        assert segment.fields(internal, names) == {n: doc[n] for n in names if doc.get(n) is not None}
    assert {f"forward.{name}.blob" for name in FAMILIES} <= segment.manifest.files.keys()
    assert segment.manifest.fields["link"].family == "shown"


def test_only_the_families_that_are_needed_are_read(large: tuple[Path, dict[str, dict[str, Any]]]) -> None:
    """Full scoring reads no document, diversity only the keys, and one field only its family: counted in pages."""
    built, docs = large
    segment = Segment.open(built)
    index = Index(SCORED, segment)
    index.apply_budgets([budget(1), budget(2)])
    blobs = [f"forward.{name}.blob" for name in FAMILIES]
    before = _touched(built)
    assert [before[blob] for blob in blobs] == [0, 0, 0, 0]
    answer = index.search({**BROWSE, "score": "price * pow(quality, 2) + match(interests)", "rerank": 1_000}, 10)
    scored = _touched(built)
    assert [scored[blob] for blob in blobs] == [0, 0, 0, 0]
    assert scored["numbers.price_micros.values"] > 0
    assert scored.get("numbers.impressions.values", 0) == 0
    index.search({**BROWSE, "max_per_advertiser": 1}, 30)
    diverse = _touched(built)
    assert diverse["forward.keys.blob"] > 0
    assert [diverse[f"forward.{name}.blob"] for name in ("body", "shown", "weights")] == [0, 0, 0]
    wanted = [str(hit["ad_id"]) for hit in answer["hits"]]
    served = index.get(wanted, ("affinities", "advertiser_id"))
    for ad_id, one in zip(wanted, served, strict=True):
        own = {n: docs[ad_id][n] for n in ("affinities", "advertiser_id") if docs[ad_id].get(n) is not None}
        assert decode_document(one.body) == own
    returned = _touched(built)
    assert returned["forward.weights.blob"] > 0
    assert [returned[f"forward.{name}.blob"] for name in ("body", "shown")] == [0, 0]
    (whole,) = index.get(wanted[:1])
    assert whole.body == encode_document(docs[wanted[0]])
    assert 0 < _touched(built)["forward.shown.blob"] < segment.manifest.files["forward.shown.blob"].bytes / 2


def test_fields_of_a_delta_are_the_same(tmp_path: Path) -> None:
    """Documents that came since the base give the same fields; an unknown field is refused."""
    doc = document(1, title="t", interests=[15])
    index = Index(SCORED)
    index.apply_documents([delta(doc, 5)])
    (served,) = index.get(["1"], ("title", "interests", "link"))
    assert decode_document(served.body) == {"title": "t", "interests": [15]}
    with pytest.raises(InvalidRequest, match="fields: no field 'colour'; there are ad_group_id, ad_id, "):
        index.get(["1"], ("title", "colour"))


def test_a_document_that_would_not_come_back_is_refused(tmp_path: Path) -> None:
    """With families, fields that are not in canonical order could not be put together again: refused, not changed."""
    body = encode_document(document(1))
    names = sorted(decode_document(body))
    assert names[0] != names[-1]
    import msgspec

    turned = msgspec.msgpack.encode({name: decode_document(body)[name] for name in reversed(names)})
    with pytest.raises(InvalidDocument, match="is not canonical"):
        SegmentWriter(tmp_path / "built", SCORED).write([("1", 1, turned)], 9, {}, {})
