"""Everything known of one entity, read from the ads DB, the Repo, serving and the dead letters at once."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from google.protobuf.message import DecodeError

from catalog import Catalog, Column, Reference, Table
from catalog.model import DELETED, DOCUMENT_BLOCKED, DOCUMENT_BODY, SOURCE_VERSION, TIMELINE
from catalog.values import decode
from debug_ui._exceptions import UnknownEntity, UnknownKind
from debug_ui._serving import readable_body, serving_view
from debug_ui._source import NAME_COLUMNS, Raw, compare, raw_rows, source_rows
from debug_ui._values import cell_value
from debug_ui.backends import Backends
from debug_ui.dead_letters import list_dead_letters
from debug_ui.views import (
    CellVersionView,
    ColumnView,
    DocumentView,
    EntityView,
    HandlerProblem,
    HopView,
    Link,
    Relation,
    ServingView,
    Timeline,
    Writer,
)
from messaging.headers import lane_of, now_us
from messaging.proto import adsindex_pb2 as pb
from storage_repo import INDEX_SEPARATOR, CellVersion

ERROR_PREFIX = "meta:error."
LINKS_SHOWN = 25
COUNTED = 1_000
"""Children are counted up to this; a campaign of 100,000 ads is shown as "1000 or more" and not scanned."""
MAX_ID_BYTES = 400
"""What the Repo takes as a row key."""
LETTERS_SHOWN = 20

History = Mapping[str, Sequence[CellVersion]]


def kinds(catalog: Catalog) -> tuple[str, ...]:
    """Return the kinds of entities that can be looked up, "document" last."""
    return (*(t.name for t in catalog.entity_tables()), "document")


def table_of(catalog: Catalog, kind: str) -> Table:
    """Return the table of a kind as a person types it: "ad group", "ad-group" and "ads" work. Raises UnknownKind."""
    name = kind.strip().lower().replace(" ", "_").replace("-", "_")
    for candidate in (name, name.removesuffix("s")):
        if candidate in ("document", "doc"):
            return catalog.tables[catalog.document_table]
        for table in catalog.tables.values():
            if candidate in (table.name, table.name.replace("_", "")):
                return table
    raise UnknownKind(kind, kinds(catalog))


def inspect_entity(backends: Backends, kind: str, entity_id: str, *, history: bool = False) -> EntityView:
    """Return everything known of an entity; `history` adds all readable versions of every cell.

    Raises UnknownKind, UnknownEntity, BadInput.
    """
    catalog = backends.catalog
    table = table_of(catalog, kind)
    entity_id = entity_id.strip()
    if not entity_id or len(entity_id.encode(errors="replace")) > MAX_ID_BYTES or any(c < " " for c in entity_id):
        raise UnknownEntity(table.name, entity_id)
    raw, read_at_us = raw_rows(backends.ads_db, table, entity_id), now_us()
    source = source_rows(table, raw, read_at_us)
    repo_ts = backends.repo.snapshot().ts
    cells = backends.repo.history(table.name, entity_id)
    document, serving, timeline = _document_part(backends, table, entity_id, cells)
    about = [table.name] if document is None else [catalog.root, catalog.document_table]
    letters = tuple(
        letter
        for name in about
        for letter in list_dead_letters(backends.log, table=name, row=entity_id, limit=LETTERS_SHOWN)
    )
    problems = handler_problems(cells)
    if table.name == catalog.root:
        problems += handler_problems(backends.repo.history(catalog.document_table, entity_id))
    in_serving = serving is not None and serving.layer in ("base", "delta", "deleted")
    if not (any(row.exists for row in source) or cells or letters or in_serving):
        raise UnknownEntity(table.name, entity_id)
    values = {c.name: newest_value(cells, c.cell) for c in table.columns.values()}
    declared = {c.cell: c for c in table.columns.values()}
    source_exists = bool(source) and source[0].exists
    return EntityView(
        kind=_kind(table),
        id=entity_id,
        name=_name(values, source[0].values if source_exists else {}),
        at_us=now_us(),
        repo_ts=repo_ts,
        source=source,
        source_version=newest_value(cells, SOURCE_VERSION),
        deleted_at_source=bool(newest_value(cells, DELETED)),
        differences=tuple(compare(table, raw, values)) if source_exists else (),
        columns=tuple(_column_view(c, cell, cells.get(cell, ()), history) for cell, c in declared.items()),
        pipeline_cells=tuple(
            _column_view(None, cell, versions, history)
            for cell, versions in sorted(cells.items())
            if cell not in declared
        ),
        parents=_parents(backends, table, entity_id, values, raw),
        children=_children(backends, table, entity_id),
        problems=problems,
        document=document,
        serving=serving,
        timeline=timeline,
        dead_letters=letters,
    )


def newest_value(cells: History, cell: str) -> Any:
    """Return the decoded newest value of a cell; None if it is absent, deleted or not the encoding."""
    versions = cells.get(cell, ())
    try:
        return decode(versions[0].value) if versions else None
    except msgspec.DecodeError:
        return None


def handler_problems(cells: History) -> tuple[HandlerProblem, ...]:
    """Return what handlers refused or failed at on a row, as their error cells say now."""
    problems = []
    for cell, versions in sorted(cells.items()):
        if not cell.startswith(ERROR_PREFIX) or not versions or versions[0].value is None:
            continue
        value = newest_value(cells, cell)
        reason, sentence = value if isinstance(value, list) and len(value) == 2 else ("unreadable", str(value))
        problems.append(
            HandlerProblem(
                handler=cell.removeprefix(ERROR_PREFIX),
                reason=str(reason),
                sentence=str(sentence),
                commit_ts=versions[0].commit_ts,
                committed_at_us=versions[0].committed_at_us,
            )
        )
    return tuple(problems)


def document_view(catalog: Catalog, document_id: str, cells: History) -> DocumentView:
    """Return the servable document that the cells of a document row hold."""
    body = cells.get(DOCUMENT_BODY, ())
    blocked = newest_value(cells, DOCUMENT_BLOCKED)
    present = bool(body) and body[0].value is not None
    data = body[0].value if body else None
    return DocumentView(
        document_id=document_id,
        present=present,
        version=body[0].commit_ts if body else None,
        committed_at_us=body[0].committed_at_us if body else None,
        size_bytes=len(data or b""),
        fields=readable_body(catalog, data) if data else {},
        blocked=tuple(str(b) for b in blocked) if isinstance(blocked, list) else (),
    )


def timeline_of(header: pb.Header, answerable_us: int | None) -> Timeline:
    """Return the stages that a header's message went through, with waits and work between them."""
    hops, previous = [], header.origin_us
    for hop in header.hops:
        hops.append(
            HopView(
                stage=hop.stage,
                entered_us=hop.entered_us,
                left_us=hop.left_us,
                waited_us=max(0, hop.entered_us - previous),
                worked_us=max(0, hop.left_us - hop.entered_us),
            )
        )
        previous = hop.left_us
    return Timeline(
        trace_id=header.trace_id,
        lane=lane_of(header).value,
        origin_us=header.origin_us,
        hops=tuple(hops),
        answerable_us=answerable_us,
        total_us=max(0, (answerable_us or previous) - header.origin_us),
    )


