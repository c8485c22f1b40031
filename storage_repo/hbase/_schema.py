"""Tables in HBase as the schema and Omid want them: compared, created, and what can be is put right.

Every family keeps all versions (Omid's timestamps are versions), is replicated (the WAL proxy is a replication peer),
and every table has Omid's compaction coprocessor. It works on the families flagged for it: those of tables without
history, where it leaves one version below its low watermark, and collects what never committed. Tables with history
keep Limits.versions_kept versions, which the coprocessor knows nothing of; there collect_garbage does both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from storage_repo._exceptions import StoreUnavailable
from storage_repo.api import RepoSchema, TableSchema
from storage_repo.hbase._state import STATE_FAMILY, STATE_TABLE
from storage_repo.hbase.connections import HbaseConnections
from storage_repo.hbase.names import ORIGIN_FAMILY, HbaseNames
from storage_repo.hbase.thrift2 import TColumnFamilyDescriptor, TNamespaceDescriptor, TTableDescriptor, TTableName
from storage_repo.omid.layout import COMMIT_TABLE

ALL_VERSIONS = (1 << 31) - 1
"""HBase's Integer.MAX_VALUE; TTL must stay unset as well, because versions are no milliseconds."""

_COPROCESSOR = b"|org.apache.omid.transaction.OmidCompactor|1001|"
_COMPACTED = b"OMID_ENABLED"
_BLOOM, _BLOOM_BY = b"BLOOMFILTER", b"ROWCOL"
"""Every read asks for the mark of a deleted family, which is nearly never there. Its qualifier is empty, and for that
HBase looks into every file, at the price of the whole rest of the read, unless a filter by row and column spares it."""
_SALTS = b"ADSINDEX_SALTS"
"""Kept with the table: under another number of salts its rows would not be found."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Where a table is not as declared, and whether applying the schema can put it right."""

    table: str
    what: str
    repairable: bool = True

    def __str__(self) -> str:
        return f"{self.table}: {self.what}"


