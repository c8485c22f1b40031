"""Bytes of shipped batches are read as what they say, and everything else is refused."""

from __future__ import annotations

import socket
import struct
import threading
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage_repo import RepoSchema
from storage_repo.hbase._commit_table import CommitTable
from storage_repo.hbase.connections import HbaseConnections
from storage_repo.hbase.names import HbaseNames
from storage_repo.hbase.wal import WireError
from storage_repo.hbase.wal import _frames as frames
from storage_repo.hbase.wal._cells import Batch, TableColumns, decode
from storage_repo.hbase.wal._errors import ForeignEdits
from storage_repo.hbase.wal._rows import Rows
from storage_repo.hbase.wal._server import Server
from storage_repo.hbase.wal.proto import hbase_rpc_pb2 as rpc
from storage_repo.omid import layout

PUT, DELETE, FAMILY_VERSION, COLUMN, FAMILY = 4, 8, 10, 12, 14
START, COMMIT = 1_795_316_117_977_000_000, 1_795_316_117_977_000_050
WATCHED = frozenset({"control:status", "control:name", "content:title"})
ORIGIN = (b"o", b"origin")
NAMES = HbaseNames(RepoSchema.of((("ad", ("control",)),)), "p_")


def cell(
    column: str, value: bytes = b"v", *, row: bytes = b"r", version: int = START, kind: int = PUT, tags: bytes = b""
) -> bytes:
    """Encode a cell as HBase does."""
    family, _, qualifier = column.encode().partition(b":")
    return raw_cell(family, qualifier, value, row, version, kind, tags)


def raw_cell(
    family: bytes, qualifier: bytes, value: bytes = b"v", row: bytes = b"r", version: int = START, kind: int = PUT,
    tags: bytes = b"",
) -> bytes:  # fmt: skip
    """Encode a cell of any bytes."""
    key = struct.pack(">h", len(row)) + row + bytes([len(family)]) + family + qualifier
    key += struct.pack(">qB", version, kind)
    content = struct.pack(">ii", len(key), len(value)) + key + value
    content += struct.pack(">H", len(tags)) + tags if tags else b""
    return struct.pack(">i", len(content)) + content


def shadow(column: str, commit_ts: int = COMMIT, *, row: bytes = b"r", version: int = START) -> bytes:
    """Encode the shadow cell beside a data cell."""
    family, _, qualifier = column.encode().partition(b":")
    return raw_cell(family, layout.shadow_qualifier(qualifier), layout.encode_timestamp(commit_ts), row, version)


def entry(*cells: bytes, table: bytes = b"p_ad", write_ms: int = 7) -> tuple[rpc.WALEntry, bytes]:
    """Make the entry of an atomic edit, and its cells."""
    key = rpc.WALKey(encoded_region_name=b"x", table_name=table, log_sequence_number=1, write_time=write_ms)
    return rpc.WALEntry(key=key, associated_cell_count=len(cells)), b"".join(cells)


def tables() -> dict[bytes, TableColumns]:
    """Return the columns of the one table."""
    return {b"p_ad": TableColumns(WATCHED, ORIGIN)}


def decoded(*entries: tuple[rpc.WALEntry, bytes]) -> Batch:
    """Decode a batch."""
    return decode([e for e, _ in entries], b"".join(c for _, c in entries), 0, tables(), NAMES.is_own)


def test_data_and_shadow_cells_of_a_row_come_together() -> None:
    """Watched columns, commit timestamp and origin are found, whatever lies between them; tags are skipped."""
    batch = decoded(
        entry(cell("control:status"), cell("control:other"), cell("o:origin", b"who"), cell("meta:x"), write_ms=9),
        entry(shadow("control:status"), cell("content:title", tags=b"tags"), shadow("o:origin"), write_ms=5),
    )
    (edits,) = batch.rows.values()
    assert list(batch.rows) == [(b"p_ad", b"r", START)]
    assert (edits.columns, edits.shadows) == ({"control:status", "content:title"}, {"control:status"})
    assert (edits.commit_ts, edits.origin, edits.write_ms) == (COMMIT, b"who", 9)
    assert (batch.cells, batch.oldest_write_ms, batch.ignored) == (7, 5, {"column": 3})


