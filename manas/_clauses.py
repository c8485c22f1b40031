"""Conditions as values; layers evaluate them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

Asked: TypeAlias = tuple[tuple[str, tuple[str | int, ...] | None], ...]
"""What a request says to predicates: ("type:name" of a dimension, values), None for "*"; others it leaves out."""


@dataclass(frozen=True, slots=True)
class Term:
    """The field has the term."""

    field: str
    term: str


@dataclass(frozen=True, slots=True)
class Range:
    """The field's number lies in the closed interval; None is open."""

    field: str
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class And:
    """All parts hold."""

    parts: tuple[Clause, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """Some part holds."""

    parts: tuple[Clause, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """The part does not hold."""

    part: Clause


@dataclass(frozen=True, slots=True)
class Targets:
    """The ad's targeting accepts the request in one dimension. No values: the request does not say."""

    field: str
    dimension: str
    values: tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class InSchedule:
    """starts <= at < ends; a missing end is open."""

    starts: str
    ends: str
    at_us: int


@dataclass(frozen=True, slots=True)
class Funded:
    """The budget that the document spends from has something left."""


@dataclass(frozen=True, slots=True)
class HasVector:
    """The document has a vector to compare with."""

    field: str


@dataclass(frozen=True, slots=True)
class Meets:
    """The document has no predicate, or one that holds for what the request says."""

    field: str
    asked: Asked


@dataclass(frozen=True, slots=True)
class Inside:
    """The document has no circles, or they take the request's position (degrees). None: the request has none."""

    field: str
    position: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Near:
    """The document's point is no further than so many metres from a place (degrees)."""

    field: str
    lat: float
    lon: float
    metres: float


@dataclass(frozen=True, slots=True)
class Runs:
    """The document has no weekly hours, or they have the instant."""

    field: str
    at_us: int
    zone: str | None
    """Of the user: an IANA name, "*" to put no condition on hours in the user's zone, None where it is not said."""


@dataclass(frozen=True, slots=True)
class Is:
    """The document itself."""

    document_id: str


Special: TypeAlias = Meets | Inside | Near | Runs
"""What `_special` finds in a segment, and `_delta_targets` in the delta."""
Clause: TypeAlias = Term | Range | And | Or | Not | Targets | InSchedule | Funded | HasVector | Is | Special


@dataclass(frozen=True, slots=True)
class Condition:
    """A named clause of a request with the words to explain it by."""

    name: str
    clause: Clause
    words: str
