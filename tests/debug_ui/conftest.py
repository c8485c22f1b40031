"""A home with three healthy campaigns, all cores run until nothing is outstanding; made once, copied for each test."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.debug_ui.pipeline import Pipeline, fill
from tests.support import in_memory


@pytest.fixture(scope="session")
def homes() -> Iterator[Path]:
    """A directory for homes, in memory if possible: these tests are about what is shown, not about durability."""
    with tempfile.TemporaryDirectory(dir=in_memory()) as directory:
        yield Path(directory)


@pytest.fixture(scope="session")
def template(homes: Path) -> Path:
    """Files of a home whose pipeline is idle: copying them is cheaper than running the pipeline."""
    root = homes / "template"
    opened = Pipeline.open(root)
    fill(opened)
    opened.run("gateway", "updater", "wal_proxy", "argus")
    opened.close()
    return root


@pytest.fixture
def pipeline(template: Path, homes: Path) -> Iterator[Pipeline]:
    """Three healthy campaigns, served; each test has its own."""
    root = homes / "home"
    shutil.copytree(template, root, ignore=shutil.ignore_patterns("run"))
    opened = Pipeline.open(root)
    opened.run()
    yield opened
    opened.close()
    shutil.rmtree(root)
