"""Fixtures of the Storage Repo's tests: one repo per backend, a clock to move, and worker processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from repo_backends import BACKENDS, Backend, FakeClock, install
from repo_fleet import Fleet, Nursery

from storage_repo import Limits, Repo


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run every test of a repo on all backends, or on those that its mark names."""
    if "backend" in metafunc.fixturenames:
        mark = metafunc.definition.get_closest_marker("backends")
        metafunc.parametrize("backend", mark.args if mark else sorted(BACKENDS), indirect=True)


@pytest.fixture
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    """Return an empty installation."""
    return install(request.param, tmp_path, request)


@pytest.fixture
def clock() -> FakeClock:
    """Return a clock that stands still."""
    return FakeClock()


@pytest.fixture
def make_repo(backend: Backend, clock: FakeClock) -> Iterator[Callable[..., Repo]]:
    """Return a function that opens the installation with limits, on the test's clock."""
    opened: list[Repo] = []

    def open_repo(**limits: float) -> Repo:
        opened.append(backend.open(Limits(**limits), clock))  # type: ignore[arg-type]
        return opened[-1]

    yield open_repo
    for repo in opened:
        repo.close()


@pytest.fixture
def repo(make_repo: Callable[..., Repo]) -> Repo:
    """Return an open, empty repo with the default limits."""
    return make_repo()


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """Return what forks worker processes."""
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture
def fleet(backend: Backend, nursery: Nursery) -> Iterator[Fleet]:
    """Return what starts and kills worker processes."""
    fleet = Fleet(backend, nursery, seed=20_240_601)
    yield fleet
    fleet.close()
