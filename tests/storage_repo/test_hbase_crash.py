"""Clients on HBase that die at every step of the commit: whole or absent, nobody is stopped, others finish it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from repo_backends import ORIGIN, ROOT, TABLES, HbaseBackend

from storage_repo import Conflict
from storage_repo.hbase import HbaseAddress, HbaseRepo
from storage_repo.hbase.connections import HbaseConnections
from storage_repo.hbase.thrift2 import TGet
from storage_repo.omid.layout import COMMIT_TABLE, commit_key, is_shadow
from tests.stack_support import ServerInfo

X = "control:x"
CLIENT = f"""
import os, signal, sys, threading
from storage_repo import Origin, RepoSchema
from storage_repo.hbase import HbaseRepo
url, step, on = sys.argv[1:]
first_table = threading.Event()
def faults(name):
    if name.endswith("contract.ad done"):
        first_table.set()
    if step.endswith("-one") and name == step.removesuffix("-one") + " contract.campaign":
        first_table.wait()
        name = step
    if name == step:
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "flushed":
        first_table.clear()
repo = HbaseRepo.open(url, RepoSchema.of({TABLES!r}), faults=faults)
transaction = repo.begin(Origin("test"))
for table, row in (("ad", step), ("ad", step + "-2"), ("campaign", step)):
    transaction.put(table, row, "control:x", b"new")
os.write(1, b"%d\\n" % transaction.ts)
os.write(1, b"%d\\n" % transaction.commit())
if on == "close":
    repo.close()
"""
NOT_COMMITTED = ("before-flush", "flush-one", "flushed")
COMMITTED = ("decided", "finish-one", "finished", "before-entry-removal", "nowhere")


@pytest.fixture
def installation(tmp_path: Path, hbase_server: ServerInfo) -> HbaseBackend:
    """Return an empty installation."""
    return HbaseBackend.install(tmp_path, hbase_server.url)


@pytest.fixture
def repo(installation: HbaseBackend) -> Iterator[HbaseRepo]:
    """Return an open, empty repo."""
    repo = installation.open()
    yield repo
    repo.close()


def rows_of(step: str) -> list[tuple[str, str]]:
    """Return the rows that the client writes which dies at a step."""
    return [("ad", step), ("ad", f"{step}-2"), ("campaign", step)]


def run_clients(installation: HbaseBackend) -> dict[str, list[int]]:
    """Let one client die at every step; return what each has said: its start, and its commit if it was told."""
    clients = {
        step: subprocess.Popen(
            [sys.executable, "-c", CLIENT, installation.url, step, "close"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        for step in (*NOT_COMMITTED, *COMMITTED)
    }
    said = {}
    for step, client in clients.items():
        out, _ = client.communicate(timeout=120)
        assert client.returncode == (0 if step == "nowhere" else -9), step
        said[step] = [int(line) for line in out.splitlines() if line.isdecimal()]
    return said


def shadow_cells(connections: HbaseConnections, step: str) -> int:
    """Return how many shadow cells the rows of a step have."""
    count = 0
    for table, row in rows_of(step):
        result = connections.get(f"contract.{table}".encode(), [TGet(row=row.encode(), maxVersions=9)])[0]
        count += sum(is_shadow(cell.qualifier) for cell in result.columnValues)
    return count


def test_clients_killed_at_every_step(installation: HbaseBackend, repo: HbaseRepo) -> None:
    """Before the TSO's decision nothing is visible, after it everything; reading finishes it, writing goes on."""
    setup = repo.begin(ORIGIN)
    for step in (*NOT_COMMITTED, *COMMITTED):
        for table, row in rows_of(step):
            setup.put(table, row, X, b"old")
    old_ts = setup.commit()
    open_before = repo.begin(ORIGIN)

    said = run_clients(installation)
    acknowledged = {step for step, lines in said.items() if len(lines) > 1}
    assert {"nowhere"} <= acknowledged <= {"before-entry-removal", "nowhere"}

    connections = HbaseConnections(HbaseAddress.parse(installation.url))
    unfinished = {step: shadow_cells(connections, step) for step in COMMITTED}
    assert unfinished["decided"] == 6, "only the setup's own: cell and origin in three rows"
    assert unfinished["finish-one"] == 10, "and those of the two rows of the first table"
    assert {unfinished[step] for step in ("finished", "before-entry-removal", "nowhere")} == {12}

    snapshot = repo.snapshot()
    for step in NOT_COMMITTED:
        assert snapshot.get_many(rows_of(step)) == {row: {X: b"old"} for row in rows_of(step)}, step
    for step in COMMITTED:
        assert snapshot.get_many(rows_of(step)) == {row: {X: b"new"} for row in rows_of(step)}, step
    for step in (*NOT_COMMITTED, *COMMITTED):
        assert open_before.get_many(rows_of(step)) == {row: {X: b"old"} for row in rows_of(step)}, step
        versions = repo.history(*rows_of(step)[0])[X]
        assert [version.value for version in versions] == ([b"new", b"old"] if step in COMMITTED else [b"old"])
        assert versions[-1].commit_ts == old_ts
        if len(said[step]) > 1:
            assert versions[0].commit_ts == said[step][1], "it was acknowledged with another timestamp"

    assert repo.flush()
    healed = {step: shadow_cells(connections, step) for step in COMMITTED}
    # A reader heals what it has read: not who wrote it, which shares its row's commit timestamp anyhow. What it has not
    # looked up in the commit table, because another row told the commit while it was read, the WAL proxy heals.
    assert healed.pop("finish-one") in (10, 11)
    assert healed == {
        "decided": 9,
        **dict.fromkeys(COMMITTED[2:], 12),
    }
    assert [row.row for row in connections.rows(COMMIT_TABLE, [commit_key(said["nowhere"][0])], [b"F"], 1 << 62)] == []

    for step in (*NOT_COMMITTED, *COMMITTED):
        late = repo.begin(ORIGIN, open_before.ts)
        late.put("ad", step, X, b"late")
        if step in COMMITTED:
            with pytest.raises(Conflict):
                late.commit()
        else:
            late.commit()
        after = repo.begin(ORIGIN)
        for table, row in rows_of(step):
            after.put(table, row, X, b"after")
        done = after.commit()
        assert repo.snapshot(done).get_many(rows_of(step)) == {row: {X: b"after"} for row in rows_of(step)}
    connections.close()
