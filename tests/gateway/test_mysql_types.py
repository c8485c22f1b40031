"""Values in row images: every fixture that the server accepts against SELECT, and binlog files of other servers."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import pymysql
import pytest
from pymysql.constants import CLIENT, FIELD_TYPE

from catalog import load_catalog
from gateway import BinlogFormat, _mysql
from gateway._binlog_stream import BinlogStream
from gateway._binlog_transactions import Transactions
from gateway._mysql_server import describe_server, end_position
from gateway.binlog_events import ROTATE, XID, Event, RowChange, RowDecoder, read_file, rotate_of
from gateway.binlog_position import BinlogPosition
from tests.gateway.mysql_support import Ads, client, on_both_servers, run
from tests.stack_support import QUICK, temporary_stack, up_or_skip

_COMPOUND = re.compile(r"CREATE\s+(DEFINER\s*=\s*\S+\s+)?(PROCEDURE|FUNCTION|TRIGGER)", re.I)

ALL_TYPES = """
CREATE TABLE types (
  id INT PRIMARY KEY, t1 TINYINT, t2 TINYINT UNSIGNED, s SMALLINT UNSIGNED, m MEDIUMINT, mu MEDIUMINT UNSIGNED,
  i INT UNSIGNED, b BIGINT, bu BIGINT UNSIGNED, d1 DECIMAL(65,30), d2 DECIMAL(10,0) UNSIGNED, d3 DECIMAL(3,3),
  f FLOAT, g DOUBLE, c CHAR(10), v VARCHAR(2000), l VARCHAR(20) CHARACTER SET latin1, k VARCHAR(20) CHARACTER SET sjis,
  u VARCHAR(20) CHARACTER SET ucs2, x TEXT, bin BINARY(8), vb VARBINARY(300), bl LONGBLOB, e ENUM('a','ü','c,d'),
  st SET('x','y','ö'), bt BIT(13), y YEAR, dt DATE, t0 TIME, t6 TIME(6), t3 TIME(3), dt0 DATETIME, dt6 DATETIME(6),
  dt1 DATETIME(1), ts0 TIMESTAMP NULL, ts6 TIMESTAMP(6) NULL, js JSON, geo POINT, vc VARCHAR(100) {compressed},
  bc BLOB {compressed}
)
"""
JSON_TEXTS = (
    '{"a": [1, "ü", null, true, -1.5, 1e300], "b": {}, "長": [[], [{}]]}', "[]", '"text \\"quoted\\" \\n"', "null", "3",
    "-2147483649", "18446744073709551615", "0.1", "[65535, 65536, -32768, -32769]", "false",
    json.dumps({f"key {i}": "x" * i for i in range(400)}),
)  # fmt: skip
"""Each kind of value, small and big integers, and a document beyond 64 KiB, which is stored otherwise."""
JSON_VALUES = (
    "JSON_OBJECT('exact', 1.50, 'day', DATE '2024-02-29', 'time', TIME '-01:02:03.000004', 'n', 1234567890123456789.5)",
    "JSON_ARRAY(TIMESTAMP '2024-01-02 03:04:05.678901', TIMESTAMP '9999-12-31 23:59:59', -0.001, TIME '838:59:59')",
    "CAST(DATE '1000-01-01' AS JSON)", "CAST(x'00ff' AS JSON)", "CAST(b'101' AS JSON)", "CAST(POINT(1, 2) AS JSON)",
)  # fmt: skip
"""Values of SQL types in MySQL's JSON, which keeps their type."""

