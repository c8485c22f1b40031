"""Opening and closing what a command looks at a home with."""

from __future__ import annotations

from pathlib import Path

import pytest

from catalog import load_catalog
from cli.backends import close_backends, open_backends
from cli.settings import Settings
from gateway import GatewayError
from messaging import LogError
from messaging.home import Home
from storage_repo import StoreUnavailable
from storage_repo.embedded import EmbeddedRepo


def test_all_are_closed_also_when_one_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Repo on HBase left open would keep the process from ending."""
    opened = open_backends(Home.open(tmp_path / "home"), load_catalog())

    def fail() -> None:
        raise LogError("cannot be closed")

    monkeypatch.setattr(opened.log, "close", fail)
    with pytest.raises(LogError, match="cannot be closed"):
        close_backends(opened)
    with pytest.raises(StoreUnavailable, match="closed"):
        opened.repo.snapshot()
    monkeypatch.undo()
    close_backends(opened)


def test_what_is_open_is_closed_when_another_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ads DB that is away ends the command, and leaves nothing open."""
    closed: list[EmbeddedRepo] = []
    close = EmbeddedRepo.close

    def noted(repo: EmbeddedRepo) -> None:
        closed.append(repo)
        close(repo)

    monkeypatch.setattr(EmbeddedRepo, "close", noted)
    nowhere = Settings(ads_db="mysql+pymysql://nobody:none@127.0.0.1:1/ads")
    with pytest.raises(GatewayError):
        open_backends(Home.open(tmp_path / "home"), load_catalog(), settings=nowhere)
    assert len(closed) == 1
