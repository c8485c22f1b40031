"""`bench retrieval`: top 100 of a million ads, against tantivy with the same conditions and a scan by DuckDB.

Every engine gets the same ads and is asked the same requests, each in processes of its own pinned to one core (two
processes on two cores share the mapped files), in turn, round by round; figures are medians over the rounds. A sample
of the answers is compared with those that looking at every ad gives, and all answers of peers with those of Manas: one
difference, and the benchmark fails.
"""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from rich.console import Console

from benchmarks import _retrieval_corpus as corpora
from benchmarks._exceptions import BenchmarkFailed
from benchmarks._report import Report, machine_of
from benchmarks._retrieval_checks import check
from benchmarks._retrieval_corpus import Corpus
from benchmarks._retrieval_judge import Hits, judge
from benchmarks._retrieval_report import report_builds, report_queries
from benchmarks._retrieval_requests import BOTH_WORDS, PAYLOADS, RANGES, SOME_WORD, TARGETING, requests
from benchmarks._retrieval_sizes import DRIFT, DUCKDB, OURS, QUICK, TANTIVY, K, Sizes
from benchmarks._retrieval_vectors import VectorSizes, measure_vectors
from benchmarks._retrieval_worker import Order, Result, Task
from cli.runtime import ROOT
from manas import SegmentWriter

PARTS = ("boolean", "vectors")
MOVED, ANY_ORDER = "score_moved", "score_any"
"""Columns, and names of files, of other scores than those that the index was built by."""
_TRIED = 15
"""Requests by which tantivy's forms of a query are compared."""
_PATIENCE_S = 600.0
_progress = Console(stderr=True)


def run(
    quick: bool, sizes: Sizes | None = None, parts: Sequence[str] = PARTS, vectors: VectorSizes | None = None
) -> dict[str, Any]:
    """Run the benchmark, or some of PARTS. Raises BenchmarkFailed, also when engines disagree."""
    chosen, report = sizes or (QUICK if quick else Sizes()), Report()
    with tempfile.TemporaryDirectory(prefix="adsindex-bench-") as name:
        machine = machine_of(Path(name))
        if "boolean" in parts:
            with tempfile.TemporaryDirectory(dir=name) as directory:
                _boolean(report, chosen, Path(directory))
        if "vectors" in parts:
            _say("vectors")
            with tempfile.TemporaryDirectory(dir=name) as directory:
                measure_vectors(report, Path(directory), quick=quick, sizes=vectors)
    return report.to_json("retrieval", machine)


def sized(quick: bool, documents: int | None) -> Sizes:
    """Return the sizes to run with; `documents` None leaves their number as it is."""
    sizes = QUICK if quick else Sizes()
    return sizes if documents is None else replace(sizes, documents=documents)


def parts_of(part: str | None) -> Sequence[str]:
    """Return the parts to run; None: all. Raises BenchmarkFailed for one that is not there."""
    if part is not None and part not in PARTS:
        raise BenchmarkFailed(f"retrieval has no part {part!r}; it has {', '.join(PARTS)}")
    return PARTS if part is None else (part,)


