"""YAML with line numbers: the plain data and, beside it, on which line each path of it stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from catalog._exceptions import Fault, InvalidCatalog

KeyPath = tuple[str | int, ...]


class Lines:
    """Line numbers by path."""

    def __init__(self, file: str) -> None:
        self.file = file
        self._lines: dict[KeyPath, int] = {(): 1}

    def set(self, path: KeyPath, line: int) -> None:
        """Remember where `path` stands."""
        self._lines[path] = line

    def of(self, *path: str | int) -> int:
        """Return the line of the path, or of the nearest thing above it."""
        while path not in self._lines:
            path = path[:-1]
        return self._lines[path]

    def fault(self, text: str, *path: str | int) -> Fault:
        """Make a fault that names file and line."""
        return Fault(self.file, self.of(*path), text)


def read_yaml(file: Path) -> tuple[Any, Lines]:
    """Read a YAML file. Raises InvalidCatalog for syntax errors and for a key that is given twice."""
    lines = Lines(str(file))
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidCatalog([Fault(str(file), 1, f"cannot be read: {error}")]) from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error)
        raise InvalidCatalog([Fault(str(file), mark.line + 1 if mark else 1, f"not YAML: {problem}")]) from error
    faults: list[Fault] = []
    data = _construct(node, (), lines, faults, ()) if node is not None else None
    if faults:
        raise InvalidCatalog(faults)
    return data, lines


def _construct(node: yaml.Node, path: KeyPath, lines: Lines, faults: list[Fault], above: tuple[yaml.Node, ...]) -> Any:
    lines.set(path, node.start_mark.line + 1)
    if node in above:
        faults.append(Fault(lines.file, node.start_mark.line + 1, "an alias contains itself"))
        return None
    above = (*above, node)
    if isinstance(node, yaml.MappingNode):
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            line = key_node.start_mark.line + 1
            if key in result:
                faults.append(Fault(lines.file, line, f"{key!r} is given twice"))
            result[key] = _construct(value_node, (*path, key), lines, faults, above)
            lines.set((*path, key), line)
        return result
    if isinstance(node, yaml.SequenceNode):
        return [_construct(item, (*path, i), lines, faults, above) for i, item in enumerate(node.value)]
    try:
        return yaml.SafeLoader("").construct_object(node)
    except (yaml.YAMLError, ValueError) as error:  # an unknown tag, a date that does not exist
        text = getattr(error, "problem", None) or str(error)
        faults.append(Fault(lines.file, node.start_mark.line + 1, f"cannot be read: {text}"))
        return None
