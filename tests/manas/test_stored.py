"""Stored documents come back from their blocks, another reader of LZ4 reads them, and damage reaches nothing else."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catalog.documents import encode_document
from manas import Index, InvalidDocument, Segment, SegmentCorrupt, _stored
from manas._manifest import read_manifest
from manas._stored import Blocks, Squeezer
from manas.kernels.stored_layout import Expand
from tests.manas.scoring_support import SCORED, corpus
from tests.manas.support import CATALOG, document, write_segment

BLOB = Path("forward.body.blob")
TEXTS = st.text("abcd", max_size=60).map(str.encode)
DOCUMENTS = st.lists(
    st.binary(max_size=300) | TEXTS | st.tuples(TEXTS, st.integers(0, 600)).map(lambda t: t[0] * t[1]), max_size=60
)


def squeezed(batches: Sequence[Sequence[bytes]], blob: bytes | None = None) -> tuple[Blocks, Squeezer, list[bytes]]:
    """Return the blocks of documents in batches, ready to be read; with `blob`, this is read instead."""
    squeezer, parts, lengths = Squeezer(), [], []
    for batch in batches:
        own, ends = squeezer.add(batch)
        parts.append(own.tobytes())
        lengths += np.diff(ends, prepend=0).tolist()
    whole, starts = b"".join(parts), np.cumsum([0, *lengths])
    blocks = Blocks(
        BLOB,
        np.frombuffer(whole if blob is None else blob, np.uint8),
        np.frombuffer(squeezer.dictionary, np.uint8),
        starts[:-1].astype(np.uint32),
        np.array(lengths, np.uint32),
        squeezer.longest,
    )
    return blocks, squeezer, [whole[a : a + n] for a, n in zip(starts.tolist(), lengths, strict=False)]


@settings(max_examples=150, deadline=None)
@given(st.lists(DOCUMENTS, min_size=1, max_size=3))
def test_any_documents_come_back(batches: list[list[bytes]]) -> None:
    """Empty, short, random and repetitive ones, whether or not the batch that gave the dictionary had the like."""
    blocks, squeezer, raw = squeezed(batches)
    documents = [own for batch in batches for own in batch]
    assert [blocks[place] for place in range(len(raw))] == documents
    assert squeezer.bytes == sum(map(len, documents))
    assert squeezer.longest == max(map(len, documents), default=0)


@pytest.mark.parametrize("size", [0, 4, 5, 11, 12, 13, 14, 15, 18, 19, 20, 270, 274, 275, 65_535, 65_536, 200_000])
def test_documents_of_all_lengths_come_back(size: int) -> None:
    """Lengths around those where LZ4 takes one more byte, and beyond what a match can reach back."""
    rng = random.Random(size)
    noise = rng.randbytes(size)
    documents = [noise, b"a" * size, noise[: size // 2] * 2, b"ab" * (size // 2), noise]
    blocks, _, raw = squeezed([documents, documents])
    assert [blocks[place] for place in range(len(raw))] == documents * 2


@settings(max_examples=80, deadline=None)
@given(st.lists(st.binary(max_size=40) | TEXTS, min_size=40, max_size=80))
def test_another_reader_of_lz4_reads_the_blocks(documents: list[bytes]) -> None:
    """Arrow's decoder, which knows no dictionaries, reads each block behind a sequence that makes the dictionary."""
    padded = [own + b"!" * 12 for own in documents]  # LZ4 has no match begin in the last twelve bytes
    _, squeezer, raw = squeezed([padded])
    dictionary = squeezer.dictionary
    before = b""
    if dictionary:  # its last four bytes are a match of distance 1 with the one before
        literals = dictionary[:-4]
        left = len(literals) - 15
        more = b"" if left < 0 else b"\xff" * (left // 255) + bytes([left % 255])
        before = bytes([min(len(literals), 15) << 4]) + more + literals + b"\x01\x00"
    for own, block in zip(padded, raw, strict=True):
        size = len(dictionary) + len(own)
        read = pa.decompress(before + block, decompressed_size=size, codec="lz4_raw", asbytes=True)
        assert read == dictionary + own


def test_documents_of_a_catalogue_shrink_and_few_do_not_grow(tmp_path: Path) -> None:
    """Names and words that documents share are in the dictionary; a segment of one has none; the manifest has sizes."""
    bodies = [encode_document(doc) for doc in corpus(3_000, 5).values()]
    _, squeezer, raw = squeezed([bodies[:2_000], bodies[2_000:]])
    assert 0.9 * (32 << 10) < len(squeezer.dictionary) <= 32 << 10
    assert sum(map(len, raw)) < 0.5 * sum(map(len, bodies))
    for count in (1, 2, 30):
        _, squeezer, raw = squeezed([bodies[:count]])
        assert len(squeezer.dictionary) + sum(map(len, raw)) < 1.02 * sum(map(len, bodies[:count]))
    stored = read_manifest(write_segment(tmp_path, corpus(50, 5).values(), catalog=CATALOG)).stored["body"]
    lengths = [len(encode_document(doc)) for doc in corpus(50, 5).values()]
    assert (stored.bytes, stored.longest) == (sum(lengths), max(lengths))


def test_one_document_is_read_without_the_others(tmp_path: Path) -> None:
    """With every other block overwritten a document still comes back: no block depends on another."""
    bodies = [encode_document(doc) for doc in corpus(300, 6).values()]
    _, _, raw = squeezed([bodies])
    for kept in (0, 17, 299):
        others = b"".join(block if place == kept else b"\xee" * len(block) for place, block in enumerate(raw))
        assert squeezed([bodies], others)[0][kept] == bodies[kept]


@pytest.mark.parametrize("seed", range(4))
def test_damage_gives_another_document_or_an_error_and_writes_nowhere_else(seed: int) -> None:
    """Blocks with flipped bytes are refused by name or read as something; nothing beyond the room changes."""
    rng = random.Random(seed)
    bodies = [encode_document(doc) for doc in corpus(200, seed).values()]
    _, squeezer, raw = squeezed([bodies])
    whole, refused, other = b"".join(raw), 0, 0
    room = _stored._room
    guard = 4_096
    room.grow(squeezer.longest + guard)
    room.out[:] = 0xA5
    room.p[Expand.ROOM] = squeezer.longest
    try:
        for _ in range(300):
            flipped = bytearray(whole)
            for _ in range(rng.choice((1, 3, 200))):
                flipped[rng.randrange(len(flipped))] = rng.choice((0, 0xFF, rng.randrange(256)))
            damaged = squeezed([bodies], bytes(flipped))[0]
            for place in rng.sample(range(len(bodies)), 5):
                try:
                    other += damaged[place] != bodies[place]
                except SegmentCorrupt as error:
                    assert str(BLOB) in str(error)
                    refused += 1
        assert min(refused, other) > 20
        assert (room.out[squeezer.longest :] == 0xA5).all()
    finally:
        room.grow(_stored._ROOM)
    cut = squeezed([bodies], whole[: len(whole) - len(raw[-1])])[0]
    assert cut[len(bodies) - 2] == bodies[-2]
    with pytest.raises(SegmentCorrupt, match=f"{BLOB}: has no document of {len(raw[-1])} bytes at byte"):
        _ = cut[len(bodies) - 1]


@pytest.mark.parametrize(
    ("block", "read"),
    [
        (b"\x10A\x01\x00\x10B", b"AAAAAB"),
        (b"\x10A\x04\x00\x10B", b"Axyz" + b"AB"),
        (b"\x10A\x05\x00\x10B", None),  # one byte before the dictionary
        (b"\x10A\xff\xff\x10B", None),
        (b"\x10A\x00\x00\x10B", None),  # LZ4 has no distance of 0
        (b"\x00\x03\x00\x10B", b"xyzxB"),
        (b"\x50A", None),  # fewer literals than it says
        (b"\x10A\x01", None),  # half a distance
        (b"\x1fA\x01\x00", None),  # a length that goes on behind the end
        (b"\x10A\x01\x00", None),  # ends with a match
        (b"\x1fA\x01\x00\x05\x10B", None),  # longer than the longest
        (b"\xf0\xff\xff", None),
        (b"", None),
    ],
)
def test_blocks_made_by_hand(block: bytes, read: bytes | None) -> None:
    """Every way in which a block can lie about lengths and distances is refused, at the very byte."""
    rows = np.array([0], np.uint32), np.array([len(block)], np.uint16)
    blocks = Blocks(BLOB, np.frombuffer(block, np.uint8), np.frombuffer(b"xyz", np.uint8), *rows, 10)
    room = _stored._room
    try:
        room.grow(10)
        if read is None:
            with pytest.raises(SegmentCorrupt, match="has no document of"):
                _ = blocks[0]
        else:
            assert blocks[0] == read
    finally:
        room.grow(_stored._ROOM)


def test_a_damaged_block_is_named_where_it_is_read(tmp_path: Path) -> None:
    """Before the verifier has come to it: an error with the file's name, not a wrong document; others are served."""
    built = write_segment(tmp_path, corpus(40, 9).values(), catalog=SCORED)
    segment = Segment.open(built)
    blob = built / "forward.shown.blob"
    flipped = bytearray(blob.read_bytes())
    start, length = (int(np.fromfile(built / f"forward.shown.{part}", kind)[7]) for part, kind in
                     (("starts", np.uint32), ("lengths", np.uint16)))  # fmt: skip
    flipped[start] = 0xF0  # a literal that is longer than the block
    flipped[start + 1] = 0xFF
    blob.write_bytes(flipped)
    index = Index(SCORED, Segment.open(built, verify=False))
    with pytest.raises(SegmentCorrupt, match=r"forward\.shown\.blob: has no document of"):
        index.get([segment.document_id(7)])
    (served,) = index.get([segment.document_id(8)])
    assert served.body
    assert length > 0


def test_threads_read_at_the_same_time() -> None:
    """Each thread has its own room, and those who meet a longer document than they have room for get more."""
    rng = random.Random(3)
    documents = [rng.randbytes(rng.choice((5, 200, 3_000))) * rng.randint(1, 30) for _ in range(300)]
    blocks, _, raw = squeezed([documents])
    assert max(map(len, documents)) > 2 * _stored._ROOM
    wrong: list[int] = []
    started = threading.Barrier(4)

    def read(seed: int) -> None:
        started.wait()
        order = list(range(len(raw))) * 10
        random.Random(seed).shuffle(order)
        wrong.extend(place for place in order if blocks[place] != documents[place])

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_too_long_a_document_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Places are 32-bit numbers: what they cannot count is refused before anything of its batch is written."""
    monkeypatch.setattr(_stored, "LONGEST", 1_000)
    with pytest.raises(InvalidDocument, match="more than 1000 bytes"):
        squeezed([[b"a" * 1_000, b"b" * 1_001]])
    assert squeezed([[b"a" * 1_000]])[0][0] == b"a" * 1_000


def test_empty_and_single_segments(tmp_path: Path) -> None:
    """No documents have no blocks and no dictionary; one document comes back without a dictionary."""
    assert read_manifest(write_segment(tmp_path, [])).stored["body"].longest == 0
    built = write_segment(tmp_path, [document(5)])
    assert (built / "forward.body.dictionary").read_bytes() == b""
    assert Segment.open(built).body(0) == encode_document(document(5))
