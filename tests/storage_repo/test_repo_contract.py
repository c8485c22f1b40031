"""What storage_repo.api promises, one behaviour at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from types import ModuleType

import pytest
from repo_backends import ORIGIN, TABLES, Backend, FakeClock

import storage_repo
from storage_repo import (
    Conflict,
    LimitExceeded,
    Origin,
    Repo,
    SnapshotTooOld,
    StoreUnavailable,
    TransactionClosed,
    UnknownTable,
)

MakeRepo = Callable[..., Repo]
X, Y = "control:x", "control:y"


def put(repo: Repo, row: str, value: bytes | None, column: str = X, table: str = "ad") -> int:
    """Commit one cell (None: a tombstone); return the timestamp."""
    transaction = repo.begin(ORIGIN)
    if value is None:
        transaction.delete(table, row, column)
    else:
        transaction.put(table, row, column, value)
    return transaction.commit()


def test_exported_names_equal_all() -> None:
    """The package exports exactly what it says."""
    public = {
        name
        for name, value in vars(storage_repo).items()
        if not (name.startswith("_") or isinstance(value, ModuleType) or name == "annotations")
    }
    assert public == set(storage_repo.__all__)


def test_empty_store(repo: Repo) -> None:
    """An empty store has nothing."""
    assert repo.snapshot().get("ad", "1") == {}
    assert list(repo.snapshot().scan("ad")) == []
    assert repo.history("ad", "1") == {}
    assert repo.collect_garbage() == 0


def test_commit_makes_all_writes_visible_at_one_timestamp(repo: Repo) -> None:
    """Before its timestamp nothing of a transaction is visible, at it everything is."""
    transaction = repo.begin(ORIGIN)
    transaction.put("ad", "1", X, b"ad")
    transaction.put("campaign", "7", X, b"")
    assert repo.snapshot().get_many([("ad", "1"), ("campaign", "7")]) == {("ad", "1"): {}, ("campaign", "7"): {}}
    ts = transaction.commit()
    assert transaction.ts < ts <= repo.snapshot().ts
    assert repo.snapshot(ts - 1).get("ad", "1") == {}
    assert repo.snapshot(ts).get("ad", "1") == {X: b"ad"}
    assert repo.snapshot(ts).get("campaign", "7") == {X: b""}  # an empty value is a value


def test_timestamps_grow_and_snapshots_stay(repo: Repo) -> None:
    """Every old snapshot goes on showing what it showed."""
    stamps = [put(repo, "1", value) for value in (b"a", b"b", None, b"c")]
    assert stamps == sorted(set(stamps))
    assert [repo.snapshot(ts).get("ad", "1") for ts in stamps] == [{X: b"a"}, {X: b"b"}, {}, {X: b"c"}]


def test_columns_limit_what_is_read(repo: Repo) -> None:
    """Reads return the columns asked for, tables without a selection whole, rows asked twice once."""
    for column in (X, Y, "derived:z"):
        put(repo, "1", column.encode(), column)
    put(repo, "7", b"c", table="campaign")
    snapshot = repo.snapshot()
    assert snapshot.get("ad", "1", [Y, "derived:none"]) == {Y: Y.encode()}
    assert snapshot.get("ad", "1", []) == {}
    found = snapshot.get_many([("campaign", "7"), ("ad", "1"), ("ad", "2"), ("ad", "1")], {"ad": [X, X]})
    assert list(found.items()) == [(("campaign", "7"), {X: b"c"}), (("ad", "1"), {X: X.encode()}), (("ad", "2"), {})]
    assert list(snapshot.scan("ad", columns=["derived:z"])) == [("1", {"derived:z": b"derived:z"})]
    assert list(snapshot.scan("ad", columns=["derived:none"])) == []


def test_transaction_reads_its_own_writes(repo: Repo) -> None:
    """Get, get_many and scan show buffered puts and deletes; others do not see them."""
    for row in "bdf":
        put(repo, row, row.encode())
    transaction = repo.begin(ORIGIN)
    transaction.put("ad", "a", X, b"new")
    transaction.put("ad", "d", Y, b"more")
    transaction.delete("ad", "b", X)
    transaction.delete("ad", "zz", X)
    transaction.put("ad", "g", Y, b"last")
    assert transaction.get("ad", "d") == {X: b"d", Y: b"more"}
    assert transaction.get("ad", "d", [Y]) == {Y: b"more"}
    assert transaction.get_many([("ad", "b"), ("ad", "a")]) == {("ad", "b"): {}, ("ad", "a"): {X: b"new"}}
    expected = [("a", {X: b"new"}), ("d", {X: b"d", Y: b"more"}), ("f", {X: b"f"}), ("g", {Y: b"last"})]
    assert list(transaction.scan("ad")) == expected
    assert list(transaction.scan("ad", after="a", before="g", limit=1)) == expected[1:2]
    assert list(transaction.scan("ad", columns=[Y])) == [("d", {Y: b"more"}), ("g", {Y: b"last"})]
    assert list(repo.snapshot().scan("ad", limit=1)) == [("b", {X: b"b"})]


def test_scan_orders_and_bounds(repo: Repo) -> None:
    """Rows come in order of their text; prefix, after and before combine; a prefix may end inside an index key."""
    rows = sorted(["a", "a\x1f1", "a\x1f2", "aa", "ab", "b", "é", "日本"])
    transaction = repo.begin(ORIGIN)
    for row in reversed(rows):
        transaction.put("ad", row, X, b"1")
        transaction.put("campaign", row + "c", X, b"1")
    transaction.commit()
    snapshot = repo.snapshot()

    def scanned(**bounds: str) -> list[str]:
        return [row for row, _ in snapshot.scan("ad", **bounds)]  # type: ignore[arg-type]

    assert scanned() == rows
    assert scanned(prefix="a") == ["a", "a\x1f1", "a\x1f2", "aa", "ab"]
    assert scanned(prefix="a\x1f") == ["a\x1f1", "a\x1f2"]
    assert scanned(prefix="a", after="a\x1f1") == ["a\x1f2", "aa", "ab"]
    assert scanned(after="a") == rows[1:]
    assert scanned(before="b") == ["a", "a\x1f1", "a\x1f2", "aa", "ab"]
    assert scanned(before="a") == []
    assert scanned(after="a\x1f", before="aa") == ["a\x1f1", "a\x1f2"]
    assert scanned(after="x" * 5000) == ["é", "日本"]
    assert scanned(prefix="z") == []


def test_scan_survives_commits_in_between(repo: Repo) -> None:
    """A long scan stays at its snapshot over all its chunks while others rewrite and delete the rows."""
    rows = [f"{n:05d}" for n in range(1000)]
    transaction = repo.begin(ORIGIN)
    for row in rows:
        transaction.put("ad", row, X, b"old")
    transaction.commit()
    scan = repo.snapshot().scan("ad")
    seen = [next(scan) for _ in range(10)]
    overwrite = repo.begin(ORIGIN)
    for n, row in enumerate(rows):
        if n % 2:
            overwrite.put("ad", row, X, b"new")
        else:
            overwrite.delete("ad", row, X)
    overwrite.put("ad", "00500a", X, b"new")
    overwrite.commit()
    assert seen + list(scan) == [(row, {X: b"old"}) for row in rows]


def test_conflict_names_the_cell(repo: Repo) -> None:
    """The later of two writers of one cell fails, nothing of it is visible, and the error says where."""
    first, second = repo.begin(ORIGIN), repo.begin(ORIGIN)
    for transaction in (first, second):
        transaction.put("ad", "1", X, b"1")
    second.put("ad", "other", Y, b"1")
    ts = first.commit()
    with pytest.raises(
        Conflict, match=rf"ad/'1' control:x: started at {second.ts}, but {ts} committed since"
    ) as caught:
        second.commit()
    error = caught.value
    assert (error.table, error.row, error.column, error.start_ts, error.newer_ts) == ("ad", "1", X, second.ts, ts)
    assert repo.snapshot().get("ad", "other") == {}
    assert [version.commit_ts for version in repo.history("ad", "1")[X]] == [ts]


def test_conflicts_are_per_cell(repo: Repo) -> None:
    """Writers of different cells of one row do not conflict; a tombstone conflicts like a value."""
    first, second, third = (repo.begin(ORIGIN) for _ in range(3))
    first.put("ad", "1", X, b"1")
    second.put("ad", "1", Y, b"2")
    third.delete("ad", "1", Y)
    first.commit()
    second.commit()
    with pytest.raises(Conflict):
        third.commit()
    assert repo.snapshot().get("ad", "1") == {X: b"1", Y: b"2"}


def test_promoted_reads_conflict(repo: Repo) -> None:
    """A promoted read fails when the cell was written since; alone, without writes, it never does."""
    put(repo, "1", b"1")
    writer, reader = repo.begin(ORIGIN), repo.begin(ORIGIN)
    for transaction in (writer, reader):
        transaction.promote("ad", "1", X)
    writer.put("ad", "2", X, b"2")
    put(repo, "1", b"changed")
    with pytest.raises(Conflict):
        writer.commit()
    assert reader.commit() == reader.ts
    assert repo.snapshot().get("ad", "2") == {}


def test_transaction_without_writes_returns_its_start(repo: Repo) -> None:
    """Committing nothing gives the snapshot's timestamp."""
    put(repo, "1", b"1")
    transaction = repo.begin(ORIGIN)
    transaction.get("ad", "1")
    assert transaction.commit() == transaction.ts
    assert repo.statistics()["commits"] == 1


