"""Do all engines answer the same? A benchmark of wrong answers would be worth nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from benchmarks._exceptions import BenchmarkFailed
from benchmarks._report import Report
from benchmarks._retrieval_worker import Result

_ROUNDING = 1e-9
"""Of scores that were summed up in another order."""
Hits = Sequence[tuple[int, float]]


def check(rounds: Mapping[str, Sequence[Result]], right: Mapping[str, Mapping[int, Hits]], report: Report) -> None:
    """Compare our answers with the right ones, by task and number of the request, and everybody's with ours.

    Notes how many. Raises BenchmarkFailed at the first difference, and for a task without any hit. Where scores are
    equal, an engine may have chosen otherwise.
    """
    ours = rounds["ours"][0].tasks
    judged = 0
    for name, answers in right.items():
        for number, hits in answers.items():
            if number in ours[name].answers:
                _compare("ours", name, number, ours[name].answers[number], hits)
                judged += 1
    compared: dict[str, int] = {}
    for engine, results in rounds.items():
        for name, number, hits in _answers(engine, results):
            if number in ours[name].answers:
                _compare(engine, name, number, hits, ours[name].answers[number])
                compared[engine] = compared.get(engine, 0) + 1
    told = "".join(f", {engine} {count:,}" for engine, count in compared.items() if engine != "ours")
    report.note(f"answers equal to those of looking at every ad: {judged:,}; of peers, equal to ours{told or ': none'}")


def _answers(engine: str, results: Sequence[Result]) -> Iterator[tuple[str, int, Hits]]:
    for result in results:
        for name, figures in result.tasks.items():
            if not any(figures.answers.values()):
                raise BenchmarkFailed(f"{engine} has no hit for any request of {name!r}")
            for number, hits in figures.answers.items():
                yield name, number, hits


def _compare(engine: str, name: str, number: int, hits: Hits, right: Hits) -> None:
    if not same(right, hits):
        raise BenchmarkFailed(f"{engine}: request {number} of {name!r} has a wrong answer")


def same(one: Hits, other: Hits) -> bool:
    """Tell whether two answers are equal but for the choice among equal scores."""
    if len(one) != len(other):
        return False
    if any(abs(a - b) > _ROUNDING * max(1.0, abs(a)) for (_, a), (_, b) in zip(one, other, strict=True)):
        return False
    tied = {score for _, score in one if sum(s == score for _, s in one) > 1} | {score for _, score in one[-1:]}
    return {i for i, score in one if score not in tied} <= {i for i, _ in other}
