"""Fixtures of the Updater's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from catalog import Catalog, load_catalog
from storage_repo import Repo
from tests.updater.support import open_repo
from updater import UpdaterCore


@pytest.fixture(scope="session")
def catalog() -> Catalog:
    """The built-in catalogue."""
    return load_catalog()


@pytest.fixture
def repo(tmp_path: Path, catalog: Catalog) -> Iterator[Repo]:
    """An open, empty store."""
    repo = open_repo(tmp_path, catalog)
    yield repo
    repo.close()


@pytest.fixture
def core(repo: Repo, catalog: Catalog) -> UpdaterCore:
    """An Updater on the store."""
    return UpdaterCore(repo, catalog, "v1")
