"""Errors of Argus.

ArgusError                    catch this to treat every failure of Argus alike
├── DeclarationError          a handler's decorator is wrong in itself; found at import, fix the handler
├── UndeclaredRead            a handler read a column or source that it did not declare: a bug of the handler
├── UndeclaredWrite           a handler returned a column that it did not declare: a bug of the handler
├── CannotPause               a switch names a handler that there is not, or that must always run
├── InvalidInput              a handler refuses what the row holds: the data is at fault, its outputs are cleared
└── SourceError               an external source did not answer
    ├── SourceUnavailable     no value, not even an old one that may stand in: the outputs keep their previous values
    │   └── SourceBehind      it answered, but not with the version that a signal spoke of: its data is at fault
    └── SourceTimeout         one call took longer than its time limit; becomes SourceUnavailable or a stale value
"""

from __future__ import annotations

from catalog.portable import Portable


class ArgusError(Portable):
    """Base of all errors of Argus."""


class DeclarationError(ArgusError):
    """Raised when a handler is declared in a way that no catalogue could make right."""


class UndeclaredRead(ArgusError):
    """Raised when a handler reads what it did not declare; the message says what to add to the decorator."""


class UndeclaredWrite(ArgusError):
    """Raised when a handler returns what it did not declare; the message says what to add to the decorator."""


class CannotPause(ArgusError):
    """Raised for a switch of a handler that does not exist, or of the one that says what may serve."""


class InvalidInput(ArgusError):
    """Raised by a handler for data that it refuses.

    `reason` is a stable code that is counted, `sentence` says what is wrong with which value and how to fix it.
    """

    def __init__(self, reason: str, sentence: str) -> None:
        self.reason, self.sentence = reason, sentence
        super().__init__(f"{reason}: {sentence}")


class SourceError(ArgusError):
    """Base of the failures of external sources."""


class SourceUnavailable(SourceError):
    """Raised to a handler when a source gave no value that may be used."""


class SourceBehind(SourceUnavailable):
    """Raised to a handler when a source is up, but has only an older version than a content signal announced."""


class SourceTimeout(SourceError):
    """Raised when one call of a source took longer than its time limit."""
