"""Apache Omid's real Java client and our engine on the same rows of one real HBase and TSO, in both directions."""

from __future__ import annotations

import random
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import happybase
import pytest

from compose import ServerInfo
from storage_repo import Conflict, Origin, RepoSchema, TableLayout
from storage_repo.hbase.names import ORIGIN_FAMILY
from storage_repo.hbase.repo import HbaseRepo, apply_schema
from storage_repo.omid import ids, layout
from tests.storage_repo.java_peer import JavaPeer, Refused, java_peer
from tests.storage_repo.tso_wire import wait_until

ORIGIN = Origin("test")
SCHEMA = RepoSchema.of([("docs", ("f", "g")), ("other", ("f",))])
PREFIX = "interop_"
DOCS, OTHER = b"interop_docs", b"interop_other"


class Died(Exception):
    """Raised at a step of the commit, after which our client does nothing more: as if it had died there."""


class World:
    """A Java client, our engine, and what is really in HBase."""

    def __init__(self, server: ServerInfo, java: JavaPeer) -> None:
        self.url = f"{server.url}&prefix={PREFIX}"
        self.java = java
        apply_schema(self.url, SCHEMA)
        self.repo = HbaseRepo.open(self.url, SCHEMA)
        parts = urlsplit(server.url)
        self._thrift = happybase.Connection(parts.hostname, parts.port)

    def close(self) -> None:
        """Close everything but the Java client."""
        self.repo.close()
        self._thrift.close()

    def java_writes(self, *cells: tuple[bytes, bytes, bytes, bytes], table: bytes = DOCS) -> int:
        """Have the Java client commit (row, family, qualifier, value)s; return the commit timestamp."""
        self.java.begin("w")
        for cell in cells:
            self.java.put("w", table, *cell)
        return self.java.commit("w")

    def we_write(self, *cells: tuple[str, str, bytes], table: str = "docs") -> int:
        """Commit (row, column, value)s; return the commit timestamp."""
        transaction = self.repo.begin(ORIGIN)
        for row, column, value in cells:
            transaction.put(table, row, column, value)
        return transaction.commit()

    def java_reads(self, row: bytes, *columns: bytes, table: bytes = DOCS) -> dict[bytes, bytes]:
        """Return what a new transaction of the Java client sees of a row, by "family:qualifier", without origins."""
        self.java.begin("r")
        cells = self.java.get("r", table, row, *columns)
        self.java.commit("r")
        return {family + b":" + q: value for (_, family, q), value in cells.items() if family != ORIGIN_FAMILY}

    def we_read(self, row: str, table: str = "docs") -> dict[str, bytes]:
        """Return what a new snapshot of ours sees of a row."""
        return self.repo.snapshot().get(table, row)

    def we_die(self, step: str, *cells: tuple[str, str, bytes]) -> int:
        """Write cells with an engine of ours that dies at a step of the commit; return the start timestamp."""

        def die(reached: str) -> None:
            if reached == step:
                raise Died

        with closing(HbaseRepo.open(self.url, SCHEMA, faults=die)) as mortal:
            transaction = mortal.begin(ORIGIN)
            for row, column, value in cells:
                transaction.put("docs", row, column, value)
            with pytest.raises(Died):
                transaction.commit()
            return transaction.ts

    def raw(self, row: bytes, table: bytes = DOCS) -> dict[tuple[bytes, int], bytes]:
        """Return all versions of all cells of a row as they are in HBase: (column, version) -> value."""
        found = {}
        for column in self._thrift.table(table).row(row):
            for value, version in self._thrift.table(table).cells(row, column, versions=100, include_timestamp=True):
                found[column, version] = value
        return found

    def shadow(self, row: bytes, column: bytes, start: int) -> int | None:
        """Return the commit timestamp in a cell's shadow cell of a version."""
        family, _, qualifier = column.partition(b":")
        value = self.raw(row).get((family + b":" + layout.shadow_qualifier(qualifier), start))
        return None if value is None else layout.decode_timestamp(value)

    def entry(self, start: int) -> layout.CommitEntry | None:
        """Return what the commit table says."""
        row = self._thrift.table(layout.COMMIT_TABLE).row(layout.commit_key(start))
        return layout.commit_entry(start, row.get(layout.COMMIT_COLUMN), row.get(layout.INVALID_COLUMN))