def _boolean(report: Report, sizes: Sizes, directory: Path) -> None:
    peers = [name for name in (TANTIVY, DUCKDB) if importlib.util.find_spec(name) is not None]
    for name in {TANTIVY, DUCKDB} - set(peers):
        report.note(f"{name} was left out: it is not installed (pip install adsindex[bench])")
    prepared = directory / "ready"
    prepared.mkdir()
    _say(f"{sizes.documents:,} documents")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as builder:
        builder.submit(_prepare, prepared, sizes, TANTIVY in peers, DUCKDB in peers).result()
    report_builds(report, sizes, json.loads((prepared / "builds.json").read_text()))
    forms = _forms(prepared, sizes) if TANTIVY in peers else {}
    rounds: dict[str, list[Result]] = {}
    pairs: dict[str, list[list[Result]]] = {}
    for number in range(sizes.rounds):
        for engine in (OURS, *peers):
            _say(f"round {number + 1} of {sizes.rounds}: {engine}")
            rounds.setdefault(engine, []).append(
                _ask(prepared, sizes, engine, _tasks(prepared, engine), forms, (0,))[0]
            )
            if engine != DUCKDB and len(os.sched_getaffinity(0)) > 1:
                both = _ask(prepared, sizes, engine, _tasks(prepared, engine)[:1], forms, (0, 1))
                pairs.setdefault(engine, []).append(both)
    right = msgspec.json.decode((prepared / "right.json").read_bytes(), type=dict[str, dict[int, Hits]])
    check(rounds, right, report)
    report_queries(report, sizes, rounds, pairs)
    if forms:
        told = ", ".join(f"{kind}: {form}" for kind, form in forms.items())
        report.note(f"tantivy's faster form by {_TRIED} requests of each kind: {told}")
    for note in {note for results in rounds.values() for result in results for note in result.notes}:
        report.note(note)


# ---- what is built ----


