"""The lock of an index: who applies many deltas lets searches go between them, and soon has it again."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manas import Index, _turns
from manas._bits import Bits
from manas._turns import Turns
from manas.index import PreparedDelta
from tests.manas.support import AT, CATALOG, VALUES, budget, delta, document

BROWSE = {"at": AT, **dict.fromkeys(VALUES, "*")}


def test_a_search_that_waits_for_deltas_goes_before_the_next_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that comes while deltas are applied has its answer, with all of them, before `apply` returns."""
    index = Index(CATALOG)
    index.apply_budgets([budget(1), budget(2)])
    prepared = [index.prepare(delta(document(i), 5)) for i in range(1, 41)]
    index.apply(prepared[:1])
    index.search(BROWSE)
    monkeypatch.setattr(_turns, "_MOMENT", 1.0)
    totals: list[int] = []
    searching = threading.Thread(target=lambda: totals.append(index.search(BROWSE)["total"]))

    def deltas() -> Iterator[PreparedDelta]:
        yield from prepared[1:20]
        searching.start()
        while not index._lock._waiting:
            time.sleep(0.001)
        yield from prepared[20:]

    index.apply(deltas())
    assert totals == [len(prepared)]
    searching.join()


def test_whoever_waits_has_the_lock_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    """Giving way to nobody takes no time; who waits has the lock before the one who gave it asks for it again."""
    turns, order = Turns(), list[str]()
    monkeypatch.setattr(_turns, "_MOMENT", 60.0)
    turns.give_way()
    assert turns.acquire()
    monkeypatch.setattr(_turns, "_MOMENT", 0.5)

    def wait() -> None:
        with turns:
            order.append("waited")

    thread = threading.Thread(target=wait)
    thread.start()
    while not turns._waiting:
        time.sleep(0.001)
    turns.release()
    turns.give_way()
    with turns:
        order.append("again")
    thread.join()
    assert order == ["waited", "again"]
    assert not turns._waiting
    assert turns.acquire()
    assert not turns.acquire(timeout=0.01)
    assert not turns._waiting


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.lists(st.integers(0, 199), max_size=40))
def test_single_ids_leave_a_set_as_many_do(size: int, ids: list[int]) -> None:
    """Taking ids away one by one, some twice, leaves the same words and the same count as an array of them."""
    one, many, gone = Bits(size, full=True), Bits(size, full=True), [i for i in ids if i < size]
    for internal in gone:
        one.discard_id(internal)
    many.discard(np.array(sorted(set(gone)), np.uint32))
    assert (one.words == many.words).all()
    assert one.count == many.count == size - len(set(gone))
