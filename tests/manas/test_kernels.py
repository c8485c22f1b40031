"""The compiled kernels: made once, loaded without Numba, and exact over many blocks with lists of both kinds."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manas import Index, Segment
from manas.kernels import KernelsUnavailable, loader
from tests.manas import reference
from tests.manas.support import (
    AT,
    SECOND,
    T0,
    VALUES,
    WORDS,
    budget,
    check_answer,
    delta,
    document,
    embedding,
    requests,
    tombstone,
    write_segment,
)
from tests.support import ROOT

COUNT = 6_000
"""Six blocks of 1,024 ids, the last of them not full."""
BUDGETS: dict[str, dict[str, int]] = {"1": {}, "2": {"daily_micros": 10, "spent_today_micros": 10}, "3": {}}
BROWSE = {"at": AT, **dict.fromkeys(VALUES, "*")}


def _corpus() -> dict[str, dict[str, Any]]:
    """Return documents with common and rare values: lists of every length from one to all."""
    rng = random.Random(7)
    docs = {}
    for ad_id in range(1, COUNT + 1):
        targeting = []
        for name, values in VALUES.items():
            if rng.random() < 0.6:
                targeting.append(f"{name}=*")
            else:
                targeting += [f"{name}={value}" for value in values if rng.random() < 0.4]
            if rng.random() < 0.02:
                targeting.append(f"!{name}={rng.choice(values)}")
        docs[str(ad_id)] = document(
            ad_id,
            campaign_id=rng.choice((1, 1, 1, 2, 3)),
            advertiser_id=rng.randint(1, 40),
            bid_account_micros=rng.choice((None, 0, 333_333, 1_000_000, 2_500_001, rng.randint(1, 5_000_000))),
            quality=rng.choice((None, 0.1, 0.7, 1.0, 1.9)),
            starts_us=T0 + rng.randint(0, 10) * SECOND if rng.random() < 0.3 else None,
            ends_us=T0 + rng.randint(9, 20) * SECOND if rng.random() < 0.3 else None,
            targeting=sorted(targeting),
            price_micros=rng.choice((None, 0, 9_990_000, 10_000_000, rng.randint(0, 30_000_000))),
            currency=rng.choice((None, "USD", "EUR")),
            terms=sorted(word for place, word in enumerate(WORDS) if rng.random() < 0.5**place * 0.6),
            categories=["home"] if rng.random() < 0.01 else None,
            objective="REACH" if rng.random() < 0.9 else None,
            interests=rng.choice((None, [15], [15, 16])),
            embedding=embedding(rng.randint(1, 5)) if rng.random() < 0.3 else None,
        )
    return docs


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Index, dict[str, dict[str, Any]]]]:
    """An index of a base with hidden, replaced and deleted documents, and what it must hold."""
    docs = _corpus()
    segment = Segment.open(write_segment(tmp_path_factory.mktemp("kernels"), docs.values()))
    sizes = segment.manifest.postings
    assert min(sizes["dense_lists"], sizes["split_lists"]) > 10
    index = Index(_catalog(), segment)
    index.apply_budgets([budget(int(campaign), **state) for campaign, state in BUDGETS.items()])
    rng = random.Random(8)
    changed = rng.sample(sorted(docs), 60)
    for ad_id in changed[:40]:
        docs[ad_id] = {**docs[ad_id], "bid_account_micros": rng.randint(1, 9_000_000)}
    index.apply_documents([delta(docs[ad_id], 200) for ad_id in changed[:40]])
    index.apply_documents([tombstone(int(ad_id), 200) for ad_id in changed[40:]])
    for ad_id in changed[40:]:
        del docs[ad_id]
    yield index, docs


def _catalog() -> Any:
    from tests.manas.support import CATALOG

    return CATALOG


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(requests(), st.sampled_from((0, 1, 10, 100, 3_000)))
def test_many_blocks_answer_as_brute_force(
    served: tuple[Index, dict[str, dict[str, Any]]], request_: dict[str, Any], k: int
) -> None:
    """Every kind of request over six blocks, dense and split lists, hidden and replaced documents."""
    index, docs = served
    check_answer(index, docs, BUDGETS, request_, k)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(requests(), st.sampled_from((1, 10, 100)))
def test_hits_are_the_same_without_counting(
    served: tuple[Index, dict[str, dict[str, Any]]], request_: dict[str, Any], k: int
) -> None:
    """A search that ends as soon as nothing better can come has the same hits, and says that its total is a bound."""
    index, _ = served
    whole, short = index.search(request_, k), index.search(request_, k, counting=False)
    assert short["hits"] == whole["hits"]
    assert short["total"] <= whole["total"]
    assert short["total_is_lower_bound"] or short["total"] == whole["total"]


def test_counting_less_looks_at_fewer_blocks(served: tuple[Index, dict[str, dict[str, Any]]]) -> None:
    """Ids follow the score, so ten hits of a broad request are in the first block."""
    index, docs = served
    answer = index.search(BROWSE, 10, counting=False)
    assert answer["total_is_lower_bound"]
    assert answer["total"] < 200
    assert index.search(BROWSE, 10)["total"] == reference.search(docs, BUDGETS, BROWSE, 10)[1] > 2_000


def test_deadline_gives_what_was_found_and_says_so(served: tuple[Index, dict[str, dict[str, Any]]]) -> None:
    """A deadline that has passed gives a partial answer; a generous one gives the whole answer."""
    index, _ = served
    late = index.search(BROWSE, 10, timeout_s=0.0)
    assert late["partial"]
    assert late["total_is_lower_bound"]
    assert index.search(BROWSE, 10, timeout_s=60.0) == index.search(BROWSE, 10)


def test_schedule_follows_the_clock(served: tuple[Index, dict[str, dict[str, Any]]]) -> None:
    """Instants in any order, each asked twice: what was kept for one instant never answers for another."""
    index, docs = served
    rng = random.Random(9)
    for second in [*range(-1, 22), *(rng.randint(-1, 22) for _ in range(20))]:
        at = f"2026-01-01T00:00:{second:02d}" if second >= 0 else "2025-12-31T23:59:59"
        for _ in range(2):
            wanted = reference.search(docs, BUDGETS, {**BROWSE, "at": at}, 1)[1]
            assert index.search({**BROWSE, "at": at}, 1)["total"] == wanted


def _python(code: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_processes_that_start_together_compile_once_and_load_without_numba(tmp_path: Path) -> None:
    """On a new machine one process compiles and the others wait; none of them, nor any later one, imports Numba."""
    code = "import sys; from manas.kernels import load; load(); print('numba' in sys.modules)"
    started = [_python(code, ADSINDEX_CACHE=str(tmp_path)) for _ in range(3)]
    for process in started:
        out, errors = process.communicate(timeout=240)
        assert (process.returncode, out.strip()) == (0, "False"), errors
    (made,) = (tmp_path / "kernels").glob("*.kernels")
    before = made.stat().st_mtime_ns
    again = _python(code, ADSINDEX_CACHE=str(tmp_path))
    assert again.communicate(timeout=60)[0].strip() == "False"
    assert made.stat().st_mtime_ns == before


def test_spoilt_machine_code_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that holds no kernels is named, with what to do; a directory that cannot be written too."""
    monkeypatch.setenv("ADSINDEX_CACHE", str(tmp_path))
    loader.load.cache_clear()
    try:
        file = loader.cache_directory() / f"{loader._fingerprint()}.kernels"
        file.parent.mkdir()
        file.write_bytes(b"no kernels")
        with pytest.raises(KernelsUnavailable, match=r"\.kernels does not hold kernels.*remove it"):
            loader.load()
        (tmp_path / "a file").write_text("")
        monkeypatch.setenv("ADSINDEX_CACHE", str(tmp_path / "a file"))
        with pytest.raises(KernelsUnavailable, match="set ADSINDEX_CACHE"):
            loader.load()
    finally:
        loader.load.cache_clear()


def test_base_of_many_documents_opens_without_reading_them(tmp_path: Path) -> None:
    """Opening a segment without verification maps files; its time does not grow with the documents' sizes."""
    big = {**document(1), "title": "x" * 50_000_000}
    built = write_segment(tmp_path, [big])
    started = time.process_time()
    Segment.open(built, verify=False)
    assert time.process_time() - started < 0.5