def test_rows_and_transactions_are_told_apart() -> None:
    """One entry may change several rows, and one batch a row by several transactions; checkpoints belong together."""
    batch = decoded(
        entry(cell("control:status", row=b"a"), cell("control:name", row=b"b")),
        entry(cell("control:name", row=b"a", version=START + 49), cell("control:name", row=b"a", version=START + 50)),
        entry(cell("control:name", row=b"a")),
    )
    assert {key: edits.columns for key, edits in batch.rows.items()} == {
        (b"p_ad", b"a", START): {"control:status", "control:name"},
        (b"p_ad", b"b", START): {"control:name"},
        (b"p_ad", b"a", START + 50): {"control:name"},
    }


def test_a_tombstone_is_a_change_and_a_family_mark_is_one_of_the_family() -> None:
    """An empty value deletes a column; in the empty qualifier it deletes the family; a value there is nothing."""
    (edits,) = decoded(entry(cell("control:status", b""), cell("control:", b""), cell("content:", b"x"))).rows.values()
    assert edits.columns == {"control:status", "control:"}


def test_a_family_mark_stands_for_what_it_deletes() -> None:
    """Omid's own shadow cells name the columns; without them it may be any watched one of the family."""
    columns = tables()[b"p_ad"]
    assert columns.changed({"control:"}, {"control:", "control:name"}) == {"control:name"}
    assert columns.changed({"control:"}, {"control:"}) == {"control:name", "control:status"}
    assert columns.changed({"control:", "control:name"}, {"control:", "control:name"}) == {
        "control:name",
        "control:status",
    }
    assert columns.changed({"content:title"}, set()) == {"content:title"}


def test_only_a_delete_of_one_version_is_a_roll_back() -> None:
    """Deletes of whole columns and families are no transaction's; they are counted."""
    batch = decoded(
        entry(cell("control:status", b"", kind=DELETE), cell("o:origin", b"", kind=DELETE)),
        entry(cell("control:name", b"", kind=COLUMN), cell("content:", b"", kind=FAMILY)),
    )
    (edits,) = batch.rows.values()
    assert (edits.deleted, edits.columns) == ({"control:status"}, set())
    assert batch.ignored == {"raw_delete": 2}
    (edits,) = decoded(entry(cell("control:", b"", kind=FAMILY_VERSION))).rows.values()
    assert edits.deleted == {"control:", "control:status", "control:name"}
    assert decoded(entry(cell("control:name", kind=COLUMN), shadow("control:name"))).ignored == {"raw_delete": 1}


def test_what_nobody_watches_is_counted_and_left() -> None:
    """Other tables, other columns and names that are no text give no row."""
    batch = decoded(
        entry(cell("control:status"), cell("control:name"), table=b"p_unwatched"),
        entry(raw_cell(b"control", b"\xff\xfe"), raw_cell(b"\xff", b"q"), cell("control:nobody")),
    )
    assert (batch.rows, batch.cells, batch.ignored) == ({}, 5, {"table": 2, "column": 3})


def test_batches_of_calls_are_joined_in_order() -> None:
    """Two calls that are published together are one batch."""
    first, second = decoded(entry(cell("control:status"))), decoded(entry(shadow("control:status"), write_ms=3))
    first.add(second)
    (edits,) = first.rows.values()
    assert (edits.columns, edits.shadows, edits.commit_ts) == ({"control:status"}, {"control:status"}, COMMIT)
    assert (first.cells, first.oldest_write_ms) == (2, 3)


