"""The ten Hermitage cases (Kleppmann), as snapshot isolation must answer them.

Ours is optimistic: nothing ever blocks, and where PostgreSQL's "repeatable read" stops the second writer, here the
later committer gets Conflict.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from repo_backends import ORIGIN

from storage_repo import Conflict, Repo, Snapshot, Transaction

Begin = Callable[[], Transaction]


@pytest.fixture
def begin(repo: Repo) -> Begin:
    """Set up rows 1 => 10 and 2 => 20; return what begins a transaction."""
    setup = repo.begin(ORIGIN)
    write(setup, 1, 10)
    write(setup, 2, 20)
    setup.commit()
    return lambda: repo.begin(ORIGIN)


def write(transaction: Transaction, row: int, value: int) -> None:
    """Set a row's value."""
    transaction.put("ad", f"{row}", "control:value", b"%d" % value)


def read(snapshot: Snapshot, row: int) -> int:
    """Return a row's value."""
    return int(snapshot.get("ad", f"{row}")["control:value"])


def where(snapshot: Snapshot, predicate: Callable[[int], bool]) -> dict[int, int]:
    """Return the rows whose value satisfies a predicate."""
    values = {int(row): int(cells["control:value"]) for row, cells in snapshot.scan("ad")}
    return {row: value for row, value in values.items() if predicate(value)}


def everything(_: int) -> bool:
    """Select all rows."""
    return True


def conflicts(transaction: Transaction, row: int) -> None:
    """Expect the commit to fail and to name the cell."""
    with pytest.raises(Conflict) as caught:
        transaction.commit()
    assert (caught.value.table, caught.value.row, caught.value.column) == ("ad", f"{row}", "control:value")


def test_hermitage_g0_write_cycles(repo: Repo, begin: Begin) -> None:
    """Of two transactions that overwrite the same rows one wins as a whole."""
    t1, t2 = begin(), begin()
    write(t1, 1, 11)
    write(t2, 1, 12)
    write(t1, 2, 21)
    t1.commit()
    write(t2, 2, 22)
    conflicts(t2, 1)
    assert where(repo.snapshot(), everything) == {1: 11, 2: 21}


def test_hermitage_g1a_aborted_reads(repo: Repo, begin: Begin) -> None:
    """Nobody ever sees what was aborted."""
    t1, t2 = begin(), begin()
    write(t1, 1, 101)
    assert read(t2, 1) == 10
    t1.abort()
    assert read(t2, 1) == 10
    t2.commit()
    assert where(repo.snapshot(), everything) == {1: 10, 2: 20}


def test_hermitage_g1b_intermediate_reads(repo: Repo, begin: Begin) -> None:
    """Nobody sees a value that its writer replaced before it committed."""
    t1, t2 = begin(), begin()
    write(t1, 1, 101)
    assert read(t2, 1) == 10
    write(t1, 1, 11)
    t1.commit()
    assert read(t2, 1) == 10  # its snapshot; read committed would say 11
    t2.commit()
    assert read(repo.snapshot(), 1) == 11


def test_hermitage_g1c_circular_information_flow(begin: Begin) -> None:
    """Two transactions cannot both see each other's writes."""
    t1, t2 = begin(), begin()
    write(t1, 1, 11)
    write(t2, 2, 22)
    assert read(t1, 2) == 20
    assert read(t2, 1) == 10
    t1.commit()
    t2.commit()


def test_hermitage_otv_observed_transaction_vanishes(begin: Begin) -> None:
    """A reader sees a transaction as a whole and keeps seeing it."""
    t1, t2 = begin(), begin()
    write(t1, 1, 11)
    write(t1, 2, 19)
    write(t2, 1, 12)
    t1.commit()
    t3 = begin()
    assert read(t3, 1) == 11
    write(t2, 2, 18)
    assert read(t3, 2) == 19
    conflicts(t2, 1)
    assert (read(t3, 2), read(t3, 1)) == (19, 11)


def test_hermitage_pmp_predicate_many_preceders(begin: Begin) -> None:
    """A predicate read does not see rows inserted since its snapshot."""
    t1, t2 = begin(), begin()
    assert where(t1, lambda value: value == 30) == {}
    write(t2, 3, 30)
    t2.commit()
    assert where(t1, lambda value: value % 3 == 0) == {}
    t1.commit()


def test_hermitage_pmp_write_predicate(repo: Repo, begin: Begin) -> None:
    """A delete by predicate conflicts with an update of what it selected."""
    t1, t2 = begin(), begin()
    for row, value in where(t1, everything).items():
        write(t1, row, value + 10)
    for row in where(t2, lambda value: value == 20):
        t2.delete("ad", f"{row}", "control:value")
    t1.commit()
    conflicts(t2, 2)
    assert where(repo.snapshot(), everything) == {1: 20, 2: 30}