@pytest.fixture(scope="module")
def world(hbase_server: ServerInfo) -> Iterator[World]:
    """One Java client and one engine of ours for all tests; every test has rows of its own."""
    zookeeper = parse_qs(urlsplit(hbase_server.url).query)["zookeeper"][0]
    with (
        java_peer(Path(hbase_server.log_file).parent / "conf", zookeeper) as java,
        closing(World(hbase_server, java)) as it,
    ):
        yield it


@pytest.fixture
def row() -> str:
    """A row that no other test uses."""
    return f"row-{secrets.token_hex(6)}"


def test_what_java_writes_we_read(world: World, row: str) -> None:
    """Rows of two tables in one transaction, two families, values and qualifiers of all kinds."""
    key = row.encode()
    values = {b"f:plain": b"1", b"f:\xc3\xa4:b": b"\x00\xff", b"g:q": b"\xc1abc", b"g:long": b"x" * 100_000}
    world.java.begin("t")
    for column, value in values.items():
        family, qualifier = column.split(b":", 1)
        world.java.put("t", DOCS, key, family, qualifier, value)
    world.java.put("t", OTHER, key, b"f", b"q", b"other")
    ts = world.java.commit("t")
    assert world.we_read(row) == {column.decode(): value for column, value in values.items()}
    assert world.repo.snapshot(ts).get("other", row) == {"f:q": b"other"}
    assert world.repo.snapshot(ts - layout.VERSIONS_PER_TRANSACTION).get("other", row) == {}


def test_what_we_write_java_reads(world: World, row: str) -> None:
    """The same the other way; a value that Omid would take for a deletion carries a mark before it."""
    transaction = world.repo.begin(ORIGIN)
    values = {"f:plain": b"1", "f:ä:b": b"\x00\xff", "g:q": b"\xc1abc", "g:empty": b"", "g:long": b"x" * 100_000}
    for column, value in values.items():
        transaction.put("docs", row, column, value)
    transaction.put("other", row, "f:q", b"other")
    transaction.commit()
    assert world.java_reads(row.encode()) == {column.encode(): value or b"\xc1" for column, value in values.items()}
    assert world.java_reads(row.encode(), b"g", b"q", b"f", b"plain") == {b"g:q": b"\xc1abc", b"f:plain": b"1"}
    assert world.java_reads(row.encode(), table=OTHER) == {b"f:q": b"other"}


def test_snapshots_stay_as_they_are(world: World, row: str) -> None:
    """A transaction of either sees nothing of what the other commits after it began, however many versions later."""
    key = row.encode()
    for number in range(3):
        world.we_write((row, "f:q", b"ours %d" % number))
        world.java_writes((key, b"f", b"q", b"java's %d" % number))
    mine = world.repo.begin(ORIGIN)
    world.java.begin("s")
    for number in range(3, 9):
        world.java_writes((key, b"f", b"q", b"java's %d" % number), (key, b"f", b"new", b"n"))
        world.we_write((row, "f:q", b"ours %d" % number))
    assert world.java.get("s", DOCS, key) == {(key, b"f", b"q"): b"java's 2"} | _origins(world.java.get("s", DOCS, key))
    assert mine.get("docs", row) == {"f:q": b"java's 2"}
    assert world.we_read(row) == {"f:q": b"ours 8", "f:new": b"n"}
    assert world.java_reads(key) == {b"f:q": b"ours 8", b"f:new": b"n"}
    world.java.abandon("s")
    versions = world.repo.history("docs", row)["f:q"]
    assert [version.value for version in versions[:3]] == [b"ours 8", b"java's 8", b"ours 7"]
    assert versions[0].origin == ORIGIN
    assert versions[1].origin is None


def _origins(cells: dict[tuple[bytes, bytes, bytes], bytes]) -> dict[tuple[bytes, bytes, bytes], bytes]:
    return {cell: value for cell, value in cells.items() if cell[1] == ORIGIN_FAMILY}


