"""Clients that transfer money and record each transfer in the same transaction: what is half visible shows."""

from __future__ import annotations

import json
import os
import random
import threading
from collections import Counter
from contextlib import ExitStack

from repo_backends import ORIGIN

from messaging.home import Home
from storage_repo import Conflict, Repo, RepoSchema, Snapshot, SnapshotTooOld, StoreUnavailable
from storage_repo.hbase import HbaseRepo, apply_schema
from storage_repo.hbase.wal import remove_peer
from tests.storage_repo.wal_support import FAMILIES, Found, Notified, ProxyThread, Store, prepared_log, wait_until
from tests.storage_repo.wal_workload import STATUS, TITLE, write

ACCOUNTS, INITIAL, RECORDS = 10, 1000, "transfer-"
PATIENCE_S = 240.0
"""For a server to come back and for clients to notice, on a machine with much else to do."""

_PAUSE_S, _AUDIT_S = 0.01, 0.2
"""Of a client between two transfers, and of the auditor: those who recover need the processor as well."""

Column = tuple[str, str]
"""Table and column."""


class Bank:
    """Clients in threads; they go on while the store is away, and stop at what must not be."""

    def __init__(self, repo: Repo, clients: int, balance: Column, record: Column) -> None:
        self.repo, self._balance, self._record = repo, balance, record
        self.acknowledged: dict[str, int] = {}
        """Name of a transfer -> its commit timestamp."""
        self.outcomes: Counter[str] = Counter()
        self._changed = threading.Condition()
        self._ended = threading.Event()
        self._errors: list[BaseException] = []
        opening = repo.begin(ORIGIN)
        for account in range(ACCOUNTS):
            opening.put(balance[0], f"account-{account}", balance[1], b"%d" % INITIAL)
        opening.commit()
        self._threads = [threading.Thread(target=self._run, args=(client,), daemon=True) for client in range(clients)]
        for thread in self._threads:
            thread.start()

    def wait_for_progress(self) -> None:
        """Block until every client's next few transfers, begun from now on, may have been acknowledged."""
        with self._changed:
            goal = len(self.acknowledged) + 5 * len(self._threads)
            done = self._changed.wait_for(lambda: len(self.acknowledged) >= goal or bool(self._errors), PATIENCE_S)
        assert not self._errors, self._errors
        assert done, f"no progress in {PATIENCE_S} s: {self.outcomes}"

    def stop(self) -> None:
        """End the clients; see that none met what must not be."""
        self.end()
        assert not self._errors, self._errors

    def end(self) -> None:
        """End the clients."""
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def check(self, snapshot: Snapshot) -> set[str]:
        """See that balances are what the recorded transfers make; return the names of these."""
        recorded = {name: cells[self._record[1]] for name, cells in snapshot.scan(self._record[0], prefix=RECORDS)}
        expected = dict.fromkeys(range(ACCOUNTS), INITIAL)
        for text in recorded.values():
            payer, payee, amount = json.loads(text)
            expected[payer] -= amount
            expected[payee] += amount
        rows = snapshot.scan(self._balance[0], prefix="account-")
        balances = {int(row.removeprefix("account-")): int(cells[self._balance[1]]) for row, cells in rows}
        assert balances == expected, f"half a transfer is visible at {snapshot.ts}"
        return set(recorded)

    def _run(self, client: int) -> None:
        rng = random.Random(client)
        n = 0
        try:
            while not self._ended.wait(_PAUSE_S):
                n += 1
                outcome = self._transfer(rng, f"{RECORDS}{client}-{n}")
                with self._changed:
                    self.outcomes[outcome] += 1
                    self._changed.notify_all()
        except BaseException as error:
            self._errors.append(error)
            raise

    def _transfer(self, rng: random.Random, name: str) -> str:
        payer, payee = rng.sample(range(ACCOUNTS), 2)
        amount = rng.randint(1, 9)
        (table, column), (records, record) = self._balance, self._record
        try:
            transaction = self.repo.begin(ORIGIN)
            rows = transaction.get_many([(table, f"account-{payer}"), (table, f"account-{payee}")])
            for account, change in ((payer, -amount), (payee, amount)):
                balance = int(rows[table, f"account-{account}"][column])
                transaction.put(table, f"account-{account}", column, b"%d" % (balance + change))
            transaction.put(records, name, record, json.dumps([payer, payee, amount]).encode())
            ts = transaction.commit()
        except (Conflict, SnapshotTooOld) as error:
            return type(error).__name__
        except StoreUnavailable as error:
            return f"unavailable ({type(error).__name__})"
        with self._changed:
            self.acknowledged[name] = ts
        return "committed"


