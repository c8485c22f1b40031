"""What is peculiar to the engine on HBase: round trips, layout, salts, false aborts, healing, its schema."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from repo_backends import ORIGIN, TABLES, FakeClock, HbaseBackend, empty_table

from compose import ServerInfo, Stack
from storage_repo import (
    Conflict,
    FalseConflict,
    LimitExceeded,
    Limits,
    OutcomeUnknown,
    RepoSchema,
    StoreUnavailable,
    TableLayout,
)
from storage_repo.hbase import HbaseAddress, HbaseRepo, apply_schema, check_schema
from storage_repo.hbase.connections import HbaseConnections
from storage_repo.hbase.thrift2 import TColumnFamilyDescriptor, TGet, TTableName
from storage_repo.omid import Aborted, CommitRequest, CommitUnknown, Outcome, TsoUnavailable
from storage_repo.omid.layout import decode_timestamp, shadow_qualifier
from tests.stack_support import HBASE, keep_hbase_up

X, Y = "control:x", "control:y"


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


@pytest.fixture
def connections(installation: HbaseBackend) -> Iterator[HbaseConnections]:
    """Return connections to the bare HBase."""
    connections = HbaseConnections(HbaseAddress.parse(installation.url))
    yield connections
    connections.close()


def put(repo: HbaseRepo, row: str, value: bytes, column: str = X, table: str = "ad") -> int:
    """Commit one cell."""
    transaction = repo.begin(ORIGIN)
    transaction.put(table, row, column, value)
    return transaction.commit()


def raw(connections: HbaseConnections, row: str) -> dict[tuple[bytes, bytes], list[tuple[int, bytes]]]:
    """Return all cells of a row of the table ad: (family, qualifier) -> (version, value)s."""
    result = connections.get(b"contract.ad", [TGet(row=row.encode(), maxVersions=100)])[0]
    cells: dict[tuple[bytes, bytes], list[tuple[int, bytes]]] = {}
    for cell in result.columnValues:
        cells.setdefault((cell.family, cell.qualifier), []).append((cell.timestamp, cell.value))
    return cells


@pytest.fixture
def spent(repo: HbaseRepo) -> Callable[[], dict[str, int]]:
    """Return a function that tells the round trips since its last call, finishing work included."""
    last: Counter[str] = Counter()

    def trips() -> dict[str, int]:
        assert repo.flush()
        now = Counter({n: c for n, c in repo.statistics().items() if n.startswith(("round_trips_", "tso_"))})
        now["round_trips_get"] -= 1  # by statistics() itself
        since = Counter(now)
        since.subtract(last)
        last.clear()
        last.update(now)
        last["round_trips_get"] += 1
        return {n: c for n, c in since.items() if c and n in ROUND_TRIPS}

    return trips


ROUND_TRIPS = {"round_trips_get", "round_trips_put", "round_trips_delete", "round_trips_scan", "tso_begins"}


def test_layout_is_omids(repo: HbaseRepo, connections: HbaseConnections) -> None:
    """Cells are at the version of the start, each with a shadow cell that holds the commit timestamp; origin too."""
    transaction = repo.begin(ORIGIN)
    transaction.put("ad", "1", X, b"value")
    transaction.delete("ad", "1", Y)
    transaction.put("ad", "1", "derived:z", b"")
    commit_ts = transaction.commit()
    cells = raw(connections, "1")
    data = {(b"control", b"x"): b"value", (b"control", b"y"): b"", (b"derived", b"z"): b"\xc1"}
    for (family, qualifier), value in data.items():
        assert cells.pop((family, qualifier)) == [(transaction.ts, value)]
        ((version, shadow),) = cells.pop((family, shadow_qualifier(qualifier)))
        assert (version, decode_timestamp(shadow)) == (transaction.ts, commit_ts)
    assert set(cells) == {(b"o", b"origin"), (b"o", shadow_qualifier(b"origin"))}


def test_batches_cost_round_trips_per_table_not_per_row(repo: HbaseRepo, spent: Callable[[], dict[str, int]]) -> None:
    """Reading 100 rows and committing 20 transactions over two tables costs as much as one row would."""
    rows = [("ad" if n % 2 else "campaign", f"{n}") for n in range(100)]
    spent()
    snapshot = repo.snapshot(transactions=20)
    assert snapshot.get_many(rows) == {row: {} for row in rows}
    assert spent() == {"tso_begins": 21, "round_trips_get": 2}
    batch = [repo.begin(ORIGIN, snapshot.ts) for _ in range(20)]
    for n, transaction in enumerate(batch):
        for table, row in rows[5 * n : 5 * n + 5]:
            transaction.put(table, row, X, b"1")
    assert all(isinstance(outcome, int) for outcome in repo.commit_many(batch))
    assert spent() == {"round_trips_put": 4, "round_trips_delete": 1}
    assert repo.snapshot().get_many(rows) == {row: {X: b"1"} for row in rows}
    assert spent() == {"tso_begins": 1, "round_trips_get": 2}
    assert len(list(repo.snapshot().scan("ad"))) == 50
    assert spent() == {"tso_begins": 1, "round_trips_scan": 1}


def test_unannounced_transactions_on_a_snapshot_are_checked_by_reading(
    repo: HbaseRepo, spent: Callable[[], dict[str, int]]
) -> None:
    """Without announcement a batch on a shared snapshot takes its start timestamps, and one read, at its commit."""
    put(repo, "1", b"0")
    snapshot = repo.snapshot()
    put(repo, "1", b"1")
    batch = [repo.begin(ORIGIN, snapshot.ts) for _ in range(3)]
    for n, transaction in enumerate(batch):
        transaction.put("ad", f"{n}", X, b"2")
    spent()
    first, conflict, third = repo.commit_many(batch)
    assert isinstance(first, int) and isinstance(third, int) and isinstance(conflict, Conflict)
    assert spent() == {"tso_begins": 3, "round_trips_get": 1, "round_trips_put": 2, "round_trips_delete": 1}


def test_announced_transactions_see_what_commits_between(repo: HbaseRepo) -> None:
    """A transaction that starts just before its snapshot still conflicts with everything after the snapshot."""
    ts = put(repo, "1", b"0")
    snapshot = repo.snapshot(transactions=3)
    late, fine, twin = (repo.begin(ORIGIN, snapshot.ts) for _ in range(3))
    newer = put(repo, "1", b"1")
    for transaction, row in ((late, "1"), (fine, "2"), (twin, "2")):
        transaction.put("ad", row, X, b"2")
    assert late.ts == fine.ts == snapshot.ts > ts
    conflict, done, twins = repo.commit_many([late, fine, twin])
    assert isinstance(conflict, Conflict) and conflict.newer_ts == newer
    assert isinstance(done, int) and isinstance(twins, Conflict) and twins.newer_ts == done


def test_false_aborts_are_tried_again_and_counted(repo: HbaseRepo) -> None:
    """Two that only promote the same read are refused by the TSO, though nobody has changed the cell."""
    put(repo, "read", b"1")
    first, second = repo.begin(ORIGIN), repo.begin(ORIGIN)
    for n, transaction in enumerate((first, second)):
        transaction.promote("ad", "read", X)
        transaction.put("ad", f"{n}", X, b"1")
    first.commit()
    second.commit()
    assert dict(repo.snapshot().scan("ad")) == {row: {X: b"1"} for row in ("0", "1", "read")}
    statistics = repo.statistics()
    assert (statistics["commits"], statistics["conflicts"], statistics["false_aborts"]) == (3, 0, 1)


def test_what_is_refused_again_and_again_is_no_conflict(repo: HbaseRepo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has changed a cell of it: counted apart, and the error names no culprit; a true conflict still is one."""
    ts = put(repo, "1", b"1")
    doomed = repo.begin(ORIGIN)
    doomed.put("ad", "1", X, b"2")
    tso: Any = repo._oracle.tso
    decide = tso.commit_many
    monkeypatch.setattr(tso, "commit_many", lambda requests: [Aborted() for _ in requests])
    with pytest.raises(FalseConflict, match="refused 4 times"):
        doomed.commit()
    late = repo.begin(ORIGIN, doomed.ts)
    late.put("ad", "1", X, b"3")
    monkeypatch.setattr(tso, "commit_many", decide)
    put(repo, "1", b"new")
    with pytest.raises(Conflict) as met:
        late.commit()
    assert not isinstance(met.value, FalseConflict)
    statistics = repo.statistics()
    assert (statistics["conflicts"], statistics["false_aborts_given_up"], statistics["commits"]) == (1, 1, 2)
    assert repo.snapshot(ts).get("ad", "1") == {X: b"1"}


