"""Every error of every package comes out of a pool of processes as it went in."""

from __future__ import annotations

import importlib
import inspect
import pickle
import pkgutil
from typing import Any

import pytest

from batch_workflows.engines import LocalEngine
from catalog._exceptions import Fault
from storage_repo import SnapshotTooOld
from tests.support import ROOT

PACKAGES = sorted(file.parent.name for file in ROOT.glob("*/__init__.py") if file.parent.name != "tests")
VALUES: dict[str, Any] = {"int": 7, "bytes": b"x", "Fault": [Fault("a.yaml", 3, "wrong")], "tuple[str": ("a", "b")}


def errors() -> list[type[Exception]]:
    """Return all error classes of our own, found by importing every module."""
    found: dict[str, type[Exception]] = {}
    for package in PACKAGES:
        module = importlib.import_module(package)
        names = [info.name for info in pkgutil.walk_packages(module.__path__, f"{package}.")]
        for name in names:
            if name.endswith("__main__"):
                continue  # would run
            try:
                module = importlib.import_module(name)
            except ModuleNotFoundError as error:
                assert (error.name or "").partition(".")[0] not in PACKAGES, name
                continue  # needs an extra that is not here
            for kind in vars(module).values():
                if inspect.isclass(kind) and issubclass(kind, Exception) and kind.__module__ == name:
                    found[f"{name}.{kind.__qualname__}"] = kind
    return [found[name] for name in sorted(found)]


def sample(kind: type[Exception]) -> Exception:
    """Make an error by its constructor, with a value for everything that must be given."""
    if kind.__init__ is Exception.__init__ or not inspect.isfunction(kind.__init__):
        return kind("what went wrong")
    given = {}
    for parameter in list(inspect.signature(kind.__init__).parameters.values())[1:]:
        if parameter.default is parameter.empty:
            annotation = str(parameter.annotation)
            given[parameter.name] = next((v for named, v in VALUES.items() if named in annotation), "x")
    return kind(**given)


ERRORS = errors()


def test_the_walk_finds_the_errors() -> None:
    """All packages were looked through: what no error is found in has none."""
    assert len(ERRORS) > 90
    assert {kind.__module__.partition(".")[0] for kind in ERRORS} >= {*PACKAGES} - {"examples", "tests"}


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: f"{kind.__module__}.{kind.__qualname__}")
def test_an_error_is_the_same_after_a_pickle(kind: type[Exception]) -> None:
    """Class, text and attributes."""
    before = sample(kind)
    after = pickle.loads(pickle.dumps(before))
    assert (type(after), str(after), after.args) == (kind, str(before), before.args)
    assert vars(after) == vars(before)


def too_old(ts: int) -> None:
    """Fail as a task does whose snapshot is gone."""
    raise SnapshotTooOld(ts, ts + 1)


def test_a_task_of_a_pool_fails_with_its_own_error() -> None:
    """Not with a process that was killed, as it looked like while the error could not travel."""
    pool = LocalEngine(1)
    try:
        with pytest.raises(SnapshotTooOld, match="older than the low watermark 8") as raised:
            list(pool.map(too_old, [7]))
    finally:
        pool.close()
    assert (raised.value.ts, raised.value.low_watermark) == (7, 8)
