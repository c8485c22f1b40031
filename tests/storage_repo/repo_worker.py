"""Forks the workers of the consistency tests: one for each line of standard input, with `{"mode": ..., ...}`.

A worker writes one JSON line per event into its pipe; this process tells which began and how each ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import signal
import sys
import time
import traceback
from collections import deque
from pathlib import Path
from typing import Any, NoReturn

import structlog
from repo_backends import BACKENDS, ORIGIN
from repo_elle import Op
from repo_workloads import ACCOUNTS, INITIAL_BALANCE, execute, random_ops, read_balances, transfer

from storage_repo import Conflict, Limits, Repo, SnapshotTooOld, Transaction


def say(event: dict[str, Any]) -> None:
    """Write one line at once: what a killed process has said must be readable."""
    os.write(1, (json.dumps(event) + "\n").encode())


def append(repo: Repo, p: dict[str, Any], rng: random.Random) -> None:
    """Append to and read lists; report invocation and completion of every transaction with a common clock."""
    for n in range(p["count"]):
        batch = []
        for i in range(rng.choice((1, 1, 1, 3))):
            ops = random_ops(rng, p["keys"], p["worker"] * 1_000_000 + n * 100 + i * 10)
            say({"id": f"{n}.{i}", "ops": ops, "at": time.monotonic_ns()})
            batch.append((f"{n}.{i}", ops))
        transactions: list[Transaction] = []
        done: list[list[Op] | None] = []
        for _, ops in batch:
            transactions.append(repo.begin(ORIGIN))
            try:
                done.append(execute(transactions[-1], ops))
            except SnapshotTooOld:
                done.append(None)
        live = [t for t, result in zip(transactions, done, strict=True) if result is not None]
        outcomes = iter(repo.commit_many(live))
        for (name, _), result in zip(batch, done, strict=True):
            ok = result is not None and isinstance(next(outcomes), int)
            say({"id": name, "outcome": "ok" if ok else "fail", "ops": result, "at": time.monotonic_ns()})
        if n % 50 == p["worker"]:
            repo.collect_garbage()


def bank(repo: Repo, p: dict[str, Any], rng: random.Random) -> None:
    """Transfer money, and check the sum at the newest and at some older snapshot all the time."""
    total = ACCOUNTS * INITIAL_BALANCE
    seen: deque[int] = deque(maxlen=50)
    for n in range(p["count"]):
        with contextlib.suppress(Conflict, SnapshotTooOld):
            transfer(repo, rng)
        newest = repo.snapshot()
        assert sum(read_balances(newest).values()) == total, f"money lost at {newest.ts}"
        seen.append(newest.ts)
        old_ts = rng.randint(seen[0], newest.ts)
        try:
            old = repo.snapshot(old_ts)
            found = sum(read_balances(old, by_scan=bool(n % 2)).values())
        except SnapshotTooOld:
            found = total
        assert found == total, f"money lost at {old_ts}"
        if n % 20 == 0:
            repo.collect_garbage()
        say({"n": n, "ts": newest.ts})


def stamp(repo: Repo, p: dict[str, Any], rng: random.Random) -> None:
    """Write the transaction's name into several cells of two tables; say which were acknowledged."""
    for n in range(p["count"]):
        tried: dict[str, int] = {}
        transactions = []
        for i in range(rng.randint(1, 4)):
            name = f"{p['worker']}.{n}.{i}"
            transaction = repo.begin(ORIGIN)
            for cell in range(5):
                transaction.put("ad", f"slot-{rng.randrange(40)}", f"derived:{cell}", name.encode())
            transaction.put("campaign", f"by-name-{name}", "control:name", name.encode())
            tried[name] = 6
            transactions.append(transaction)
        say({"tried": tried})
        outcomes = repo.commit_many(transactions)
        say({"acknowledged": {name: ts for name, ts in zip(tried, outcomes, strict=True) if isinstance(ts, int)}})


def work(p: dict[str, Any]) -> None:
    """Run one mode to its end."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # stdout has our lines
    repo = BACKENDS[p["backend"]](Path(p["root"])).open(Limits(**p.get("limits", {})))
    {"append": append, "bank": bank, "stamp": stamp}[p["mode"]](repo, p, random.Random(p["seed"]))
    repo.close()


def become(p: dict[str, Any]) -> NoReturn:
    """Be a worker from now on: nothing of what the forking process has is used any more."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(os.open(p["pipe"], os.O_WRONLY), 1)
    code = 1
    try:
        work(p)
        code = 0
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        os._exit(code)


def main() -> None:
    """Fork until standard input ends."""
    woken, wake = os.pipe()
    for end in (woken, wake):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(wake)
    asked = b""
    while True:
        readable, _, _ = select.select([0, woken], [], [])
        if woken in readable:
            os.read(woken, 4096)
            reap()
        if 0 not in readable:
            continue
        read = os.read(0, 1 << 16)
        if not read:
            return
        *lines, asked = (asked + read).split(b"\n")
        for line in lines:
            if pid := os.fork():
                say({"pid": pid})
            else:
                become(json.loads(line))


def reap() -> None:
    """Tell who has ended."""
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            say({"pid": ended[0], "code": os.waitstatus_to_exitcode(ended[1])})


if __name__ == "__main__":
    main()
