"""Fixtures of the tests of snapshots and imports; others have an `opened` of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from catalog import Catalog
from tests.batch_workflows.parquet_support import ROWS, TYPES, catalogue, fill, open_with
from tests.batch_workflows.run_support import Opened


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    """The built-in catalogue with a column of every type more."""
    return catalogue(tmp_path, **TYPES)


@pytest.fixture
def opened(tmp_path: Path, catalog: Catalog) -> Iterator[Opened]:
    """A filled Repo."""
    home = open_with(tmp_path / "home", catalog)
    fill(home, ROWS, 7)
    yield home
    home.repo.close()


@pytest.fixture
def empty(tmp_path: Path, catalog: Catalog) -> Iterator[Opened]:
    """An empty Repo of another home."""
    home = open_with(tmp_path / "other", catalog)
    yield home
    home.repo.close()
