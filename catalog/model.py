"""The catalogue's declarations as immutable values: tables, columns, references, document fields, targeting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import ceil

from catalog.keys import key_columns
from catalog.kinds import (
    ELEMENT_OF,
    LIST_OF,
    Destination,
    Family,
    LaneName,
    Message,
    Operation,
    Scalar,
    ValueType,
)

BODY = "body"
"""Family of the forward index that a field is in when its declaration does not name one."""
HANDLER_PREFIX = "handler:"
SIGNAL_PREFIX = "signal:"


@dataclass(frozen=True, slots=True)
class Derivation:
    """How a column is derived from others; `refs` are its inputs, "table.column"."""

    operation: Operation
    refs: tuple[str, ...]
    parts: tuple[str, ...] = ()
    """Of a format: the texts around the inputs, one more than those."""
    constant: Scalar | None = None


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a Storage Repo table. `source` is "dbtable.column", "handler:NAME" or "signal:NAME"."""

    table: str
    name: str
    type: ValueType
    family: Family
    source: str
    line: int
    dims: int = 0
    values: tuple[str, ...] = ()
    max_bytes: int = 65_536
    default: Scalar | None = None
    """Taken where the source has null."""
    scale: int = 1
    """The source's exact number times this is the value: 1000000 makes DECIMAL money into micros."""
    split: str | None = None
    """Text of the source is cut here into a list, as MySQL gives a SET."""
    derivation: Derivation | None = None
    dimensions: tuple[Dimension, ...] = ()
    """Of a predicate: what it may speak of."""

    def element(self) -> Column:
        """Return the column as one value of its list is checked."""
        return replace(self, type=ELEMENT_OF.get(self.type, self.type), default=None, split=None)

    @property
    def ref(self) -> str:
        """table.column, the name that handlers use."""
        return f"{self.table}.{self.name}"

    @property
    def cell(self) -> str:
        """family:qualifier, the name that the Repo uses."""
        return f"{self.family.value}:{self.name}"

    @property
    def handler(self) -> str | None:
        """Name of the handler that derives it, if one does."""
        return self.source.removeprefix(HANDLER_PREFIX) if self.source.startswith(HANDLER_PREFIX) else None

    @property
    def signal(self) -> str | None:
        """Name of the content signal that brings it, if one does."""
        return self.source.removeprefix(SIGNAL_PREFIX) if self.source.startswith(SIGNAL_PREFIX) else None

    @property
    def source_table(self) -> str | None:
        """Ads DB table that it comes from, if it does."""
        return self.source.split(".", 1)[0] if self.handler is None and self.signal is None else None

    @property
    def source_column(self) -> str | None:
        """Ads DB column that it comes from, if it does."""
        return self.source.split(".", 1)[1] if self.source_table is not None else None


@dataclass(frozen=True, slots=True)
class Source:
    """Where a table's entities are in the ads DB: the main table with its key, satellites and collections by theirs.

    A satellite has at most one row per entity, a collection any number: its columns are lists. A key of several columns
    is written with commas (`catalog.keys`).
    """

    table: str
    key: str
    satellites: Mapping[str, str] = field(default_factory=dict)
    collections: Mapping[str, str] = field(default_factory=dict)

    def tables(self) -> dict[str, str]:
        """Ads DB table -> its column (or columns) that hold the entity's key."""
        return {self.table: self.key, **self.satellites, **self.collections}

    @property
    def key_columns(self) -> tuple[str, ...]:
        """Columns of the main table's key."""
        return key_columns(self.key)


@dataclass(frozen=True, slots=True)
class Reference:
    """Rows of `table` point to a row of `target` by `column`; `index_table` turns that round into a prefix scan.

    `many`: the column is a list, and a row points to a row of `target` for each of its values.
    """

    table: str
    target: str
    column: str
    many: bool = False

    @property
    def index_table(self) -> str:
        """Index table: row key = target row, U+001F, referring row."""
        return f"{self.table}_by_{self.target}"


@dataclass(frozen=True, slots=True)
class Layout:
    """How a table is laid out on a cluster; a Repo on one machine need not look."""

    salts: int = 0
    """Rows are spread over so many key ranges by a hash of their key's first part; 0: in key order."""
    splits: tuple[str, ...] = ()
    """Row keys at which the table is split into regions when it is created."""
    history: bool = True
    """Old versions are kept for history, not only for running transactions."""
    family_deletes: bool = True
    """Java clients of Omid may delete whole families of a row; where none does, reads are cheaper."""


