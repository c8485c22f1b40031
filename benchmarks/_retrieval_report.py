"""What `bench retrieval --part boolean` says of its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np

from benchmarks import _retrieval_corpus as corpora
from benchmarks._report import Report
from benchmarks._retrieval_sizes import DRIFT, OURS, TANTIVY, K, Sizes
from benchmarks._retrieval_worker import Figures, Result


def report_builds(report: Report, sizes: Sizes, builds: Mapping[str, Mapping[str, Any]]) -> None:
    """Report how fast indexes were built and how large they are."""
    head, count = f"{sizes.documents:,} ads", sizes.documents
    rates = {name: count / median(built["seconds"]) for name, built in builds.items()}
    sums: dict[str, tuple[float, float]] = {}
    for name, built in builds.items():
        parts = {part: size / count for part, size in built["parts"].items()}
        stored = parts.get("forward" if name == OURS else "store", 0.0)
        without = sum(parts.values()) - stored - parts.get("payloads", 0.0)
        sums[name] = without, stored
        told = ", ".join(f"{part} {size:.1f}" for part, size in sorted(parts.items(), key=lambda p: -p[1]))
        report.note(f"bytes per document, {name}: {told}")
    peer = TANTIVY if TANTIVY in builds else None
    report.add(head, "documents/s built", rates[OURS], peer, rates.get(TANTIVY), more_is_better=True)
    report.add(head, "index bytes per document", sums[OURS][0], peer, sums[peer][0] if peer else None)
    report.add(head, "stored bytes per document", sums[OURS][1], peer, sums[peer][1] if peer else None)
    whole = {name: sum(built["parts"].values()) / count for name, built in builds.items()}
    report.add(head, "bytes per document, all files", whole[OURS], peer, whole[peer] if peer else None)
    report.note(
        "index bytes: everything but the stored documents (ours: forward index, LZ4 by document with a dictionary; "
        "tantivy: store, LZ4 by block) and payloads, which tantivy does not have; built by one core each from the same "
        "documents in memory"
    )


def report_queries(
    report: Report, sizes: Sizes, rounds: Mapping[str, list[Result]], pairs: Mapping[str, list[list[Result]]]
) -> None:
    """Report what was asked of each engine in all rounds, and of two processes at a time."""
    head = f"{sizes.documents:,} ads"
    first = {name: median(result.first_answer_s for result in results) for name, results in rounds.items()}
    peers: list[str | None] = [name for name in rounds if name != OURS]
    for peer in peers or [None]:
        report.add(head, "s from process start to first answer", first[OURS], peer, first[peer] if peer else None)
    read = {name: [us for result in results for us in result.read_us] for name, results in rounds.items()}
    other = TANTIVY if read.get(TANTIVY) else None
    for metric, share in (("p50 us", 0.5), ("p99 us", 0.99)):
        theirs_us = float(np.quantile(read[other], share)) if other else None
        report.add(
            head, f"{metric} to read the documents of {K} hits", float(np.quantile(read[OURS], share)), other, theirs_us
        )
    for name in rounds[OURS][0].tasks:
        case = f"{head}, {name}"
        own = [result.tasks[name] for result in rounds[OURS]]
        named: list[str | None] = [p for p in rounds if p != OURS and _peer_task(rounds[p][0], name)]
        for peer in named or [None]:
            theirs = [] if peer is None else [r.tasks[_peer_task(r, name)] for r in rounds[peer]]
            _report_task(report, case, own, peer, theirs)
        if pairs and name in pairs[OURS][0][0].tasks:
            both = {
                engine: median(sum(result.tasks[name].qps for result in pair) for pair in two)
                for engine, two in pairs.items()
            }
            other = TANTIVY if TANTIVY in both else None
            metric = "QPS, two processes on two cores"
            report.add(case, metric, both[OURS], other, both[other] if other else None, more_is_better=True)
    report.note(
        f"k = {K}; from the request to ids and scores, one core unless it says two; seed {corpora.SEED}; "
        f"bids moved: times exp(N(0, {DRIFT})); delta: {sizes.changed:.0%} of the ads changed; tantivy keeps no order "
        "by score, so its figure for targeting stands beside ours in every order of ids"
    )


def _peer_task(result: Result, name: str) -> str:
    """Return which task of a peer stands beside one of ours, "" for none."""
    if name in result.tasks:
        return name
    base = next(iter(result.tasks))
    return base if name.startswith("targeting, ") and name.endswith(("since the build", "in any order")) else ""


def _report_task(
    report: Report, case: str, own: Sequence[Figures], peer: str | None, theirs: Sequence[Figures]
) -> None:
    def of(figures: Sequence[Figures], share: float) -> float | None:
        return median(f.quantile_us(share) for f in figures) if figures else None

    rate = median(f.qps for f in theirs) if theirs else None
    report.add(case, "QPS", median(f.qps for f in own), peer, rate, more_is_better=True)
    report.add(case, "p50 us", of(own, 0.5), peer, of(theirs, 0.5))
    report.add(case, "p99 us", of(own, 0.99), peer, of(theirs, 0.99))
