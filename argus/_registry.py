"""All handlers checked against a catalogue, and for each root what to fetch, run, write and listen to."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from argus._derived import derived_handlers
from argus._exceptions import DeclarationError
from argus._handler import Handler, SourceUse
from catalog import Catalog, Column, DependencyGraph, Reference, build_graph
from catalog.model import (
    DELETED,
    DOCUMENT_BLOCKED,
    DOCUMENT_BODY,
    RUN,
    SOURCE_VERSION,
    handler_error_cell,
)
from catalog.values import output_encoder


class Output(NamedTuple):
    """A column that a handler writes, with its names worked out once instead of per row."""

    column: Column
    ref: str
    table: str
    cell: str
    encode: Callable[[Any], bytes]
    """Checks and encodes a value that is not None; raises catalog.InvalidValue."""


class DocumentField(NamedTuple):
    """A field of the document and where its value is."""

    name: str
    table: str
    cell: str
    critical: bool


@dataclass(frozen=True, slots=True)
class Step:
    """One handler of a root with its columns resolved."""

    handler: Handler
    allowed: Mapping[str, tuple[str, str]]
    """"table.column" -> (table, cell) of the declared inputs."""
    tables: frozenset[str]
    writes: tuple[Output, ...]
    refs: frozenset[str]
    error_cell: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything about one root."""

    root: str
    output_table: str
    """Where runs keep `meta:run` and errors: the document table for the document root, else the root itself."""
    steps: tuple[Step, ...]
    levels: tuple[tuple[Reference, ...], ...]
    """References to follow, one round trip per level."""
    columns: Mapping[str, tuple[str, ...]]
    """Table -> cells to fetch."""
    triggers: Mapping[str, frozenset[str]]
    """Table -> column names whose change makes the joined root rows run."""
    own: frozenset[str]
    """Names of the root's columns that its own handlers write."""
    gathered: frozenset[str]
    """Joined tables of which a root row joins any number of rows."""
    routes: Mapping[str, tuple[Reference, ...]]
    """Joined table -> references from it back to the root: whose index tables to scan, in this order."""
    sources: tuple[SourceUse, ...]
    fields: tuple[DocumentField, ...]
    """Of the document; none where the root is not the document's."""
    is_document: bool


@dataclass(frozen=True, slots=True)
class Registry:
    """Handlers and catalogue, checked. `plans` has joined roots before those that join them."""

    catalog: Catalog
    graph: DependencyGraph
    handlers: Mapping[str, Handler]
    plans: Mapping[str, Plan]

    @property
    def document(self) -> Plan:
        """The plan that makes documents."""
        return self.plans[self.catalog.root]


def load_registry(catalog: Catalog, handlers: Iterable[Handler] | None = None) -> Registry:
    """Check handlers against a catalogue: its own derived columns, and those of the packages that it names.

    `handlers` are used instead of the packages'. Raises catalog.DependencyError naming every fault with file and line,
    and DeclarationError.
    """
    listed = [h for package in catalog.handlers for h in handlers_in(package)] if handlers is None else list(handlers)
    names = {h.name for h in listed}
    listed += [h for h in derived_handlers(catalog) if h.name not in names]
    graph = build_graph(catalog, [h.declaration for h in listed])
    by_name = {h.name: h for h in listed}
    roots = {*graph.roots(), catalog.root}
    reach = list(catalog.join_path(catalog.root))
    ordered = sorted(roots, key=lambda root: (root == catalog.root, -reach.index(root) if root in reach else 0, root))
    plans = {root: _plan(catalog, graph, by_name, root) for root in ordered}
    return Registry(catalog, graph, by_name, plans)


def builtin_handlers() -> list[Handler]:
    """Return every handler of every module in `argus.handlers`, in the order of their names."""
    return handlers_in("argus.handlers")


def handlers_in(package: str) -> list[Handler]:
    """Return every handler of a module, or of every module in a package, in the order of their names.

    Raises DeclarationError when there is no such package.
    """
    try:
        top = importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{package}.".startswith(f"{error.name}."):
            raise  # the package is there, and something that it imports is not
        raise DeclarationError(f"the catalogue's `handlers` names {package!r}, which cannot be imported") from error
    modules = [
        top,
        *(
            importlib.import_module(f"{package}.{info.name}")
            for info in pkgutil.iter_modules(getattr(top, "__path__", ()))
        ),
    ]
    found = {h.name: h for module in modules for h in vars(module).values() if isinstance(h, Handler)}
    return [found[name] for name in sorted(found)]


