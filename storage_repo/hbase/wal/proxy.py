"""The WAL proxy: a process that HBase ships its write-ahead log to, as if it were another cluster.

Delivery is at least once: HBase sends again what was not acknowledged, and a batch is acknowledged after the log has
its notifications and what is still open of it. Several processes of one peer id share the load; the batches of one that
dies go to the others.
"""

from __future__ import annotations

import queue
import re
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace

import structlog

from messaging._exceptions import LogError
from messaging.api import Position
from messaging.headers import now_us
from messaging.stage import StageContext
from messaging.topics import REPO_FEED, WAL_PROXY_GROUP
from storage_repo._exceptions import RepoError
from storage_repo.hbase.address import HbaseAddress
from storage_repo.hbase.connections import HbaseConnections
from storage_repo.hbase.names import ORIGIN_FAMILY, ORIGIN_QUALIFIER, HbaseNames
from storage_repo.hbase.probe import PROBE_TABLE
from storage_repo.hbase.wal._cells import Batch, TableColumns, decode
from storage_repo.hbase.wal._errors import HBaseAway, PeerConflict
from storage_repo.hbase.wal._housekeeper import Collectable, Housekeeper
from storage_repo.hbase.wal._registry import Registry
from storage_repo.hbase.wal._resolver import Resolver
from storage_repo.hbase.wal._rows import Rows
from storage_repo.hbase.wal._server import Call, Server
from storage_repo.hbase.wal._tracker import Tracker
from storage_repo.hbase.wal.master import Master, Peer, connect
from storage_repo.hbase.wal.settings import WalProxySettings
from storage_repo.wal_proxy import STAGE, ChangeNotifier

_WAIT_S = 0.25
_GROUP_CELLS = 20_000
"""Published together: a tenth of a second's work. More would make the region servers wait for their answers."""
_REGISTRATION_S = 1.0
"""Between two looks whether we are still registered: below a ZooKeeper session's length."""
_RETRY_S = 0.5
_COLLECTED_S = 4.0
"""How long closing waits for a round of collection; less than a supervisor does. Its deletions may stop anywhere."""


def table_columns(names: HbaseNames, watched: Mapping[str, frozenset[str]]) -> dict[bytes, TableColumns]:
    """Return what is watched, by HBase table. `watched` has columns as "family:qualifier" by table."""
    origin = (ORIGIN_FAMILY, ORIGIN_QUALIFIER)
    return {names.hbase_table(table): TableColumns(columns, origin) for table, columns in watched.items() if columns}


def wanted_peer(peer_id: str, cluster_key: str, tables: Mapping[bytes, TableColumns]) -> Peer:
    """Return the peer as it should be: in order per region, only the families that have watched columns."""
    return Peer(
        peer_id,
        cluster_key,
        enabled=True,
        serial=True,
        tables={
            table.decode(): tuple(sorted({family[:-1] for family in columns.by_family} | {ORIGIN_FAMILY.decode()}))
            for table, columns in tables.items()
        },
    )


def ensure_peer(master: Master, wanted: Peer) -> bool:
    """Add the peer, or correct which tables it is sent and in what order; whether anything was done.

    A disabled one stays so.

    Raises PeerConflict when the id belongs to something else, HBaseAway, HBaseRefused.
    """
    known = {peer.id: peer for peer in master.peers()}.get(wanted.id)
    if known is None:
        if master.add_peer(wanted):
            return True
        known = {peer.id: peer for peer in master.peers()}[wanted.id]  # another instance was quicker
    if _loopback_by_number(known.cluster_key) != _loopback_by_number(wanted.cluster_key):
        raise PeerConflict(
            f"HBase has a replication peer {wanted.id} to {known.cluster_key}, wanted is {wanted.cluster_key}; choose "
            "another walproxy_peer_id, or remove that peer"
        )
    if known.tables == wanted.tables and known.serial == wanted.serial:
        return False
    master.update_peer(replace(wanted, cluster_key=known.cluster_key))  # which HBase would not change
    return True


def _loopback_by_number(cluster_key: str) -> str:
    """Return a cluster's key with one name for this machine, which URLs write in two ways."""
    addresses, slash, path = cluster_key.partition("/")
    return re.sub(r"\blocalhost\b", "127.0.0.1", addresses) + slash + path


