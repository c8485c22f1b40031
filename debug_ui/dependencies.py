"""The dependency browser: what each handler watches, reads and writes, and which fields that feeds."""

from __future__ import annotations

from argus import load_registry
from catalog import Catalog
from debug_ui.views import View


class DependencyRow(View):
    """One handler with the columns before it and the fields behind it."""

    handler: str
    root: str
    watches: tuple[str, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    fields: tuple[str, ...]
    """Fields of the servable document that come from what it writes."""
    feeds: tuple[str, ...]
    """Handlers that take what it writes."""


def dependency_rows(catalog: Catalog) -> list[DependencyRow]:
    """Return every handler in dependency order. Raises DependencyError when handlers and catalogue do not fit."""
    handlers = load_registry(catalog).graph.handlers
    return [
        DependencyRow(
            handler=h.name,
            root=h.root,
            watches=h.watches,
            reads=h.reads,
            writes=h.writes,
            fields=tuple(f.name for f in catalog.fields.values() if f.column.ref in h.writes),
            feeds=tuple(other.name for other in handlers if set(other.inputs) & set(h.writes)),
        )
        for h in handlers
    ]
