"""Segments and bases: what is written is what is read, damage is detected and named, the pointer moves atomically."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from catalog import Destination
from catalog.documents import encode_document
from manas import (
    CatalogMismatch,
    InvalidDocument,
    Segment,
    SegmentCorrupt,
    SegmentError,
    SegmentFormat,
    SegmentMissing,
    SegmentWriter,
    VectorBuild,
    current_base,
    list_bases,
    prune_bases,
    publish,
    rollback,
)
from manas._manifest import read_manifest, write_manifest
from tests.manas.scoring_support import SCORED
from tests.manas.support import CATALOG, VALUES, document, embedding, make_index, write_segment

BROWSE = dict.fromkeys(VALUES, "*")
DOCS = [document(i, price_micros=i, embedding=embedding(i), terms=["a", f"w{i}"]) for i in (7, 3, 11)]


def test_manifest_says_what_the_segment_holds(tmp_path: Path) -> None:
    """The manifest has counts, positions, the catalogue's fingerprint and the coverage of every declared field."""
    target = tmp_path / "built"
    docs = [("1", 5, encode_document(document(1))), ("2", 6, encode_document(document(2, quality=0.5)))]
    written = SegmentWriter(target, CATALOG).write(docs, 9, {0: 17, 3: 4}, {0: 2})
    manifest = Segment.open(target).manifest
    assert manifest == written
    assert (manifest.documents, manifest.snapshot_ts) == (2, 9)
    assert (manifest.delta_positions, manifest.budget_positions) == ({0: 17, 3: 4}, {0: 2})
    assert (manifest.catalog, manifest.fingerprint) == ("ads", CATALOG.fingerprint)
    assert (manifest.coverage["bid_account_micros"], manifest.coverage["quality"], manifest.coverage["link"]) == (
        1.0,
        0.5,
        0.0,
    )


def test_segment_returns_the_documents_byte_for_byte(tmp_path: Path) -> None:
    """Bodies, versions and ids come back exactly, and unknown ids are not found."""
    segment = Segment.open(write_segment(tmp_path, DOCS, version=42))
    for doc in DOCS:
        internal = segment.internal(str(doc["ad_id"]))
        assert internal is not None
        assert segment.body(internal) == encode_document(doc)
        assert (segment.version(internal), segment.document_id(internal)) == (42, str(doc["ad_id"]))
    assert [segment.internal(i) for i in ("", "1", "33", "70", "999")] == [None] * 5


def test_empty_segment_can_be_opened_and_asked(tmp_path: Path) -> None:
    """A base without documents is valid and answers nothing."""
    index = make_index(segment=Segment.open(write_segment(tmp_path, [])))
    assert index.search(BROWSE, 0) == {
        "hits": [],
        "total": 0,
        "total_is_lower_bound": False,
        "partial": False,
    }


@pytest.mark.parametrize(
    ("documents", "words"),
    [
        ([("1", 5, encode_document(document(1)))] * 2, "twice"),
        ([("1", 11, encode_document(document(1)))], "after snapshot"),
        ([("x", 5, encode_document(document(1)))], "not a 64-bit integer"),
        ([("1", 5, b"\xc1")], "not a canonical document"),
        ([("1", 5, encode_document(document(1, bid_account_micros="much")))], "field bid_account_micros must be int"),
        ([("1", 5, encode_document(document(1, quality=float("nan"))))], "field quality must be float"),
        ([("1", 5, encode_document(document(1, embedding=b"1234")))], "field embedding must be vector"),
        ([("1", 5, encode_document(document(1, terms=["a", 1])))], "field terms must be list<string>"),
    ],
)
def test_writer_refuses_documents_that_cannot_be_indexed(
    tmp_path: Path, documents: list[tuple[str, int, bytes]], words: str
) -> None:
    """The error names the document and the field, and no manifest is left that could be opened."""
    with pytest.raises(InvalidDocument, match=words):
        SegmentWriter(tmp_path / "built", CATALOG).write(documents, 10, {}, {})
    with pytest.raises(SegmentMissing):
        Segment.open(tmp_path / "built")


def _all_numbers(i: int) -> dict[str, float]:
    return {f.name: i for f in CATALOG.fields.values() if f.index is Destination.NUMERIC}


_LISTS: dict[str, Any] = {"interests": [1], "affinities": [5], "categories": ["home"], "terms": ["red"]}
_MANY = [
    document(0, bid_account_micros=None),
    *(document(i, **_LISTS, **_all_numbers(i), brand="few" if i < 4 else None) for i in range(1, 40)),
]
"""Enough for posting lists of all kinds, and one document without numbers."""


FAMILIES = ("body", "keys", "shown", "weights")
FORWARD_FILES = ("blob", "dictionary", "starts", "lengths")
PAYLOADS = ("categories", "interests", "terms")
PAYLOAD_FILES = ("values", "starts", "bounds", "bound_starts")
VECTOR_FILES = ("ids", "rows", "matrix", "codes", "scales", "starts", "centroids", "spread", "links", "plan")


