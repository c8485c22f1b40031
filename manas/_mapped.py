"""Files of a segment mapped into memory as arrays and strings; nothing is read but lengths."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from manas._dictionary import Strings, groups_of
from manas._manifest import Manifest
from manas._packed import Packing


def map_file(file: Path) -> mmap.mmap | bytes:
    """Map a file's bytes."""
    with file.open("rb") as handle:
        if file.stat().st_size == 0:  # an empty file cannot be mapped
            return b""
        return mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)


def map_array(file: Path, dtype: Any, length: int | None = None) -> npt.NDArray[Any]:
    """Map a file as an array. Raises ValueError when it has another length."""
    found = np.frombuffer(map_file(file), dtype=dtype)
    if length is not None and len(found) != length:
        raise ValueError(f"{file.name} has {len(found)} values instead of {length}")
    return found


def map_whole(file: Path, length: int, short: type[np.uint16] | type[np.uint32] = np.uint32) -> npt.NDArray[Any]:
    """Map whole numbers from 0, of a short type or of twice its bytes, as the length tells."""
    width = np.dtype(short).itemsize
    wide = file.stat().st_size != width * length
    return map_array(file, f"<u{2 * width}" if wide else short, length)


def map_packed(directory: Path, name: str, manifest: Manifest, length: int) -> tuple[npt.NDArray[Any], Packing]:
    """Map a file of packed whole numbers; return what is stored, and how."""
    packing = manifest.packed[name]
    return map_array(directory / name, packing.dtype, length), packing


def map_strings(directory: Path, name: str, counts: Sequence[int]) -> list[Strings]:
    """Map front-coded strings: several sorted runs of so many, each beginning a group."""
    groups = [groups_of(count) for count in counts]
    offsets, blob = map_whole(directory / f"{name}.offsets", sum(groups) + 1), map_file(directory / f"{name}.blob")
    if int(offsets[-1]) != len(blob):
        raise ValueError(f"{name}.offsets do not end at the end of {name}.blob")
    found, first = [], 0
    for count, own in zip(counts, groups, strict=True):
        found.append(Strings(blob, offsets[first : first + own], count))
        first += own
    return found