def _document_part(
    backends: Backends, table: Table, entity_id: str, cells: History
) -> tuple[DocumentView | None, ServingView | None, Timeline | None]:
    """Return document, serving's state and timeline of an ad or of its document; nothing for other kinds."""
    catalog = backends.catalog
    if table.name == catalog.root:
        cells = backends.repo.history(catalog.document_table, entity_id)
    elif table.name != catalog.document_table:
        return None, None, None
    document = document_view(catalog, entity_id, cells)
    body = cells.get(DOCUMENT_BODY, ())
    serving = serving_view(backends, entity_id, document.version, body[0].value if body else None)
    written = cells.get(TIMELINE, ())
    timeline = None
    if written and written[0].value:
        try:
            header = pb.Header.FromString(written[0].value)
        except DecodeError:
            header = None  # Shown raw among the pipeline's cells.
        if header is not None:
            same = serving.trace_id == header.trace_id and serving.answerable_us
            timeline = timeline_of(header, serving.answerable_us if same else None)
    return document, serving, timeline


def _column_view(column: Column | None, cell: str, versions: Sequence[CellVersion], history: bool) -> ColumnView:
    views = tuple(_version_view(column, v) for v in (versions if history else versions[:1]))
    return ColumnView(
        name=column.name if column is not None else cell.partition(":")[2],
        cell=cell,
        type=column.type.value if column is not None else "",
        source=column.source if column is not None else "pipeline",
        current=views[0] if views else None,
        versions=len(versions),
        history=views if history else (),
    )