class SchemaKeeper:
    """Compares and changes the tables of one installation."""

    def __init__(self, connections: HbaseConnections, schema: RepoSchema, prefix: str) -> None:
        self._connections, self._schema, self._prefix = connections, schema, prefix
        self._names = HbaseNames(schema, prefix)
        self.state_table = (prefix + STATE_TABLE).encode()

    def check(self) -> list[Difference]:
        """Return what differs from the schema; tables that HBase has besides are none of ours."""
        found = [] if self._exists(COMMIT_TABLE) else [Difference(COMMIT_TABLE.decode(), _NO_OMID, repairable=False)]
        if not self._exists(self.state_table):
            found.append(Difference(self.state_table.decode(), "the table is missing"))
        for table in self._schema.tables:
            found += self._differences(table)
        return found

    def apply(self) -> list[Difference]:
        """Create what is missing and put right what can be; return what was done. Safe to call again after a crash.

        HBase takes about a second for a table, and does several at the same time.
        Raises StoreUnavailable for a difference that cannot be put right, and then nothing has been changed.
        """
        found = self.check()
        if hopeless := [difference for difference in found if not difference.repairable]:
            raise StoreUnavailable("; ".join(map(str, hopeless)))
        self._create_namespace()
        differing = {difference.table for difference in found}
        tables = [table for table in self._schema.tables if self._label(table) in differing]
        self._connections.in_parallel(self._apply, [None, *tables])
        return found

    def _differences(self, table: TableSchema) -> Iterator[Difference]:
        label = self._label(table)
        hbase_table = self._names.hbase_table(table.name)
        if not self._exists(hbase_table):
            yield Difference(label, "the table is missing")
            return
        present = self._connections.admin("getTableDescriptor", table_name(hbase_table))
        families = {family.name: family for family in present.columns}
        for wanted in _families(table):
            family = families.get(wanted.name)
            name = wanted.name.decode()
            if family is None:
                yield Difference(label, f"the column family {name!r} is missing")
                continue
            if family.maxVersions != wanted.maxVersions:
                yield Difference(label, f"family {name!r} keeps {family.maxVersions} versions instead of all")
            if family.scope != wanted.scope:
                yield Difference(label, f"family {name!r} is not replicated (REPLICATION_SCOPE is {family.scope})")
            flag = family.attributes.get(_COMPACTED, b"false")
            if flag != wanted.attributes[_COMPACTED]:
                yield Difference(label, f"family {name!r} has {_COMPACTED.decode()} = {flag.decode()}")
            bloom = family.attributes.get(_BLOOM, b"ROW")
            if bloom != _BLOOM_BY:
                yield Difference(label, f"family {name!r} has {_BLOOM.decode()} = {bloom.decode()}; its reads are slow")
        if _COPROCESSOR not in present.attributes.values():
            yield Difference(label, "Omid's compaction coprocessor is missing")
        salts = int(present.attributes.get(_SALTS, b"0"))
        if salts != table.layout.salts:
            what = f"it has {salts} salts, declared are {table.layout.salts}; copy its rows into a new table"
            yield Difference(label, what, repairable=False)

    def _apply(self, table: TableSchema | None) -> None:
        """Create or put right a table; None: the store's own."""
        if table is None:
            if not self._exists(self.state_table):
                families = [TColumnFamilyDescriptor(name=STATE_FAMILY, maxVersions=1, scope=0)]
                self._create(self.state_table, families, {}, [])
            return
        hbase_table = self._names.hbase_table(table.name)
        if not self._exists(hbase_table):
            attributes = {b"coprocessor$1": _COPROCESSOR, _SALTS: b"%d" % table.layout.salts}
            self._create(hbase_table, _families(table), attributes, _splits(table))
            return
        name = table_name(hbase_table)
        present = self._connections.admin("getTableDescriptor", name)
        wanted = _families(table)
        names = {family.name for family in wanted}
        present.columns = [family for family in present.columns if family.name not in names] + wanted
        if _COPROCESSOR not in present.attributes.values():
            present.attributes[b"coprocessor$1"] = _COPROCESSOR
        self._connections.admin("modifyTable", present)  # all at once: every change has all regions opened anew

    def _create(self, hbase_table: bytes, families: list[Any], attributes: dict[bytes, bytes], splits: Any) -> None:
        descriptor = TTableDescriptor(tableName=table_name(hbase_table), columns=families, attributes=attributes)
        try:
            self._connections.admin("createTable", descriptor, splits or None)
        except StoreUnavailable:
            if not self._exists(hbase_table):  # somebody else, or our own first attempt, may have created it
                raise

    def _create_namespace(self) -> None:
        namespace, colon, _ = self._prefix.partition(":")
        if colon and namespace.encode() not in self._connections.admin("listNamespaces"):
            self._connections.admin("createNamespace", TNamespaceDescriptor(name=namespace))

    def _exists(self, hbase_table: bytes) -> bool:
        return bool(self._connections.admin("tableExists", table_name(hbase_table)))

    def _label(self, table: TableSchema) -> str:
        return self._names.hbase_table(table.name).decode()


_NO_OMID = "the table is missing: start Omid's TSO once, or create it with Omid's OmidTableManager"


def table_name(hbase_table: bytes) -> Any:
    """Return Thrift2's form of a table's name."""
    namespace, colon, qualifier = hbase_table.partition(b":")
    return TTableName(ns=namespace, qualifier=qualifier) if colon else TTableName(ns=b"default", qualifier=namespace)


def _families(table: TableSchema) -> list[Any]:
    attributes = {_COMPACTED: b"false" if table.layout.history else b"true", _BLOOM: _BLOOM_BY}
    names = [family.encode() for family in table.families] + [ORIGIN_FAMILY]
    return [TColumnFamilyDescriptor(name=n, maxVersions=ALL_VERSIONS, scope=1, attributes=attributes) for n in names]


def _splits(table: TableSchema) -> list[bytes]:
    if table.layout.salts:
        return [bytes((salt,)) for salt in range(1, table.layout.salts)]
    return [split.encode() for split in table.layout.splits]
