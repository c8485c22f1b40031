"""What queries need of a layer (a segment or the delta), and of a layer with its state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import msgspec
import numpy as np
import numpy.typing as npt
from pyroaring import BitMap

from catalog import Serving

if TYPE_CHECKING:
    from manas._bits import Words
    from manas._clauses import Clause, Condition
    from manas._vector_store import VectorStore

Ids = npt.NDArray[np.uint32]


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

    def fields(self, internal: int, names: Sequence[str]) -> dict[str, Any]:
        """Return some fields of a document, those that it has; reads only the families that they are in."""

    def version(self, internal: int) -> int:
        """Return the document's version; 0 when the layer does not know the id."""

    def vectors(self, field: str) -> VectorStore | None:
        """Return the vectors of a field, None when the layer has none."""


class After(NamedTuple):
    """The last hit of a page: its score and its key."""

    score: float
    key: int | str


class Boost(NamedTuple):
    """A term that adds weight x payload (1 without payloads) to the light score of the documents that have it."""

    field: str
    term: str
    weight: float


class Candidates(msgspec.Struct, frozen=True):
    """The best of one layer in order."""

    ids: Ids
    scores: npt.NDArray[np.float64]
    matched: int
    """How many satisfy the conditions: exactly if `counted`, else at least."""
    counted: bool
    complete: bool
    """False when a deadline came first: there may be better ones."""
    words: str | Callable[[], str]
    """How they were found; what makes the words, where that takes a while and few want to know."""
    ranked: bool = False
    """They are in the order of the answer: by score, then by document id."""
    keys: npt.NDArray[Any] | None = None
    """Their document ids in the key's type, where these were found along with them."""


class Counts(NamedTuple):
    """What conditions let through in one layer, for `explain`."""

    rows: list[dict[str, Any]]
    """One per condition. One that a deadline has cut is marked "partial", and its numbers are lower bounds."""
    survivors: int
    whole: bool
    """No deadline came first."""


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

    def counts(self, conditions: Sequence[Condition], deadline: float | None = None) -> Counts:
        """Return how many live documents satisfy each condition, the cheapest first, and all of them.

        `deadline` is a time of the monotonic clock: what is counted until then are lower bounds, and rows say so.
        """

    def matching(self, conditions: Sequence[Condition], deadline: float | None = None) -> tuple[Words, int, bool]:
        """Return the live ids that satisfy all conditions as words of a bitmap, their number, and whether that is all.

        `deadline` is a time of the monotonic clock; what matched until then is returned.
        """

    def best(
        self,
        conditions: Sequence[Condition],
        boosts: Sequence[Boost],
        serving: Serving,
        limit: int,
        *,
        counting: bool = True,
        deadline: float | None = None,
        after: After | None = None,
    ) -> Candidates:
        """Return the best `limit` ids (0: all) by light score, ties undecided by the smaller document id included.

        Without `counting` the run stops as soon as nothing better can come. `deadline` is a time of the monotonic
        clock. With `after`, only what ranks behind it.
        """

    def numbers(self, field: str, ids: Ids) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        """Return the field's numbers of `ids`, 0 where missing, and which are there."""

    def payloads(self, field: str, term: str, ids: Ids) -> npt.NDArray[np.float64]:
        """Return the payload that the term has with each of `ids` (1 without payloads), 0 where they lack it."""

    def describe_term(self, field: str, term: str) -> dict[str, Any]:
        """Return kind, length and bytes of a term's posting list, for `explain`."""


def id_array(bitmap: BitMap) -> Ids:
    """Return a bitmap's ids as an ascending array."""
    return np.frombuffer(bitmap.to_array(), dtype=np.uint32) if bitmap else np.empty(0, dtype=np.uint32)
