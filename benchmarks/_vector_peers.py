"""Vector indexes that a user could pick instead, each asked for the nearest that pass a filter.

A filter is a mask over the ids, None for no filter; what an index needs instead of a mask it is given by `prepare`.
Settings go from cheap to dear; the cheapest that reaches the recall is the one to compare with.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Ids = npt.NDArray[np.int64]
_BEAMS = (16, 32, 64, 128, 256, 512, 1_024, 2_048)
_FETCHES = (*_BEAMS, 4_096, 8_192, 16_384)
_PROBES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024)
_HNSW_M, _HNSW_EF = 16, 200
_NAMES = ("faiss", "hnswlib", "usearch")


@dataclass(frozen=True, slots=True)
class Peer:
    """An index that is built."""

    name: str
    build_s: float
    settings: Sequence[int]
    """Ascending; more of it is more recall and more time."""
    prepare: Callable[[Mask | None], Any]
    """Turn a mask into what the index takes as a filter."""
    search: Callable[[Matrix, Mask | None, Any, int, int], Ids]
    """(query, mask, prepared filter, setting, k) -> ids, nearest first; without those that do not pass."""


def peers(matrix: Matrix, lists: int, *, graphs: bool = True, threads: int = 1) -> Iterator[Peer]:
    """Build one peer after the other, those that are installed, with so many threads; they search with one.

    Without `graphs` only those that are built in seconds.
    """
    if importlib.util.find_spec("faiss") is not None:
        yield from _faiss(matrix, lists, graphs, threads)
    if graphs and importlib.util.find_spec("hnswlib") is not None:
        yield from _hnswlib(matrix, threads)
    if graphs and importlib.util.find_spec("usearch") is not None:
        yield from _usearch(matrix, threads)


def missing() -> list[str]:
    """Return the peers that are not installed."""
    return [name for name in _NAMES if importlib.util.find_spec(name) is None]


def _faiss(matrix: Matrix, lists: int, graphs: bool, threads: int) -> Iterator[Peer]:
    import faiss

    count, dims = matrix.shape

    def prepare(mask: Mask | None) -> Any:
        if mask is None:
            return None
        bits = np.packbits(mask, bitorder="little")
        return bits, faiss.IDSelectorBitmap(count, faiss.swig_ptr(bits))

    def searcher(index: Any, parameters: Callable[..., Any], setting: str | None) -> Callable[..., Ids]:
        def search(query: Matrix, mask: Mask | None, ready: Any, value: int, k: int) -> Ids:
            own = {} if setting is None else {setting: value}
            if ready is not None:
                own["sel"] = ready[1]
            _, found = index.search(query[None], k, params=parameters(**own) if own else None)
            ids: Ids = found[0]
            return ids[ids >= 0]

        return search

    def built(index: Any, train: Matrix | None = None) -> float:
        faiss.omp_set_num_threads(threads)
        started = time.perf_counter()
        if train is not None:
            index.train(train)
        index.add(matrix)
        took = time.perf_counter() - started
        faiss.omp_set_num_threads(1)
        return took

    flat = faiss.IndexFlatIP(dims)
    yield Peer("faiss flat", built(flat), (0,), prepare, searcher(flat, faiss.SearchParameters, None))
    ivf = faiss.IndexIVFFlat(faiss.IndexFlatIP(dims), dims, lists, faiss.METRIC_INNER_PRODUCT)
    took = built(ivf, matrix[:: max(1, count // (64 * lists))])
    settings = [probes for probes in _PROBES if probes < lists] + [lists]
    yield Peer("faiss IVF", took, settings, prepare, searcher(ivf, faiss.SearchParametersIVF, "nprobe"))
    if graphs:
        hnsw = faiss.IndexHNSWFlat(dims, _HNSW_M, faiss.METRIC_INNER_PRODUCT)
        hnsw.hnsw.efConstruction = _HNSW_EF
        took = built(hnsw)
        yield Peer("faiss HNSW", took, _BEAMS, prepare, searcher(hnsw, faiss.SearchParametersHNSW, "efSearch"))


def _hnswlib(matrix: Matrix, threads: int) -> Iterator[Peer]:
    import hnswlib

    count, dims = matrix.shape
    index = hnswlib.Index("ip", dims)
    index.init_index(count, M=_HNSW_M, ef_construction=_HNSW_EF, random_seed=1)
    started = time.perf_counter()
    index.add_items(matrix, np.arange(count), num_threads=threads)
    took = time.perf_counter() - started

    def asked(query: Matrix, k: int, **own: Any) -> Ids:
        try:
            return np.asarray(index.knn_query(query, k=k, num_threads=1, **own)[0][0], np.int64)
        except RuntimeError:  # it answers all or nothing
            return np.empty(0, np.int64)

    def callback(query: Matrix, mask: Mask | None, ready: Any, beam: int, k: int) -> Ids:
        index.set_ef(max(beam, k))
        return asked(query, k) if ready is None else asked(query, k, filter=ready)

    def over_fetch(query: Matrix, mask: Mask | None, ready: Any, beam: int, k: int) -> Ids:
        fetch = min(count, max(beam, k))
        index.set_ef(fetch)
        found = asked(query, k if mask is None else fetch)
        return found if mask is None else found[mask[found]][:k]

    def called(mask: Mask | None) -> Any:
        """Return what turns an id into something true or false soonest: bytes, which are made by copying."""
        return None if mask is None else mask.tobytes().__getitem__

    yield Peer("hnswlib callback", took, _BEAMS, called, callback)
    yield Peer("hnswlib over-fetch", took, _FETCHES, _unprepared, over_fetch)


def _usearch(matrix: Matrix, threads: int) -> Iterator[Peer]:
    from usearch.index import Index

    count, dims = matrix.shape
    started = time.perf_counter()
    index = Index(ndim=dims, metric="ip", dtype="f32", connectivity=_HNSW_M, expansion_add=_HNSW_EF)
    index.add(np.arange(count), matrix, threads=threads)
    took = time.perf_counter() - started

    def over_fetch(query: Matrix, mask: Mask | None, ready: Any, beam: int, k: int) -> Ids:
        fetch = min(count, max(beam, k))
        index.expansion_search = fetch
        found = np.asarray(index.search(query, k if mask is None else fetch, threads=1).keys, np.int64)
        return found if mask is None else found[mask[found]][:k]

    yield Peer("usearch over-fetch", took, _FETCHES, _unprepared, over_fetch)


def _unprepared(mask: Mask | None) -> None:
    return None
