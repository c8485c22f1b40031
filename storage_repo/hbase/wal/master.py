"""HBase's master and ZooKeeper: replication peers, and where the edits are queued."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TypeVar

from google.protobuf.message import Message
from kazoo.client import KazooClient
from kazoo.exceptions import KazooException, NoNodeError
from kazoo.handlers.threading import KazooTimeoutError

from storage_repo.hbase.wal import _frames as frames
from storage_repo.hbase.wal._errors import HBaseAway, HBaseRefused, WireError
from storage_repo.hbase.wal.proto import hbase_rpc_pb2 as rpc

logging.getLogger("kazoo").addHandler(logging.NullHandler())  # each lost connection; failures are reported by us

M = TypeVar("M", bound=Message)

USER = "adsindex"
"""What we call ourselves; with simple authentication HBase believes it."""
PBUF = b"PBUF"
"""Before every protobuf message that HBase keeps in ZooKeeper."""
_META_MAGIC = 0xFF
"""HBase's client puts its own name before the data: this byte, int32 length, the name."""
_RECONNECT = {"max_tries": -1, "delay": 0.1, "max_delay": 2.0, "ignore_expire": True}
"""By default Kazoo's pauses grow to a minute, in which HBase would not find us although ZooKeeper is back."""
_POLL_S = 0.05
"""Between two looks at a procedure: the quickest take about 100 ms."""
_NOT_YET = ("PleaseHoldException", "ServerNotRunningYetException", "MasterNotRunningException", "NotServingRegion")
"""A master that starts, or another one that has not taken over yet."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A replication peer: to whom HBase ships the edits of which tables and families."""

    id: str
    cluster_key: str
    enabled: bool
    serial: bool
    tables: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """HBase table -> families; empty = everything that has a replication scope."""


@dataclass(frozen=True, slots=True)
class Queue:
    """What one region server still has to ship to one peer."""

    peer_id: str
    server: str
    queue_id: str
    recovered: bool
    """It was the queue of a region server that died."""
    running: bool
    logs: int
    """Write-ahead logs that are not read to their end; 1 is the one that is being written."""
    lag_ms: int
    last_shipped_age_ms: int
    entries_read: int
    cells_shipped: int


