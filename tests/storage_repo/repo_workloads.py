"""Workloads of the consistency tests, in worker processes and interleaved in one process alike."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from typing import Any

from repo_backends import ORIGIN, TABLES
from repo_elle import Observed, Op

from storage_repo import Conflict, Repo, Snapshot, SnapshotTooOld, Transaction

ACCOUNTS = 12
INITIAL_BALANCE = 100


def random_ops(rng: random.Random, keys: int, first_value: int) -> list[Op]:
    """Return 1 to 4 appends and reads, on few keys so that transactions meet."""
    ops: list[Op] = []
    for i in range(rng.randint(1, 4)):
        key = min(rng.randrange(keys), rng.randrange(keys))
        ops.append(("append", key, first_value + i) if rng.random() < 0.5 else ("r", key, None))
    return ops


def execute(transaction: Transaction, ops: Sequence[Op]) -> list[Op]:
    """Run the operations inside a transaction, by different ways of reading; return them with what was read."""
    done: list[Op] = []
    for kind, key, value in ops:
        table, row = TABLES[key % 2][0], f"list-{key // 2}"
        if kind == "append":
            found = transaction.get(table, row, ["control:list"])
            items = json.loads(found.get("control:list", b"[]"))
            transaction.put(table, row, "control:list", json.dumps([*items, value]).encode())
            done.append((kind, key, value))
            continue
        if key % 3 == 0:
            found = transaction.get_many([(table, row), (table, "none")])[table, row]
        elif key % 3 == 1:
            found = dict(transaction.scan(table, prefix="list-")).get(row, {})
        else:
            found = transaction.get(table, row)
        done.append((kind, key, json.loads(found.get("control:list", b"[]"))))
    return done


def observed(lines: Sequence[dict[str, Any]]) -> Iterator[Observed]:
    """Turn what a worker said into transactions; what it never completed has an unknown outcome."""
    running: dict[str, Observed] = {}
    for line in lines:
        if "outcome" not in line:
            running[line["id"]] = Observed([tuple(op) for op in line["ops"]], "info", line["at"])
        else:
            txn = running.pop(line["id"])
            txn.outcome, txn.ended = line["outcome"], line["at"]
            if line["ops"] is not None:
                txn.ops = [tuple(op) for op in line["ops"]]
            yield txn
    yield from running.values()


def interleave(repo: Repo, seed: int, transactions: int, clients: int = 4, keys: int = 5) -> list[Observed]:
    """Run a random list-append workload of several clients, one operation at a time, in a seeded order."""
    rng = random.Random(seed)
    history: list[Observed] = []
    running: list[tuple[Transaction, list[Op], Observed]] = []
    now = 0
    while len(history) < transactions or running:
        now += 1
        if len(running) < clients and len(history) < transactions:
            ops = random_ops(rng, keys, len(history) * 10)
            history.append(Observed([], "info", now))
            running.append((repo.begin(ORIGIN), ops, history[-1]))
            continue
        transaction, ops, txn = running[at := rng.randrange(len(running))]
        if ops:
            txn.ops += execute(transaction, [ops.pop(0)])
            continue
        del running[at]
        try:
            transaction.commit()
            txn.outcome = "ok"
        except (Conflict, SnapshotTooOld):
            txn.outcome = "fail"
        txn.ended = now
    return history


def open_accounts(repo: Repo) -> None:
    """Give every account its initial balance."""
    transaction = repo.begin(ORIGIN)
    for account in range(ACCOUNTS):
        transaction.put(TABLES[account % 2][0], f"account-{account:02d}", "control:balance", b"%d" % INITIAL_BALANCE)
    transaction.commit()


def read_balances(snapshot: Snapshot, *, by_scan: bool = False) -> dict[str, int]:
    """Return all balances at one snapshot; {} is no bank at all, so its sum is wrong."""
    if by_scan:
        rows = {row: cells for name, _ in TABLES for row, cells in snapshot.scan(name, prefix="account-")}
    else:
        ids = [(TABLES[account % 2][0], f"account-{account:02d}") for account in range(ACCOUNTS)]
        rows = {row: cells for (_, row), cells in snapshot.get_many(ids).items()}
    return {row: int(cells["control:balance"]) for row, cells in rows.items()}


def transfer(repo: Repo, rng: random.Random) -> None:
    """Move money between two accounts, if there is enough of it."""
    transaction = repo.begin(ORIGIN)
    payer, payee = rng.sample(range(ACCOUNTS), 2)
    payer_id, payee_id = ((TABLES[a % 2][0], f"account-{a:02d}") for a in (payer, payee))
    rows = transaction.get_many([payer_id, payee_id])
    amount = rng.randint(1, 30)
    balance = int(rows[payer_id]["control:balance"])
    if balance >= amount:
        transaction.put(*payer_id, "control:balance", b"%d" % (balance - amount))
        transaction.put(*payee_id, "control:balance", b"%d" % (int(rows[payee_id]["control:balance"]) + amount))
    transaction.commit()
