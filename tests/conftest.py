"""Fixtures for all tests."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest

from tests.stack_support import (
    hbase_runs,
    hbase_server,
    kafka_server,
    mysql_server,
    oracle_mysql_server,
    own_stack,
    s3_server,
    shared_stack,
)
from tests.support import IN_CI, data_directory

__all__ = [
    "hbase_runs",
    "hbase_server",
    "kafka_server",
    "mysql_server",
    "oracle_mysql_server",
    "own_stack",
    "s3_server",
    "shared_stack",
]
"""Fixtures that pytest finds here."""


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder with real data; without it the test is skipped loudly, and in CI it fails."""
    folder = data_directory()
    if not folder.is_dir():
        text = f"no real data at {folder}; set ADSINDEX_TEST_DATA to the folder that holds kag_facebook_ads/ and others"
        if IN_CI:
            pytest.fail(text)
        warnings.warn(text, stacklevel=1)
        pytest.skip(text)
    return folder


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test touches the user's own home by accident."""
    monkeypatch.setenv("ADSINDEX_HOME", str(tmp_path / "default-home"))
    os.environ.pop("ADSINDEX_CATALOG", None)
