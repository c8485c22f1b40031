"""Arrays as files."""

from __future__ import annotations

from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt


def write_array(file: BinaryIO, values: npt.NDArray[Any]) -> None:
    """Append an array's bytes to a file. Raises OSError with its number: numpy's own `tofile` does not say why."""
    file.write(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