ROWS: list[dict[str, str]] = [
    {
        "t1": "-128", "t2": "255", "s": "65535", "m": "-8388608", "mu": "16777215", "i": "4294967295",
        "b": "-9223372036854775808", "bu": "18446744073709551615",
        "d1": "-99999999999999999999999999999999999.999999999999999999999999999999", "d2": "9999999999", "d3": "-0.001",
        "f": "1.1", "g": "-1.7976931348623157e308", "c": "'ab '", "v": "'🦊 ключ'", "l": "'é€'", "k": "'日本'",
        "u": "'Ω'", "x": "REPEAT('长', 1000)", "bin": "0x0102000000", "vb": "0x00FF00", "bl": "REPEAT(0x80, 70000)",
        "e": "'ü'", "st": "'ö,x'", "bt": "b'1000000000001'", "y": "2155", "dt": "'9999-12-31'",
        "t0": "'-838:59:59'", "t6": "'-00:00:00.000001'", "t3": "'838:59:58.999'", "dt0": "'1000-01-01 00:00:00'",
        "dt6": "'9999-12-31 23:59:59.999999'", "dt1": "'2024-02-29 12:00:00.9'", "ts0": "'2038-01-19 03:14:07'",
        "ts6": "'1970-01-01 00:00:01.000001'", "js": "'{\"a\": [1, \"ü\"]}'", "geo": "POINT(1, 2)",
        "vc": "REPEAT('compress me ', 8)", "bc": "REPEAT('x', 5000)",
    },
    {
        "t1": "0", "t2": "0", "d1": "0.000000000000000000000000000001", "d2": "0", "d3": "0.999", "f": "-0.0",
        "g": "5e-324", "c": "''", "v": "''", "l": "''", "x": "''", "bin": "''", "vb": "''", "bl": "''", "e": "'c,d'",
        "st": "''", "bt": "0", "y": "0", "dt": "'0000-00-00'", "t0": "'00:00:00'", "t6": "'-12:34:56.789'",
        "t3": "'-00:00:01.5'", "dt0": "'0000-00-00 00:00:00'", "dt6": "'2024-00-00 00:00:00'", "ts0": "0", "vc": "''",
        "bc": "''",
    },
    {},
]  # fmt: skip


class Follower:
    """Decodes what a server logs, from its present end on."""

    def __init__(self, url: str, connection: Any) -> None:
        begin, server = end_position(connection), describe_server(connection)
        self._file, self._connection = begin.file, connection
        self._stream = BinlogStream(_mysql.Address.of(url), server, begin, 4_000_000_001)
        self._events, self._decoder = self._stream.events(), RowDecoder(server.flavour)

    def rows(self) -> list[RowChange]:
        """Return the rows that were logged since the last time."""
        end = end_position(self._connection)
        found: list[RowChange] = []
        for event in self._events:
            if event.kind == ROTATE:
                self._file = rotate_of(event)[0]
            found.extend(self._decoder.rows(event))
            if (self._file, event.end) >= (end.file, end.offset):
                return found
        raise AssertionError("the stream ended")

    def close(self) -> None:
        """Disconnect."""
        self._stream.close()


