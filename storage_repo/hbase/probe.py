"""The table that probes of the WAL proxy are written to."""

from __future__ import annotations

from dataclasses import replace

from storage_repo.api import RepoSchema, TableLayout, TableSchema

PROBE_TABLE = "_probe"
"""Watched by the WAL proxy and unknown to the catalogue: its changes pass through and give no notification."""
PROBE_COLUMN = "m:seen"


def with_probe(schema: RepoSchema) -> RepoSchema:
    """Return the schema with the table that probes are written to."""
    table = TableSchema(PROBE_TABLE, (PROBE_COLUMN.partition(":")[0],), TableLayout(history=False))
    return replace(schema, tables=(*schema.tables, table))