def test_begin_at_a_snapshot_conflicts_with_what_came_since(repo: Repo) -> None:
    """A transaction begun at an older timestamp reads there and is checked from there."""
    ts = put(repo, "1", b"1")
    put(repo, "1", b"2")
    late, fine = repo.begin(ORIGIN, ts), repo.begin(ORIGIN, ts)
    assert late.ts == ts and late.get("ad", "1") == {X: b"1"}
    late.put("ad", "1", X, b"3")
    fine.put("ad", "2", X, b"3")
    done = fine.commit()
    with pytest.raises(Conflict):
        late.commit()
    assert repo.snapshot(done).get_many([("ad", "1"), ("ad", "2")]) == {("ad", "1"): {X: b"2"}, ("ad", "2"): {X: b"3"}}
    with pytest.raises(ValueError, match=r"the newest \w+ is"):
        repo.begin(ORIGIN, 1 << 62)
    with pytest.raises(ValueError, match=r"the newest \w+ is"):
        repo.snapshot(1 << 62)


def test_closed_transactions_refuse_everything(repo: Repo) -> None:
    """After commit or abort, success or not, only abort is allowed."""
    committed, aborted, failed = (repo.begin(ORIGIN) for _ in range(3))
    for transaction in (committed, aborted, failed):
        transaction.put("ad", "1", X, b"1")
    committed.commit()
    aborted.abort()
    with pytest.raises(Conflict):
        failed.commit()
    for transaction in (committed, aborted, failed):
        uses: list[Callable[[], object]] = [
            partial(transaction.get, "ad", "1"),
            partial(transaction.get_many, [("ad", "1")]),
            partial(transaction.scan, "ad"),
            partial(transaction.put, "ad", "1", X, b"2"),
            partial(transaction.delete, "ad", "1", X),
            partial(transaction.promote, "ad", "1", X),
            transaction.commit,
            partial(repo.commit_many, [transaction]),
        ]
        for use in uses:
            with pytest.raises(TransactionClosed):
                use()
        transaction.abort()
    assert repo.snapshot().get("ad", "1") == {X: b"1"}


