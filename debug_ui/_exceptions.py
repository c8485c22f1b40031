"""Errors of the debug UI.

DebugUIError                  catch this to treat every refusal of the debug UI alike
├── UnknownKind               no such kind of entity; names the kinds there are
├── UnknownEntity             neither the ads DB nor the Repo nor serving knows the id
├── BadInput                  a request or a number that cannot be read: the person's input is at fault
└── NotReplayable             the dead letter cannot be republished; says what to do instead
"""

from __future__ import annotations

from collections.abc import Iterable

from catalog.portable import Portable


class DebugUIError(Portable):
    """Base of all errors of the debug UI."""


class UnknownKind(DebugUIError):
    """Raised for a kind of entity that the catalogue does not declare."""

    def __init__(self, kind: str, kinds: Iterable[str]) -> None:
        self.kind = kind
        super().__init__(f"there is no kind {kind[:40]!r}; the kinds are {', '.join(kinds)}")


class UnknownEntity(DebugUIError):
    """Raised when no part of the pipeline has ever heard of the entity, or has forgotten it."""

    def __init__(self, kind: str, entity_id: str) -> None:
        self.kind, self.entity_id = kind, entity_id
        super().__init__(
            f"no {kind.replace('_', ' ')} {entity_id[:80]!r}: neither the ads DB nor the Storage Repo nor serving "
            "has it, and no dead letter names it; check the id, or search for its name"
        )


class BadInput(DebugUIError):
    """Raised for input that is malformed or beyond its bound."""


class NotReplayable(DebugUIError):
    """Raised when a dead letter holds nothing that could be published again."""
