"""The benchmarks by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks import (
    base_index,
    cdc,
    pipeline,
    retrieval,
    serving,
    stack_latency,
    sync,
    transactions,
    vectors,
    walproxy,
    workflows,
)
from benchmarks._exceptions import BenchmarkFailed, UnknownBenchmark
from benchmarks._retrieval_vectors import vector_sizes

BENCHMARKS: dict[str, Callable[[bool], dict[str, Any]]] = {
    "pipeline": pipeline.run,
    "cdc": cdc.run,
    "transactions": transactions.run,
    "walproxy": walproxy.run,
    "sync": sync.run,
    "base-index": base_index.run,
    "vectors": vectors.run,
    "serving": serving.run,
    "retrieval": retrieval.run,
    "workflows": workflows.run,
}
ON_THE_STACK: dict[str, Callable[[bool], dict[str, Any]]] = {
    "pipeline": stack_latency.run,
    "cdc": cdc.run,
    "transactions": transactions.run,
    "walproxy": walproxy.run,
}
"""With real servers, which only `pipeline` can do without."""


def run_benchmark(
    name: str, quick: bool = False, *, stack: bool = False, documents: int | None = None, part: str | None = None
) -> dict[str, Any]:
    """Run a benchmark and return {"benchmark", "machine", "results", "notes"}.

    A result is {"case", "metric", "ours", "peer_name", "peer", "ratio"}; a ratio above 1 means that ours is better,
    null that there is no peer. `quick` takes small sizes: does it run, not how fast is it. `stack` runs over MariaDB
    and Kafka. `documents` and `part` are `retrieval`'s; vectors are as many where they are the part. Raises
    UnknownBenchmark, BenchmarkFailed, StackError.
    """
    known = ON_THE_STACK if stack else BENCHMARKS
    if name not in known:
        raise UnknownBenchmark(name, known)
    if documents is None and part is None:
        return known[name](quick)
    if name != "retrieval":
        raise BenchmarkFailed("only retrieval takes a number of documents or a part; leave them out")
    vectors = vector_sizes(quick, documents if part == "vectors" else None)
    return retrieval.run(quick, retrieval.sized(quick, documents), retrieval.parts_of(part), vectors)