def test_commit_many_is_in_order_and_independent(repo: Repo) -> None:
    """One durable write; each transaction is checked against the earlier ones; a failing one does not hurt the rest."""
    transactions = [repo.begin(ORIGIN) for _ in range(5)]
    for n, transaction in enumerate(transactions):
        transaction.put("ad", "same" if n < 2 else f"{n}", X, b"%d" % n)
    transactions[3].abort()
    transactions[3] = repo.begin(ORIGIN)  # without writes
    outcomes = repo.commit_many(transactions)
    first, conflict, second, nothing, third = outcomes
    assert isinstance(first, int) and isinstance(second, int) and isinstance(third, int)
    assert first < second < third and nothing == transactions[3].ts
    assert isinstance(conflict, Conflict) and conflict.newer_ts == first
    assert repo.snapshot().get("ad", "same") == {X: b"0"}
    statistics = repo.statistics()
    assert (statistics["commits"], statistics["conflicts"], statistics["groups"]) == (3, 1, 1)
    assert repo.commit_many([]) == []


def test_threads_that_commit_at_once_share_durable_writes(repo: Repo) -> None:
    """Concurrent commit() calls all succeed or conflict rightly, in fewer durable writes than transactions."""
    counts = [0] * 8
    errors: list[BaseException] = []
    together = threading.Barrier(8)

    def work(me: int) -> None:
        together.wait()
        for n in range(25):
            own = repo.begin(ORIGIN)
            own.put("ad", f"{me}-{n}", X, b"1")
            own.commit()
            shared = repo.begin(ORIGIN)
            value = int(shared.get("ad", "shared").get(X, b"0"))
            shared.put("ad", "shared", X, b"%d" % (value + 1))
            try:
                shared.commit()
                counts[me] += 1
            except Conflict:
                pass
            except BaseException as error:
                errors.append(error)
                raise

    threads = [threading.Thread(target=work, args=(me,)) for me in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(list(repo.snapshot().scan("ad"))) == 201
    assert repo.snapshot().get("ad", "shared") == {X: b"%d" % sum(counts)}
    statistics = repo.statistics()
    assert statistics["commits"] == 200 + sum(counts)
    assert statistics["groups"] < statistics["commits"] + statistics["conflicts"]


def test_history_tells_versions_and_writers(repo: Repo, clock: FakeClock) -> None:
    """History has all versions per column, newest first, tombstones as None, with time and origin."""
    origins = [Origin("updater", trace_id=f"t{n}") for n in range(3)]
    stamps = []
    for origin, value in zip(origins, (b"a", None, b"b"), strict=True):
        transaction = repo.begin(origin)
        if value is None:
            transaction.delete("ad", "1", X)
        else:
            transaction.put("ad", "1", X, value)
            transaction.put("ad", "1", Y, value)
        stamps.append(transaction.commit())
        clock.advance(1)
    history = repo.history("ad", "1")
    assert [(v.commit_ts, v.value, v.origin) for v in history[X]] == [
        (stamps[2], b"b", origins[2]),
        (stamps[1], None, origins[1]),
        (stamps[0], b"a", origins[0]),
    ]
    assert [v.commit_ts for v in history[Y]] == [stamps[2], stamps[0]]
    times = [v.committed_at_us for v in history[X]]
    assert [times[0] - t for t in times] == [0, 1_000_000, 2_000_000]
    assert repo.history("ad", "1", Y) == {Y: history[Y]}


def test_rows_changed_since_a_time_are_those_that_history_says(repo: Repo, clock: FakeClock) -> None:
    """Of many rows of several tables at once: by the newest version of any asked column, a tombstone too."""
    asked = [*(("ad", f"{n}") for n in range(6)), ("campaign", "1"), ("campaign", "absent")]
    for row, column, value in (
        ("1", X, b"a"),
        ("2", X, b"a"),
        ("3", Y, b"a"),
        ("4", "derived:z", b"a"),
        ("2", X, b"b"),
    ):
        put(repo, row, value, column)
        clock.advance(1)
    put(repo, "1", b"c", table="campaign")
    put(repo, "1", None)
    columns = {"ad": [X, Y], "campaign": [X]}
    newest = {
        (table, row): max((v[0].committed_at_us for c, v in repo.history(table, row).items() if c in columns[table]),
                          default=None)
        for table, row in asked
    }  # fmt: skip
    times = sorted({at for at in newest.values() if at is not None})
    assert len(times) == 3
    for since_us in (1, *times, *(at + 1 for at in times)):
        expected = {row_id for row_id, at in newest.items() if at is not None and at >= since_us}
        assert repo.changed_since(asked, columns, since_us) == expected
    assert repo.changed_since(asked, columns, times[0]) == {("ad", "1"), ("ad", "2"), ("ad", "3"), ("campaign", "1")}
    assert repo.changed_since([], columns, 1) == set()
    assert repo.history("ad", "1", "control:none") == {}


@pytest.mark.parametrize(
    ("row", "column", "problem"),
    [
        ("", X, "empty"),
        ("a\0b", X, "control character"),
        ("a\nb", X, "control character"),
        ("x" * 401, X, "401 bytes"),
        ("é" * 201, X, "402 bytes"),
        ("\ud800", X, "not Unicode"),
        ("1", "x", "family:qualifier"),
        ("1", "control:", "family:qualifier"),
        ("1", "control:a\0", "control character"),
        ("1", "control:" + "q" * 500, "508 bytes"),
        ("x" * 400, "control:" + "q" * 100, "508 bytes together"),
    ],
)
def test_bad_keys_are_refused(repo: Repo, row: str, column: str, problem: str) -> None:
    """Keys that cannot be stored are refused when they are given, with a sentence that names the limit."""
    transaction = repo.begin(ORIGIN)
    uses: list[Callable[[], object]] = [
        lambda: transaction.put("ad", row, column, b""),
        lambda: transaction.delete("ad", row, column),
        lambda: transaction.promote("ad", row, column),
    ]
    for use in uses:
        with pytest.raises(LimitExceeded, match=problem):
            use()
    assert transaction.commit() == transaction.ts


def test_longest_key_works(repo: Repo) -> None:
    """The longest row and column that are allowed can be written, overwritten, deleted and read."""
    row, column = "é" * 200, "control:" + "q" * 92
    stamps = [put(repo, row, value, column) for value in (b"1", b"2", None)]
    assert [repo.snapshot(ts).get("ad", row) for ts in stamps] == [{column: b"1"}, {column: b"2"}, {}]
    assert [v.value for v in repo.history("ad", row)[column]] == [None, b"2", b"1"]
    assert list(repo.snapshot(stamps[0]).scan("ad")) == [(row, {column: b"1"})]


def test_unknown_tables_and_families_are_refused(repo: Repo) -> None:
    """Reads and writes name the table or family that is not declared, and those that are."""
    transaction, snapshot = repo.begin(ORIGIN), repo.snapshot()
    uses: list[Callable[[], object]] = [
        lambda: transaction.put("adx", "1", X, b""),
        lambda: snapshot.get("adx", "1"),
        lambda: snapshot.get_many([("adx", "1")]),
        lambda: snapshot.scan("adx"),
        lambda: repo.history("adx", "1"),
    ]
    for use in uses:
        with pytest.raises(UnknownTable, match=r"'adx' is not in the schema \(its tables: ad, campaign\)"):
            use()
    uses = [
        lambda: transaction.put("campaign", "1", "derived:z", b""),
        lambda: snapshot.get("campaign", "1", ["derived:z"]),
    ]
    for use in uses:
        with pytest.raises(UnknownTable, match="campaign has no column family 'derived'"):
            use()


def test_limits_are_errors(make_repo: MakeRepo) -> None:
    """Values and transactions over the limit are refused at once; what was buffered before stays."""
    repo = make_repo(max_value_bytes=10, max_cells_per_transaction=3)
    transaction = repo.begin(ORIGIN)
    transaction.put("ad", "1", X, b"x" * 10)
    with pytest.raises(LimitExceeded, match="11 bytes, max_value_bytes is 10"):
        transaction.put("ad", "1", Y, b"x" * 11)
    transaction.put("ad", "2", X, b"")
    transaction.promote("ad", "3", X)
    uses: list[Callable[[], object]] = [
        lambda: transaction.put("ad", "4", X, b""),
        lambda: transaction.promote("ad", "4", X),
    ]
    for use in uses:
        with pytest.raises(LimitExceeded, match="max_cells_per_transaction = 3"):
            use()
    transaction.put("ad", "1", X, b"again")
    with pytest.raises(TypeError, match="str, not bytes"):
        transaction.put("ad", "1", X, "text")  # type: ignore[arg-type]
    transaction.commit()
    assert dict(repo.snapshot().scan("ad")) == {"1": {X: b"again"}, "2": {X: b""}}


def test_state_survives_reopening(backend: Backend) -> None:
    """Cells, history and the store's id are there after a restart; timestamps go on."""
    repo = backend.open()
    before, store_id = put(repo, "1", b"1"), repo.store_id()
    repo.close()
    repo.close()
    with pytest.raises(StoreUnavailable, match="has been closed"):
        repo.snapshot()
    repo = backend.open()
    assert put(repo, "1", b"2") > before
    assert [v.value for v in repo.history("ad", "1")[X]] == [b"2", b"1"]
    assert repo.store_id() == store_id
    repo.close()


def test_schema_may_grow(backend: Backend) -> None:
    """Tables and families added later, in any order, leave what is stored alone."""
    repo = backend.open()
    put(repo, "1", b"1")
    put(repo, "1", b"c", table="campaign")
    repo.close()
    repo = backend.open(tables=(("zebra", ("f",)), ("campaign", ("control", "g")), ("aa", ("f",)), *TABLES[:1]))
    put(repo, "1", b"z", "f:x", "zebra")
    put(repo, "1", b"a", "f:x", "aa")
    put(repo, "1", b"g", "g:x", "campaign")
    found = repo.snapshot().get_many([("ad", "1"), ("campaign", "1"), ("zebra", "1"), ("aa", "1")])
    assert list(found.values()) == [{X: b"1"}, {X: b"c", "g:x": b"g"}, {"f:x": b"z"}, {"f:x": b"a"}]
    repo.close()


def test_repos_of_one_process_share_the_store(backend: Backend) -> None:
    """Two opens of one path see each other's commits, and closing one leaves the other open."""
    first, second = backend.open(), backend.open()
    put(first, "1", b"1")
    first.close()
    assert second.snapshot().get("ad", "1") == {X: b"1"}
    put(second, "1", b"2")
    second.close()


def test_statistics_count(repo: Repo) -> None:
    """Counters and sizes say what happened."""
    ts = put(repo, "1", b"1")
    put(repo, "1", b"2")
    repo.snapshot().get("ad", "1")
    repo.pin("p", ts, 60)
    expected = {
        "commits": 2,
        "conflicts": 0,
        "cells_read": 1,
        "rows_read": 1,
        "cells_written": 2,
        "versions_dropped": 0,
        "snapshots_too_old": 0,
        "pins": 1,
        "low_watermark": 0,
    }
    statistics = repo.statistics()
    assert {name: statistics[name] for name in expected} == expected


def test_old_transactions_abort(make_repo: MakeRepo, clock: FakeClock) -> None:
    """Below the low watermark reads, scans under way, commits and new snapshots say SnapshotTooOld."""
    repo = make_repo(max_transaction_age_s=10)
    old_ts = put(repo, "1", b"1")
    transaction, snapshot = repo.begin(ORIGIN), repo.snapshot()
    transaction.put("ad", "2", X, b"2")
    put(repo, "1", b"2")
    clock.advance(11)
    repo.collect_garbage()
    low = repo.statistics()["low_watermark"]
    assert max(old_ts, transaction.ts, snapshot.ts) < low
    uses: list[Callable[[], object]] = [
        lambda: snapshot.get("ad", "1"),
        lambda: list(snapshot.scan("ad")),
        lambda: repo.snapshot(old_ts),
        lambda: repo.begin(ORIGIN, old_ts),
        lambda: repo.pin("late", old_ts, 60),
        lambda: transaction.get("ad", "1"),
        transaction.commit,
    ]
    for use in uses:
        with pytest.raises(SnapshotTooOld, match=rf"snapshot \d+ is older than the low watermark {low}"):
            use()
    assert repo.snapshot().get_many([("ad", "1"), ("ad", "2")]) == {("ad", "1"): {X: b"2"}, ("ad", "2"): {}}