def _version_view(column: Column | None, version: CellVersion) -> CellVersionView:
    origin = version.origin
    return CellVersionView(
        value=cell_value(column, version.value) if version.value is not None else None,
        deleted=version.value is None,
        commit_ts=version.commit_ts,
        committed_at_us=version.committed_at_us,
        writer=Writer(
            stage=origin.stage, handler=origin.handler, code_version=origin.code_version, trace_id=origin.trace_id
        )
        if origin is not None
        else None,
    )


def _kind(table: Table) -> str:
    return "document" if table.root else table.name


def _name(values: Mapping[str, Any], source: Mapping[str, Any]) -> str:
    for column in NAME_COLUMNS:
        for known in (source, values):
            if known.get(column):
                return str(known[column])[:200]
    return ""


def _links(backends: Backends, kind: str, ids: Sequence[str]) -> tuple[Link, ...]:
    """Return links with the names that the Repo knows, read in one go."""
    catalog = backends.catalog
    if kind == "document":
        return tuple(Link(kind=kind, id=i, name="servable document") for i in ids)
    table = catalog.tables[kind]
    cells = [table.columns[c].cell for c in NAME_COLUMNS if c in table.columns]
    rows = backends.repo.snapshot().get_many([(kind, i) for i in ids], {kind: [*cells, SOURCE_VERSION, DELETED]})
    links = []
    for entity_id in ids:
        row = rows[(kind, entity_id)]
        name = next((str(cell_value(None, row[c])) for c in cells if c in row), "")
        links.append(Link(kind=kind, id=entity_id, name=name[:200], exists=bool(row) and DELETED not in row))
    return tuple(links)


def _parents(
    backends: Backends, table: Table, entity_id: str, values: Mapping[str, Any], raw: Raw
) -> tuple[Relation, ...]:
    if table.root is not None:
        return (Relation(kind=table.root, via="document of", count=1, links=_links(backends, table.root, [entity_id])),)
    relations = []
    for reference in table.references:
        column = table.columns[reference.column]
        target = values.get(reference.column)
        if target is None and column.source_table in raw:
            target = raw[column.source_table].get(column.source_column or "")
        targets = list(dict.fromkeys(target)) if isinstance(target, list) else [] if target is None else [target]
        links = _links(backends, reference.target, [str(one) for one in targets[:LINKS_SHOWN]])
        count = len(links) + max(0, len(targets) - LINKS_SHOWN)
        relations.append(Relation(kind=reference.target, via=reference.column, count=count, links=links))
    return tuple(relations)


def _children(backends: Backends, table: Table, entity_id: str) -> tuple[Relation, ...]:
    relations = [_referring(backends, r, entity_id) for r in backends.catalog.references() if r.target == table.name]
    if table.name == backends.catalog.root:
        links = _links(backends, "document", [entity_id])
        relations.append(Relation(kind="document", via="servable document", count=1, links=links))
    return tuple(relations)


def _referring(backends: Backends, reference: Reference, entity_id: str) -> Relation:
    prefix = f"{entity_id}{INDEX_SEPARATOR}"
    scan = backends.repo.snapshot().scan(reference.index_table, prefix=prefix, limit=COUNTED)
    ids = [row[len(prefix) :] for row, _ in itertools.islice(scan, COUNTED)]
    return Relation(
        kind=reference.table,
        via=reference.column,
        count=len(ids),
        count_is_exact=len(ids) < COUNTED,
        links=_links(backends, reference.table, ids[:LINKS_SHOWN]),
    )
