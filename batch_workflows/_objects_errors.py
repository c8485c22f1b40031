"""Errors of objects, bases and engines (see `_exceptions` for those of the workflows).

BatchError
├── ObjectsError             objects below an address cannot be used
│   ├── BadAddress           the address is none that can be opened: correct it
│   ├── ObjectMissing        there is no object of that name
│   ├── ObjectDamaged        an object is not what its manifest says; names the file
│   ├── ObjectsDenied        the credentials were refused, or there are none
│   └── ObjectsUnavailable   the store did not answer, however often it was asked: try again later
└── EngineFailed             a process or task of an engine died; what it did is done again by the next run
"""

from __future__ import annotations

from batch_workflows._exceptions import BatchError


class ObjectsError(BatchError):
    """Base of what makes objects unusable."""


class BadAddress(ObjectsError):
    """Raised for an address that is neither a directory nor s3://BUCKET/PREFIX."""


class ObjectMissing(ObjectsError):
    """Raised when there is no object of a name."""


class ObjectDamaged(ObjectsError):
    """Raised when an object's size or checksum is not what the manifest says; `name` is its path."""

    def __init__(self, name: str, problem: str) -> None:
        self.name = name
        super().__init__(f"{name}: {problem}")


class ObjectsDenied(ObjectsError):
    """Raised when the store refuses the credentials."""


class ObjectsUnavailable(ObjectsError):
    """Raised when the store has not answered for as long as is worth waiting."""


class EngineFailed(BatchError):
    """Raised when an engine lost a process or a task."""