def test_a_shadow_cell_that_is_none_is_counted_and_skipped() -> None:
    """A value that is no timestamp is not guessed at, and does not hold up the edits around it: the row stays open."""
    bad = raw_cell(b"control", layout.shadow_qualifier(b"status"), b"short")
    batch = decoded(entry(cell("control:status"), bad), entry(cell("control:name", row=b"s"), bad))
    edits, other = batch.rows.values()
    assert (edits.columns, edits.shadows, edits.commit_ts) == ({"control:status"}, set(), None)
    assert (other.columns, batch.ignored, batch.cells) == ({"control:name"}, {"bad_shadow": 2}, 4)


class Entries:
    """Stands in for the commit table: it has every transaction, and one entry that is none of Omid's."""

    def __init__(self, bad: int) -> None:
        self.bad, self.asked = bad, list[int]()

    def lookup(self, starts: list[int]) -> dict[int, layout.CommitEntry]:
        """Return entries."""
        self.asked.append(len(starts))
        if self.bad in starts:
            raise layout.MalformedCell("bad")
        return {start: layout.CommitEntry(start + 50) for start in starts}


def test_a_malformed_entry_hides_no_other() -> None:
    """It counts as not there, after a few more questions; the others are found."""
    rows = Rows(cast(HbaseConnections, None), {})
    table = Entries(bad=650)
    rows._commit_table = cast(CommitTable, table)
    starts = range(0, 5_000, 50)
    assert rows.commits(starts).keys() == set(starts) - {650}
    assert rows.malformed == 1 and len(table.asked) < 20


def test_edits_of_another_installation_are_not_taken() -> None:
    """Whoever acknowledged them would lose them: one such entry refuses the call, with what is ours in it."""
    ours, theirs = entry(cell("control:status")), entry(cell("control:status"), table=b"q_ad")
    with pytest.raises(ForeignEdits, match="q_ad"):
        decoded(ours, theirs)
    for prefix, table, own in (("p_", b"p_gone", True), ("p_", b"ad", False), ("", b"ad", True), ("", b"p_ad", False)):
        assert HbaseNames(RepoSchema.of((("ad", ("control",)),)), prefix).is_own(table) is own


@given(st.data())
def test_truncated_or_damaged_cells_never_pass_for_a_batch(data: st.DataObject) -> None:
    """Whatever is cut off or changed in the lengths, it is a WireError or a batch, and a cut is never a batch."""
    (made, cells) = entry(cell("control:status", b"value"), shadow("control:status"), cell("o:origin", b"who"))
    cut = data.draw(st.integers(0, len(cells) - 1))
    with pytest.raises(WireError):
        decode([made], cells[:cut], 0, tables(), NAMES.is_own)
    with pytest.raises(WireError):
        decode([made], cells + cells[: cut + 1], 0, tables(), NAMES.is_own)
    damaged = bytearray(cells)
    damaged[data.draw(st.integers(0, 13))] ^= data.draw(st.integers(1, 255))
    try:
        batch = decode([made], bytes(damaged), 0, tables(), NAMES.is_own)
    except WireError:
        return
    assert batch.cells == 3


def request_bytes(call_id: int, *entries: tuple[rpc.WALEntry, bytes], method: str = "ReplicateWALEntry") -> bytes:
    """Encode a call as a region server does."""
    parameter = rpc.ReplicateWALEntryRequest(entry=[e for e, _ in entries]).SerializeToString()
    cells = b"".join(c for _, c in entries)
    header = rpc.RequestHeader(call_id=call_id, method_name=method, request_param=True)
    header.cell_block_meta.length = len(cells)
    content = b"".join(frames._delimited(part) for part in (header.SerializeToString(), parameter)) + cells
    return struct.pack(">i", len(content)) + content


@pytest.fixture
def server() -> Server:
    """A server on a free port, closed by the test."""
    columns = tables()
    return Server("127.0.0.1", 0, lambda request, frame, at: decode(request.entry, frame, at, columns, NAMES.is_own))