def test_a_commit_that_cannot_be_looked_up_is_unknown(repo: HbaseRepo, monkeypatch: pytest.MonkeyPatch) -> None:
    """The TSO's answer is lost, and then HBase is away: nobody may say that nothing is visible, for here it is.

    Of those in the same group, whoever has an answer keeps it, and the cells of whoever was never asked go.
    """
    transactions = [repo.begin(ORIGIN) for _ in range(3)]
    for row, transaction in enumerate(transactions):
        transaction.put("ad", f"{row}", X, b"1")
    tso: Any = repo._oracle.tso
    decide = tso.commit_many

    def lose_answers(requests: Sequence[CommitRequest]) -> list[Outcome]:
        known, _ = decide(requests[:2])
        away.set()
        return [known, CommitUnknown(requests[1].start_ts, "lost"), TsoUnavailable("away")]

    def unless_away(*arguments: Any) -> Any:
        if away.is_set():
            raise StoreUnavailable("HBase is away")
        return look_up(*arguments)

    away = threading.Event()
    look_up = repo._connections.rows
    monkeypatch.setattr(tso, "commit_many", lose_answers)
    monkeypatch.setattr(repo._connections, "rows", unless_away)
    done, unknown, never = repo.commit_many(transactions)
    assert isinstance(done, int) and isinstance(unknown, OutcomeUnknown)
    assert isinstance(never, StoreUnavailable) and not isinstance(never, OutcomeUnknown)
    monkeypatch.setattr(tso, "commit_many", decide)
    away.clear()
    assert dict(repo.snapshot().scan("ad")) == {"0": {X: b"1"}, "1": {X: b"1"}}


