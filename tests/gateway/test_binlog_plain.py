"""Plain transactions read in one pass: what comes out is what the general path makes of the same bytes."""

from __future__ import annotations

import gzip
import itertools
import random
import struct
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from catalog import Catalog, load_catalog
from gateway import BinlogFormat, _mysql
from gateway._binlog_plain import TOGETHER, WHOLE_BYTES, PlainTransactions
from gateway._binlog_stream import BinlogStream
from gateway._binlog_transactions import Piece, Transactions
from gateway._mysql_packets import PacketCutter
from gateway._mysql_server import describe_server, end_position
from gateway.binlog_events import FORMAT_DESCRIPTION, HEARTBEAT, ROTATE, EventReader
from gateway.binlog_position import BinlogPosition
from tests.gateway.mysql_support import Ads, on_both_servers, run

CATALOG = load_catalog()
SAKILA = Path(__file__).parents[2] / "examples" / "sakila" / "sakila.yaml"
Change = tuple[str, object, int]


class Reading:
    """Reads bytes by both paths together, as the Gateway's reader does, or by the general one alone."""

    def __init__(self, start: BinlogPosition, schema: str, flavour: str, *, plain: bool, catalog: Catalog = CATALOG):
        self.transactions = Transactions(catalog, schema, start, flavour)
        self.events = EventReader(checksum=True)
        self.plain = PlainTransactions(self.transactions, self.events)
        self.pieces: list[Piece] = []
        self.failure = ""
        self._by_plain = plain

    def feed(self, chunks: Sequence[bytes], number: int) -> Reading:
        """Take what came; stop at the first error, which is kept."""
        packets = PacketCutter(number)
        try:
            for chunk in chunks:
                packets.add(chunk)
                while not (self._by_plain and self.plain.read(packets, self.pieces)):
                    data = packets.next()
                    if data is None:
                        break
                    self.pieces.extend(self.transactions.add(self.events.read(data, 1)))
        except (BinlogFormat, LookupError, ValueError, struct.error, zlib.error, OSError) as error:
            self.failure = f"{type(error).__name__}: {error}"
        return self

    @property
    def changes(self) -> list[Change]:
        """All changes, in order."""
        return [change for piece in self.pieces for change in piece.changes]

    def ends(self) -> set[tuple[int, BinlogPosition]]:
        """Positions that may be stored, each with the number of changes before it."""
        counts = itertools.accumulate(len(piece.changes) for piece in self.pieces)
        return {(count, piece.end) for count, piece in zip(counts, self.pieces, strict=True) if piece.end is not None}

    def outcome(self) -> tuple[Any, ...]:
        """Everything that must not depend on the path."""
        special = [(p.ddl, p.rewritten, p.altered) for p in self.pieces if p.ddl or p.rewritten or p.altered]
        return self.changes, self.transactions.position, special, self.failure


def in_chunks(data: bytes, sizes: Iterator[int]) -> list[bytes]:
    """Cut bytes as a connection might."""
    chunks, at = [], 0
    while at < len(data):
        size = next(sizes)
        chunks.append(data[at : at + size])
        at += size
    return chunks


def sizes_of(seed: int, largest: int) -> Iterator[int]:
    """Sizes of what reads of a connection bring."""
    dice = random.Random(seed)
    while True:
        yield dice.randint(1, largest)


def compare(data: bytes, number: int, start: BinlogPosition, schema: str, flavour: str, catalog: Catalog) -> Reading:
    """Read bytes in several cuts by both paths; return the last reading."""
    general = Reading(start, schema, flavour, plain=False, catalog=catalog).feed([data], number)
    for seed, largest in ((1, 100), (2, 2_000), (3, WHOLE_BYTES), (4, 8 * WHOLE_BYTES)):
        both = Reading(start, schema, flavour, plain=True, catalog=catalog)
        both.feed(in_chunks(data, sizes_of(seed, largest)), number)
        assert both.outcome() == general.outcome()
        assert both.ends() <= general.ends()
    return both


@pytest.fixture
def flavour(kind: str) -> str:
    """How the server's binlog is written."""
    return "mariadb" if kind == "mysql" else "mysql"


