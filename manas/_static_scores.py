"""Scores that do not depend on the request, and what bounds them: a byte by id, floats by block."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

import numpy as np
import numpy.typing as npt

from manas.kernels.layout import BLOCK_IDS, CODES


@dataclass(frozen=True, slots=True)
class ScoreCodes:
    """A byte for every score that bounds it from above: kernels compare 64 of them at a time with the worst of k."""

    codes: npt.NDArray[np.uint8]
    word_codes: npt.NDArray[np.uint8]
    """The largest of every 64 ids."""
    levels: npt.NDArray[np.float64]
    """By code, ascending: no score with the code is above it."""
    ranks: npt.NDArray[np.int64]
    """By code: how many scores are not below its level."""

    @property
    def addresses(self) -> tuple[int, int, int, int]:
        """Of the four arrays."""
        arrays = (self.codes, self.word_codes, self.levels, self.ranks)
        codes, word_codes, levels, ranks = (array.ctypes.data for array in arrays)
        return codes, word_codes, levels, ranks

    @classmethod
    def of(cls, values: npt.NDArray[np.float64]) -> Self:
        """Choose levels that are the finer the higher: each leaves a fixed share fewer scores above it."""
        levels, ranks = np.full(CODES, np.inf), np.zeros(CODES, np.int64)
        if len(values):
            falling = np.sort(values)[::-1]
            ranks = np.geomspace(len(falling), 1, CODES).astype(np.int64)
            levels = falling[ranks - 1]
        codes = np.searchsorted(levels, values).astype(np.uint8)
        return cls(codes, codes.reshape(-1, 64).max(axis=1) if len(codes) else codes, levels, ranks)


@dataclass(frozen=True, slots=True)
class StaticScores:
    """Scores that do not depend on the request, by id and bounded per block."""

    values: npt.NDArray[np.float64]
    ties: npt.NDArray[np.int64] | npt.NDArray[np.uint32]
    """What decides between equal scores: the smaller one."""
    block_max: npt.NDArray[np.float64]
    suffix_max: npt.NDArray[np.float64]
    ordered: bool
    """Ids follow (score descending, tie key ascending)."""
    codes: ScoreCodes | None = None
    """For scores that ids do not follow: there nearly every block has some that are high."""
    addresses: tuple[int, int, int, int] = field(init=False)
    """Of the four arrays."""

    def __post_init__(self) -> None:
        arrays = (self.values, self.ties, self.block_max, self.suffix_max)
        object.__setattr__(self, "addresses", tuple(array.ctypes.data for array in arrays))

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return len(self.block_max)

    def first_below(self, score: float) -> int:
        """Return a block before which no score is `score` or below; for ordered scores only."""
        return max(0, int(np.searchsorted(-self.block_max, -score, side="left")) - 1)

    @classmethod
    def of(
        cls,
        values: npt.NDArray[np.float64],
        ties: npt.NDArray[np.int64] | npt.NDArray[np.uint32],
        *,
        ordered: bool,
    ) -> StaticScores:
        """Compute the bounds. Both arrays are padded to whole blocks, scores with -inf."""
        block_max = values.reshape(-1, BLOCK_IDS).max(axis=1) if len(values) else np.empty(0)
        suffix = np.maximum.accumulate(block_max[::-1])[::-1].copy()
        return cls(values, ties, block_max, suffix, ordered, None if ordered else ScoreCodes.of(values))