@dataclass(frozen=True, slots=True)
class Table:
    """A Storage Repo table of entities or of documents."""

    name: str
    owner: str
    lane: LaneName
    key_type: ValueType
    columns: Mapping[str, Column]
    references: tuple[Reference, ...]
    source: Source | None
    line: int
    root: str | None = None
    """For the document table: the table that has one row per document."""
    freshness_s: float = 60.0
    layout: Layout = Layout()
    index_layout: Layout = Layout()
    """Of the index tables of its references."""
    retired: Mapping[str, tuple[Scalar, ...]] = field(default_factory=dict)
    """Column -> values with which a row, and nothing that refers to it, serves any more: what is so for long goes."""
    ends: str | None = None
    """Column with the time after which the row, and nothing that refers to it, serves any more."""


@dataclass(frozen=True, slots=True)
class Field:
    """One field of the servable document."""

    name: str
    column: Column
    index: Destination
    line: int
    critical: bool = False
    coverage: float = 0.0
    """Share of documents that must have it before a base index may ship, 0..1."""
    gathered: bool = False
    """The document joins many rows of the column's table, and has the list of their values."""
    payload: str | None = None
    """Field with the numbers that the postings of this field's terms carry: one per term, or one for all of them."""
    family: str = BODY
    """Family of the forward index: fields that are read together are kept together."""

    @property
    def type(self) -> ValueType:
        """Type of the value in the document."""
        return LIST_OF.get(self.column.type, self.column.type) if self.gathered else self.column.type


@dataclass(frozen=True, slots=True)
class Dimension:
    """A targeting dimension: what a request may say about itself and an ad may demand."""

    name: str
    type: ValueType
    multi: bool = False
    values: tuple[str, ...] = ()
    flat: bool = True
    """Flat targeting terms speak of it; otherwise only predicates do."""


@dataclass(frozen=True, slots=True)
class ExchangeRates:
    """What currencies are worth, so that amounts in different ones can be compared."""

    account: str
    """The currency that everything is compared in."""
    rates: Mapping[str, Fraction]
    """Currency -> units of the account currency for one unit of it."""

    def to_account(self, micros: int, currency: str | None) -> int | None:
        """Return an amount in the account currency, None if the currency is not declared; above 0 stays above 0."""
        rate = self.rates.get(currency) if currency is not None else None
        return None if rate is None else max(round(micros * rate), 1 if micros > 0 else micros)

    def from_account(self, micros: int, currency: str) -> int:
        """Return the least amount of a declared currency that is worth at least so much. Raises KeyError."""
        return ceil(micros / self.rates[currency])


@dataclass(frozen=True, slots=True)
class Serving:
    """Which fields play which part in Manas; a part that nobody plays puts no condition and adds nothing to scores."""

    bid: str | None = None
    score: str | None = None
    """Instead of a bid: a number that ranks documents as it is. With neither, every document has 1."""
    starts: str | None = None
    ends: str | None = None
    budget_key: str | None = None
    """Field whose value names the budget (a campaign) that the document spends from."""
    quality: str | None = None
    price: str | None = None
    currency: str | None = None
    text: str | None = None
    vector: str | None = None
    targeting: str | None = None
    diversity: str | None = None
    predicate: str | None = None
    """Field with a Boolean expression over the request's dimensions."""
    area: str | None = None
    """Field with circles of which one must have the request's position."""
    location: str | None = None
    """Field with the document's own place."""
    hours: str | None = None
    """Field with the weekly hours in which the document runs."""


@dataclass(frozen=True, slots=True)
class Stream:
    """Entities of one table that the Gateway also publishes to a topic of the stream's own, one record per change.

    The topic, read by key, has exactly the entities that `where` lets in: one that does not match, or no longer, is
    published as deleted.
    """

    name: str
    table: str
    topic: str
    columns: Mapping[str, str]
    """Name in the message -> column of the table."""
    where: Mapping[str, tuple[Scalar, ...]] = field(default_factory=dict)
    """Column -> values of which it must have one."""
    required: tuple[str, ...] = ()
    """Columns without which (null, or not what they must be) an entity is published as deleted."""
    message: Message = Message.ENTITY
    lane: LaneName | None = None
    """None: the table's lane, low for backfill."""
    partitions: int = 1
    line: int = 0


