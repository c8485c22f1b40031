"""The dependency graph: column -> handler -> column -> field, checked for unknown columns, two writers and cycles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from catalog._exceptions import DependencyError
from catalog.model import Catalog, Column


@dataclass(frozen=True, slots=True)
class HandlerDeclaration:
    """What a handler says about itself. Columns are written "table.column".

    `root` is the table whose rows it is run for; it may read the root's columns, those of the tables that the root
    joins with, and, where the root is the document's root, the document table's. It writes columns of the root, or of
    the document table.
    """

    name: str
    root: str
    watches: tuple[str, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    file: str = ""
    line: int = 0

    def __str__(self) -> str:
        return f"handler {self.name!r} ({self.file}:{self.line})" if self.file else f"handler {self.name!r}"

    @property
    def inputs(self) -> tuple[str, ...]:
        """Watched and read columns, in order, without repetition."""
        return tuple(dict.fromkeys((*self.watches, *self.reads)))


@dataclass(frozen=True, slots=True)
class DependencyGraph:
    """Handlers in dependency order per root, with the catalogue that they were checked against."""

    catalog: Catalog
    handlers: tuple[HandlerDeclaration, ...]
    watchers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Column -> names of the handlers that watch it."""

    def by_root(self, root: str) -> tuple[HandlerDeclaration, ...]:
        """Handlers of a root, each after those whose columns it reads."""
        return tuple(h for h in self.handlers if h.root == root)

    def roots(self) -> tuple[str, ...]:
        """Tables that handlers are run for."""
        return tuple(dict.fromkeys(h.root for h in self.handlers))

    def document_columns(self) -> tuple[Column, ...]:
        """Columns that document fields come from."""
        return tuple({f.column.ref: f.column for f in self.catalog.fields.values()}.values())

    def watched_cells(self) -> dict[str, frozenset[str]]:
        """Table -> Repo cells whose change concerns some handler or some document field.

        References on the way from a root count: a row that points elsewhere joins with other values. The document's own
        derived columns do not: only the runs that write them read them, so they would notify nobody.
        """
        cells: dict[str, set[str]] = {}
        joins = {r for root in {*self.roots(), self.catalog.root} for r in self.catalog.join_path(root).values()}
        refs = {*self.watchers, *(c.ref for c in self.document_columns()), *(f"{r.table}.{r.column}" for r in joins)}
        for ref in refs:
            column = self.catalog.column(ref)
            if column.table != self.catalog.document_table:  # written by the very run that reads it
                cells.setdefault(column.table, set()).add(column.cell)
        return {table: frozenset(names) for table, names in cells.items()}


def build_graph(catalog: Catalog, handlers: Iterable[HandlerDeclaration]) -> DependencyGraph:
    """Check handlers against the catalogue and against each other, and put them in dependency order.

    Raises DependencyError naming every fault: unknown columns, columns out of reach of the root, columns written but
    not declared as the handler's, two writers of one column, declared handlers that do not exist, cycles.
    """
    declared = list(handlers)
    faults: list[str] = []
    names = [h.name for h in declared]
    faults += [f"two handlers are named {n!r}" for n in sorted({n for n in names if names.count(n) > 1})]
    writers: dict[str, HandlerDeclaration] = {}
    for handler in declared:
        faults += _faults_of(catalog, handler, writers)
    for table in catalog.tables.values():
        for column in table.columns.values():
            if column.handler is not None and column.ref not in writers:
                faults.append(
                    f"{catalog.file}:{column.line}: {column.ref} comes from handler {column.handler!r}, "
                    "but no handler of that name writes it"
                )
    if faults:
        raise DependencyError("\n".join(faults))
    ordered = _in_order(declared, writers)
    watchers: dict[str, tuple[str, ...]] = {}
    for handler in ordered:
        for ref in dict.fromkeys(handler.watches):
            watchers[ref] = (*watchers.get(ref, ()), handler.name)
    return DependencyGraph(catalog, tuple(ordered), watchers)


def _faults_of(catalog: Catalog, handler: HandlerDeclaration, writers: dict[str, HandlerDeclaration]) -> list[str]:
    if handler.root not in catalog.tables:
        return [f"{handler}: root {handler.root!r} is not a table of {catalog.file}"]
    document = {catalog.document_table} if handler.root == catalog.root else set()
    readable = {handler.root, *catalog.join_path(handler.root)} | document
    faults = []
    for ref in (*handler.inputs, *handler.writes):
        table, _, name = ref.partition(".")
        if table not in catalog.tables or name not in catalog.tables[table].columns:
            faults.append(f"{handler}: {ref!r} is not a column of {catalog.file}")
        elif table not in readable:
            faults.append(f"{handler}: {ref!r} cannot be reached from {handler.root!r}, only {sorted(readable)}")
    if faults:
        return faults
    for ref in handler.writes:
        column = catalog.column(ref)
        if column.table not in {handler.root} | document:
            faults.append(f"{handler}: writes {ref!r}, but may write only to {sorted({handler.root} | document)}")
        if column.handler != handler.name:
            faults.append(f"{handler}: writes {ref!r}, which {catalog.file}:{column.line} takes from {column.source!r}")
        if ref in writers:
            faults.append(f"{ref} has two writers: {writers[ref]} and {handler}")
        writers[ref] = handler
    return faults


def _in_order(
    handlers: Sequence[HandlerDeclaration], writers: Mapping[str, HandlerDeclaration]
) -> list[HandlerDeclaration]:
    needs = {h.name: [writers[ref] for ref in h.inputs if ref in writers] for h in handlers}
    done: dict[str, HandlerDeclaration] = {}
    path: list[str] = []

    def visit(handler: HandlerDeclaration) -> None:
        if handler.name in done:
            return
        if handler.name in path:
            cycle = " -> ".join([*path[path.index(handler.name) :], handler.name])
            raise DependencyError(f"handlers depend on each other in a cycle: {cycle}; begin at {handler}")
        path.append(handler.name)
        for needed in needs[handler.name]:
            visit(needed)
        path.pop()
        done[handler.name] = handler

    for handler in handlers:
        visit(handler)
    return list(done.values())
