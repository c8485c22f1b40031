"""The hits of an answer as two columns, which become objects only where somebody looks at them one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from manas.api import Hit


class Hits(Sequence[Hit]):
    """Hits in order of rank. Equal to a list of the same hits; each look at one makes a new object of it.

    To write an answer as JSON: `json.dumps(answer, default=list)`.
    """

    __slots__ = ("_keys", "_scores")

    def __init__(self, keys: npt.NDArray[Any], scores: npt.NDArray[np.float64]) -> None:
        """Takes over arrays of document ids and scores of the same length."""
        self._keys, self._scores = keys, scores

    @property
    def ad_ids(self) -> list[Any]:
        """Document ids, best first."""
        ids: list[Any] = self._keys.tolist()
        return ids

    @property
    def scores(self) -> list[float]:
        """Scores, best first."""
        scores: list[float] = self._scores.tolist()
        return scores

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[Hit]:
        for key, score in zip(self.ad_ids, self.scores, strict=True):
            yield {"ad_id": key, "score": score}

    @overload
    def __getitem__(self, place: int) -> Hit: ...

    @overload
    def __getitem__(self, place: slice) -> Hits: ...

    def __getitem__(self, place: int | slice) -> Hit | Hits:
        if isinstance(place, slice):
            return Hits(self._keys[place], self._scores[place])
        return {"ad_id": self._keys[place].item(), "score": float(self._scores[place])}

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Hits | list) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(list(self))
