"""Errors of the ads import, raised before anything is written; bad rows are not errors, they are reported.

ImportRefused             (of batch_workflows) catch this to treat them alike
├── InvalidMapping        the mapping file is at fault; every fault with file and line
└── InvalidExport         the CSV file as a whole is at fault: unreadable, no header, missing columns
"""

from __future__ import annotations

from collections.abc import Sequence

from batch_workflows._exceptions import ImportRefused
from catalog import Fault


class InvalidMapping(ImportRefused):
    """Raised when a mapping file does not validate."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = tuple(sorted(faults, key=lambda fault: (fault.file, fault.line)))
        super().__init__("\n".join(map(str, self.faults)))


class InvalidExport(ImportRefused):
    """Raised when a CSV file cannot be read with its mapping at all."""