def test_conflicts_with_java(world: World, row: str) -> None:
    """Whoever commits a cell second is refused, whichever client it is; ours learns which cell."""
    key = row.encode()
    mine = world.repo.begin(ORIGIN)
    mine.put("docs", row, "f:a", b"ours")
    mine.put("docs", row, "f:b", b"ours")
    ts = world.java_writes((key, b"f", b"b", b"java's"))
    with pytest.raises(Conflict) as caught:
        mine.commit()
    assert (caught.value.table, caught.value.row, caught.value.column) == ("docs", row, "f:b")
    assert caught.value.newer_ts == ts
    world.java.begin("late")
    world.java.put("late", DOCS, key, b"f", b"a", b"java's")
    world.we_write((row, "f:a", b"ours"))
    with pytest.raises(Refused):
        world.java.commit("late")
    world.java.begin("beside")
    world.java.put("beside", DOCS, key, b"f", b"c", b"java's")
    world.we_write((row, "f:d", b"ours"))
    world.java.commit("beside")
    wanted = {"f:a": b"ours", "f:b": b"java's", "f:c": b"java's", "f:d": b"ours"}
    assert world.we_read(row) == wanted
    assert world.java_reads(key) == {column.encode(): value for column, value in wanted.items()}


def test_java_dies_before_its_shadow_cells(world: World, row: str) -> None:
    """Its commit is in the commit table only: we see it, write what is missing, and leave the entry alone."""
    key = row.encode()
    world.we_write((row, "f:a", b"old"))
    start, _ = world.java.begin("dying")
    world.java.put("dying", DOCS, key, b"f", b"a", b"1")
    world.java.put("dying", DOCS, key, b"g", b"b", b"2")
    ts = world.java.commit("dying", die_before="shadow-cells")
    assert world.shadow(key, b"f:a", start) is None
    before = world.repo.snapshot(ts - layout.VERSIONS_PER_TRANSACTION)
    assert before.get("docs", row) == {"f:a": b"old"}
    assert world.we_read(row) == {"f:a": b"1", "g:b": b"2"}
    wait_until(lambda: world.shadow(key, b"f:a", start) == ts and world.shadow(key, b"g:b", start) == ts)
    assert world.entry(start) == layout.CommitEntry(ts)
    assert world.java_reads(key) == {b"f:a": b"1", b"g:b": b"2"}
    with pytest.raises(Conflict):
        _write_at(world, row, "f:a", start)


def _write_at(world: World, row: str, column: str, ts: int) -> None:
    transaction = world.repo.begin(ORIGIN, ts)
    transaction.put("docs", row, column, b"late")
    transaction.commit()


def test_we_die_before_our_shadow_cells(world: World, row: str) -> None:
    """The Java client sees our commit in the commit table and writes what is missing."""
    key = row.encode()
    world.java_writes((key, b"f", b"a", b"old"))
    start = world.we_die("decided", (row, "f:a", b"1"), (row, "g:b", b"2"))
    entry = world.entry(start)
    assert entry is not None
    assert entry.commit_ts is not None
    assert world.shadow(key, b"f:a", start) is None
    assert world.java_reads(key) == {b"f:a": b"1", b"g:b": b"2"}
    assert world.shadow(key, b"f:a", start) == world.shadow(key, b"g:b", start) == entry.commit_ts
    assert world.we_read(row) == {"f:a": b"1", "g:b": b"2"}


@pytest.mark.parametrize("who", ["java", "we"])
def test_a_client_dies_before_its_commit(world: World, row: str, who: str) -> None:
    """Its cells are there and nobody ever sees them; others write over them at once."""
    key = row.encode()
    world.we_write((row, "f:a", b"old"))
    if who == "java":
        start, _ = world.java.begin("dying")
        world.java.put("dying", DOCS, key, b"f", b"a", b"lost")
        world.java.abandon("dying")
    else:
        start = world.we_die("flushed", (row, "f:a", b"lost"))
    assert world.raw(key)[b"f:a", start] == b"lost"
    assert world.we_read(row) == {"f:a": b"old"}
    assert world.java_reads(key) == {b"f:a": b"old"}
    world.java_writes((key, b"f", b"a", b"java's"))
    assert world.we_read(row) == {"f:a": b"java's"}
    world.we_write((row, "f:a", b"ours"))
    assert world.java_reads(key) == {b"f:a": b"ours"}
    assert world.entry(start) is None