class Master:
    """HBase's active master, found through ZooKeeper, asked over HBase's RPC. One connection per question."""

    def __init__(self, zookeeper: KazooClient, *, root: str = "/hbase", timeout_s: float = 30.0) -> None:
        """Take a started ZooKeeper client. Every question is asked again until `timeout_s` while no master answers."""
        self._zookeeper, self._root, self._timeout_s = zookeeper, root, timeout_s

    def peers(self) -> list[Peer]:
        """Return all replication peers of this HBase."""
        found = self._ask("ListReplicationPeers", rpc.ListReplicationPeersRequest(), rpc.ListReplicationPeersResponse())
        return [_peer(one) for one in found.peer_desc]

    def add_peer(self, peer: Peer) -> bool:
        """Add a peer and return when every region server knows it; False if there is one of this id."""
        wanted = rpc.AddReplicationPeerRequest(peer_id=peer.id, peer_config=_config(peer))
        wanted.peer_state.state = rpc.ReplicationState.ENABLED if peer.enabled else rpc.ReplicationState.DISABLED
        try:
            self._procedure("AddReplicationPeer", wanted)
        except HBaseRefused:
            if any(known.id == peer.id for known in self.peers()):
                return False
            raise
        return True

    def update_peer(self, peer: Peer) -> None:
        """Change which tables and families a peer is sent, and whether in order; its id and cluster key cannot change.

        No longer serial, it forgets what it has pushed of which region; serial again, it begins with what is there.
        """
        wanted = rpc.UpdateReplicationPeerConfigRequest(peer_id=peer.id, peer_config=_config(peer))
        self._procedure("UpdateReplicationPeerConfig", wanted)

    def enable_peer(self, peer_id: str) -> None:
        """Ship edits again; what was shipped from the current logs before comes again."""
        self._procedure("EnableReplicationPeer", rpc.PeerRequest(peer_id=peer_id))

    def disable_peer(self, peer_id: str) -> None:
        """Stop shipping; HBase keeps all logs until the peer is enabled or removed."""
        self._procedure("DisableReplicationPeer", rpc.PeerRequest(peer_id=peer_id))

    def remove_peer(self, peer_id: str) -> None:
        """Forget a peer and all that it has not been sent."""
        self._procedure("RemoveReplicationPeer", rpc.PeerRequest(peer_id=peer_id))

    def queues(self) -> list[Queue]:
        """Return what the region servers reported last (every few seconds) of all peers' queues."""
        options = rpc.GetClusterStatusRequest.Option
        wanted = rpc.GetClusterStatusRequest(options=[options.LIVE_SERVERS, options.DEAD_SERVERS])
        status = self._ask("GetClusterStatus", wanted, rpc.GetClusterStatusResponse()).cluster_status
        return [
            Queue(
                source.peer_id, f"{live.server.host_name}:{live.server.port}", source.queue_id, source.recovered,
                source.running, source.size_of_log_queue, source.replication_lag, source.age_of_last_shipped_op,
                source.edits_read, source.ops_shipped,
            )
            for live in status.live_servers
            for source in live.server_load.repl_load_source
        ]  # fmt: skip

    def _procedure(self, method: str, request: Message) -> None:
        """Ask for something that the master does in steps, and return when all are done."""
        started = self._ask(method, request, rpc.ProcedureResponse())
        deadline = time.monotonic() + self._timeout_s
        if not started.HasField("proc_id"):
            return
        states = rpc.GetProcedureResultResponse
        while True:
            wanted = rpc.GetProcedureResultRequest(proc_id=started.proc_id)
            result = self._ask("getProcedureResult", wanted, rpc.GetProcedureResultResponse())
            if result.HasField("exception"):
                cause = result.exception.generic_exception
                raise HBaseRefused(method, cause.class_name, cause.message)
            if result.state != states.RUNNING:
                return  # finished, or so long ago that it is forgotten
            if time.monotonic() > deadline:
                raise HBaseAway(f"{method} is not done after {self._timeout_s:g} s; see HBase's master log")
            time.sleep(_POLL_S)

    def _ask(self, method: str, request: Message, into: M) -> M:
        deadline = time.monotonic() + self._timeout_s
        while True:
            address = "?"
            try:
                host, port = self._address()
                address = f"{host}:{port}"
                return self._call(host, port, method, request, into)
            except (OSError, EOFError, KazooException, KazooTimeoutError, HBaseAway) as error:
                problem = str(error) or type(error).__name__
            except HBaseRefused as error:
                if not any(passing in error.exception for passing in _NOT_YET):
                    raise
                problem = str(error)
            if time.monotonic() > deadline:
                raise HBaseAway(f"HBase's master at {address} does not answer {method}: {problem}")
            time.sleep(_POLL_S)

    def _call(self, host: str, port: int, method: str, request: Message, into: M) -> M:
        with closing(socket.create_connection((host, port), timeout=self._timeout_s)) as connection:
            connection.sendall(frames.open_connection("MasterService", USER) + frames.request(1, method, request))
            with connection.makefile("rb") as stream:
                header = frames.read_answer(stream, into)
        if header.HasField("exception"):
            text = header.exception.stack_trace.strip().partition("\n")[0]
            raise HBaseRefused(method, header.exception.exception_class_name, text)
        return into

    def _address(self) -> tuple[str, int]:
        try:
            content, _ = self._zookeeper.get_async(f"{self._root}/master").get(timeout=self._timeout_s)
        except NoNodeError as error:
            raise HBaseAway(f"no HBase master is registered in ZooKeeper at {self._root}/master") from error
        master = rpc.Master()
        master.ParseFromString(strip(content))
        return master.master.host_name, master.master.port


def connect(addresses: str, timeout_s: float = 15.0) -> KazooClient:
    """Return a started client of the ZooKeeper at "host:port,host:port". Raises HBaseAway."""
    client = KazooClient(hosts=addresses, timeout=10.0, connection_retry=_RECONNECT)
    try:
        client.start(timeout=timeout_s)
    except KazooTimeoutError as error:
        client.stop()
        client.close()
        raise HBaseAway(f"no ZooKeeper answers at {addresses} within {timeout_s:g} s") from error
    return client


def strip(content: bytes) -> bytes:
    """Return the message in data that HBase keeps in ZooKeeper. Raises WireError."""
    if content[:1] == bytes((_META_MAGIC,)):
        content = content[5 + int.from_bytes(content[1:5], "big") :]
    if not content.startswith(PBUF):
        raise WireError(f"ZooKeeper holds {content[:40]!r} where HBase keeps a message")
    return content[len(PBUF) :]


def _config(peer: Peer) -> rpc.ReplicationPeer:
    config = rpc.ReplicationPeer(clusterkey=peer.cluster_key, serial=peer.serial, replicate_all=not peer.tables)
    for table, families in sorted(peer.tables.items()):
        namespace, _, name = table.rpartition(":")
        place = rpc.TableName(namespace=(namespace or "default").encode(), qualifier=name.encode())
        config.table_cfs.add(table_name=place, families=[family.encode() for family in sorted(families)])
    return config


def _peer(found: rpc.ReplicationPeerDescription) -> Peer:
    config = found.config
    tables = {_table_name(one.table_name): _names(one.families) for one in config.table_cfs}
    enabled = found.state.state == rpc.ReplicationState.ENABLED
    return Peer(found.id, config.clusterkey, enabled, config.serial, {} if config.replicate_all else tables)


def _table_name(name: rpc.TableName) -> str:
    table = name.qualifier.decode()
    return table if name.namespace == b"default" else f"{name.namespace.decode()}:{table}"


def _names(families: Sequence[bytes]) -> tuple[str, ...]:
    return tuple(sorted(family.decode() for family in families))
