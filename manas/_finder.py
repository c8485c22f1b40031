"""The way from a document id that is a whole number to its internal id."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy.typing as npt

from manas import kernels
from manas._exceptions import SegmentCorrupt
from manas._packed import Packing, ShortIds
from manas.kernels.stored_layout import Locate

_Parameters = ctypes.c_int64 * Locate.COUNT
_FAR = 1 << 63
"""Beyond what is stored in 8 bytes."""


class Finder:
    """Finds documents of a segment among its ids in order. Safe for threads.

    Every delta asks each layer whether it has the document; a kernel's call takes a tenth of halving in Python.
    """

    def __init__(self, file: Path, order: ShortIds, ties: npt.NDArray[Any], packing: Packing, documents: int) -> None:
        """`file` is what `order` maps; `ties` are of 4 or 8 bytes, as `packing` stores them, of all ids at least."""
        self._file, self._packing = file, packing
        rows = order.rows
        self._keep = rows, ties
        width = rows.dtype.itemsize * rows.shape[1]
        self._given = rows.ctypes.data, width, documents, ties.ctypes.data, ties.dtype.itemsize
        self._locate = kernels.load().brief.locate

    def find(self, document_id: str) -> int | None:
        """Return the internal id of a document, None when there is none. Raises SegmentCorrupt."""
        try:
            key = int(document_id)
        except ValueError:
            return None
        stored, rest = divmod(key - self._packing.base, self._packing.step)
        if rest or not -_FAR <= stored < _FAR or str(key) != document_id:
            return None
        p = _Parameters(*self._given, stored)
        self._locate(ctypes.addressof(p))
        if (internal := p[Locate.ID]) < -1:
            raise SegmentCorrupt(str(self._file), "has an id that no document has")
        return internal if internal >= 0 else None
