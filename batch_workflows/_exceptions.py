"""Errors of the batch workflows.

BatchError
├── ImportRefused       an export or its mapping cannot be read at all; nothing was written
├── UnknownSelection    a refresh or resync names a table or id that does not exist
└── BaseRefused         a base index failed a gate; it was not published and the old one stays
"""

from __future__ import annotations


class BatchError(Exception):
    """Base of the batch workflows' errors."""


class ImportRefused(BatchError):
    """Raised before anything is written when an export or its mapping cannot be used."""


class UnknownSelection(BatchError):
    """Raised when a selection names something that does not exist."""


class BaseRefused(BatchError):
    """Raised when a base index fails a gate; the report names the fields and sample documents."""