@pytest.fixture(autouse=True)
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let it be long after the events: MariaDB's whole seconds then give the same times whenever they are read."""
    at = time.time_ns() + 10**12
    monkeypatch.setattr(time, "time_ns", lambda: at)


def logged(ads: Ads, admin: Any, begin: BinlogPosition) -> tuple[bytes, int]:
    """Return what the server sends of its binlog from a position to its end, and the number of the first packet."""
    end, server = end_position(admin), describe_server(admin)
    stream = BinlogStream(_mysql.Address.of(ads.url), server, begin, random.randrange(1 << 31, 1 << 32))
    first, received = stream._connection._next_seq_id, bytearray()
    with closing(stream):
        for packets in stream.received():
            while (payload := packets.next()) is not None:
                received += len(payload).to_bytes(3, "little") + bytes([(packets.number - 1) & 0xFF]) + payload
                kind, position = payload[5], int.from_bytes(payload[14:18], "little")
                if kind not in (ROTATE, FORMAT_DESCRIPTION, HEARTBEAT) and position >= end.offset:
                    return bytes(received), first
    raise AssertionError("the stream ended")


def write_everything(ads: Ads, admin: Any) -> None:
    """Write what applications write: plain transactions of all sorts among others that only the general path takes."""
    ads.run(*(f"INSERT INTO ads (id, ad_group_id, name) VALUES ({i}, 1, 'Anzeige ü {i}')" for i in range(1, 151)))
    ads.run(*(f"UPDATE ads SET name = '{i}' WHERE id = {i}" for i in range(50)))
    ads.run("UPDATE ads SET id = id + 1000 WHERE id < 3", "DELETE FROM ads WHERE id = 7", "UPDATE ads SET id = id")
    ads.run("UPDATE ads SET ad_group_id = 2 WHERE id BETWEEN 10 AND 90")
    ads.run(f"INSERT INTO pins (id, title) VALUES ('pin \\' ü', '{'t' * 300}'), ('', ''), ('b', 'c')")
    ads.run("CREATE TABLE other (id INT PRIMARY KEY, t LONGTEXT)", "INSERT INTO other VALUES (1, 'x'), (2, NULL)")
    ads.transaction(
        "INSERT INTO campaigns (id, advertiser_id) VALUES (5, 1), (6, 1)",
        "INSERT INTO budgets (campaign_id, daily_micros) VALUES (5, 10), (7, 10)",
        "UPDATE campaigns SET name = 'again' WHERE id = 5",
        "INSERT INTO other VALUES (3, 'nobody sees it')",
    )
    ads.transaction("UPDATE ads SET name = 'a' WHERE id = 20", "ALTER TABLE ads ADD COLUMN extra INT")
    ads.run("UPDATE ads SET extra = 1 WHERE id = 21", "DELETE FROM ads WHERE id BETWEEN 30 AND 40")
    run(admin, f"USE {ads.name}", "SET SESSION binlog_row_image = MINIMAL", "UPDATE ads SET name = 'm' WHERE id = 22")
    run(admin, "SET SESSION binlog_row_image = FULL", "UPDATE ads SET name = 'f' WHERE id = 22")
    ads.run("XA START 'x'", "UPDATE ads SET name = 'x' WHERE id = 23", "XA END 'x'", "XA PREPARE 'x'")
    ads.run("XA COMMIT 'x'", "UPDATE ads SET name = 'after' WHERE id = 24")
    ads.run(f"INSERT INTO other VALUES (4, REPEAT('long', {WHOLE_BYTES}))")
    ads.run(f"INSERT INTO ads (id, ad_group_id) VALUES {','.join(f'({i}, 3)' for i in range(5_000, 10_000))}")
    ads.run(*(f"UPDATE ads SET name = 'last {i}' WHERE id = 25" for i in range(20)))


@on_both_servers
def test_same_as_the_general_path(mysql: Ads, mysql_admin: Any, flavour: str) -> None:
    """All sorts of transactions of a real server give the same changes and the same position, however they arrive."""
    begin = end_position(mysql_admin)
    write_everything(mysql, mysql_admin)
    data, number = logged(mysql, mysql_admin, begin)
    reading = compare(data, number, begin, mysql.name, flavour, CATALOG)
    assert not reading.failure
    position, end = reading.transactions.position, end_position(mysql_admin)
    assert (position.file, position.offset) == (end.file, end.offset)
    assert {("ads", 149), ("ads", 1001), ("ads", 1), ("pins", "pin ' ü"), ("budgets", 7)} <= {
        c[:2] for c in reading.changes
    }
    assert reading.plain.taken > 200
    assert max(len(piece.changes) for piece in reading.pieces) >= TOGETHER