def prepare_peer(
    url: str, names: HbaseNames, watched: Mapping[str, frozenset[str]], settings: WalProxySettings
) -> bool:
    """Set the peer up before anybody writes, so that no edit is older than it; whether anything was done.

    The same as a WAL proxy does at its start. Raises PeerConflict, HBaseAway, HBaseRefused.
    """
    address = HbaseAddress.parse(url)
    zookeeper = connect(address.zookeeper)
    try:
        registry = Registry(zookeeper, settings.peer_id)
        wanted = wanted_peer(settings.peer_id, registry.cluster_key(address.zookeeper), table_columns(names, watched))
        return ensure_peer(Master(zookeeper), wanted)
    finally:
        zookeeper.stop()
        zookeeper.close()


class WalProxy:
    """The parts of one process. `step` is called again and again by one thread."""

    def __init__(self, context: StageContext, address: HbaseAddress, names: HbaseNames, notifier: ChangeNotifier,
                 watched: Mapping[str, frozenset[str]], settings: WalProxySettings,
                 open_repo: Callable[[], Collectable] | None = None) -> None:  # fmt: skip
        self._context, self._settings = context, settings
        self._metrics = context.metrics
        self._tables = table_columns(names, watched)
        self._tracker = Tracker(names, self._tables, notifier)
        self._log = structlog.get_logger().bind(stage=STAGE)
        self._registered = 0.0
        self._stop = threading.Event()
        with ExitStack() as stack:
            connections = HbaseConnections(address)
            stack.callback(connections.close)
            self._rows = Rows(connections, self._tables)
            zookeeper = connect(address.zookeeper)
            stack.callback(zookeeper.close)
            stack.callback(zookeeper.stop)
            self._registry = Registry(zookeeper, settings.peer_id)
            self._resolver = Resolver(
                context.log, self._rows, self._tracker, self._tables,
                grace_s=settings.grace_s, max_age_s=settings.max_age_s,
            )  # fmt: skip
            self._server = Server(
                settings.bind, settings.port, lambda r, f, at: decode(r.entry, f, at, self._tables, names.is_own)
            )
            stack.callback(self._server.close)
            self._registry.enter(settings.host, self._server.port)  # before there is a peer: it looks for us at once
            stack.callback(self._registry.leave)
            wanted = wanted_peer(settings.peer_id, self._registry.cluster_key(address.zookeeper), self._tables)
            if ensure_peer(Master(zookeeper), wanted):
                self._log.info("peer_set_up", peer=settings.peer_id, tables=sorted(wanted.tables))
            self._died: BaseException | None = None
            self._resolving = self._thread("resolve", self._resolve)
            stack.callback(self._resolving.join)
            if open_repo is not None and settings.collected_rows_per_s:
                keeper = Housekeeper(
                    open_repo, self._resolver.holds_first, settings.collected_rows_per_s, context.metrics
                )
                collecting = self._thread("collect", lambda: keeper.run(self._stop))
                stack.callback(collecting.join, _COLLECTED_S)
            stack.callback(self._stop.set)
            self._closing = stack.pop_all()

    @property
    def port(self) -> int:
        """The port that HBase ships to."""
        return self._server.port

    def close(self) -> None:
        """Stop taking edits; what was not acknowledged goes to another instance, or waits in HBase."""
        self._closing.close()

    def step(self) -> None:
        """Wait a moment for calls of region servers; publish and answer what has come.

        Raises RuntimeError when a thread has died: a proxy that heals or collects nothing must not look well.
        """
        if self._died is not None:
            raise RuntimeError(f"a thread of the WAL proxy died: {self._died!r}") from self._died
        self._stay_registered()
        try:
            calls = [self._server.calls.get(timeout=_WAIT_S)]
        except queue.Empty:
            return
        cells = calls[0].batch.cells
        while cells < _GROUP_CELLS:
            try:
                calls.append(self._server.calls.get_nowait())
            except queue.Empty:
                break
            cells += calls[-1].batch.cells
        self._serve(calls)

    def _serve(self, calls: list[Call]) -> None:
        """Publish what calls brought, then answer them; if that cannot be, HBase sends them again."""
        started = time.perf_counter()
        batch = Batch()
        for call in calls:
            batch.add(call.batch)
        entered_us = min(call.arrived_us for call in calls)
        try:
            read = {}
            if unknown := self._tracker.unknown(batch):
                stored = self._rows.read(unknown)
                read = {key: stored[key].edits(self._tables[key[0]]) for key in unknown}
                self._metrics.count("rows_read", len(unknown))
            taken = self._tracker.take(batch, read, entered_us)
            probes = [change.commit_ts for change in taken.changes if change.rows[0].table == PROBE_TABLE]
            if taken.records or probes:
                answers = [Position(WAL_PROXY_GROUP, REPO_FEED, 0, max(probes))] if probes else []
                self._context.log.publish(taken.records, answers)
        except (LogError, RepoError) as error:
            self._metrics.count("batches_refused", len(calls))
            self._log.warning("batch_refused", calls=len(calls), cells=batch.cells, error=str(error))
            for call in calls:
                call.refuse(f"the WAL proxy cannot take edits now: {error}")
            self._context.stop.wait(_RETRY_S)
            return
        self._tracker.done(taken)
        for call in calls:
            call.acknowledge()
        seconds = time.perf_counter() - started
        self._count(calls, batch, taken.notifications, taken.ignored, seconds)
        self._log.info(
            "notified", calls=len(calls), cells=batch.cells, transactions=len(taken.changes),
            notifications=taken.notifications, open=len(taken.opened), rows_read=len(unknown),
            ms=round(seconds * 1e3, 2),
        )  # fmt: skip

    def _count(
        self, calls: list[Call], batch: Batch, notifications: int, ignored: Mapping[str, int], seconds: float
    ) -> None:
        metrics = self._metrics
        metrics.count("edits", batch.cells)
        metrics.count("batches", len(calls))
        metrics.count("notifications", notifications)
        for reason, count in ignored.items():
            metrics.count(f"ignored:{reason}", count)
        metrics.time("batch_us", seconds * 1e6)
        if batch.oldest_write_ms:
            lag_us = max(0, now_us() - batch.oldest_write_ms * 1000)
            metrics.time("lag_us", lag_us)
            metrics.gauge("lag_us", lag_us)
        if refused := self._server.refused:
            metrics.gauge("connections_refused", refused)

    def _stay_registered(self) -> None:
        if time.monotonic() - self._registered < _REGISTRATION_S:
            return
        try:
            if self._registry.keep():
                self._metrics.count("registered_again")
                self._log.warning("registered_again", why="ZooKeeper had lost our session")
        except HBaseAway as error:
            self._metrics.count("registration_failed")
            self._log.warning("registration_failed", error=str(error))
        self._registered = time.monotonic()

    def _thread(self, name: str, work: Callable[[], None]) -> threading.Thread:
        """Start a thread whose death the next step tells."""

        def run() -> None:
            try:
                work()
            except BaseException as error:
                self._died = error
                raise

        thread = threading.Thread(target=run, name=f"walproxy-{name}", daemon=True)
        thread.start()
        return thread

    def _resolve(self) -> None:
        """Look after open transactions until told to stop."""
        resolver, metrics = self._resolver, self._metrics
        while not self._stop.is_set():
            healed, notifications = resolver.healed, resolver.notifications
            try:
                resolver.step(_WAIT_S)
            except (LogError, RepoError) as error:
                metrics.count("look_ups_failed")
                self._log.warning("look_up_failed", error=str(error))
                self._stop.wait(_RETRY_S)
            metrics.count("healed", resolver.healed - healed)
            metrics.count("notifications", resolver.notifications - notifications)
            for reason, count in resolver.ignored.items():
                metrics.count(f"ignored:{reason}", count)
            resolver.ignored.clear()
            metrics.gauge("pending", resolver.waiting)
            if malformed := self._rows.malformed:
                metrics.gauge("malformed_cells", malformed)
            if foreign := self._server.foreign:
                metrics.gauge("calls_for_others", foreign)
        try:
            resolver.close()
        except LogError as error:
            self._log.warning("positions_not_stored", error=str(error))


def run(
    context: StageContext,
    url: str,
    names: HbaseNames,
    watched: Mapping[str, frozenset[str]],
    settings: WalProxySettings | None = None,
    open_repo: Callable[[], Collectable] | None = None,
) -> None:
    """Take HBase's edits and publish notifications of committed changes until told to stop.

    `watched` has columns ("family:qualifier") by table. With `open_repo` one proxy of all also collects old versions.
    Raises StoreUnavailable when HBase or ZooKeeper cannot be reached at the start; later outages are waited for.
    """
    chosen = settings or WalProxySettings.of(context.settings)
    notifier = ChangeNotifier(context.catalog, watched)
    proxy = WalProxy(context, HbaseAddress.parse(url), names, notifier, watched, chosen, open_repo)
    try:
        context.ready(0)
        while not context.stop.is_set():
            context.beat()
            proxy.step()
    finally:
        proxy.close()
        context.metrics.flush(force=True)


__all__ = ["WalProxy", "ensure_peer", "prepare_peer", "run", "table_columns", "wanted_peer"]