def test_hermitage_p4_lost_update(repo: Repo, begin: Begin) -> None:
    """The second of two read-modify-writes fails instead of losing the first."""
    t1, t2 = begin(), begin()
    write(t1, 1, read(t1, 1) + 1)
    write(t2, 1, read(t2, 1) + 1)
    t1.commit()
    conflicts(t2, 1)
    assert read(repo.snapshot(), 1) == 11


def test_hermitage_g_single_read_skew(begin: Begin) -> None:
    """All reads of a transaction are of one moment."""
    t1, t2 = begin(), begin()
    assert read(t1, 1) == 10
    assert (read(t2, 1), read(t2, 2)) == (10, 20)
    write(t2, 1, 12)
    write(t2, 2, 18)
    t2.commit()
    assert read(t1, 2) == 20
    t1.commit()


def test_hermitage_g_single_predicate_dependencies(begin: Begin) -> None:
    """Predicate reads are of the same moment as well."""
    t1, t2 = begin(), begin()
    assert where(t1, lambda value: value % 5 == 0) == {1: 10, 2: 20}
    for row in where(t2, lambda value: value == 10):
        write(t2, row, 12)
    t2.commit()
    assert where(t1, lambda value: value % 3 == 0) == {}
    t1.commit()


def test_hermitage_g_single_write_predicate(begin: Begin) -> None:
    """A delete by a predicate that an overlapping commit falsified fails."""
    t1, t2 = begin(), begin()
    assert read(t1, 1) == 10
    assert where(t2, everything) == {1: 10, 2: 20}
    write(t2, 1, 12)
    write(t2, 2, 18)
    t2.commit()
    for row in where(t1, lambda value: value == 20):
        t1.delete("ad", f"{row}", "control:value")
    conflicts(t1, 2)


@pytest.mark.parametrize("promote", [False, True])
def test_hermitage_g2_item_write_skew(repo: Repo, begin: Begin, promote: bool) -> None:
    """Write skew on items is allowed, and prevented where the reads are promoted."""
    t1, t2 = begin(), begin()
    for transaction, own, other in ((t1, 1, 2), (t2, 2, 1)):
        assert (read(transaction, 1), read(transaction, 2)) == (10, 20)
        if promote:
            transaction.promote("ad", f"{other}", "control:value")
        write(transaction, own, own * 10 + 1)
    t1.commit()
    if promote:
        conflicts(t2, 1)
        assert where(repo.snapshot(), everything) == {1: 11, 2: 20}
    else:
        t2.commit()
        assert where(repo.snapshot(), everything) == {1: 11, 2: 21}


@pytest.mark.parametrize("promote", [False, True])
def test_hermitage_g2_anti_dependency_cycles(repo: Repo, begin: Begin, promote: bool) -> None:
    """Write skew on a predicate is allowed, and prevented where the rows looked for are promoted."""
    t1, t2 = begin(), begin()
    for transaction in (t1, t2):
        assert where(transaction, lambda value: value % 3 == 0) == {}
    write(t1, 3, 30)
    write(t2, 4, 42)
    if promote:
        t1.promote("ad", "4", "control:value")
        t2.promote("ad", "3", "control:value")
    t1.commit()
    if promote:
        conflicts(t2, 3)
        assert where(repo.snapshot(), lambda value: value % 3 == 0) == {3: 30}
    else:
        t2.commit()
        assert where(repo.snapshot(), lambda value: value % 3 == 0) == {3: 30, 4: 42}


@pytest.mark.parametrize("promote", [False, True])
def test_hermitage_g2_two_anti_dependencies(repo: Repo, begin: Begin, promote: bool) -> None:
    """Fekete's example with a read-only transaction in between: allowed, and prevented by promotion."""
    t1 = begin()
    assert where(t1, everything) == {1: 10, 2: 20}
    t2 = begin()
    write(t2, 2, read(t2, 2) + 5)
    t2.commit()
    t3 = begin()
    assert where(t3, everything) == {1: 10, 2: 25}
    t3.commit()
    write(t1, 1, 0)
    if promote:
        t1.promote("ad", "2", "control:value")
        conflicts(t1, 2)
        assert where(repo.snapshot(), everything) == {1: 10, 2: 25}
    else:
        t1.commit()
        assert where(repo.snapshot(), everything) == {1: 0, 2: 25}