@pytest.mark.parametrize("who", ["java", "we"])
def test_a_client_dies_before_it_cleans_the_commit_table(world: World, row: str, who: str) -> None:
    """All is readable, and the entry that stays has the very bytes that the other would have written."""
    key = row.encode()
    if who == "java":
        start, _ = world.java.begin("dying")
        world.java.put("dying", DOCS, key, b"f", b"a", b"1")
        ts = world.java.commit("dying", die_before="removal")
    else:
        start = world.we_die("finished", (row, "f:a", b"1"))
        ts = world.shadow(key, b"f:a", start) or 0
    assert world.entry(start) == layout.CommitEntry(ts)
    assert world.shadow(key, b"f:a", start) == ts
    assert world.we_read(row) == {"f:a": b"1"}
    assert world.java_reads(key) == {b"f:a": b"1"}


@pytest.mark.parametrize("who", ["java", "we"])
def test_what_was_invalidated_never_shows(world: World, row: str, who: str) -> None:
    """A transaction marked invalid, with or without a commit beside the mark, is seen by neither client."""
    key = row.encode()
    if who == "java":
        start, _ = world.java.begin("dying")
        world.java.put("dying", DOCS, key, b"f", b"a", b"lost")
        world.java.commit("dying", die_before="shadow-cells")
    else:
        start = world.we_die("decided", (row, "f:a", b"lost"))
    table = world._thrift.table(layout.COMMIT_TABLE)
    table.put(layout.commit_key(start), {layout.INVALID_COLUMN: layout.INVALID_VALUE})
    assert world.we_read(row) == {}
    assert world.java_reads(key) == {}
    table.delete(layout.commit_key(start), [layout.COMMIT_COLUMN])
    assert world.we_read(row) == {}
    assert world.java_reads(key) == {}
    assert (b"f:" + layout.shadow_qualifier(b"a"), start) not in world.raw(key)


def test_deletions(world: World, row: str) -> None:
    """What one client deletes is gone for the other, in snapshots from then on only; it may be written again."""
    key = row.encode()
    world.we_write((row, "f:a", b"1"), (row, "f:b", b"2"), (row, "g:c", b"3"))
    before = world.repo.snapshot()
    world.java.begin("d")
    world.java.delete("d", DOCS, key, b"f", b"a")
    world.java.commit("d")
    transaction = world.repo.begin(ORIGIN)
    transaction.delete("docs", row, "f:b")
    transaction.commit()
    assert world.we_read(row) == {"g:c": b"3"}
    assert world.java_reads(key) == {b"g:c": b"3"}
    assert before.get("docs", row) == {"f:a": b"1", "f:b": b"2", "g:c": b"3"}
    world.java_writes((key, b"f", b"b", b"again"), (key, b"g", b"c", b""))
    world.we_write((row, "f:a", b"again"))
    assert world.we_read(row) == {"f:a": b"again", "f:b": b"again"}
    assert world.java_reads(key) == {b"f:a": b"again", b"f:b": b"again"}


def test_java_deletes_a_family(world: World, row: str) -> None:
    """All its older cells are gone for both, also one that its deletion did not see; the other family stays."""
    key = row.encode()
    world.we_write((row, "f:a", b"1"), (row, "g:c", b"3"))
    before = world.repo.snapshot()
    world.java.begin("d")
    world.java.delete("d", DOCS, key, b"f")
    world.we_write((row, "f:unseen", b"2"))
    ts = world.java.commit("d")
    assert world.we_read(row) == {"g:c": b"3"}
    assert world.java_reads(key) == {b"g:c": b"3"}
    assert world.repo.snapshot().get("docs", row, ["f:unseen"]) == {}
    assert world.repo.snapshot().get_many([("docs", row)], {"docs": ["f:a", "g:c"]}) == {("docs", row): {"g:c": b"3"}}
    assert world.java_reads(key, b"f", b"unseen") == {}
    assert before.get("docs", row) == {"f:a": b"1", "g:c": b"3"}
    assert world.repo.snapshot(ts - layout.VERSIONS_PER_TRANSACTION).get("docs", row, ["f:unseen"]) == {
        "f:unseen": b"2"
    }
    world.we_write((row, "f:a", b"again"))
    assert world.we_read(row) == {"f:a": b"again", "g:c": b"3"}
    assert world.java_reads(key) == {b"f:a": b"again", b"g:c": b"3"}


