"""Errors of the catalogue.

CatalogError              catch this to treat every fault of a declaration or of a value alike
├── InvalidCatalog        the file does not hold what it must; every fault found, each with file and line
├── DependencyError       handlers and columns do not fit: cycle, unknown column, two writers of one column
└── InvalidValue          a value is not of its column's declared type; names column, type and value
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from catalog.portable import Portable


class CatalogError(Portable):
    """Base of all errors of the catalogue."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong in a catalogue file; `line` counts from 1."""

    file: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text}"


class InvalidCatalog(CatalogError):
    """Raised at start when a catalogue file does not validate."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = tuple(sorted(faults, key=lambda f: (f.file, f.line)))
        super().__init__("\n".join(str(f) for f in self.faults))


class DependencyError(CatalogError):
    """Raised at start when declared handlers and declared columns do not fit together."""


class InvalidValue(CatalogError):
    """Raised when a value is not what its column declares."""

    def __init__(self, column: str, reason: str, text: str) -> None:
        self.column, self.reason = column, reason
        super().__init__(f"{column}: {text}")
