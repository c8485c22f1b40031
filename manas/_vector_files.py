"""Write one field's vectors: rows ordered by a clustering, the graph where it pays, and what the planner must know.

| file | content |
| --- | --- |
| `vectors.FIELD.matrix` | rows of float32 at length 1; rows of one list follow each other |
| `vectors.FIELD.ids`, `vectors.FIELD.rows` | uint32 id by row; uint32 row by id, padded, 0xFFFFFFFF where none |
| `vectors.FIELD.starts` | int64 first row of each list, and the end; one list when there is no clustering |
| `vectors.FIELD.centroids`, `vectors.FIELD.spread` | float32 by list: its centre, and the spread of its similarities |
| `vectors.FIELD.codes` | bytes, 128 + component / scale: for every 16 rows and every four dimensions, filled up to |
| | whole groups and eights, the four of each row; this and the scales only with a clustering |
| `vectors.FIELD.scales` | float32 by dimension |
| `vectors.FIELD.links` | uint32, neighbours of each row in the graph, padded with 0xFFFFFFFF; only with a graph |
| `vectors.FIELD.plan` | JSON: sizes, and what was measured (`VectorPlan`) |

The graph is level 0 of an hnswlib index. Walks start from the nearest lists, so the levels above are not needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hnswlib
import msgspec
import numpy as np
import numpy.typing as npt

from manas._arrays import write_array
from manas._bits import padded
from manas._layer import Ids
from manas._schema import Floats
from manas._vector_calibration import measure_beams, measure_reaches
from manas._vector_clusters import cluster, list_count
from manas._vector_codes import Codes, encode
from manas._vector_plan import CALIBRATED_K, PLAN_VERSION, VectorPlan, Way, choose
from manas._vector_table import Lists, VectorTable
from manas.kernels.vector_layout import NO_ROW

GRAPH_M, GRAPH_EF_CONSTRUCTION = 16, 200
"""The setting measured in the project's comparison of vector indexes: recall@10 above 0.95 on clustered and on weakly
clustered data at 40-60 s per 200,000 vectors of 64 dimensions."""


@dataclass(frozen=True, slots=True)
class VectorBuild:
    """When a segment's vectors get a clustering, and when a graph.

    Below `lists_from` vectors, comparing all that pass takes less than 0.1 ms: nothing else pays. A graph takes twenty
    times as long to build as a clustering; it is built where lists are estimated to take longer than `graph_micros`
    without a filter: the vectors hardly cluster, and there are very many. On 100,000 vectors of 64 dimensions that
    hardly cluster lists were estimated at 160 us, and walks took four times as long as lists, hnswlib's own twice.
    """

    lists_from: int = 5_000
    graph_micros: float = 2_000.0
    threads: int = -1
    """That build a graph: -1 is one per processor; with 1 the same vectors give the same graph."""


def write_vectors(
    directory: Path, field: str, dims: int, ids: Ids, matrix: Floats, count: int, build: VectorBuild
) -> VectorPlan:
    """Write a field's files and return the plan. `ids` are distinct and below `count`; `matrix` has unit rows."""
    order = np.argsort(ids, kind="stable")
    ids, matrix = np.ascontiguousarray(ids[order], np.uint32), np.ascontiguousarray(matrix[order], np.float32)
    if len(ids) < max(1, build.lists_from):
        lists = Lists(np.array([0, len(ids)], np.int64), np.zeros((1, dims), np.float32), np.zeros(1, np.float32))
        plan, links, codes = VectorPlan(PLAN_VERSION, len(ids), dims, 1, 0), None, None
    else:
        order, lists = cluster(matrix, list_count(len(ids)))
        ids, matrix = ids[order], np.ascontiguousarray(matrix[order])
        codes = encode(matrix)
        plan, links = _planned(ids, matrix, lists, codes, count, build)
    rows = np.full(padded(count), NO_ROW, np.uint32)
    rows[ids] = np.arange(len(ids), dtype=np.uint32)
    arrays: dict[str, npt.NDArray[Any]] = {"matrix": matrix, "ids": ids, "rows": rows, "starts": lists.starts}
    arrays |= {"centroids": lists.centroids, "spread": lists.spread}
    if codes is not None:
        arrays |= {"codes": codes.codes, "scales": codes.scales}
    if links is not None:
        arrays["links"] = links
    for name, values in arrays.items():
        with (directory / f"vectors.{field}.{name}").open("xb") as handle:
            write_array(handle, values)
    with (directory / f"vectors.{field}.plan").open("xb") as handle:
        handle.write(msgspec.json.encode(plan))
    return plan


def _planned(
    ids: Ids, matrix: Floats, lists: Lists, codes: Codes, count: int, build: VectorBuild
) -> tuple[VectorPlan, npt.NDArray[np.uint32] | None]:
    """Measure the lists; build and measure a graph where they are slow."""
    size, dims = matrix.shape
    plan = VectorPlan(PLAN_VERSION, size, dims, len(lists), 0, codes.power, measure_reaches(matrix, lists))
    unfiltered = choose(plan, size, padded(count) // 64, CALIBRATED_K)
    if unfiltered.micros.get(Way.LISTS, np.inf) < build.graph_micros:
        return plan, None
    links = graph_links(matrix, build.threads)
    rows = np.full(padded(count), NO_ROW, np.uint32)
    rows[ids] = np.arange(size, dtype=np.uint32)
    table = VectorTable(dims, matrix, rows, ids, lists, links)
    return msgspec.structs.replace(plan, degree=links.shape[1], beams=measure_beams(table, ids, count)), links


def graph_links(matrix: Floats, threads: int = -1) -> npt.NDArray[np.uint32]:
    """Build a graph by hnswlib and return the links of its lowest level, by row and padded with NO_ROW."""
    size, dims = matrix.shape
    graph = hnswlib.Index("ip", dims)
    graph.init_index(size, M=GRAPH_M, ef_construction=GRAPH_EF_CONSTRUCTION, random_seed=1)
    graph.add_items(matrix, np.arange(size), num_threads=threads)
    (state,) = graph.__getstate__()
    elements = np.frombuffer(state["data_level0"], np.uint8).reshape(-1, state["size_data_per_element"])[:size]
    at, degree = state["label_offset"], state["max_M0"]
    labels = np.ascontiguousarray(elements[:, at : at + 8]).view(np.uint64)[:, 0].astype(np.uint32)
    at = state["offset_level0"]
    sizes = np.ascontiguousarray(elements[:, at : at + 2]).view(np.uint16)[:, 0]
    inner = np.ascontiguousarray(elements[:, at + 4 : at + 4 + 4 * degree]).view(np.uint32)
    used = np.arange(degree) < sizes[:, None]
    links = np.full((size, degree), NO_ROW, np.uint32)
    links[labels] = np.where(used, labels[np.where(used, inner, 0)], np.uint32(NO_ROW))
    return links
