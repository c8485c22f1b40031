"""A home with three healthy campaigns, all cores run until nothing is outstanding; made once, copied for each test."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.debug_ui.pipeline import Pipeline, fill


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of a home whose pipeline is idle: copying them costs no fsync, running the pipeline many."""
    root = tmp_path_factory.mktemp("template") / "home"
    opened = Pipeline.open(root)
    fill(opened)
    opened.run("gateway", "updater", "wal_proxy", "argus")
    opened.close()
    return root


@pytest.fixture
def pipeline(template: Path, tmp_path: Path) -> Iterator[Pipeline]:
    """Three healthy campaigns, served; each test has its own."""
    shutil.copytree(template, tmp_path / "home", ignore=shutil.ignore_patterns("run"))
    opened = Pipeline.open(tmp_path / "home")
    opened.run()
    yield opened
    opened.close()
