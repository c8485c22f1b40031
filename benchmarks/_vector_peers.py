"""Vector indexes that a user could pick instead, each asked for the nearest that pass a filter.

A searcher takes (query, mask, prepared filter, setting) and returns ids. Settings go from cheap to dear; the cheapest
that reaches the recall is the one to compare with. Filters are prepared outside the timer, for everybody.
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
_BEAMS = (16, 32, 64, 128, 256, 512, 1_024, 2_560)
_PROBES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_HNSW_M, _HNSW_EF = 16, 200


@dataclass(frozen=True, slots=True)
class Peer:
    """An index that is built."""

    name: str
    build_s: float
    settings: Sequence[int]
    prepare: Callable[[Mask], Any]
    """Turn a mask into what the index takes as a filter."""
    search: Callable[[Matrix, Mask, Any, int, int], npt.NDArray[np.int64]]
    """(query, mask, prepared filter, setting, k) -> ids, nearest first; without those that do not pass."""


def peers(matrix: Matrix, lists: int) -> Iterator[Peer]:
    """Build one peer after the other, those that are installed. One thread each."""
    if importlib.util.find_spec("faiss") is not None:
        yield from _faiss(matrix, lists)
    yield from _hnswlib(matrix)
    if importlib.util.find_spec("usearch") is not None:
        yield from _usearch(matrix)


def missing() -> list[str]:
    """Return the peers that are not installed."""
    return [name for name in ("faiss", "usearch") if importlib.util.find_spec(name) is None]


def _faiss(matrix: Matrix, lists: int) -> Iterator[Peer]:
    import faiss

    faiss.omp_set_num_threads(1)
    count, dims = matrix.shape

    def prepare(mask: Mask) -> Any:
        bits = np.packbits(mask, bitorder="little")
        return bits, faiss.IDSelectorBitmap(count, faiss.swig_ptr(bits))

    def searcher(index: Any, parameters: Callable[[Any, int], Any]) -> Callable[..., npt.NDArray[np.int64]]:
        def search(query: Matrix, mask: Mask, ready: Any, setting: int, k: int) -> npt.NDArray[np.int64]:
            _, found = index.search(query[None], k, params=parameters(ready[1], setting))
            ids: npt.NDArray[np.int64] = found[0]
            return ids[ids >= 0]

        return search

    flat = faiss.IndexFlatIP(dims)
    started = time.perf_counter()
    flat.add(matrix)
    took = time.perf_counter() - started
    yield Peer("faiss flat", took, (0,), prepare, searcher(flat, lambda sel, _: faiss.SearchParameters(sel=sel)))
    started = time.perf_counter()
    ivf = faiss.IndexIVFFlat(faiss.IndexFlatIP(dims), dims, lists, faiss.METRIC_INNER_PRODUCT)
    ivf.train(matrix[:: max(1, count // (64 * lists))])
    ivf.add(matrix)
    took = time.perf_counter() - started
    settings = [probes for probes in _PROBES if probes <= lists]
    by_probes = searcher(ivf, lambda sel, probes: faiss.SearchParametersIVF(sel=sel, nprobe=probes))
    yield Peer("faiss IVF", took, settings, prepare, by_probes)
    started = time.perf_counter()
    hnsw = faiss.IndexHNSWFlat(dims, _HNSW_M, faiss.METRIC_INNER_PRODUCT)
    hnsw.hnsw.efConstruction = _HNSW_EF
    hnsw.add(matrix)
    took = time.perf_counter() - started
    by_beam = searcher(hnsw, lambda sel, beam: faiss.SearchParametersHNSW(sel=sel, efSearch=beam))
    yield Peer("faiss HNSW", took, _BEAMS, prepare, by_beam)


def _hnswlib(matrix: Matrix) -> Iterator[Peer]:
    import hnswlib

    count, dims = matrix.shape
    index = hnswlib.Index("ip", dims)
    index.init_index(count, M=_HNSW_M, ef_construction=_HNSW_EF, random_seed=1)
    started = time.perf_counter()
    index.add_items(matrix, np.arange(count), num_threads=1)
    took = time.perf_counter() - started

    def callback(query: Matrix, mask: Mask, ready: Any, beam: int, k: int) -> npt.NDArray[np.int64]:
        index.set_ef(max(beam, k))
        try:
            found = index.knn_query(query, k=k, num_threads=1, filter=ready)[0][0]
        except RuntimeError:  # it answers all or nothing
            return np.empty(0, np.int64)
        return np.asarray(found, np.int64)

    def over_fetch(query: Matrix, mask: Mask, ready: Any, beam: int, k: int) -> npt.NDArray[np.int64]:
        fetch = min(count, max(beam, k))
        index.set_ef(fetch)
        try:
            found = np.asarray(index.knn_query(query, k=fetch, num_threads=1)[0][0], np.int64)
        except RuntimeError:
            return np.empty(0, np.int64)
        return found[mask[found]][:k]

    def called(mask: Mask) -> Callable[[int], bool]:
        passes: Callable[[int], bool] = mask.tolist().__getitem__
        return passes

    yield Peer("hnswlib callback", took, _BEAMS, called, callback)
    yield Peer("hnswlib over-fetch", took, (*_BEAMS, 5_120, 10_240, 20_480), lambda mask: None, over_fetch)


def _usearch(matrix: Matrix) -> Iterator[Peer]:
    from usearch.index import Index

    count, dims = matrix.shape
    started = time.perf_counter()
    index = Index(ndim=dims, metric="ip", dtype="f32", connectivity=_HNSW_M, expansion_add=_HNSW_EF)
    index.add(np.arange(count), matrix, threads=1)
    took = time.perf_counter() - started

    def over_fetch(query: Matrix, mask: Mask, ready: Any, beam: int, k: int) -> npt.NDArray[np.int64]:
        fetch = min(count, max(beam, k))
        index.expansion_search = fetch
        found = np.asarray(index.search(query, fetch, threads=1).keys, np.int64)
        return found[mask[found]][:k]

    yield Peer("usearch over-fetch", took, (*_BEAMS, 5_120, 10_240), lambda mask: None, over_fetch)
