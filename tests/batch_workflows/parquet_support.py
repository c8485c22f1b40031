"""Catalogues that differ by a column, and Repos filled with every kind of cell, for the tests of snapshots."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from catalog import DEFAULT_CATALOG, Catalog, ValueType, load_catalog
from catalog.documents import encode_document
from catalog.model import DELETED, DOCUMENT_BODY, INDEX_CELL, INTERNAL_TABLES, SOURCE_VERSION, Column
from catalog.values import encode, refused
from messaging.home import Home
from storage_repo import INDEX_SEPARATOR, Origin, Repo, RepoSchema
from storage_repo.embedded import EmbeddedRepo
from tests.batch_workflows.run_support import Opened
from tests.support import ROOT

ROWS = 120
"""Of every table of the Repo that the tests fill."""
AFTER = "      performance_version: {type: int, family: content, from: signal:performance}\n"
TYPES = {
    "quality": "float",
    "seen_at": "time",
    "adult": "bool",
    "labels": "list<string>",
    "codes": "list<int>",
    "raw": "bytes",
    "notes": "json",
    "embedding2": "vector, dims: 4",
    "caption": "string",
}
"""Columns of the signal "extra", one of every type."""


def catalogue(root: Path, **types: str) -> Catalog:
    """Return the built-in catalogue with columns more on `ad`, of the signal "extra"."""
    text = DEFAULT_CATALOG.read_text()
    assert AFTER in text
    lines = "".join(f"      {n}: {{type: {t}, family: content, from: signal:extra}}\n" for n, t in types.items())
    file = root / f"catalog-{'-'.join(types) or 'plain'}.yaml"
    file.write_text(text.replace(AFTER, AFTER + lines))
    return load_catalog(file)


def open_with(root: Path, catalog: Catalog) -> Opened:
    """Open a home's Repo with a catalogue."""
    home = Home.open(root)
    repo = EmbeddedRepo.open(home.store, RepoSchema.of(catalog.repo_tables()), wake_dir=home.wake)
    return Opened(home, catalog, repo)


def value_of(rng: random.Random, column: Column) -> Any:
    """Return a value that the column may have, edges more often than not."""
    match column.type:
        case ValueType.STRING | ValueType.JSON:
            return column.values[0] if column.values else rng.choice(["", "é\U0001f600\n", "a" * 300, '{"a": 1}'])
        case ValueType.INT:
            return rng.choice([0, -1, (1 << 63) - 1, -(1 << 63), rng.randrange(10**6)])
        case ValueType.FLOAT:
            return rng.choice([0.0, -0.0, 1e-300, 0.1, rng.random()])
        case ValueType.BOOL:
            return rng.random() < 0.5
        case ValueType.TIME:
            return rng.choice([0, -62135596800000000, 253402300799999999, rng.randrange(2 * 10**15)])
        case ValueType.BYTES:
            return rng.choice([b"\0\xff", rng.randbytes(20)])
        case ValueType.STRING_LIST:
            return rng.choice([[], [""], ["b", "a", "b"]])
        case ValueType.INT_LIST:
            return rng.choice([[], [0], [5, -5, 1 << 62]])
        case ValueType.VECTOR:
            return np.asarray([rng.uniform(-1, 1) for _ in range(column.dims)], dtype="<f4").tobytes()


def fill(opened: Opened, rows: int, seed: int) -> None:
    """Write rows of every table with every kind of cell: values, refused ones, deletes, cells of the pipeline, and
    bytes that are no value."""
    rng, catalog = random.Random(seed), opened.catalog
    for table in catalog.tables.values():
        for start in range(0, rows, 200):
            transaction = opened.repo.begin(Origin("test", "fill"))
            for number in range(start, min(rows, start + 200)):
                row = str(number)
                transaction.put(table.name, row, SOURCE_VERSION, encode(number + 1))
                if rng.random() < 0.05:
                    transaction.put(table.name, row, DELETED, encode(True))
                for column in table.columns.values():
                    chance = rng.random()
                    if chance < 0.8:
                        transaction.put(table.name, row, column.cell, encode(value_of(rng, column)))
                    elif chance < 0.85:
                        transaction.put(table.name, row, column.cell, refused("bad_type"))
                if table.root:
                    body = encode_document({f.name: value_of(rng, f.column) for f in catalog.fields.values()})
                    transaction.put(table.name, row, DOCUMENT_BODY, body)
                for reference in table.references:
                    transaction.put(reference.index_table, f"{rng.randrange(9)}{INDEX_SEPARATOR}{row}", INDEX_CELL, b"")
            transaction.commit()


def contents(repo: Repo, catalog: Catalog) -> dict[str, dict[str, dict[str, bytes]]]:
    """Return every cell of every table but the internal ones."""
    internal, snapshot = {name for name, _ in INTERNAL_TABLES}, repo.snapshot()
    return {
        t: {row: dict(cells) for row, cells in snapshot.scan(t)} for t, _ in catalog.repo_tables() if t not in internal
    }


def child(home: Path, catalog: Catalog, name: str, resume: bool, **parameters: Any) -> subprocess.Popen[str]:
    """Run a workflow with small parts in a process, which says something at each checkpoint."""
    code = (
        "import sys, json; from pathlib import Path\n"
        "from catalog import load_catalog\n"
        "from batch_workflows import parquet_import, parquet_snapshot, leases\n"
        "from tests.batch_workflows.parquet_support import open_with\n"
        "from tests.batch_workflows.run_support import run\n"
        "parquet_snapshot.PART_ROWS, parquet_snapshot.GROUP_ROWS = 25, 10\n"
        "parquet_import.BATCH_ROWS, parquet_import.TASK_ROWS, parquet_import.CHECKPOINT_S = 7, 7, 0.0\n"
        "parquet_import.POOL_ROWS = 0\n"
        "real = leases.Lease.checkpoint\n"
        "def checkpoint(self, state):\n    real(self, state); print('.', flush=True)\n"
        "leases.Lease.checkpoint = checkpoint\n"
        "opened = open_with(Path(sys.argv[1]), load_catalog(Path(sys.argv[2])))\n"
        "print(run(opened, sys.argv[3], resume=sys.argv[4] == 'True', **json.loads(sys.argv[5])).outcome, flush=True)\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, str(home), catalog.file, name, str(resume), json.dumps(parameters)],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def killed_until_done(
    home: Path,
    catalog: Catalog,
    name: str,
    kills: list[int],
    between: Callable[[], None] = lambda: None,
    **parameters: Any,
) -> int:
    """Run a workflow, kill it after so many checkpoints, resume it, and so on; return how often it was killed.

    `between` is called after every kill.
    """
    for number, after in enumerate([*kills, 1_000_000]):
        process = child(home, catalog, name, number > 0, **({} if number else parameters))
        assert process.stdout is not None
        lines = 0
        while lines < after and (line := process.stdout.readline()):
            if "succeeded" in line:
                process.wait()
                return number
            lines += 1
        process.kill()
        process.wait()
        process.stdout.close()
        between()
    raise AssertionError("the last attempt did not end")
