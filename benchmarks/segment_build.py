"""How fast is a base built, and what does it weigh? A function for the retrieval benchmark to call."""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from catalog import Catalog
from manas import SegmentWriter

Document = tuple[str, int, bytes]
"""Document id, version, canonical body."""


def measure_build(documents: Sequence[Document], catalog: Catalog, directory: Path, *, runs: int = 3) -> dict[str, Any]:
    """Build the same documents several times below `directory`; return medians and the bytes per document by part.

    The time is all of it: decoding, lists, sorting, writing, syncing and checksums. Versions must be at most 1.
    """
    seconds, sizes = [], {}
    for _ in range(runs):
        target = Path(tempfile.mkdtemp(dir=directory)) / "built"
        started = time.perf_counter()
        manifest = SegmentWriter(target, catalog).write(documents, 1, {}, {})
        seconds.append(time.perf_counter() - started)
        sizes = {name: entry.bytes for name, entry in manifest.files.items()}
        shutil.rmtree(target.parent)
    count = max(1, len(documents))
    parts: dict[str, float] = {}
    for name, size in sizes.items():
        part = name.partition(".")[0]
        parts[part] = parts.get(part, 0.0) + size / count
    median = statistics.median(seconds)
    return {
        "documents": len(documents),
        "documents_per_s": len(documents) / median,
        "seconds": seconds,
        "bytes_per_document": sum(parts.values()),
        "bytes_per_document_without_bodies": sum(size for part, size in parts.items() if part != "forward"),
        "bytes_per_document_by_part": parts,
    }
