"""One engine in a process of its own on one core, asked kind by kind: `python -m benchmarks._retrieval_worker ORDER`.

It says when it is ready, waits for a line (so that two can be asked at the same time), and prints its figures as JSON.
Everything from the request to ids and scores is inside the timer, as is putting the engine's own query together.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np

from benchmarks._retrieval_requests import Request, requests
from benchmarks._retrieval_sizes import K

_WARM_UP = 30
"""Requests asked before those that are timed; a quarter of the time at most."""
_MOST = 20_000
"""Requests timed of one kind: enough for a 99th percentile."""


class Task(msgspec.Struct, frozen=True):
    """One kind of request in one state of the index."""

    name: str
    kind: str
    scores: str = ""
    """File of other scores by id, as if bids had moved since the build; "": those of the build."""
    changed: bool = False
    """After the documents of the delta have changed."""


class Order(msgspec.Struct, frozen=True):
    """What a process is to do."""

    engine: str
    """ours, tantivy or duckdb."""
    directory: str
    """Of the index; of the one with the changes for tantivy: `changed`."""
    changed: str
    tasks: tuple[Task, ...]
    queries: int
    budget_s: float
    core: int
    started: float
    """When the process was started, seconds since the epoch."""
    forms: dict[str, str] = {}
    """Of queries in tantivy, by kind."""


class Figures(msgspec.Struct):
    """Of one task."""

    took_us: list[float] = msgspec.field(default_factory=list)
    answers: dict[int, list[tuple[int, float]]] = msgspec.field(default_factory=dict)
    """By number of the request: ids and scores."""
    seconds: float = 0.0

    @property
    def qps(self) -> float:
        """Requests answered in a second."""
        return len(self.took_us) / self.seconds

    def quantile_us(self, share: float) -> float:
        """Return a quantile of the latency."""
        return float(np.quantile(self.took_us, share))


class Result(msgspec.Struct):
    """What a process has found out."""

    first_answer_s: float
    tasks: dict[str, Figures]
    notes: list[str]
    read_us: list[float] = []
    """For each of some answers to the first task: reading the documents of its hits. None by an engine without them."""


class _Engine(Protocol):
    def answer(self, request: Request, k: int) -> Any:
        """Return ids and scores, best first, in the engine's own form."""

    def rows(self, answer: Any) -> list[tuple[int, float]]:
        """Return an answer as pairs of id and score."""

    def documents(self, answer: Any) -> list[bytes]:
        """Return the documents of an answer's hits, as they came; none where the engine has no documents."""


class _Served:
    """An engine in the state that a task wants."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self.notes: list[str] = []
        self._engine: Any = None
        self._state: tuple[str, bool, str] | None = None

    def engine(self, task: Task) -> _Engine:
        """Return the engine. Tasks with changes come last: ours takes them in as they come."""
        order = self._order
        state = (task.scores, task.changed, order.forms.get(task.kind, ""))
        if self._state == state:
            engine: _Engine = self._engine
            return engine
        if order.engine == "ours":
            from benchmarks._retrieval_ours import OurEngine

            self._engine = self._engine or OurEngine(Path(order.directory))
            self._engine.rescore(Path(task.scores) if task.scores else None)
            if task.changed:
                self.notes.append(self._engine.change(Path(order.changed)))
        elif order.engine == "tantivy":
            from benchmarks._retrieval_tantivy import TantivyEngine

            self._engine = TantivyEngine(Path(order.changed if task.changed else order.directory), state[2])
        else:
            from benchmarks._retrieval_duckdb import DuckDBEngine

            score = Path(task.scores).stem if task.scores else "score"
            self._engine = DuckDBEngine(Path(order.directory), "after" if task.changed else "ads", score)
        self._state = state
        engine = self._engine
        return engine


def main(file: Path) -> None:
    """Do what the order says."""
    order = msgspec.json.decode(file.read_bytes(), type=Order)
    os.sched_setaffinity(0, {order.core})
    served = _Served(order)
    asked = {kind: requests(kind, order.queries) for kind in {task.kind for task in order.tasks}}
    first = order.tasks[0]
    served.engine(first).answer(asked[first.kind][0], K)
    result = Result(time.time() - order.started, {}, served.notes)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    result.read_us = _read(served.engine(first), asked[first.kind], order.budget_s)
    for task in order.tasks:
        result.tasks[task.name] = _measure(served.engine(task), asked[task.kind], order.budget_s)
    sys.stdout.buffer.write(msgspec.json.encode(result) + b"\n")


def _read(engine: _Engine, asked: list[dict[str, Any]], budget_s: float) -> list[float]:
    """Return microseconds for the documents of each of some answers; the answers are not in the time."""
    found = [engine.answer(request, K) for request in asked[:_WARM_UP]]
    if not engine.documents(found[0]):
        return []
    taken: list[float] = []
    until = time.perf_counter() + budget_s / 2
    for answer in itertools.cycle(found):
        begun = time.perf_counter_ns()
        engine.documents(answer)
        taken.append((time.perf_counter_ns() - begun) / 1e3)
        if len(taken) >= _MOST or time.perf_counter() > until:
            return taken
    return taken


def _measure(engine: _Engine, asked: list[dict[str, Any]], budget_s: float) -> Figures:
    figures = Figures()
    started = time.perf_counter()
    for request in asked[:_WARM_UP]:
        engine.answer(request, K)
        if time.perf_counter() - started > budget_s / 4:
            break
    clock = time.perf_counter_ns
    until = clock() + round(budget_s * 1e9)
    for number, request in itertools.islice(enumerate(itertools.cycle(asked)), _MOST):
        begun = clock()
        found = engine.answer(request, K)
        ended = clock()
        figures.took_us.append((ended - begun) / 1e3)
        if number < len(asked):
            figures.answers[number] = engine.rows(found)
        if ended > until and len(figures.took_us) > 1:
            break
    figures.seconds = sum(figures.took_us) / 1e6
    return figures


if __name__ == "__main__":
    main(Path(sys.argv[1]))
