"""Imports point only upwards in DESIGN.md's package table (section 3), wherever and however they are written."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ROOT

_SERVICE = {"catalog", "messaging", "storage_repo", "gateway", "updater", "argus", "manas"}
_BATCH = _SERVICE | {"batch_workflows"}
_ALL = _BATCH | {"compose", "debug_ui", "cli", "benchmarks"}
ALLOWED: dict[str, set[str]] = {
    "catalog": set(),
    "compose": set(),
    "messaging": {"catalog"},
    "storage_repo": {"catalog", "messaging"},
    "gateway": {"catalog", "messaging"},
    "updater": {"catalog", "messaging", "storage_repo"},
    "argus": {"catalog", "messaging", "storage_repo"},
    "manas": {"catalog", "messaging"},
    "batch_workflows": _SERVICE,
    "debug_ui": _BATCH,
    "cli": _ALL,
    "benchmarks": _ALL,
}
OURS = {*ALLOWED, "tests"}
_DYNAMIC = {"import_module", "__import__"}


def imports(tree: ast.AST, package: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """Yield (line, module) of every import in a file of `package`: at any depth, relative, or by a literal name."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                for name in names:
                    yield node.lineno, name.name
            case ast.ImportFrom(module=module, level=level, names=names):
                base = package[: len(package) - level + 1] if level else ()
                prefix = [*base, *([module] if module else [])]
                if not prefix:  # `from .. import x` at the top: x is the package
                    for name in names:
                        yield node.lineno, name.name
                else:
                    yield node.lineno, ".".join(prefix)
            case ast.Call(
                func=ast.Name(id=called) | ast.Attribute(attr=called), args=[ast.Constant(value=str(name)), *_]
            ):
                if called in _DYNAMIC:
                    yield node.lineno, ".".join(package) + name if name.startswith(".") else name


def violations(root: Path) -> list[str]:
    """Return "file:line: package imports package" for every import that points the wrong way."""
    found = []
    for package, allowed in ALLOWED.items():
        for file in sorted((root / package).rglob("*.py")):
            relative = file.relative_to(root)
            tree = ast.parse(file.read_text(encoding="utf-8"), str(relative))
            for line, module in imports(tree, relative.parent.parts):
                target = module.split(".")[0]
                if target in OURS and target != package and target not in allowed:
                    found.append(f"{relative}:{line}: {package} imports {target}")
    return found


def test_imports_point_upwards() -> None:
    """No package imports one that is not above it in the table."""
    assert not violations(ROOT)


def test_every_package_is_in_the_table() -> None:
    """A new top-level package must be given its place, and a place must have its package."""
    packages = {file.parent.name for file in ROOT.glob("*/__init__.py")}
    assert packages == OURS


@pytest.mark.parametrize(
    "file, code, found",
    [
        ("catalog/model.py", "import messaging.topics", "catalog/model.py:1: catalog imports messaging"),
        (
            "messaging/api.py",
            "\n\nfrom storage_repo.api import Repo",
            "messaging/api.py:3: messaging imports storage_repo",
        ),
        ("gateway/a/b.py", "def f():\n    from updater import x", "gateway/a/b.py:2: gateway imports updater"),
        ("argus/a.py", "from .. import manas", "argus/a.py:1: argus imports manas"),
        ("manas/a/b.py", "from ...argus import x", "manas/a/b.py:1: manas imports argus"),
        ("updater/a.py", "if TYPE_CHECKING:\n  import argus", "updater/a.py:2: updater imports argus"),
        ("catalog/a.py", "importlib.import_module('gateway.feed')", "catalog/a.py:1: catalog imports gateway"),
        ("catalog/a.py", "x = __import__('gateway')", "catalog/a.py:1: catalog imports gateway"),
        ("batch_workflows/a.py", "import debug_ui", "batch_workflows/a.py:1: batch_workflows imports debug_ui"),
        ("debug_ui/a.py", "import os, cli.main", "debug_ui/a.py:1: debug_ui imports cli"),
        ("cli/a.py", "from tests import support", "cli/a.py:1: cli imports tests"),
    ],
)
def test_a_planted_violation_is_found(tmp_path: Path, file: str, code: str, found: str) -> None:
    """Absolute, relative, nested, conditional and dynamic imports are all seen."""
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(code)
    assert violations(tmp_path) == [found]


@pytest.mark.parametrize(
    "file, code",
    [
        ("catalog/a.py", "from catalog import model; from . import b; from .b import c; import catalogue"),
        ("cli/a.py", "import benchmarks, debug_ui, argus"),
        ("benchmarks/a.py", "from cli import main"),
        ("storage_repo/embedded/a.py", "from .._exceptions import X; import messaging; import_module('.b')"),
    ],
)
def test_what_is_allowed_is_not_reported(tmp_path: Path, file: str, code: str) -> None:
    """Imports within a package, upwards, and of modules that only sound like ours are fine."""
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(code)
    assert not violations(tmp_path)