def _files() -> list[str]:
    fields = CATALOG.fields.values()
    numbers = [f.name for f in fields if f.index is Destination.NUMERIC]
    names = [f"forward.{family}.{part}" for family in FAMILIES for part in FORWARD_FILES]
    names += ["ids.order", "ids.ties", "versions", "terms.blob", "terms.offsets", "manifest.json"]
    names += ["scores.static", "scores.bounds"]
    names += [f"postings.{part}" for part in ("dense", "packed", "places", "counts")]
    names += [f"payloads.{name}.{part}" for name in PAYLOADS for part in PAYLOAD_FILES]
    names += [f"numbers.{name}.{part}" for name in numbers for part in ("values", "order", "present")]
    return names + [f"vectors.embedding.{part}" for part in VECTOR_FILES]


def test_every_file_is_listed_with_its_checksum(tmp_path: Path) -> None:
    """The manifest covers each file of the directory, so damage anywhere can be seen."""
    built = write_segment(tmp_path, _MANY, catalog=SCORED, vectors=VectorBuild(lists_from=2, graph_micros=0))
    assert sorted(p.name for p in built.iterdir()) == sorted(_files())
    assert sorted(Segment.open(built).manifest.files) == sorted(n for n in _files() if n != "manifest.json")


@pytest.mark.parametrize("name", _files())
def test_damage_to_any_file_is_detected_and_named(tmp_path: Path, name: str) -> None:
    """A flipped bit, a cut end, an extra byte and a missing file are each refused with the file's name."""
    built = write_segment(tmp_path, _MANY, catalog=SCORED, vectors=VectorBuild(lists_from=2, graph_micros=0))
    file = built / name
    whole = file.read_bytes()
    assert whole, "the test needs contents to damage"
    for place in {0, len(whole) // 2, len(whole) - 1}:
        flipped = bytearray(whole)
        flipped[place] ^= 1
        file.write_bytes(flipped)
        with pytest.raises((SegmentCorrupt, SegmentFormat), match=name):
            Segment.open(built)
    for other in (whole[:-1], b"", whole + b"\0"):
        file.write_bytes(other)
        with pytest.raises(SegmentCorrupt, match=name):
            Segment.open(built, verify=False)
    file.unlink()
    with pytest.raises(SegmentMissing if name == "manifest.json" else SegmentCorrupt, match=name):
        Segment.open(built, verify=False)
    file.write_bytes(whole)
    Segment.open(built)


@pytest.mark.parametrize("version", [4, 999])
def test_other_format_version_is_named(tmp_path: Path, version: int) -> None:
    """A segment of another format, older or newer, is refused as such, not as damaged."""
    built = write_segment(tmp_path, DOCS)
    manifest = json.loads((built / "manifest.json").read_text())
    (built / "manifest.json").write_text(json.dumps({**manifest, "format_version": version, "news": []}))
    with pytest.raises(SegmentFormat, match=f"has format {version}, this code reads 5; build the base again"):
        Segment.open(built)


def test_field_indexed_otherwise_is_a_catalog_mismatch(tmp_path: Path) -> None:
    """A base that indexed a field in another way than the catalogue now says is refused; a new one is only missing."""
    changed = dict(CATALOG.fields)
    changed["brand"] = replace(changed["brand"], index=Destination.FORWARD)
    built = write_segment(tmp_path, DOCS, catalog=replace(CATALOG, fields=changed))
    with pytest.raises(CatalogMismatch, match="field brand was indexed as forward"):
        make_index(segment=Segment.open(built))
    fewer = {name: field for name, field in CATALOG.fields.items() if name != "brand"}
    index = make_index(segment=Segment.open(write_segment(tmp_path, DOCS, catalog=replace(CATALOG, fields=fewer))))
    assert index.stats()["base"]["fields_missing"] == ["brand"]
    assert index.search({**BROWSE, "filter": {"term": {"field": "brand", "value": "x"}}})["total"] == 0


@pytest.mark.parametrize("role", ["bid", "quality"])
def test_scores_made_by_other_roles_are_a_catalog_mismatch(tmp_path: Path, role: str) -> None:
    """Ads of a base and ads since would be ranked by two formulas: refused, but for bases that do not say how."""
    serving = replace(CATALOG.serving, **{role: None})
    built = write_segment(tmp_path, DOCS, catalog=replace(CATALOG, serving=serving))
    with pytest.raises(CatalogMismatch, match=r"scores were made of \{.*\}, the catalogue's roles are now \{'bid': "):
        make_index(segment=Segment.open(built))
    older = msgspec.structs.replace(read_manifest(built), static=msgspec.UNSET, checksum="")
    write_manifest(built, older)
    assert "static" not in json.loads((built / "manifest.json").read_text())
    assert make_index(segment=Segment.open(built)).search(BROWSE)["total"] == len(DOCS)
    score = replace(CATALOG.serving, score="price_micros")
    unchanged = write_segment(tmp_path, DOCS, catalog=replace(CATALOG, serving=score))
    assert make_index(segment=Segment.open(unchanged)).search(BROWSE)["total"] == len(DOCS), "a bid goes before a score"


def test_publish_moves_the_pointer_and_rollback_moves_it_back(tmp_path: Path) -> None:
    """Versions sort by age, the pointer names the newest, and rollback goes one step back or to a named version."""
    base = tmp_path / "base"
    assert current_base(base) is None
    assert list_bases(base) == []
    versions = [publish(base, write_segment(tmp_path, DOCS, snapshot_ts=100 + i)) for i in range(3)]
    assert versions == sorted(versions)
    assert current_base(base) == versions[2]
    assert versions[2].endswith("-102")
    assert rollback(base) == versions[1] == current_base(base)
    assert rollback(base) == versions[0]
    with pytest.raises(SegmentMissing, match="no base before"):
        rollback(base)
    assert rollback(base, versions[2]) == versions[2]
    assert [(b.version, b.current) for b in list_bases(base)] == [(v, v == versions[2]) for v in versions]
    with pytest.raises(SegmentMissing, match="no base 'nope'"):
        rollback(base, "nope")


def test_corrupt_base_is_neither_published_nor_rolled_back_to(tmp_path: Path) -> None:
    """Publishing or rolling back to a damaged or unfinished base raises, and the pointer stays."""
    base = tmp_path / "base"
    first = publish(base, write_segment(tmp_path, DOCS))
    second = publish(base, write_segment(tmp_path, DOCS))
    damaged = write_segment(tmp_path, DOCS)
    (damaged / "versions").write_bytes(b"\0" * 24)
    unfinished = write_segment(tmp_path, DOCS)
    (unfinished / "manifest.json").unlink()
    for directory in (damaged, unfinished):
        with pytest.raises(SegmentError):
            publish(base, directory)
    (base / first / "forward.body.blob").write_bytes(b"")
    with pytest.raises(SegmentCorrupt, match=r"forward\.body\.blob"):
        rollback(base)
    assert current_base(base) == second
    assert [b.version for b in list_bases(base)] == [first, second]
    shutil.copytree(unfinished, base / "20000101T000000.000000Z-1")
    assert "never finished" in list_bases(base)[0].problem


@pytest.mark.parametrize("crash_at", range(1, 5))
def test_crash_at_any_step_of_publishing_leaves_a_whole_base_in_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash_at: int
) -> None:
    """Whichever system call is the last one, the pointer names a base that opens: the old one, or the new one."""
    base = tmp_path / "base"
    first = publish(base, write_segment(tmp_path, DOCS))
    built = write_segment(tmp_path, DOCS[:1])
    calls = 0

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls >= crash_at:
                raise KeyboardInterrupt
            return real(*args)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", dying(os.fsync))
        patch.setattr(Path, "rename", dying(Path.rename))
        patch.setattr(Path, "replace", dying(Path.replace))
        with pytest.raises(KeyboardInterrupt):
            publish(base, built)
    current = current_base(base)
    assert current is not None
    assert current == first or crash_at > 3
    Segment.open(base / current)
    assert publish(base, write_segment(tmp_path, DOCS)) == current_base(base)
    assert all(not b.problem for b in list_bases(base))


