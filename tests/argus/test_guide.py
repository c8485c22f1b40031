"""HANDLERS.md says what is true: its snippets are taken out and run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import argus.testing
from argus import Handler, builtin_handlers, load_registry
from catalog import DEFAULT_CATALOG, Catalog, load_catalog
from tests.argus.world import PIN, World

GUIDE = Path(__file__).resolve().parents[2] / "HANDLERS.md"


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)


def _edited(path: Path) -> Catalog:
    """Make the guide's edits to a copy of the catalogue: each below the place that its first line names."""
    lines = DEFAULT_CATALOG.read_text().splitlines()
    for block in _blocks("yaml"):
        place, *added = block.splitlines()
        at = 0
        for depth, name in enumerate(place.removeprefix("# below: ").split(" / ")):
            at = lines.index(f"{'  ' * depth}{name}:", at) + 1
        lines[at:at] = added
    file = path / "ads.yaml"
    file.write_text("\n".join(lines))
    return load_catalog(file)


def test_the_snippets_run_and_the_fields_arrive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The edits load, the handlers pass their own tests, and documents carry both new fields."""
    catalog = _edited(tmp_path)
    monkeypatch.setattr(argus.testing, "_default_catalog", lambda: catalog)
    names: dict[str, Any] = {"__name__": "guide"}
    for block in _blocks("python"):
        exec(compile(block, str(GUIDE), "exec"), names)
    title_words = names["title_words"]
    assert isinstance(title_words, Handler)
    world = World(tmp_path / "world", load_registry(catalog, [*builtin_handlers(), title_words]))
    try:
        world.ad()
        world.put("pin", "p1", **PIN, material="cotton")
        world.settle()
        assert (world.document()["title_words"], world.document()["material"]) == (3, "cotton")
        world.put("pin", "p1", **{**PIN, "title": "nul \x00", "material": "wool"})
        world.settle()
        assert "title_words" not in world.document()
        assert world.document()["material"] == "wool"
    finally:
        world.close()
