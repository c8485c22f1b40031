"""The words of the catalogue: types, families, lanes, destinations, operations, messages."""

from __future__ import annotations

from enum import StrEnum


class ValueType(StrEnum):
    """Types of columns and fields."""

    STRING = "string"
    INT = "int"
    FLOAT = "float"
    BOOL = "bool"
    BYTES = "bytes"
    TIME = "time"
    """Microseconds since the Unix epoch, UTC."""
    JSON = "json"
    """Text that the consuming handler parses and judges."""
    STRING_LIST = "list<string>"
    INT_LIST = "list<int>"
    VECTOR = "vector"
    """Little-endian float32 array of the declared number of dimensions, as bytes."""
    PREDICATE = "predicate"
    """A Boolean expression over the catalogue's dimensions (`catalog.predicates`), as its canonical text."""
    CIRCLES = "circles"
    """Circles on the earth (`catalog.places`): rows of latitude, longitude, radius in metres, 1 if excluded."""
    POINT = "point"
    """A place on the earth: latitude and longitude in degrees."""
    HOURS = "hours"
    """Weekly hours in a time zone (`catalog.hours`), as their canonical text."""


LIST_OF = {ValueType.STRING: ValueType.STRING_LIST, ValueType.INT: ValueType.INT_LIST}
"""What many values of a type become; other types have no lists."""
ELEMENT_OF = {many: one for one, many in LIST_OF.items()}

Scalar = str | int | float | bool


class Family(StrEnum):
    """Column families: what is read together is kept together."""

    CONTROL = "control"
    CONTENT = "content"
    DERIVED = "derived"
    SERVABLE = "servable"
    META = "meta"


class LaneName(StrEnum):
    """Priority classes."""

    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"


class Destination(StrEnum):
    """Where a document field goes in Manas besides the forward index."""

    FORWARD = "forward"
    TERM = "term"
    """Exact values in the inverted index."""
    TEXT = "text"
    """Normalised terms in the inverted index; the value is a list<string> of terms."""
    NUMERIC = "numeric"
    """Range filters."""
    VECTOR = "vector"
    """Nearest neighbours."""
    TARGETING = "targeting"
    """Targeting terms: matched against the request's dimensions."""
    PREDICATE = "predicate"
    """A predicate over the request's dimensions; without one the document takes every request."""
    CIRCLES = "circles"
    """Circles of which one must have the request's position; without any the document takes every request."""
    POINT = "point"
    """The document's own place, for requests that ask what is near a point."""
    HOURS = "hours"
    """Weekly hours in which the document runs; without them it always does."""


class Operation(StrEnum):
    """What a column can be derived by in the catalogue alone; see `argus._derived` for their meaning."""

    FORMAT = "format"
    """A text with {columns} in it."""
    ANALYZE = "analyze"
    """The sorted set of the terms of some texts, analysed as queries are."""
    FIRST = "first"
    """The first of some columns that has a value."""
    UNIQUE = "unique"
    """A list's values, sorted, each once."""
    COUNT = "count"
    """The number of a list's values."""
    TALLY = "tally"
    """"value=count" for each value of a list, sorted by value."""
    CONSTANT = "constant"
    """The same value in every row."""


class Message(StrEnum):
    """What a stream's records hold."""

    ENTITY = "entity"
    """adsindex.EntityUpdate with the stream's columns."""
    BUDGET = "budget"
    """adsindex.BudgetState."""
