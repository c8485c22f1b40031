"""Vectors of one field of the delta: scanned exactly while few, in a graph that grows batch by batch when many."""

from __future__ import annotations

from array import array
from typing import Any

import hnswlib
import numpy as np
from pyroaring import BitMap

from manas._layer import Ids, id_array
from manas._schema import Floats, normalized
from manas._writer import GRAPH_EF_CONSTRUCTION, GRAPH_FROM, GRAPH_M
from manas.segment import walk_graph

INSERTS_PER_BATCH = 64
"""Graph insertions per batch of deltas, about 10 ms: readers wait no longer than that for them."""
_FIRST_CAPACITY = 1024
_MIN_DEAD = 1_000


class DeltaVectors:
    """Rows by slot. Vectors not yet in the graph are found by a scan, so answers never depend on its progress."""

    def __init__(self, dims: int, graph_from: int = GRAPH_FROM) -> None:
        self._dims = dims
        self._graph_from = graph_from
        self._matrix: Floats = np.zeros((_FIRST_CAPACITY, dims), np.float32)
        self.ids = BitMap()
        self._forget_graph()

    def _forget_graph(self) -> None:
        self._graph: Any = None
        self._label_of: dict[int, int] = {}
        self._slot_of = array("I")
        """Graph label -> slot. A changed vector gets a new label, because hnswlib updates in place badly."""
        self.graphed = BitMap()

    def set(self, slot: int, raw: bytes | None) -> None:
        """Store the vector of a slot, None for none."""
        label = self._label_of.pop(slot, None)
        if label is not None:
            self._graph.mark_deleted(label)
            self.graphed.discard(slot)
        if raw is None:
            self.ids.discard(slot)
            return
        while slot >= len(self._matrix):
            self._matrix = np.concatenate([self._matrix, np.zeros_like(self._matrix)])
        self._matrix[slot] = normalized(raw)
        self.ids.add(slot)

    def tend(self) -> None:
        """Insert a bounded number of vectors into the graph; start it anew when most of its labels are dead."""
        if len(self.ids) < self._graph_from:
            if self._graph is not None and len(self.ids) < self._graph_from // 2:
                self._forget_graph()
            return
        if len(self._slot_of) - len(self._label_of) > max(len(self._label_of), _MIN_DEAD):
            self._forget_graph()
        waiting = id_array(self.ids - self.graphed)[:INSERTS_PER_BATCH]
        if len(waiting) == 0:
            return
        if self._graph is None:
            self._graph = hnswlib.Index("ip", self._dims)
            self._graph.init_index(
                2 * self._graph_from, M=GRAPH_M, ef_construction=GRAPH_EF_CONSTRUCTION, random_seed=1
            )
        first = len(self._slot_of)
        if first + len(waiting) > self._graph.get_max_elements():
            self._graph.resize_index(2 * (first + len(waiting)))
        labels = np.arange(first, first + len(waiting))
        self._graph.add_items(self._matrix[waiting], labels, num_threads=1)
        self._slot_of.extend(waiting.tolist())
        self._label_of.update(zip(waiting.tolist(), labels.tolist(), strict=True))
        self.graphed.update(waiting)

    def gather(self, ids: Ids) -> Floats:
        """Return vectors as rows."""
        return self._matrix[ids]

    def walk(self, query: Floats, count: int) -> Ids:
        """Return the slots nearest by the graph."""
        labels = walk_graph(self._graph, query, min(count, len(self.graphed)))
        return np.frombuffer(self._slot_of, dtype=np.uint32)[labels].copy()
