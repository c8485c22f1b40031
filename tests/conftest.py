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


LONGEST = (
    "tests/end_to_end/test_hbase_pipeline.py",
    "tests/sakila/",
    "tests/messaging/test_kafka_log.py",
    "tests/messaging/test_switches.py",
    "tests/messaging/test_log_contract.py",
    "tests/batch_workflows/test_hbase_workflows.py",
    "tests/cli/test_commands.py",
    "tests/cli/test_catalogue_and_schema.py",
    "tests/storage_repo/",
    "tests/end_to_end/",
    "tests/stack/",
    "tests/gateway/",
    "tests/benchmarks/",
)
"""Files (and folders of such) that take minutes: begun first, so that none of them runs alone at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; the order within a file stays."""

    def rank(item: pytest.Item) -> int:
        return next((place for place, start in enumerate(LONGEST) if item.nodeid.startswith(start)), len(LONGEST))

    items.sort(key=rank)


_failed: dict[str, str] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Remember what failed, and where: in the test, or before or after it."""
    if report.failed:
        _failed[report.nodeid] = report.when


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Leave the names for `tests/run.py`, which says them last: long outputs lose their beginning."""
    path = os.environ.get("ADSINDEX_TEST_FAILURES")
    if path and _failed and not hasattr(session.config, "workerinput"):
        with Path(path).open("a") as file:
            file.writelines(f"{name} ({when})\n" for name, when in _failed.items())