def _plan(catalog: Catalog, graph: DependencyGraph, handlers: Mapping[str, Handler], root: str) -> Plan:
    declared = graph.by_root(root)
    is_document = root == catalog.root
    output_table = catalog.document_table if is_document else root
    path = catalog.join_path(root)
    wanted = {catalog.column(ref) for h in declared for ref in (*h.inputs, *h.writes)}
    if is_document:
        wanted |= set(graph.document_columns())
    needed = {column.table for column in wanted} | {root}
    routes = {table: _route(path, root, table) for table in path}
    if not is_document:  # a document is blocked by whatever its join lacks; others only need what they read
        needed |= {reference.table for table in needed & set(path) for reference in routes[table]}
        path = {table: reference for table, reference in path.items() if table in needed}
    for reference in path.values():
        wanted.add(catalog.tables[reference.table].columns[reference.column])
    own = {ref for h in declared for ref in h.writes}
    triggers: dict[str, set[str]] = {}
    for ref in {ref for h in declared for ref in h.watches} | {
        *(c.ref for c in graph.document_columns() if is_document),
        *(f"{r.table}.{r.column}" for r in path.values()),
    }:
        if ref not in own:
            table, _, name = ref.partition(".")
            triggers.setdefault(table, set()).add(name)
    columns = {table: {SOURCE_VERSION, DELETED} for table in (root, *path)}
    columns.setdefault(output_table, set()).update({RUN, *(handler_error_cell(h.name) for h in declared)})
    if is_document:
        columns[output_table].update({DOCUMENT_BODY, DOCUMENT_BLOCKED})
    for column in wanted:
        columns.setdefault(column.table, set()).add(column.cell)
    steps = tuple(step_of(catalog, handlers[h.name]) for h in declared)
    return Plan(
        root=root,
        output_table=output_table,
        steps=steps,
        levels=_levels(path, root),
        columns={table: tuple(sorted(cells)) for table, cells in columns.items()},
        triggers={table: frozenset(names) for table, names in triggers.items()},
        own=frozenset(o.column.name for step in steps for o in step.writes if o.table == root),
        gathered=catalog.gathered(root),
        routes={table: routes[table] for table in path},
        sources=_sources(steps, own, catalog.gathered(root)),
        fields=tuple(
            DocumentField(f.name, f.column.table, f.column.cell, f.critical)
            for f in (catalog.fields.values() if is_document else ())
        ),
        is_document=is_document,
    )


def _route(path: Mapping[str, Reference], root: str, table: str) -> tuple[Reference, ...]:
    route = []
    while table != root:
        route.append(path[table])
        table = path[table].table
    return tuple(route)


def _levels(path: Mapping[str, Reference], root: str) -> tuple[tuple[Reference, ...], ...]:
    levels: dict[int, list[Reference]] = {}
    for table, reference in path.items():
        levels.setdefault(len(_route(path, root, table)), []).append(reference)
    return tuple(tuple(levels[depth]) for depth in sorted(levels))


def step_of(catalog: Catalog, handler: Handler) -> Step:
    """Resolve a handler's columns. Raises DeclarationError for one that the catalogue does not have."""
    for ref in (*handler.declaration.inputs, *handler.declaration.writes):
        table, _, name = ref.partition(".")
        if table not in catalog.tables or name not in catalog.tables[table].columns:
            raise DeclarationError(
                f"{handler.declaration}: {ref!r} is not a column of {catalog.file}; declare it there"
            )
    columns = [catalog.column(ref) for ref in handler.declaration.inputs]
    return Step(
        handler=handler,
        allowed={c.ref: (c.table, c.cell) for c in columns},
        tables=frozenset(c.table for c in columns),
        writes=tuple(
            Output(c, c.ref, c.table, c.cell, output_encoder(c))
            for c in map(catalog.column, handler.declaration.writes)
        ),
        refs=frozenset(handler.declaration.writes),
        error_cell=handler_error_cell(handler.name),
    )


def _sources(steps: Sequence[Step], own: set[str], gathered: frozenset[str]) -> tuple[SourceUse, ...]:
    for step in steps:
        for use in step.handler.sources:
            if derived := {use.key, use.version} & own:
                raise DeclarationError(
                    f"{step.handler.declaration}: source {use.source!r} is looked up for the whole batch before any "
                    f"handler runs, so key and version cannot be {sorted(derived)}, which this root's handlers write"
                )
            if many := {ref for ref in (use.key, use.version) if ref.partition(".")[0] in gathered}:
                raise DeclarationError(
                    f"{step.handler.declaration}: source {use.source!r} is looked up by one key, but {sorted(many)} is "
                    "of many joined rows; derive what is looked up on that table's own rows"
                )
    return tuple(dict.fromkeys(use for step in steps for use in step.handler.sources))
