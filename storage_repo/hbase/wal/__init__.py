"""The WAL proxy: HBase's write-ahead log in, notifications of committed changes out."""

from __future__ import annotations

from storage_repo.hbase.wal._errors import HBaseAway, HBaseRefused, PeerConflict, WalProxyError, WireError
from storage_repo.hbase.wal.proxy import prepare_peer, run
from storage_repo.hbase.wal.settings import PEER_ID, WalProxySettings
from storage_repo.hbase.wal.status import (
    Instance,
    PeerStatus,
    QueueStatus,
    WalProxyStatus,
    remove_peer,
    set_peer_enabled,
    unstick_peer,
    walproxy_status,
)

__all__ = [
    "PEER_ID",
    "HBaseAway",
    "HBaseRefused",
    "Instance",
    "PeerConflict",
    "PeerStatus",
    "QueueStatus",
    "WalProxyError",
    "WalProxySettings",
    "WalProxyStatus",
    "WireError",
    "prepare_peer",
    "remove_peer",
    "run",
    "set_peer_enabled",
    "unstick_peer",
    "walproxy_status",
]
