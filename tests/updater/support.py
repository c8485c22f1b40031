"""What the Updater's tests share: a real store, updates to feed it with, and an independent recount of index rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from catalog import Catalog
from catalog.values import decode, encode, refusal
from messaging.proto import adsindex_pb2 as pb
from storage_repo import INDEX_SEPARATOR, Origin, Repo, RepoSchema
from storage_repo.embedded import EmbeddedRepo

TEST_ORIGIN = Origin("test")


def open_repo(root: Path, catalog: Catalog) -> Repo:
    """Open the store below `root` with the catalogue's tables."""
    return EmbeddedRepo.open(root / "store", RepoSchema.of(catalog.repo_tables()), wake_dir=root / "wake")


def update(
    table: str,
    row: str,
    version: int,
    values: Mapping[str, Any] | None = None,
    *,
    source: str = "ads_db",
    lane: pb.Lane = pb.LANE_HIGH,
    origin_us: int = 1_000,
) -> pb.EntityUpdate:
    """Make an update; values None means deleted."""
    return pb.EntityUpdate(
        header=pb.Header(trace_id=f"{table}-{row}-{version}", lane=lane, origin_us=origin_us),
        table=table,
        row=row,
        source_version=version,
        source=source,
        deleted=values is None,
        columns=[
            pb.Column(name=name, value=b"" if value is None else encode(value))
            for name, value in (values or {}).items()
        ],
    )


def stored(repo: Repo, catalog: Catalog, table: str, row: str) -> dict[str, Any]:
    """Return the row's declared columns that have a valid value, decoded."""
    cells = repo.snapshot().get(table, row)
    columns = catalog.tables[table].columns.values()
    return {c.name: decode(cells[c.cell]) for c in columns if c.cell in cells and refusal(cells[c.cell]) is None}


def changed_cells(repo: Repo, after_ts: int) -> dict[tuple[str, str], set[str]]:
    """Return (table, row) -> columns that were committed after a timestamp."""
    found: dict[tuple[str, str], set[str]] = {}
    for change in repo.changes(after_ts, 100_000):
        for row in change.rows:
            found.setdefault((row.table, row.row), set()).update(row.columns)
    return found


def index_rows(repo: Repo, catalog: Catalog) -> dict[str, set[str]]:
    """Return index table -> its rows, as stored."""
    snapshot = repo.snapshot()
    return {r.index_table: {row for row, _ in snapshot.scan(r.index_table)} for r in catalog.references()}


def recounted_index_rows(repo: Repo, catalog: Catalog) -> dict[str, set[str]]:
    """Return index table -> the rows that it must have, counted from the entities."""
    snapshot = repo.snapshot()
    expected: dict[str, set[str]] = {}
    for reference in catalog.references():
        cell = catalog.tables[reference.table].columns[reference.column].cell
        expected[reference.index_table] = {
            f"{decode(cells[cell])}{INDEX_SEPARATOR}{row}"
            for row, cells in snapshot.scan(reference.table)
            if cell in cells and refusal(cells[cell]) is None
        }
    return expected