@on_both_servers
def test_damage_is_told_as_the_general_path_tells_it(mysql: Ads, mysql_admin: Any, flavour: str) -> None:
    """Wherever a byte is changed, both paths give the same changes before it, and the same error."""
    begin = end_position(mysql_admin)
    mysql.run("INSERT INTO ads (id, ad_group_id) VALUES (1, 1)", "UPDATE ads SET name = 'n' WHERE id = 1")
    mysql.run("INSERT INTO ads (id, ad_group_id) VALUES (2, 1), (3, 1)", "DELETE FROM ads WHERE id = 2")
    data, number = logged(mysql, mysql_admin, begin)
    failures = set()
    for at in range(len(data)):
        damaged = data[:at] + bytes([data[at] ^ 0x41]) + data[at + 1 :]
        general = Reading(begin, mysql.name, flavour, plain=False).feed([damaged], number)
        both = Reading(begin, mysql.name, flavour, plain=True).feed([damaged], number)
        assert both.outcome() == general.outcome(), at
        failures.add(general.failure.partition(":")[0])
    assert {"BinlogFormat", "OSError", ""} <= failures


@pytest.mark.parametrize("key", ["[shelf, number]", "number"])
def test_keys_of_several_columns(mysql: Ads, mysql_admin: Any, key: str, tmp_path: Path) -> None:
    """Keys are made of their columns as the general path makes them, whatever their order in the table."""
    file = tmp_path / "stock.yaml"
    file.write_text(
        "version: 1\nname: stock\ntables:\n  item:\n    owner: stock\n    key: string\n"
        f"    source: {{table: items, key: {key}}}\n    columns:\n      label: {{type: string, from: items.label}}\n"
        "  item_document: {owner: stock, key: string, root: item}\nfields:\n  label: {from: item.label}\n"
    )
    mysql.run("CREATE TABLE items (number INT, label TEXT, shelf VARCHAR(9), PRIMARY KEY (number, shelf))")
    begin = end_position(mysql_admin)
    mysql.run(
        "INSERT INTO items VALUES (1, 'x', 'a,b'), (2, NULL, '%')", "UPDATE items SET shelf = 'c' WHERE number = 1"
    )
    data, number = logged(mysql, mysql_admin, begin)
    reading = compare(data, number, begin, mysql.name, "mariadb", load_catalog(file))
    assert reading.plain.taken == 2
    keys = ["a%2Cb,1", "%25,2", "a%2Cb,1", "c,1"] if "shelf" in key else [1, 2, 1]
    assert [change[1] for change in reading.changes] == keys


@pytest.mark.parametrize("name", ["mysql-bin.checksum-crc32", "mysql-bin.checksum-none", "mysql-bin.sakila.gz"])
def test_files_of_other_servers(data: Path, name: str, tmp_path: Path) -> None:
    """Binlogs of MySQL 5.5 and 5.7, of mapped tables without column names and of tables that are nobody's."""
    content = (data / "mysql_binlogs" / name).read_bytes()
    if name.endswith(".gz"):
        content = gzip.decompress(content)
    sent, at, number = bytearray(), 4, 7
    while at < len(content):
        size = int.from_bytes(content[at + 9 : at + 13], "little")
        sent += (size + 1).to_bytes(3, "little") + bytes([number & 0xFF, 0]) + content[at : at + size]
        at, number = at + size, number + 1
    start = BinlogPosition(name, 4)
    for schema in ("ads", "simu_file_dev", "sakila"):
        catalog = load_catalog(SAKILA) if schema == "sakila" else CATALOG
        reading = compare(bytes(sent), 7, start, schema, "mysql", catalog)
        assert not reading.failure
        assert (reading.plain.taken > 0) is (name == "mysql-bin.checksum-crc32" or "none" in name)
