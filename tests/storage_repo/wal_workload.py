"""Clients of the WAL proxy's tests: everything that may happen to a transaction."""

from __future__ import annotations

import random

from catalog import LaneName
from storage_repo import Origin
from tests.storage_repo.wal_support import Store, origin

STATUS, NAME, PIN, TITLE = "control:status", "control:name", "control:pin_id", "content:title"
JAVA = Origin("")
"""Writes no origin cell."""


def write(store: Store, rng: random.Random, count: int) -> None:
    """Let clients do everything that they may do: commit, abort, roll back, delete, write what nobody watches."""
    for _ in range(count):
        transaction = store.begin(origin(rng.choice(list(LaneName))) if rng.random() < 0.8 else JAVA)
        for row in rng.sample(range(12), rng.randint(1, 3)):
            for column in rng.sample([STATUS, NAME, PIN, "meta:x"], rng.randint(1, 4)):
                transaction.put("ad", str(row), column, b"" if rng.random() < 0.2 else rng.randbytes(8))
        if rng.random() < 0.3:
            transaction.put("pin", str(rng.randrange(5)), TITLE, rng.randbytes(5_000))
        transaction.write()
        fate = rng.random()
        if fate < 0.1:
            continue  # it never comes back
        if fate < 0.2:
            transaction.roll_back()
        elif transaction.commit() is not None:
            transaction.shadow(one_by_one=fate > 0.8)
            transaction.clean()
