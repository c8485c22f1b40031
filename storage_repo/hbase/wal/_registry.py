"""How HBase finds the WAL proxies: as the region servers of a cluster that exists in ZooKeeper only.

Below a node of our own there are `hbaseid` and, for each instance, an ephemeral `rs/HOST,PORT,STARTCODE`. HBase chooses
among those for every batch and leaves out one whose node, or whose port, is gone.
"""

from __future__ import annotations

import time
import uuid
from contextlib import suppress

from kazoo.client import KazooClient
from kazoo.exceptions import KazooException, NodeExistsError, NoNodeError, NotEmptyError
from kazoo.handlers.threading import KazooTimeoutError

from storage_repo.hbase.wal._errors import HBaseAway
from storage_repo.hbase.wal.master import PBUF
from storage_repo.hbase.wal.proto import hbase_rpc_pb2 as rpc

ROOT = "/adsindex-walproxy"
_PATIENCE_S = 2.0
"""For an answer of ZooKeeper, while edits wait."""
_IDS = uuid.UUID("7d1c9a52-36c5-4d0e-9a43-0b8f5f2d7c11")
"""Name space of the made-up clusters' ids; HBase refuses to ship to a cluster that has its own id."""


class Registry:
    """The node of one peer: who serves it. Used by one thread."""

    def __init__(self, zookeeper: KazooClient, peer_id: str, *, create: bool = True) -> None:
        """Create the node unless told otherwise. Raises HBaseAway."""
        self._zookeeper, self._peer_id = zookeeper, peer_id
        self.path = f"{ROOT}/{peer_id}"
        self._own: str | None = None
        if create:
            identity = PBUF + rpc.ClusterId(cluster_id=str(uuid.uuid5(_IDS, peer_id))).SerializeToString()
            try:
                zookeeper.ensure_path(f"{self.path}/rs")
                zookeeper.create(f"{self.path}/hbaseid", identity)
            except NodeExistsError:
                pass
            except KazooException as error:
                raise HBaseAway(f"cannot register in ZooKeeper at {self.path}: {error!r}") from error

    def cluster_key(self, addresses: str) -> str:
        """Return how the peer's configuration names this node; `addresses` is "host:port,host:port"."""
        hosts, ports = zip(*(address.rpartition(":")[::2] for address in addresses.split(",")), strict=True)
        if len(set(ports)) > 1:
            return f"{addresses}:{ports[0]}:{self.path}"
        return f"{','.join(hosts)}:{ports[0]}:{self.path}"

    def enter(self, host: str, port: int) -> None:
        """Add this process; its node goes when its session ends. Raises HBaseAway."""
        self._own = f"{self.path}/rs/{host},{port},{time.time_ns() // 1_000_000}"
        self.keep()

    def keep(self) -> bool:
        """Put this process's node back if ZooKeeper has lost it with our session; whether that was so.

        Raises HBaseAway, after a few seconds at most.
        """
        if self._own is None:
            return False
        zookeeper = self._zookeeper
        try:
            if zookeeper.exists_async(self._own).get(timeout=_PATIENCE_S) is not None:
                return False
            zookeeper.create_async(self._own, b"", ephemeral=True, makepath=True).get(timeout=_PATIENCE_S)
        except NodeExistsError:
            return False
        except (KazooException, KazooTimeoutError) as error:
            raise HBaseAway(f"cannot register in ZooKeeper at {self._own}: {error!r}") from error
        return True

    def leave(self) -> None:
        """Take this process out, so that HBase sends it nothing new; whatever fails, the session's end does it."""
        own, self._own = self._own, None
        if own is not None:
            with suppress(KazooException, KazooTimeoutError):
                self._zookeeper.delete_async(own).get(timeout=_PATIENCE_S)

    def members(self) -> list[tuple[str, int, int]]:
        """Return (host, port, start in ms since the epoch) of every instance that is registered."""
        try:
            names = self._zookeeper.get_children(f"{self.path}/rs")
        except NoNodeError:
            return []
        except KazooException as error:
            raise HBaseAway(f"cannot read {self.path} in ZooKeeper: {error!r}") from error
        parts = (name.rsplit(",", 2) for name in sorted(names))
        return [(host, int(port), int(start)) for host, port, start in parts]

    def remove(self) -> None:
        """Remove the node, if nobody is registered. Raises HBaseAway."""
        try:
            for name in ("rs", "hbaseid", ""):
                self._zookeeper.delete(f"{self.path}/{name}".rstrip("/"))
        except NoNodeError:
            pass
        except (NotEmptyError, KazooException) as error:
            raise HBaseAway(f"cannot remove {self.path} from ZooKeeper: {error!r}") from error
