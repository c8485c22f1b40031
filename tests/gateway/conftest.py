"""Fixtures of the Gateway's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from messaging.home import Home
from tests.gateway.gateway_support import Captured


@pytest.fixture
def ads(tmp_path: Path) -> Iterator[Captured]:
    """An empty ads DB with capture installed."""
    captured = Captured(tmp_path / "ads.db")
    yield captured
    captured.close()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home of its own."""
    return Home.open(tmp_path / "home")
