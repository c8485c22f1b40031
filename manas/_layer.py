"""What queries need of a layer (base or delta): postings, ranges, numbers, vectors, documents by internal id."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from pyroaring import BitMap

from manas._schema import Floats

Ids = npt.NDArray[np.uint32]


class VectorStore(Protocol):
    """Vectors of one field of one layer, at length 1."""

    ids: BitMap
    """Internal ids that have a vector."""
    graphed: BitMap
    """Those among them that the graph finds; the rest is scanned."""

    def gather(self, ids: Ids) -> Floats:
        """Return the vectors of `ids`, which all must have one, as rows."""

    def walk(self, query: Floats, count: int) -> Ids:
        """Return about `count` internal ids nearest to `query` by the graph."""


class Layer(Protocol):
    """Read access to base or delta. Bitmaps returned are shared: never change them. They may include dead ids."""

    name: str

    def postings(self, field: str, term: str) -> BitMap:
        """Return the ids whose field has the term."""

    def document_frequency(self, field: str, term: str) -> int:
        """Return the size of the posting list without reading it."""

    def within(self, field: str, low: float | None, high: float | None) -> BitMap:
        """Return the ids whose number is in the closed interval; None is open. No value, no match."""

    def count_within(self, field: str, low: float | None, high: float | None) -> int:
        """Return (an estimate of) how many ids `within` gives."""

    def numbers(self, field: str, ids: Ids, default: float) -> npt.NDArray[np.float64]:
        """Return the field's numbers of `ids`."""

    def vectors(self, field: str) -> VectorStore | None:
        """Return the vectors of a field, None when the layer has none."""

    def internal(self, document_id: str) -> int | None:
        """Return the internal id of a document."""

    def keys(self, ids: Ids) -> npt.NDArray[Any]:
        """Return the document ids of `ids` in the key's type (int64 or str)."""

    def document_id(self, internal: int) -> str:
        """Return the document id."""

    def body(self, internal: int) -> bytes:
        """Return the canonical document."""

    def version(self, internal: int) -> int:
        """Return the document's version; 0 when the layer does not know the id."""


@dataclass(frozen=True, slots=True)
class LayerView:
    """A layer with what is alive in it and what of it has budget left."""

    layer: Layer
    live: BitMap
    funded: BitMap


def id_array(bitmap: BitMap) -> Ids:
    """Return a bitmap's ids as an ascending array."""
    return np.frombuffer(bitmap.to_array(), dtype=np.uint32) if bitmap else np.empty(0, dtype=np.uint32)
