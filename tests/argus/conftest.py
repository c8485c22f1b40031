"""A pipeline in a temporary directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.argus.world import World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """An empty pipeline."""
    made = World(tmp_path)
    yield made
    made.close()
