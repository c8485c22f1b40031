"""The lock files have what pyproject.toml asks for, pinned by hashes."""

from __future__ import annotations

import re
import tomllib

import pytest

from tests.support import ROOT

SPARK = "requirements-spark.lock"
"""Only what is put beside the test environment, which has the rest."""
LOCKS = {"requirements.lock": (), "requirements-test.lock": ("test",), "requirements-bench.lock": ("bench",),
         SPARK: ("spark",)}  # fmt: skip


def normal(name: str) -> str:
    """Return a distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_has_every_dependency_with_hashes(lock: str) -> None:
    """A dependency added to pyproject.toml and not locked breaks a fresh machine only: this says so everywhere."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    own = [] if lock == SPARK else project["dependencies"]
    wanted = [*own, *(d for extra in LOCKS[lock] for d in project["optional-dependencies"][extra])]
    pinned: dict[str, str] = {}
    for entry in re.split(r"\n(?=\S)", (ROOT / lock).read_text().strip()):
        match = re.match(r"([A-Za-z0-9_.-]+)(?:\[[^\]]*\])?==(\S+)", entry)
        assert match is not None, entry[:80]
        assert "--hash=sha256:" in entry, match[1]
        pinned[normal(match[1])] = match[2]
    names = {normal(re.split(r"[\[<>=;~! ]", dependency, maxsplit=1)[0]) for dependency in wanted}
    assert names - pinned.keys() == set()
