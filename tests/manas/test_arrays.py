"""Arrays as files: their bytes, and what a full disk says."""

from __future__ import annotations

import errno
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from manas._arrays import write_array


@pytest.mark.parametrize(
    "values",
    [np.arange(5, dtype=np.uint64), np.empty(0), np.zeros((2, 3), np.float32), np.arange(10)[::2], np.zeros(3, bool)],
    ids=["flat", "empty", "rows", "strided", "flags"],
)
def test_an_array_is_its_bytes_in_order(values: npt.NDArray[Any]) -> None:
    """Whatever its shape and strides."""
    file = BytesIO()
    write_array(file, values)
    assert file.getvalue() == values.tobytes()


def test_a_full_disk_says_so() -> None:
    """The error has its number, by which people are told what to do."""
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(OSError, match="No space left") as raised, full.open("wb") as file:
        write_array(file, np.zeros(1 << 20))
    assert raised.value.errno == errno.ENOSPC
