"""Conditions as values; layers evaluate them. Structs: made and hashed for every request, in a third of the time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import msgspec

Asked: TypeAlias = tuple[tuple[str, tuple[str | int, ...] | None], ...]
"""What a request says to predicates: ("type:name" of a dimension, values), None for "*"; others it leaves out."""


class Term(msgspec.Struct, frozen=True):
    """The field has the term."""

    field: str
    term: str


class Range(msgspec.Struct, frozen=True):
    """The field's number lies in the closed interval; None is open."""

    field: str
    low: float | None
    high: float | None


class And(msgspec.Struct, frozen=True):
    """All parts hold."""

    parts: tuple[Clause, ...]


class Or(msgspec.Struct, frozen=True):
    """Some part holds."""

    parts: tuple[Clause, ...]


class Not(msgspec.Struct, frozen=True):
    """The part does not hold."""

    part: Clause


class Targets(msgspec.Struct, frozen=True):
    """The ad's targeting accepts the request in one dimension. No values: the request does not say."""

    field: str
    dimension: str
    values: tuple[str | int, ...]


class InSchedule(msgspec.Struct, frozen=True):
    """starts <= at < ends; a missing end is open."""

    starts: str
    ends: str
    at_us: int


class Funded(msgspec.Struct, frozen=True):
    """The budget that the document spends from has something left."""


class HasVector(msgspec.Struct, frozen=True):
    """The document has a vector to compare with."""

    field: str


class Meets(msgspec.Struct, frozen=True):
    """The document has no predicate, or one that holds for what the request says."""

    field: str
    asked: Asked


class Inside(msgspec.Struct, frozen=True):
    """The document has no circles, or they take the request's position (degrees). None: the request has none."""

    field: str
    position: tuple[float, float] | None


class Near(msgspec.Struct, frozen=True):
    """The document's point is no further than so many metres from a place (degrees)."""

    field: str
    lat: float
    lon: float
    metres: float


class Runs(msgspec.Struct, frozen=True):
    """The document has no weekly hours, or they have the instant."""

    field: str
    at_us: int
    zone: str | None
    """Of the user: an IANA name, "*" to put no condition on hours in the user's zone, None where it is not said."""


class Is(msgspec.Struct, frozen=True):
    """The document itself."""

    document_id: str


Special: TypeAlias = Meets | Inside | Near | Runs
"""What `_special` finds in a segment, and `_delta_targets` in the delta."""
Clause: TypeAlias = Term | Range | And | Or | Not | Targets | InSchedule | Funded | HasVector | Is | Special


class Condition(msgspec.Struct, frozen=True):
    """A named clause of a request with the words to explain it by."""

    name: str
    clause: Clause
    said: str | Callable[[], str]
    """The words, or what makes them: only `explain` asks for them."""

    @property
    def words(self) -> str:
        """The words."""
        return self.said if isinstance(self.said, str) else self.said()
