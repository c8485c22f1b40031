"""Errors of the Updater.

UpdaterError
└── RefusedUpdate     an update that no retry can store: unknown table or source, bad row key; becomes a dead letter
"""

from __future__ import annotations

from catalog.portable import Portable


class UpdaterError(Portable):
    """Base of the Updater's errors."""


class RefusedUpdate(UpdaterError):
    """Raised for an update that cannot be stored; `reason` is the code under which it is counted."""

    def __init__(self, reason: str, text: str) -> None:
        self.reason = reason
        super().__init__(text)
