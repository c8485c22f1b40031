"""What queries need of a layer (a segment or the delta), and of a layer with its state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
from pyroaring import BitMap

from catalog import Serving
from manas._schema import Floats

if TYPE_CHECKING:
    from manas._clauses import Clause, Condition

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
    """Documents by internal id: a segment or the delta."""

    name: str

    def internal(self, document_id: str) -> int | None:
        """Return the internal id of a document."""

    def keys(self, ids: Ids, *, int_keys: bool) -> npt.NDArray[Any]:
        """Return the document ids of `ids` in the key's type (int64 or str)."""

    def document_id(self, internal: int) -> str:
        """Return the document id."""

    def body(self, internal: int) -> bytes:
        """Return the canonical document."""

    def version(self, internal: int) -> int:
        """Return the document's version; 0 when the layer does not know the id."""

    def vectors(self, field: str) -> VectorStore | None:
        """Return the vectors of a field, None when the layer has none."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """The best of one layer in order."""

    ids: Ids
    scores: npt.NDArray[np.float64]
    matched: int
    """How many satisfy the conditions: exactly if `counted`, else at least."""
    counted: bool
    complete: bool
    """False when a deadline came first: there may be better ones."""
    words: str
    """How they were found."""


class LayerView(Protocol):
    """A layer with what is alive in it and what of it has budget left, and the answering of conditions over it."""

    @property
    def layer(self) -> Layer:
        """The documents."""

    def __len__(self) -> int:
        """Return the number of live documents."""

    def __contains__(self, internal: int) -> bool:
        """Tell whether an internal id is alive."""

    def holders(self, field: str, term: str) -> BitMap:
        """Return the ids whose field has the term, alive or not. The bitmap may be shared: do not change it."""

    def live_frequency(self, field: str, term: str) -> int:
        """Return how many live documents have the term."""

    def holds(self, clause: Clause, internal: int) -> bool:
        """Tell whether a live document satisfies a clause."""

    def survive(self, conditions: Sequence[Condition], trace: list[dict[str, Any]] | None = None) -> BitMap:
        """Return the live ids that satisfy all conditions; `trace` receives a row per condition, cheapest first."""

    def best(
        self,
        conditions: Sequence[Condition],
        weights: Mapping[str, float],
        serving: Serving,
        limit: int,
        *,
        counting: bool = True,
        deadline: float | None = None,
    ) -> Candidates:
        """Return the best `limit` ids (0: all) by light score, ties undecided by the smaller document id included.

        `weights` are added to the score of documents whose text has the word. Without `counting` the run stops as
        soon as nothing better can come. `deadline` is a time of the monotonic clock.
        """


def id_array(bitmap: BitMap) -> Ids:
    """Return a bitmap's ids as an ascending array."""
    return np.frombuffer(bitmap.to_array(), dtype=np.uint32) if bitmap else np.empty(0, dtype=np.uint32)
