"""One byte per dimension: vectors small enough to look at all of a list, before what seems near is compared exactly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from manas._schema import Floats
from manas.kernels.vector_layout import GROUP

MIDDLE = 128
"""The code of 0: codes are bytes without a sign, as processors multiply them."""
_STEPS = 127
_FOUR = 4
_CHUNK = 16_384
"""Rows coded at a time, a multiple of `GROUP`: bounds the memory."""

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Codes:
    """Codes of a matrix's rows, in the order in which the kernel reads them."""

    codes: Bytes
    """For every `GROUP` rows and every four dimensions, four bytes of each row; filled up with `MIDDLE`."""
    scales: Floats
    """By dimension: what one step of a code is."""
    power: float
    """Mean sum of squares of a row's codes, counted from the middle."""

    @property
    def fours(self) -> int:
        """Fours of dimensions, filled up to an even number."""
        return fours_of(len(self.scales))


def fours_of(dims: int) -> int:
    """Return how many fours of dimensions the codes have: an even number."""
    return 2 * -(-dims // (2 * _FOUR))


def bytes_of(rows: int, dims: int) -> int:
    """Return how many bytes the codes of so many rows take."""
    return -(-rows // GROUP) * GROUP * fours_of(dims) * _FOUR


def encode(matrix: Floats) -> Codes:
    """Round every component to one of 255 steps, which are as fine as the dimension's greatest component allows."""
    rows, dims = matrix.shape
    scales = (np.abs(matrix).max(axis=0, initial=0.0) / _STEPS).astype(np.float32)
    divisors = np.where(scales > 0, scales, 1).astype(np.float32)
    fours = fours_of(dims)
    groups = -(-rows // GROUP)
    codes = np.full((groups, fours, GROUP, _FOUR), MIDDLE, np.uint8)
    power = 0.0
    for at in range(0, rows, _CHUNK):
        steps = np.rint(matrix[at : at + _CHUNK] / divisors)
        power += float(np.square(steps).sum(dtype=np.float64))
        padded = np.full((-(-len(steps) // GROUP) * GROUP, fours * _FOUR), MIDDLE, np.uint8)
        padded[: len(steps), :dims] = (steps + MIDDLE).astype(np.uint8)
        turned = padded.reshape(-1, GROUP, fours, _FOUR).transpose(0, 2, 1, 3)
        codes[at // GROUP : at // GROUP + len(turned)] = turned
    return Codes(codes.reshape(-1), scales, power / max(1, rows))