def test_what_crashes_left_goes_with_the_next_pruning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half removals, half copies, parts and foldings above bases that are gone: all but what somebody is at work on."""
    base = tmp_path / "base"
    for number in range(3):
        last = publish(base, write_segment(tmp_path, DOCS, snapshot_ts=100 + number))

    def dying(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", dying)
        with pytest.raises(KeyboardInterrupt):
            prune_bases(base, 1)
    assert any(path.name.startswith(".removed-") for path in base.iterdir())
    gone = [
        ".incoming-1/x",
        ".shards/0-of-5/gone/x",
        ".shards/0-of-5/.part-1/x",
        ".folds/3/gone/x",
        ".folds/1-of-2/0/gone/x",
    ]
    kept = [f".shards/0-of-5/{last}/x", ".folds/3/none/x", f".folds/3/{last}/x", ".folds/4/gone/x"]
    for name in (*gone, *kept):
        (base / name).mkdir(parents=True)
    locks = [".shards/0-of-5/lock", ".folds/3/lock", ".folds/1-of-2/0/lock", ".folds/4/lock"]
    for name in locks:
        (base / name).touch()
    with (base / locks[-1]).open("ab") as at_work, (base / ".copying").open("ab") as copier:
        fcntl.flock(at_work, fcntl.LOCK_EX)
        fcntl.flock(copier, fcntl.LOCK_EX)
        prune_bases(base, 1)
        assert (base / ".incoming-1").is_dir()
        assert [name for name in gone[1:] if (base / name).exists()] == []
        assert [name for name in kept if not (base / name).is_dir()] == []
    assert prune_bases(base, 1) == []
    assert sorted(path.name for path in base.iterdir()) == sorted(
        [".copying", ".folds", ".pointer.lock", ".shards", last, "CURRENT"]
    )


def test_base_built_on_another_file_system_is_copied_and_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a rename cannot cross file systems, the copy is whole and the build directory is gone."""
    base, built = tmp_path / "base", write_segment(tmp_path, DOCS)
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self == built:
            raise OSError(errno.EXDEV, "cross-device link")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    version = publish(base, built)
    assert Segment.open(base / version).manifest.documents == 3
    assert not built.exists()
    assert [b.version for b in list_bases(base)] == [version]