@dataclass(frozen=True, slots=True)
class Catalog:
    """All declarations. Immutable; made by `load_catalog`."""

    name: str
    file: str
    tables: Mapping[str, Table]
    document_table: str
    root: str
    fields: Mapping[str, Field]
    dimensions: Mapping[str, Dimension]
    serving: Serving
    fingerprint: str
    """Hash of the file: says with which declarations something was built."""
    handlers: tuple[str, ...] = ()
    """Python packages whose handlers run; none are needed where every column is plain or derived in the catalogue."""
    streams: Mapping[str, Stream] = field(default_factory=dict)
    """What the Gateway publishes besides the updates that feed the Repo."""
    exchange_rates: ExchangeRates | None = None

    def column(self, ref: str) -> Column:
        """Return the column named "table.column". Raises KeyError."""
        table, _, name = ref.partition(".")
        return self.tables[table].columns[name]

    def references(self) -> tuple[Reference, ...]:
        """All references between tables."""
        return tuple(r for t in self.tables.values() for r in t.references)

    def entity_tables(self) -> tuple[Table, ...]:
        """Tables that come from the ads DB."""
        return tuple(t for t in self.tables.values() if t.source is not None)

    def source_tables(self) -> dict[str, tuple[Table, str]]:
        """Ads DB table -> (Repo table, ads DB column with the entity's key)."""
        return {
            source_table: (table, key)
            for table in self.entity_tables()
            if table.source is not None
            for source_table, key in table.source.tables().items()
        }

    def join_path(self, root: str) -> dict[str, Reference]:
        """Tables that a row of `root` joins with, parents in breadth-first order -> the reference that leads there."""
        return join_path(self.tables, root)

    def gathered(self, root: str) -> frozenset[str]:
        """Return the tables of which a row of `root` joins any number of rows."""
        return gathered_tables(self.tables, root)

    def repo_tables(self) -> list[tuple[str, tuple[str, ...]]]:
        """(table, families) of every Repo table, index tables and internal ones included."""
        tables = [
            (
                t.name,
                tuple(
                    sorted(
                        {c.family.value for c in t.columns.values()}
                        | {Family.META.value}
                        | ({Family.SERVABLE.value} if t.root else set())
                    )
                ),
            )
            for t in self.tables.values()
        ]
        return tables + [(r.index_table, (Family.META.value,)) for r in self.references()] + list(INTERNAL_TABLES)

    def repo_layouts(self) -> dict[str, Layout]:
        """Repo table -> how it is laid out on a cluster, index tables included."""
        indexes = {r.index_table: self.tables[r.table].index_layout for r in self.references()}
        internal = {name: Layout() for name, _ in INTERNAL_TABLES}
        return {t.name: t.layout for t in self.tables.values()} | indexes | internal


def join_path(tables: Mapping[str, Table], root: str) -> dict[str, Reference]:
    """Tables that a row of `root` joins with, parents in breadth-first order -> the reference that leads there."""
    path: dict[str, Reference] = {}
    queue = [root]
    while queue:
        for reference in tables[queue.pop(0)].references:
            if reference.target not in path and reference.target != root:
                path[reference.target] = reference
                queue.append(reference.target)
    return path


def gathered_tables(tables: Mapping[str, Table], root: str) -> frozenset[str]:
    """Return the tables that a row of `root` joins over a reference that is a list, directly or further down."""
    many: set[str] = set()
    for table, reference in join_path(tables, root).items():  # parents come first
        if reference.many or reference.table in many:
            many.add(table)
    return frozenset(many)


def joined_type(catalog: Catalog, root: str, ref: str) -> ValueType:
    """Return the type that "table.column" has where a row of `root` reads it: of many joined rows it reads a list."""
    column = catalog.column(ref)
    return LIST_OF.get(column.type, column.type) if column.table in catalog.gathered(root) else column.type


WORKFLOW_TABLE = "_workflow"
"""What batch workflows keep of themselves: leases, queued runs, run records and schedules (batch_workflows.runs)."""
INTERNAL_TABLES: tuple[tuple[str, tuple[str, ...]], ...] = ((WORKFLOW_TABLE, (Family.META.value,)),)
"""Tables that every installation has, whatever its catalogue declares; no declared name begins with an underscore."""

# Cells that the pipeline itself keeps on rows; no handler watches them, so they never cause a notification.
SOURCE_VERSION = "meta:source_version"
"""Version of the ads DB state in the row (change feed position), msgpack int."""
DELETED = "meta:deleted"
"""Present (msgpack true) while the entity is deleted at the source; keeps late older updates out."""
COLLECTED = "meta:collected"
"""Present, beside DELETED, on a row that garbage collection took out while the ads DB still has it: msgpack int, the
checksum of what it held, so that a sync knows it for the same. Any later update of the row takes it away."""
RUN = "meta:run"
"""Written by every Argus run of a row, so that two racing runs always conflict; msgpack [snapshot_ts, code_version,
process]."""
DOCUMENT_BODY = "servable:body"
"""Canonical bytes of the servable document; a tombstone means: must not be served."""
DOCUMENT_BLOCKED = "meta:blocked"
"""Why a document is not servable: msgpack list of sentences, the first cause first."""
TIMELINE = "meta:timeline"
"""Serialized messaging Header of the update that last changed the document."""
INDEX_CELL = "meta:ref"
"""The only cell of an index row."""


def signal_version_cell(signal: str) -> str:
    """Cell that keeps the version of a content signal on its row."""
    return f"meta:signal_version.{signal}"


def handler_error_cell(handler: str) -> str:
    """Cell that keeps what a handler refused or failed at on this row, msgpack [reason, sentence]."""
    return f"meta:error.{handler}"