def _prepare(directory: Path, sizes: Sizes, tantivy: bool, duckdb: bool) -> None:
    """Draw the ads, build every index on one core, and write figures; in a process that ends with its memory."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    corpus = corpora.generate(sizes.documents)
    documents = list(corpora.documents(corpus))
    rng = np.random.default_rng(corpora.SEED + 1)
    scores = {
        MOVED: corpus.scores * rng.lognormal(0.0, DRIFT, corpus.count),
        ANY_ORDER: rng.permutation(corpus.scores),
    }
    for name, values in scores.items():
        np.save(directory / f"{name}.npy", values)
    changed = corpora.redrawn(corpus, sizes.changed)
    news = list(corpora.documents(changed))
    (directory / "changes").write_bytes(msgspec.msgpack.encode(news))
    builds: dict[str, dict[str, Any]] = {OURS: _build_ours(directory, documents, sizes.builds)}
    if tantivy:
        builds[TANTIVY] = _build_tantivy(directory, documents, news, sizes.builds)
    if duckdb:
        from benchmarks import _retrieval_duckdb

        _retrieval_duckdb.build(directory / DUCKDB, corpus, scores, changed)
    (directory / "builds.json").write_text(json.dumps(builds))
    (directory / "right.json").write_bytes(msgspec.json.encode(_right(directory, sizes, corpus, changed)))


def _right(directory: Path, sizes: Sizes, corpus: Corpus, changed: Corpus) -> dict[str, dict[int, Hits]]:
    """Return by task and number of the request the right answers to the first few."""
    kept, everything = ~np.isin(corpus.ids, changed.ids), np.ones(corpus.count, bool)
    news = (changed, changed.scores, np.ones(changed.count, bool))
    right: dict[str, dict[int, Hits]] = {}
    for task in _tasks(directory, OURS):
        scores = np.load(task.scores) if task.scores else corpus.scores
        parts = [(corpus, scores, kept), news] if task.changed else [(corpus, scores, everything)]
        asked = requests(task.kind, sizes.queries)[: sizes.checked]
        right[task.name] = {number: judge(parts, request, K) for number, request in enumerate(asked)}
    return right


def _build_ours(directory: Path, documents: Sequence[tuple[str, int, bytes]], times: int) -> dict[str, Any]:
    took, catalog = [], corpora.catalog()
    for _ in range(times):
        shutil.rmtree(directory / OURS, ignore_errors=True)
        started = time.perf_counter()
        manifest = SegmentWriter(directory / OURS, catalog).write(documents, documents[-1][1], {}, {})
        took.append(time.perf_counter() - started)
    parts: dict[str, float] = {}
    for name, entry in manifest.files.items():
        part = name.partition(".")[0]
        if part == "numbers":
            part = "number orders" if name.endswith(".order") else "numbers"
        parts[part] = parts.get(part, 0.0) + entry.bytes
    return {"seconds": took, "parts": parts}


def _build_tantivy(
    directory: Path, documents: Sequence[tuple[str, int, bytes]], news: Sequence[tuple[str, int, bytes]], times: int
) -> dict[str, Any]:
    from benchmarks import _retrieval_tantivy

    took = []
    for _ in range(times):
        shutil.rmtree(directory / TANTIVY, ignore_errors=True)
        (directory / TANTIVY).mkdir()
        started = time.perf_counter()
        _retrieval_tantivy.build(directory / TANTIVY, documents)
        took.append(time.perf_counter() - started)
    parts: dict[str, float] = {}
    for file in (directory / TANTIVY).iterdir():
        part = file.suffix.removeprefix(".") or "other"
        parts[part] = parts.get(part, 0.0) + file.stat().st_size
    changed = directory / "tantivy-changed"
    shutil.copytree(directory / TANTIVY, changed)
    _retrieval_tantivy.change(changed, news)
    return {"seconds": took, "parts": parts}


# ---- who is asked ----


def _tasks(directory: Path, engine: str) -> tuple[Task, ...]:
    """Return what an engine is asked, those with changed documents last."""
    own = [Task("targeting, ids by score", TARGETING)]
    if engine != TANTIVY:  # it has no order of ids to be stale
        own += [
            Task("targeting, bids moved since the build", TARGETING, str(directory / f"{MOVED}.npy")),
            Task("targeting, ids in any order", TARGETING, str(directory / f"{ANY_ORDER}.npy")),
            Task("targeting, payloads scored", PAYLOADS),
        ]
    own += [Task(f"text with filter, {kind}", kind) for kind in (BOTH_WORDS, SOME_WORD)]
    own += [Task("ranges", RANGES), Task("targeting, with a delta", TARGETING, changed=True)]
    return (*own, Task("ranges, with a delta", RANGES, changed=True))


def _forms(directory: Path, sizes: Sizes) -> dict[str, str]:
    """Return by kind which form of query is the faster one in tantivy."""
    from benchmarks._retrieval_tantivy import FORMS

    few = replace(sizes, queries=_TRIED, budget_s=sizes.budget_s / 2)
    tasks = [task for task in _tasks(directory, TANTIVY) if not task.changed]
    tried = {form: _ask(directory, few, TANTIVY, tasks, {task.kind: form for task in tasks}, (0,))[0] for form in FORMS}
    return {task.kind: max(FORMS, key=lambda form: tried[form].tasks[task.name].qps) for task in tasks}


def _ask(
    directory: Path,
    sizes: Sizes,
    engine: str,
    tasks: Sequence[Task],
    forms: Mapping[str, str],
    cores: Sequence[int],
) -> list[Result]:
    """Start one process per core, have all of them answer at the same time, and return what each has measured."""
    usable, running = sorted(os.sched_getaffinity(0)), []
    changed = {OURS: directory / "changes", TANTIVY: directory / "tantivy-changed"}.get(engine, directory)
    for core in cores:
        order = Order(
            engine, str(directory / engine), str(changed), tuple(tasks), sizes.queries, sizes.budget_s, usable[core],
            time.time(), dict(forms),
        )  # fmt: skip
        running.append(_start(directory / f"order-{core}.json", order))
    try:
        for process in running:
            _line(process)
        for process in running:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        return [msgspec.json.decode(_line(process), type=Result) for process in running]
    finally:
        for process in running:
            process.kill()
            process.communicate()


def _start(file: Path, order: Order) -> subprocess.Popen[str]:
    file.write_bytes(msgspec.json.encode(order))
    command = [sys.executable, "-m", "benchmarks._retrieval_worker", str(file)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        _, words = process.communicate(timeout=_PATIENCE_S)
        raise BenchmarkFailed(f"a process ended with {process.returncode}: {words[-1_500:]}")
    return line


def _say(what: str) -> None:
    _progress.print(f"bench retrieval: {what}", highlight=False)
