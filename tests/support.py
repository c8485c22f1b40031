"""What several test packages share: where the data is, and the whole pipeline in this process."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IN_CI = os.environ.get("CI", "").lower() == "true"


def data_directory() -> Path:
    """Return the folder with real data sets: $ADSINDEX_TEST_DATA, or shared/data beside the checkout."""
    explicit = os.environ.get("ADSINDEX_TEST_DATA")
    return Path(explicit) if explicit else ROOT.parent / "shared" / "data"