class Traffic:
    """A bank on tables of its own, somebody who audits it all the time, and a WAL proxy behind it."""

    BALANCE, RECORD = ("ad", STATUS), ("pin", TITLE)

    def __init__(self, url: str, home: Home) -> None:
        self.store = Store(url, f"t{os.urandom(4).hex()}")
        self._rng = random.Random(11)
        self._ended = threading.Event()
        self._errors: list[BaseException] = []
        self.audits = 0
        self.dead: Found = {}
        """Changes of clients that died when they were committed: nobody else tells of them."""
        with ExitStack() as stack:
            stack.callback(self.store.close)
            schema = RepoSchema.of(FAMILIES)
            apply_schema(self.store.url, schema)
            self.repo = HbaseRepo.open(self.store.url, schema)
            stack.callback(self.repo.close)
            stack.callback(remove_peer, self.store.url, self.store.peer_id)
            log = stack.enter_context(prepared_log(home, "", self.store.token))
            self._notified = Notified(log)
            stack.enter_context(ProxyThread(self.store, home, log, grace_s=1.0))
            self.bank = Bank(self.repo, 3, self.BALANCE, self.RECORD)
            stack.callback(self.bank.end)
            self._auditor = threading.Thread(target=self._audit, daemon=True)
            self._auditor.start()
            stack.callback(self._auditor.join)
            stack.callback(self._ended.set)
            self._closing = stack.pop_all()

    def __enter__(self) -> Traffic:
        return self

    def __exit__(self, *exc: object) -> None:
        self._closing.close()

    def _audit(self) -> None:
        while not self._ended.wait(_AUDIT_S):
            try:
                self.bank.check(self.repo.snapshot())
                self.audits += 1
            except StoreUnavailable:
                continue  # nobody can look now
            except BaseException as error:
                self._errors.append(error)
                raise

    def die(self) -> None:
        """Have a client die between its commit and its shadow cells, and others do all that clients may do."""
        row = f"dead-{len(self.dead)}"
        transaction = self.store.begin()
        transaction.put("ad", row, STATUS)
        transaction.write()
        assert transaction.commit() is not None
        self.dead["ad", row, transaction.commit_ts] = frozenset({"status"})
        write(self.store, self._rng, 10)

    def check(self) -> None:
        """End the bank, and see that nothing was half visible, lost, or not notified."""
        self.bank.stop()
        self._ended.set()
        self._auditor.join()
        assert not self._errors, self._errors
        assert self.audits > 5
        assert self.bank.acknowledged.keys() <= self.bank.check(self.repo.snapshot())
        wanted = {("pin", name, ts): frozenset({"title"}) for name, ts in self.bank.acknowledged.items()}
        assert wanted
        self._notified.wait_for(wanted | self.dead)
        # Of an unknown outcome the shadow cells may come after this: from the proxy, with its notification.
        wait_until(lambda: self._notified.found() == self.store.recount(), why=self._difference)

    def _difference(self) -> str:
        found, committed = self._notified.found(), self.store.recount()
        missing, invented = committed.keys() - found.keys(), found.keys() - committed.keys()
        return f"not notified: {sorted(missing)[:5]}; not committed: {sorted(invented)[:5]}"
