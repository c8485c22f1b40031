"""Publish the same documents as base after base until killed; print the version of each."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from manas import publish
from tests.manas.support import document, write_segment


def main(base_dir: str, count: str) -> None:
    """Publish for ever; what is built lies beside the bases, so that publishing is a rename."""
    for snapshot_ts in range(1, 1_000_000):
        directory = Path(tempfile.mkdtemp(dir=Path(base_dir).parent))
        built = write_segment(directory, [document(i) for i in range(int(count))], snapshot_ts=snapshot_ts)
        print(publish(Path(base_dir), built), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
