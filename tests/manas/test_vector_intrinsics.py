"""Vector code written for LLVM by hand: the same answers as numpy, with and without the processor's own instruction."""

# mypy: ignore-errors
from __future__ import annotations

import numpy as np
import pytest
from numba import njit

from manas._vector_codes import MIDDLE, encode, fours_of
from manas.kernels import _vector_intrinsics as vector
from manas.kernels.vector_layout import GROUP
from tests.manas.vector_sets import CLUSTERED, vectors

NATIVE = [False, True] if vector.native_products() else [False]


@pytest.mark.parametrize("native", NATIVE, ids=lambda native: "native" if native else "portable")
def test_rows_whose_sum_reaches_the_bar_are_flagged(native: bool) -> None:
    """Sums of unsigned times signed bytes of 16 rows against bars between, on and beyond them, extremes included."""
    reaching = vector.reaching_of(native=native)

    @njit
    def flagged(codes, weights, fours, bar):
        return reaching(codes, weights, fours, bar)

    rng = np.random.default_rng(1)
    for fours in (2, 8, 50):
        codes = rng.integers(0, 256, (fours, GROUP, 4), np.uint8)
        weights = rng.integers(-127, 128, (fours, 4), np.int8)
        codes[:, 3], codes[:, 5] = 255, 0
        weights[0] = -127
        sums = np.einsum("frd,fd->r", codes.astype(np.int64), weights.astype(np.int64))
        for bar in (*sums.tolist(), int(sums.max()) + 1, -(1 << 31)):
            wanted = sum(1 << place for place, total in enumerate(sums) if total >= bar)
            assert flagged(codes.ctypes.data, weights.ctypes.data, fours, bar) == wanted


def test_sixteen_similarities_and_the_greatest_of_a_group() -> None:
    """Similarities of a group of centroids, the greatest of them and where it is; a value that is nowhere is last."""

    @njit
    def measured(block, query, dims, out):
        vector.similarities(block, query, dims, out)
        greatest = vector.most(out)
        return greatest, vector.place_of(out, greatest), vector.place_of(out, greatest + np.float32(1))

    rows, query = vectors(GROUP, CLUSTERED, dims=7), vectors(1, CLUSTERED, dims=7, draw=1)[0]
    block, out = np.ascontiguousarray(rows.T), np.zeros(GROUP, np.float32)
    greatest, place, nowhere = measured(block.ctypes.data, query.ctypes.data, 7, out.ctypes.data)
    np.testing.assert_allclose(out, rows @ query, atol=1e-6)
    assert (greatest, place, nowhere) == (out.max(), out.argmax(), GROUP - 1)


def test_codes_are_near_their_vectors_and_laid_out_in_groups() -> None:
    """Every component is within half a step of its code; padding has the code of 0; a dimension of zeros stays one."""
    matrix = vectors(37, CLUSTERED, dims=10)
    matrix[:, 4] = 0
    coded = encode(matrix)
    fours = fours_of(10)
    assert (fours, coded.fours) == (4, 4)
    rows = (
        coded.codes.reshape(-1, fours, GROUP, 4).transpose(0, 2, 1, 3).reshape(-1, fours * 4).astype(np.int64) - MIDDLE
    )
    assert len(rows) == 48
    assert not rows[37:].any()
    assert not rows[:, 10:].any()
    assert np.abs(rows).max() == 127
    assert (np.abs(rows[:37, :10] * coded.scales - matrix) <= coded.scales * 0.5001).all()
    assert coded.power == pytest.approx((rows[:37] ** 2).sum(axis=1).mean())