def test_a_group_that_surely_failed_is_raised(repo: HbaseRepo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what may be visible is an outcome."""
    transaction = repo.begin(ORIGIN)
    transaction.put("ad", "1", X, b"1")
    monkeypatch.setattr(repo._oracle.tso, "commit_many", lambda requests: [TsoUnavailable("away") for _ in requests])
    with pytest.raises(StoreUnavailable, match="away") as met:
        repo.commit_many([transaction])
    assert not isinstance(met.value, OutcomeUnknown)


def test_collection_of_some_rows_at_a_time_comes_to_an_end(installation: HbaseBackend) -> None:
    """A call looks at so many rows at most, and the next one goes on from there, whether they had something or not."""
    clock = FakeClock()
    repo = installation.open(Limits(versions_kept=1, max_transaction_age_s=10), clock)
    for _ in range(3):
        batch = [repo.begin(ORIGIN) for _ in range(10)]
        for row, transaction in enumerate(batch):
            transaction.put("ad", f"{row}", X, b"1")
        repo.commit_many(batch)
    clock.advance(11)
    counts = [repo.collect_garbage(max_rows=3) for _ in range(5)]
    assert counts == [6, 6, 6, 2, 0]
    repo.close()


def test_cells_of_refused_transactions_are_deleted_and_nothing_else(
    repo: HbaseRepo, connections: HbaseConnections
) -> None:
    """Only the refused version goes; older committed ones stay, which a Thrift1 delete would take along."""
    put(repo, "1", b"old")
    loser = repo.begin(ORIGIN)
    loser.put("ad", "1", X, b"lost")
    loser.put("ad", "1", Y, b"lost")
    put(repo, "1", b"new")
    with pytest.raises(Conflict):
        loser.commit()
    assert repo.flush()
    cells = raw(connections, "1")
    assert [value for _, value in cells[b"control", b"x"]] == [b"new", b"old"]
    assert (b"control", b"y") not in cells and len(cells[b"o", b"origin"]) == 2


def test_collected_versions_leave_nothing_behind(installation: HbaseBackend, connections: HbaseConnections) -> None:
    """A version goes with its shadow cell and with who wrote it; a row that is all deleted goes altogether."""
    clock = FakeClock()
    repo = installation.open(Limits(versions_kept=2, max_transaction_age_s=10), clock)
    for n in range(5):
        put(repo, "1", b"%d" % n)
    for column in (X, Y):
        put(repo, "2", b"1", column)
    for _ in range(2):
        transaction = repo.begin(ORIGIN)
        transaction.delete("ad", "2", X)
        transaction.delete("ad", "2", Y)
        transaction.commit()
    clock.advance(11)
    assert repo.collect_garbage() == 3 + 2
    assert {key: len(versions) for key, versions in raw(connections, "1").items()} == {
        (b"control", b"x"): 2,
        (b"control", shadow_qualifier(b"x")): 2,
        (b"o", b"origin"): 2,
        (b"o", shadow_qualifier(b"origin")): 2,
    }
    assert [len(versions) for versions in raw(connections, "2").values()] == [2] * 6, "two tombstones are two versions"
    repo.close()
    repo = installation.open(Limits(versions_kept=1, max_transaction_age_s=10), clock)
    assert repo.collect_garbage() == 1 + 4
    assert raw(connections, "2") == {}
    repo.close()


def test_salted_tables_scan_in_order(installation: HbaseBackend, hbase_server: ServerInfo) -> None:
    """Rows of a salted table are spread over its regions, and scans merge them in key order."""
    url = f"{hbase_server.url}&prefix=salted."
    schema = RepoSchema.of([("index", ("meta",))], layouts={"index": TableLayout(salts=4)})
    apply_schema(url, schema)
    assert check_schema(url, schema) == []
    connections = HbaseConnections(HbaseAddress.parse(url))
    empty_table(connections, b"salted.index")
    repo = HbaseRepo.open(url, schema)
    rows = sorted(f"{campaign}\x1f{ad}" for campaign in range(8) for ad in range(5))
    transaction = repo.begin(ORIGIN)
    for row in rows:
        transaction.put("index", row, "meta:m", b"1")
    transaction.commit()
    snapshot = repo.snapshot()
    assert [row for row, _ in snapshot.scan("index")] == rows
    assert [row for row, _ in snapshot.scan("index", prefix="3\x1f", limit=3)] == rows[15:18]
    assert [row for row, _ in snapshot.scan("index", after=rows[3], before=rows[30], limit=10)] == rows[4:14]
    assert snapshot.get("index", rows[7]) == {"meta:m": b"1"}
    repo.close()
    other = RepoSchema.of([("index", ("meta",))], layouts={"index": TableLayout(salts=5)})
    with pytest.raises(StoreUnavailable, match="it has 4 salts, declared are 5"):
        apply_schema(url, other)
    connections.close()


def test_reserved_names_are_refused(repo: HbaseRepo) -> None:
    """A qualifier that Omid would take for a shadow cell's is refused when it is given."""
    with pytest.raises(LimitExceeded, match=r"ends in U\+0080"):
        repo.begin(ORIGIN).put("ad", "1", "control:x\x80", b"1")
    with pytest.raises(LimitExceeded, match="ends in a colon"):
        repo.begin(ORIGIN).put("ad", "1", "control:x:", b"1")


def test_schema_is_checked_and_put_right(hbase_server: ServerInfo) -> None:
    """Differences are named, applying removes them, and a second time there is nothing to do."""
    url = f"{hbase_server.url}&prefix=schema."
    connections = HbaseConnections(HbaseAddress.parse(url))
    name = TTableName(ns=b"default", qualifier=b"schema.ad")
    if connections.admin("tableExists", name):  # a standing HBase
        connections.admin("disableTable", name)
        connections.admin("deleteTable", name)
    schema = RepoSchema.of(TABLES[:1])
    with pytest.raises(StoreUnavailable, match="repo apply"):
        HbaseRepo.open(url.replace("schema.", "nowhere."), schema)
    assert "schema.ad: the table is missing" in map(str, check_schema(url, schema))
    apply_schema(url, schema)
    assert check_schema(url, schema) == []
    connections.admin("modifyColumnFamily", name, TColumnFamilyDescriptor(name=b"control", maxVersions=3, scope=0))
    found = [str(difference) for difference in check_schema(url, schema)]
    assert found == [
        "schema.ad: family 'control' keeps 3 versions instead of all",
        "schema.ad: family 'control' is not replicated (REPLICATION_SCOPE is 0)",
        "schema.ad: family 'control' has BLOOMFILTER = ROW; its reads are slow",
    ]
    assert list(map(str, apply_schema(url, schema))) == found
    assert check_schema(url, schema) == []
    connections.close()


def test_a_shared_server_that_ended_is_started_for_the_next_test(hbase_server: ServerInfo, shared_stack: Stack) -> None:
    """Only that one, on its port; this is what the fixture does before every test."""
    before = shared_stack.status(HBASE)
    shared_stack.kill("thrift2")
    keep_hbase_up()
    after = shared_stack.status(HBASE)
    assert {name for name in HBASE if after[name].pid != before[name].pid} == {"thrift2"}
    assert {(server.state, server.port) for server in after.values()} == {
        ("ready", server.port) for server in before.values()
    }