def test_calls_are_answered_when_somebody_says_so(server: Server) -> None:
    """Calls of one connection wait for their answers together; a refusal is an exception that HBase tries again."""
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(frames.open_connection("AdminService", "hbase"))
        for call_id in (3, 4):
            client.sendall(request_bytes(call_id, entry(cell("control:status"), cell("control:name"))))
        calls = [server.calls.get(timeout=20) for _ in range(2)]
        assert [call.batch.cells for call in calls] == [2, 2]
        calls[1].acknowledge()
        calls[0].refuse("no log")
        stream, into = client.makefile("rb"), rpc.ReplicateWALEntryRequest()
        assert frames.read_answer(stream, into) == rpc.ResponseHeader(call_id=4)
        header = frames.read_answer(stream, into)
        assert (header.call_id, header.exception.do_not_retry) == (3, False)
        assert header.exception.stack_trace == "no log"
        client.sendall(request_bytes(5, method="GetRegionInfo"))
        assert frames.read_answer(stream, into).exception.do_not_retry
        stream.close()
    server.close()
    assert server.calls.empty()


def test_a_call_for_another_installation_is_refused_and_the_next_one_served(server: Server) -> None:
    """HBase sends it again, to its own proxies once it has looked for them; the connection stays."""
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(frames.open_connection("AdminService", "hbase"))
        client.sendall(request_bytes(3, entry(cell("control:status"), table=b"q_ad")))
        client.sendall(request_bytes(4, entry(cell("control:status"))))
        assert server.calls.get(timeout=120).call_id == 4
        with client.makefile("rb") as stream:
            header = frames.read_answer(stream, rpc.ReplicateWALEntryRequest())
        assert (header.call_id, header.exception.do_not_retry) == (3, False)
    server.close()
    assert (server.foreign, server.refused, server.calls.empty()) == (1, 0, True)


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        frames.PREAMBLE + struct.pack(">i", 1 << 30),
        frames.PREAMBLE + struct.pack(">i", 2) + b"\xff\xff",
        frames.open_connection("AdminService", "x") + struct.pack(">i", -1),
        frames.open_connection("AdminService", "x") + struct.pack(">i", 3) + b"\xff\xff\xff",
        frames.open_connection("AdminService", "x") + request_bytes(1, (entry(cell("control:status"))[0], b"")),
    ],
)
def test_whoever_talks_nonsense_is_disconnected(server: Server, said: bytes) -> None:
    """The connection is closed and counted; others go on being served."""
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(said)
        assert client.recv(100) == b""
    assert server.refused == 1
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(frames.open_connection("AdminService", "hbase") + request_bytes(1, entry(cell("o:origin"))))
        assert server.calls.get(timeout=120).batch.cells == 1
    server.close()


def test_a_codec_or_compression_that_we_do_not_have_is_named() -> None:
    """What must be changed in HBase's configuration is in the error."""
    codec = rpc.ConnectionHeader(cell_block_codec_class="com.example.Other")
    compressor = rpc.ConnectionHeader(cell_block_compressor_class="com.example.Other")
    for header, text in (
        (codec, "hbase.replication.rpc.codec"),
        (compressor, "hbase.client.rpc.compressor"),
    ):
        content = header.SerializeToString()
        ours, theirs = socket.socketpair()
        with ours, theirs, ours.makefile("rb") as stream:
            theirs.sendall(frames.PREAMBLE + struct.pack(">i", len(content)) + content)
            with pytest.raises(WireError, match=text):
                frames.accept_connection(stream)


def test_closing_does_not_wait_for_calls_that_nobody_takes(server: Server) -> None:
    """Readers that wait for room in the queue end as well."""
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(frames.open_connection("AdminService", "hbase"))
        calls = b"".join(request_bytes(call_id, entry(cell("control:status"))) for call_id in range(200))
        client.sendall(calls)
        while not server.calls.full():
            threading.Event().wait(0.01)
        server.close()
        assert not [t for t in threading.enumerate() if t.name == "walproxy-read"]
