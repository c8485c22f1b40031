"""What a person wants to know of the WAL proxy: peers, instances, queues, lag; and the commands on a peer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import msgspec
from kazoo.client import KazooClient

from storage_repo.hbase.address import HbaseAddress
from storage_repo.hbase.wal._errors import HBaseRefused
from storage_repo.hbase.wal._registry import Registry
from storage_repo.hbase.wal.master import Master, connect
from storage_repo.hbase.wal.settings import PEER_ID


class Instance(msgspec.Struct, frozen=True):
    """A WAL proxy process that is registered."""

    host: str
    port: int
    up_s: float


class QueueStatus(msgspec.Struct, frozen=True):
    """What one region server still has to ship, as it reported last (every few seconds)."""

    server: str
    queue_id: str
    recovered: bool
    """Taken over from a region server that died."""
    logs: int
    """Not read to their end; 1 is the one that is being written."""
    lag_s: float
    """How old the oldest edit is that is not shipped; 0 when there is none."""
    entries_read: int
    """Of the log; one has all cells of a put, or of a batch of puts."""
    cells_shipped: int


class PeerStatus(msgspec.Struct, frozen=True):
    """A peer of HBase. `instances` and `ours` are known of WAL proxies only."""

    id: str
    cluster_key: str
    enabled: bool
    serial: bool
    tables: list[str]
    ours: bool
    instances: list[Instance]
    queues: list[QueueStatus]

    @property
    def lag_s(self) -> float:
        """How far the slowest queue is behind."""
        return max((queue.lag_s for queue in self.queues), default=0.0)


class WalProxyStatus(msgspec.Struct, frozen=True):
    """All replication peers of an HBase."""

    peers: list[PeerStatus]

    def to_json(self) -> dict[str, object]:
        """Return JSON types."""
        found: dict[str, object] = msgspec.to_builtins(self)
        return found


def walproxy_status(url: str) -> WalProxyStatus:
    """Return what HBase and ZooKeeper know of all peers. Raises ValueError for the URL, StoreUnavailable."""
    with _zookeeper(url) as zookeeper:
        master = Master(zookeeper)
        queues, now_ms = master.queues(), time.time() * 1e3
        found = []
        for peer in sorted(master.peers(), key=lambda peer: peer.id):
            registry = Registry(zookeeper, peer.id, create=False)
            members = registry.members()
            found.append(
                PeerStatus(
                    peer.id,
                    peer.cluster_key,
                    peer.enabled,
                    peer.serial,
                    sorted(peer.tables),
                    peer.cluster_key.endswith(f":{registry.path}"),
                    [Instance(host, port, (now_ms - since) / 1e3) for host, port, since in members],
                    [
                        QueueStatus(q.server, q.queue_id, q.recovered, q.logs, q.lag_ms / 1e3, q.entries_read,
                                    q.cells_shipped)
                        for q in queues
                        if q.peer_id == peer.id
                    ],
                )
            )  # fmt: skip
    return WalProxyStatus(found)


def set_peer_enabled(url: str, enabled: bool, peer_id: str = PEER_ID) -> None:
    """Let HBase ship to the WAL proxies, or keep its logs until it may. Raises StoreUnavailable."""
    with _zookeeper(url) as zookeeper:
        master = Master(zookeeper)
        (master.enable_peer if enabled else master.disable_peer)(peer_id)


def unstick_peer(url: str, peer_id: str = PEER_ID) -> None:
    """Have HBase forget how far a serial peer has pushed each region, and begin anew with what it has logged.

    For a peer that stands still although all is well: after two crashes in quick succession HBase 2.6 may wait for a
    sequence number that nobody will push (HBASE-29499). Nothing is lost; edits may come again, or out of order, which
    the WAL proxy is built for. Safe to run twice; killed in between, the next start of a WAL proxy completes it.
    Raises HBaseRefused for a peer that is not there, StoreUnavailable.
    """
    with _zookeeper(url) as zookeeper:
        master = Master(zookeeper)
        peer = next((peer for peer in master.peers() if peer.id == peer_id), None)
        if peer is None:
            raise HBaseRefused("UpdateReplicationPeerConfig", "ReplicationPeerNotFound", f"there is no peer {peer_id}")
        master.update_peer(replace(peer, serial=False))
        master.update_peer(replace(peer, serial=True))


def remove_peer(url: str, peer_id: str = PEER_ID) -> None:
    """Remove the peer with all that it has not been sent: what is committed now is notified by nobody.

    Stop all WAL proxies before; the next one that starts sets the peer up again. Raises StoreUnavailable.
    """
    with _zookeeper(url) as zookeeper:
        registry = Registry(zookeeper, peer_id, create=False)
        master = Master(zookeeper)
        if any(peer.id == peer_id for peer in master.peers()):
            master.remove_peer(peer_id)
        if not registry.members():
            registry.remove()


@contextmanager
def _zookeeper(url: str) -> Iterator[KazooClient]:
    zookeeper = connect(HbaseAddress.parse(url).zookeeper)
    try:
        yield zookeeper
    finally:
        zookeeper.stop()
        zookeeper.close()