def left_by(changes: list[RowChange]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Apply changes in order; return (schema, table) -> the rows that are left."""
    tables: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for change in changes:
        rows = tables[change.schema, change.table]
        if change.before is not None:
            rows.remove(change.before)
        if change.after is not None:
            rows.append(change.after)
    return tables


def differences(connection: Any, changes: list[RowChange]) -> tuple[int, list[str]]:
    """Compare every value of the rows left with SELECT; return (values equal, differences)."""
    equal, wrong = 0, []
    for (schema, table), images in left_by(changes).items():
        with connection.cursor(pymysql.cursors.DictCursor) as cursor:
            if not cursor.execute(
                "SELECT 1 FROM information_schema.tables WHERE table_schema = %s AND table_name = %s", (schema, table)
            ):
                continue  # dropped again by the same fixture
            cursor.execute(f"SELECT * FROM {_mysql.quoted(schema)}.{_mysql.quoted(table)}")
            selected: list[dict[str, Any]] = list(cursor.fetchall())
            documents = [name for name, code, *_ in cursor.description if code == FIELD_TYPE.JSON]
        for found in selected:  # MariaDB's JSON is text, MySQL's is a type
            found.update({name: json.loads(found[name]) for name in documents if found[name] is not None})
        if len(images) != len(selected):
            wrong.append(f"{table}: {len(images)} rows instead of {len(selected)}")
        for image in images:
            row: dict[str, Any] = max(selected, key=lambda r: sum(r.get(k) == v for k, v in image.items()), default={})
            if row:
                selected.remove(row)
            for name, value in image.items():
                if name in row and row[name] == value and type(row[name]) is type(value):
                    equal += 1
                else:
                    wrong.append(f"{table}.{name}: {value!r} instead of {row.get(name)!r}")
    return equal, wrong


def load(connection: Any, text: str) -> list[str]:
    """Run a fixture as far as the server takes it; return the faults it names."""
    faults: list[str] = []
    # The server itself cuts compound statements rightly; after its first refusal it leaves the rest out.
    statements = [text] if _COMPOUND.search(text) else _mysql.split_statements(text)
    for statement in statements:
        try:
            with connection.cursor() as cursor:
                cursor.execute(statement)
                while cursor.nextset():
                    pass
        except pymysql.MySQLError as error:
            faults.append(f"{statement[:40]!r}: {_mysql.describe(error)}")
    return faults


@pytest.fixture
def throwaway(kind: str) -> Iterator[Any]:
    """The administrator of a server that a fixture may spoil; it syncs nothing, as it makes hundreds of tables."""
    with temporary_stack(QUICK) as stack:
        server = up_or_skip(stack, [kind])[kind]
        with closing(client(server.admin_url)) as admin:
            yield admin


@on_both_servers
def test_every_fixture_is_read_as_select_gives_it(
    throwaway: Any, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each Debezium fixture that the server accepts is loaded, tailed, and compared value by value with SELECT."""
    mysql_admin, url = throwaway, mysql_admin_url(throwaway)
    refused: dict[str, list[str]] = {}
    equal, rows, loaded = 0, 0, 0
    present = {name for (name,) in run(mysql_admin, "SHOW DATABASES")}
    follower = Follower(url, mysql_admin)
    for file in sorted((data / "debezium_mysql_fixtures").iterdir()):
        if file.name == "SOURCE.txt":
            continue
        name = f"ads_fx_{len(refused) + loaded}"
        run(mysql_admin, f"CREATE DATABASE {name} CHARACTER SET utf8mb4", f"USE {name}")
        with closing(client(url, client_flag=CLIENT.MULTI_STATEMENTS)) as connection:
            connection.select_db(name)
            faults = load(connection, file.read_text(errors="replace"))
        if faults:
            refused[file.name] = faults
        else:
            loaded += 1
        changes = follower.rows()
        same, wrong = differences(mysql_admin, changes)
        assert not wrong, f"{file.name}: {wrong[:10]}"
        equal, rows = equal + same, rows + len(changes)
        for (database,) in run(mysql_admin, "SHOW DATABASES"):
            # Those that it made by itself: another fixture may want the same name.
            if database not in present and not database.startswith("ads_fx_"):
                run(mysql_admin, "SET FOREIGN_KEY_CHECKS = 0", f"DROP DATABASE {_mysql.quoted(database)}")
    follower.close()
    with capsys.disabled():
        print(f"\nfixtures: {loaded} loaded whole, {len(refused)} refused in part; {rows} rows, {equal} values equal")
        for name, faults in refused.items():
            print(f"  {name}: {len(faults)} refused, first {faults[0][:150]}")
    assert loaded >= 50
    assert rows > 200 and equal > 900


def mysql_admin_url(connection: Any) -> str:
    """Return the URL that an administrator's connection was opened with."""
    password = connection.password.decode()
    return f"mysql+pymysql://root:{password}@127.0.0.1:{connection.port}/mysql"


@on_both_servers
def test_every_type_at_its_limits(kind: str, mysql: Ads, mysql_admin: Any) -> None:
    """Every column type at its limits, empty, null, and the dates that are none, equals SELECT to value and type."""
    create = ALL_TYPES.format(compressed="COMPRESSED" if kind == "mysql" else "")
    run(mysql_admin, f"USE {mysql.name}", "SET SESSION sql_mode = ''", "SET SESSION time_zone = '+00:00'", create)
    follower = Follower(mysql.url, mysql_admin)
    for i, row in enumerate(ROWS):
        names, values = ", ".join(["id", *row]), ", ".join([str(i), *row.values()])
        run(mysql_admin, f"INSERT INTO types ({names}) VALUES ({values})")
    run(mysql_admin, "UPDATE types SET d2 = 7, e = 'a' WHERE id = 1", "INSERT INTO types (id) VALUES (9)")
    run(mysql_admin, "DELETE FROM types WHERE id = 9")
    equal, wrong = differences(mysql_admin, follower.rows())
    follower.close()
    assert not wrong
    assert equal == 3 * 40


@pytest.mark.parametrize("kind", ["mysql8"])
def test_json_of_mysql(mysql: Ads, mysql_admin: Any) -> None:
    """Documents of MySQL's binary format equal what SELECT says: nested, large, with values of SQL types in them."""
    run(mysql_admin, f"USE {mysql.name}", "CREATE TABLE documents (id INT PRIMARY KEY AUTO_INCREMENT, js JSON)")
    follower = Follower(mysql.url, mysql_admin)
    with mysql_admin.cursor() as cursor:
        cursor.executemany("INSERT INTO documents (js) VALUES (%s)", [(text,) for text in JSON_TEXTS])
    run(mysql_admin, *(f"INSERT INTO documents (js) VALUES ({value})" for value in JSON_VALUES))
    equal, wrong = differences(mysql_admin, follower.rows())
    follower.close()
    assert not wrong
    assert equal == 2 * (len(JSON_TEXTS) + len(JSON_VALUES))


def test_compressed_binlog(mysql: Ads, mysql_admin: Any) -> None:
    """Rows that MariaDB compressed (log_bin_compress) are read like any others."""
    run(mysql_admin, "SET GLOBAL log_bin_compress = ON", "SET GLOBAL log_bin_compress_min_len = 10")
    try:
        follower = Follower(mysql.url, mysql_admin)
        with closing(client(mysql.url)) as app:
            run(app, "CREATE TABLE z (id INT PRIMARY KEY, t TEXT)", "INSERT INTO z VALUES (1, REPEAT('abc', 1000))")
            run(app, "UPDATE z SET id = 2", "INSERT INTO z VALUES (3, REPEAT('d', 9)), (4, NULL)")
        changes = follower.rows()
        follower.close()
    finally:
        run(mysql_admin, "SET GLOBAL log_bin_compress = OFF")
    equal, wrong = differences(mysql_admin, changes)
    assert (equal, wrong) == (6, [])


FILES = {
    "mysql-bin.sakila.gz": (1462, {23: 1374}, 47_273),
    "mysql-bin.checksum-none": (191, {30: 34, 31: 2, 19: 36}, 36),
    "mysql-bin.checksum-crc32": (303, {30: 34, 31: 20, 32: 6, 19: 60}, 63),
}


@pytest.mark.parametrize("name", FILES)
def test_binlog_files_without_a_server(data: Path, name: str) -> None:
    """Binlogs of MySQL 5.5 and 5.7 are read from their files: as many events of each type as their source says."""
    kinds: Counter[int] = Counter()
    decoder = RowDecoder()
    rows: list[RowChange] = []
    for event, _ in read_file(data / "mysql_binlogs" / name):
        kinds[event.kind] += 1
        rows.extend(decoder.rows(event))
    total, some, row_count = FILES[name]
    assert sum(kinds.values()) == total
    assert {kind: kinds[kind] for kind in some} == some
    assert len(rows) == row_count
    if name == "mysql-bin.sakila.gz":
        tables = Counter(row.table for row in rows)
        assert (tables["payment"], tables["rental"], tables["film"], tables["actor"]) == (16049, 16044, 1000, 200)
        payment = next(row.after for row in rows if row.table == "payment")
        assert payment is not None
        assert [str(v) for v in list(payment.values())[:5]] == ["1", "1", "1", "76", "2.99"]
        assert payment["@6"] == datetime(2005, 5, 25, 11, 30, 37)


def test_damaged_file(data: Path, tmp_path: Path) -> None:
    """A flipped bit, a cut, and a file that is no binlog are errors that say where; nothing is passed over."""
    whole = (data / "mysql_binlogs" / "mysql-bin.checksum-crc32").read_bytes()

    def events(content: bytes) -> list[Event]:
        file = tmp_path / "file"
        file.write_bytes(content)
        return [event for event, _ in read_file(file)]

    assert len(events(whole)) == 303
    with pytest.raises(BinlogFormat, match="checksum is wrong"):
        events(whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
    with pytest.raises(BinlogFormat, match="cut off in the event at offset"):
        events(whole[:-7])
    with pytest.raises(BinlogFormat, match="is not a binlog"):
        events(b"PK\x03\x04")


def test_transactions_of_a_mysql_file(data: Path) -> None:
    """MySQL's events (anonymous GTIDs, BEGIN, rows, XID) make one piece a transaction, its position at its end."""
    file = data / "mysql_binlogs" / "mysql-bin.checksum-crc32"
    transactions = Transactions(load_catalog(), "simu_file_dev", BinlogPosition(file.name, 4), "mysql")
    ends = [event.end for event, _ in read_file(file) if event.kind == XID]
    pieces = [piece for event, _ in read_file(file) for piece in transactions.add(event)]
    assert [piece.end.offset for piece in pieces if piece.end is not None] == ends
    assert len(pieces) == len(ends) == 60