def test_where_nobody_deletes_families_the_mark_is_not_looked_for(world: World, row: str) -> None:
    """In a table declared so, reads of chosen columns are blind to a deletion all the same; those of whole rows not."""
    world.we_write((row, "f:a", b"1"))
    world.java.begin("d")
    world.java.delete("d", DOCS, row.encode(), b"f")
    world.java.commit("d")
    layouts = {"docs": TableLayout(family_deletes=False)}
    with closing(HbaseRepo.open(world.url, RepoSchema.of([("docs", ("f", "g"))], layouts=layouts))) as repo:
        assert repo.snapshot().get("docs", row, ["f:a"]) == {"f:a": b"1"}
        assert repo.snapshot().get("docs", row) == {}
    assert world.repo.snapshot().get("docs", row, ["f:a"]) == {}


def test_java_deletes_a_row(world: World, row: str) -> None:
    """Every family of it, our record of who wrote included; scans of both skip it."""
    key = row.encode()
    world.we_write(
        (row + "1", "f:a", b"1"), (row + "2", "f:a", b"2"), (row + "2", "g:a", b"2"), (row + "3", "f:a", b"3")
    )
    world.java.begin("d")
    world.java.delete("d", DOCS, key + b"2")
    world.java.commit("d")
    seen = dict(world.repo.snapshot().scan("docs", prefix=row))
    assert seen == {row + "1": {"f:a": b"1"}, row + "3": {"f:a": b"3"}}
    world.java.begin("s")
    scanned = world.java.scan("s", DOCS, key, key + b"\xff")
    world.java.commit("s")
    assert {cell: value for cell, value in scanned.items() if cell[1] != ORIGIN_FAMILY} == {
        (key + b"1", b"f", b"a"): b"1",
        (key + b"3", b"f", b"a"): b"3",
    }


def test_a_deletion_of_a_family_conflicts(world: World, row: str) -> None:
    """With a write to a cell that it saw."""
    world.we_write((row, "f:a", b"1"))
    mine = world.repo.begin(ORIGIN)
    mine.put("docs", row, "f:a", b"2")
    world.java.begin("d")
    world.java.delete("d", DOCS, row.encode(), b"f")
    world.java.commit("d")
    with pytest.raises(Conflict):
        mine.commit()
    assert world.we_read(row) == {}


def test_a_fence_of_java_is_a_false_alarm_for_us(world: World, row: str) -> None:
    """Our transaction is refused, finds that nobody changed its cells, and commits at the second attempt."""
    world.we_write((row, "f:a", b"1"))
    mine = world.repo.begin(ORIGIN)
    mine.put("docs", row, "f:a", b"2")
    before = world.repo.statistics()
    assert world.java.fence(DOCS) > mine.ts
    mine.commit()
    after = world.repo.statistics()
    assert after["false_aborts"] - before["false_aborts"] == 1
    assert after["conflicts"] == before["conflicts"]
    assert world.java_reads(row.encode()) == {b"f:a": b"2"}


def test_both_leave_the_same_cells(world: World, row: str) -> None:
    """The same puts and deletions by either leave the same columns, versions and kinds of values, byte for byte."""

    def pattern(key: bytes, start: int, ts: int) -> dict[tuple[bytes, str], object]:
        known = {start: "start", ts: "commit"}
        found: dict[tuple[bytes, str], object] = {}
        for (column, version), value in world.raw(key).items():
            if not column.startswith(ORIGIN_FAMILY + b":"):
                shadow = layout.is_shadow(column.partition(b":")[2])
                found[column, known[version]] = known[layout.decode_timestamp(value)] if shadow else value
        return found

    mine, theirs = row.encode() + b"m", row.encode() + b"t"
    transaction = world.repo.begin(ORIGIN)
    transaction.put("docs", mine.decode(), "f:a", b"value")
    transaction.put("docs", mine.decode(), "g:ä", b"\x00")
    transaction.delete("docs", mine.decode(), "f:gone")
    start = transaction.ts
    ours = pattern(mine, start, transaction.commit())
    assert world.repo.flush()
    java_start, _ = world.java.begin("t")
    world.java.put("t", DOCS, theirs, b"f", b"a", b"value")
    world.java.put("t", DOCS, theirs, b"g", "ä".encode(), b"\x00")
    world.java.delete("t", DOCS, theirs, b"f", b"gone")
    javas = pattern(theirs, java_start, world.java.commit("t"))
    assert ours == javas
    assert len(ours) == 6
    assert ours[b"f:gone", "start"] == layout.TOMBSTONE
    assert ours[b"f:" + layout.shadow_qualifier(b"gone"), "start"] == "commit"
    assert world.entry(start) is None
    assert world.entry(java_start) is None


