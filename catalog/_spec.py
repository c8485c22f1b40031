"""The form of a catalogue file; what its names mean is checked by `catalog.loader`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    StringConstraints,
    model_validator,
)

from catalog.kinds import Destination, Family, LaneName, Message, Operation, ValueType

Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]
ScalarSpec = StrictBool | StrictInt | StrictFloat | StrictStr
Key = str | tuple[str, ...]
"""A column of the ads DB, or several."""
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]


class Strict(BaseModel):
    """Refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SourceSpec(Strict):
    """Where entities are in the ads DB."""

    table: str
    key: Key
    satellites: dict[str, Key] = {}
    collections: dict[str, Key] = {}


class DeriveSpec(Strict):
    """How a column is derived: exactly one of the operations."""

    format: str | None = None
    analyze: tuple[str, ...] | None = Field(None, min_length=1)
    first: tuple[str, ...] | None = Field(None, min_length=1)
    unique: str | None = None
    count: str | None = None
    tally: str | None = None
    constant: ScalarSpec | None = None

    def given(self) -> dict[Operation, str | tuple[str, ...] | ScalarSpec]:
        """Return the operations that are given; the loader wants one."""
        return {Operation(name): value for name, value in self.model_dump(exclude_none=True).items()}


class ColumnSpec(Strict):
    """A column."""

    type: ValueType
    source: str | None = Field(None, alias="from", pattern=r"^(handler:[a-z_]\w*|signal:[a-z_]\w*|\w+\.\w+)$")
    derive: DeriveSpec | None = None
    default: ScalarSpec | None = None
    scale: int = Field(1, ge=1, le=10**12)
    split: str | None = Field(None, min_length=1, max_length=8)
    family: Family | None = None
    dims: int = Field(0, ge=0, le=4096)
    values: tuple[str, ...] = ()
    max_bytes: int = Field(65_536, ge=1, le=1_000_000)  # a cell holds 1 MiB, encoding included


class LayoutSpec(Strict):
    """How a table is laid out on a cluster."""

    salts: Annotated[int, Field(ge=0, le=256)] = 0
    splits: tuple[Annotated[str, Field(min_length=1, max_length=400)], ...] = ()
    history: bool = True
    family_deletes: bool = True

    @model_validator(mode="after")
    def _check(self) -> LayoutSpec:
        if self.salts and self.splits:
            raise ValueError("salts already split a table; leave `splits` out")
        if list(self.splits) != sorted(set(self.splits)):
            raise ValueError("`splits` must be row keys in ascending order")
        return self


class TableSpec(Strict):
    """A table."""

    owner: str
    lane: LaneName = LaneName.MEDIUM
    key: Literal["int", "string"] = "string"
    source: SourceSpec | None = None
    root: str | None = None
    references: dict[Name, str] = {}
    freshness_s: float = Field(60.0, gt=0)
    layout: LayoutSpec = LayoutSpec()
    index_layout: LayoutSpec = LayoutSpec()
    retired: dict[Name, tuple[ScalarSpec, ...]] = {}
    ends: Name | None = None
    columns: dict[Name, ColumnSpec] = {}


class FieldSpec(Strict):
    """A document field."""

    source: str = Field(alias="from", pattern=r"^\w+\.\w+$")
    index: Destination = Destination.FORWARD
    critical: bool = False
    coverage: float = Field(0.0, ge=0, le=1)
    payload: str | None = None
    family: Name = "body"


class DimensionSpec(Strict):
    """A targeting dimension."""

    type: Literal["string", "int"] = "string"
    multi: bool = False
    values: tuple[str, ...] = ()
    flat: bool = True


class ServingSpec(Strict):
    """Roles in Manas."""

    bid: str | None = None
    score: str | None = None
    starts: str | None = None
    ends: str | None = None
    budget_key: str | None = None
    quality: str | None = None
    price: str | None = None
    currency: str | None = None
    text: str | None = None
    vector: str | None = None
    targeting: str | None = None
    diversity: str | None = None
    predicate: str | None = None
    area: str | None = None
    location: str | None = None
    hours: str | None = None


class StreamSpec(Strict):
    """A stream of the Gateway."""

    table: str
    topic: str = Field(pattern=r"^[A-Za-z0-9._-]{1,200}$")
    columns: tuple[str, ...] | dict[Name, str]
    where: dict[str, ScalarSpec | tuple[ScalarSpec, ...]] = {}
    required: tuple[str, ...] = ()
    message: Message = Message.ENTITY
    lane: LaneName | None = None
    partitions: int = Field(1, ge=1, le=1024)


class ExchangeRatesSpec(Strict):
    """What currencies are worth in the account currency."""

    account: str
    rates: dict[str, Rate]


class CatalogSpec(Strict):
    """The whole file."""

    version: Literal[1]
    name: str
    handlers: tuple[str, ...] = ()
    dimensions: dict[Name, DimensionSpec] = {}
    tables: dict[Name, TableSpec]
    fields: dict[Name, FieldSpec]
    serving: ServingSpec = ServingSpec()
    streams: dict[Name, StreamSpec] = {}
    exchange_rates: ExchangeRatesSpec | None = None
