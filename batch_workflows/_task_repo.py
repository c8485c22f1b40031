"""The Repo of a home, opened once in each process that tasks run in: it stays open for the next task."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from storage_repo import Repo

_open: list[tuple[Path, Repo]] = []
"""At most one: who works for another home has no more use for the first."""


def repo_of(open_repo: Callable[[], Repo], home: Path) -> Repo:
    """Return this process's Repo of a home; `home` only tells homes apart, no file of it is opened."""
    if not _open or _open[0][0] != home:
        close_repo()
        _open.append((home, open_repo()))
    return _open[0][1]


def close_repo() -> None:
    """Close what tasks opened in this process; safe to call twice."""
    while _open:
        _open.pop()[1].close()