def test_refused_transactions_of_both_leave_nothing(world: World, row: str) -> None:
    """Each deletes its own cells at exactly their version; what was committed before stays."""
    key = row.encode()
    world.we_write((row, "f:a", b"old"))
    mine = world.repo.begin(ORIGIN)
    mine.put("docs", row, "f:a", b"lost")
    java_start, _ = world.java.begin("lost")
    world.java.put("lost", DOCS, key, b"f", b"a", b"lost")
    world.we_write((row, "f:a", b"won"))
    with pytest.raises(Conflict):
        mine.commit()
    with pytest.raises(Refused):
        world.java.commit("lost")
    assert world.repo.flush()
    values = [value for (column, _), value in world.raw(key).items() if column == b"f:a"]
    assert sorted(values) == [b"old", b"won"]
    assert world.java_reads(key) == {b"f:a": b"won"}
    assert java_start not in {version for _, version in world.raw(key)}


def test_ids_are_computed_alike(world: World, row: str) -> None:
    """Cells that differ only in where the parts are cut have one id: each refuses the other falsely, ours goes on."""
    mine = world.repo.begin(ORIGIN)
    mine.put("docs", row + "f", "f:x", b"ours")
    assert ids.cell_id(DOCS, row.encode() + b"f", b"f", b"x") == ids.cell_id(DOCS, row.encode(), b"f", b"fx")
    world.java_writes((row.encode(), b"f", b"fx", b"java's"))
    before = world.repo.statistics()["false_aborts"]
    mine.commit()
    assert world.repo.statistics()["false_aborts"] == before + 1
    world.java.begin("late")
    world.java.put("late", DOCS, row.encode(), b"f", b"fx", b"java's")
    world.we_write((row + "f", "f:x", b"ours again"))
    with pytest.raises(Refused):
        world.java.commit("late")


def test_money_moves_between_accounts_of_both(world: World, row: str) -> None:
    """Both clients transfer between the same accounts at the same time; no snapshot of either ever sees another sum."""
    accounts, each, transfers = 4, 100, 25
    keys = [f"{row}-{number}" for number in range(accounts)]
    world.we_write(*((key, "f:balance", b"%d" % each) for key in keys))

    def java_transfers() -> int:
        chance, done = random.Random(1), 0
        while done < transfers:
            world.java.begin("bank")
            found = {
                key: int(world.java.get("bank", DOCS, key.encode())[key.encode(), b"f", b"balance"]) for key in keys
            }
            assert sum(found.values()) == accounts * each
            giver, taker = chance.sample(keys, 2)
            world.java.put("bank", DOCS, giver.encode(), b"f", b"balance", b"%d" % (found[giver] - 1))
            world.java.put("bank", DOCS, taker.encode(), b"f", b"balance", b"%d" % (found[taker] + 1))
            try:
                world.java.commit("bank")
                done += 1
            except Refused:
                continue
        return done

    def our_transfers(seed: int) -> int:
        chance, done = random.Random(seed), 0
        while done < transfers:
            transaction = world.repo.begin(ORIGIN)
            found = {
                key: int(of["f:balance"])
                for (_, key), of in transaction.get_many([("docs", key) for key in keys]).items()
            }
            assert sum(found.values()) == accounts * each
            giver, taker = chance.sample(keys, 2)
            transaction.put("docs", giver, "f:balance", b"%d" % (found[giver] - 1))
            transaction.put("docs", taker, "f:balance", b"%d" % (found[taker] + 1))
            try:
                transaction.commit()
                done += 1
            except Conflict:
                continue
        return done

    with ThreadPoolExecutor(3) as pool:
        running = [pool.submit(java_transfers), pool.submit(our_transfers, 2), pool.submit(our_transfers, 3)]
        assert [each.result() for each in running] == [transfers] * 3
    final = {key: int(world.we_read(key)["f:balance"]) for key in keys}
    assert sum(final.values()) == accounts * each
    assert {key: int(world.java_reads(key.encode())[b"f:balance"]) for key in keys} == final
