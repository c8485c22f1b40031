"""Names, values and addresses of the Repo on HBase: what is stored where, without any server."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage_repo import LimitExceeded, RepoSchema, TableLayout
from storage_repo.hbase import HbaseAddress
from storage_repo.hbase.names import HbaseNames, KeyRange
from storage_repo.hbase.values import decode_value, encode_value

URL = "hbase://127.0.0.1:9090?thrift2=9091&zookeeper=127.0.0.1:2181"
TABLES = (("ad", ("control",)), ("ad_by_campaign", ("meta",)))
SALTED = HbaseNames(RepoSchema.of(TABLES, layouts={t: TableLayout(salts=4) for t, _ in TABLES}), "ns:p.")
PLAIN = HbaseNames(RepoSchema.of(TABLES))


def test_address_names_all_servers() -> None:
    """The URL has both Thrift servers and ZooKeeper, or the TSO directly; the prefix is optional."""
    assert HbaseAddress.parse(URL) == HbaseAddress(
        ("127.0.0.1", 9090), ("127.0.0.1", 9091), "127.0.0.1:2181", "zookeeper://127.0.0.1:2181"
    )
    direct = HbaseAddress.parse("hbase://a:1?thrift2=b:2&tso=c:3&prefix=x.")
    assert (direct.thrift2, direct.tso, direct.prefix) == (("b", 2), "omid://c:3", "x.")


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("http://h:1?thrift2=2&zookeeper=z:3", "no HBase Repo"),
        ("hbase://h:1/path?thrift2=2&zookeeper=z:3", "no HBase Repo"),
        ("hbase://h?thrift2=2&zookeeper=z:3", "no port"),
        ("hbase://h:1?zookeeper=z:3", "where Thrift2 and ZooKeeper are"),
        ("hbase://h:1?thrift2=2", "where Thrift2 and ZooKeeper are"),
        ("hbase://h:1?thrift2=two&zookeeper=z:3", "'two' is no port"),
        ("hbase://h:1?thrift2=2&zookeeper=z:3&zookeper=z:3", "unknown options zookeper"),
    ],
)
def test_half_set_addresses_are_refused(url: str, problem: str) -> None:
    """A URL that misses something, or has something unknown, is refused with how to write it."""
    with pytest.raises(ValueError, match=problem) as caught:
        HbaseAddress.parse(url)
    assert "hbase://HOST:THRIFT_PORT?" in str(caught.value)


@pytest.mark.parametrize("value", [b"a", b"{}", b"\x00", b"\xc1a", b"\xc2\xc1", "é".encode(), b"__OMID_TOMBSTONE__ "])
def test_ordinary_values_are_stored_as_they_are(value: bytes) -> None:
    """Java clients see the very bytes of everything that is neither a tombstone nor looks like an escape."""
    assert encode_value(value) == value == decode_value(value)


@given(st.lists(st.sampled_from([b"\xc1", b"__OMID_TOMBSTONE__", b"a", b"_"]), max_size=4).map(b"".join))
def test_values_come_back_and_are_never_tombstones(value: bytes) -> None:
    """Every value, the empty one and those that look like tombstones or escapes included, comes back."""
    stored = encode_value(value)
    assert stored not in (b"", b"__OMID_TOMBSTONE__")
    assert decode_value(stored) == value


def test_shadow_qualifiers_are_refused() -> None:
    """A qualifier that ends as Omid's shadow cells do is refused; a family of the engine's name too."""
    with pytest.raises(LimitExceeded, match=r"ends in U\+0080"):
        PLAIN.column("ad", "control:x\x80")
    with pytest.raises(ValueError, match="column family 'o'"):
        HbaseNames(RepoSchema.of([("t", ("o",))]))


def test_columns_are_told_from_their_shadow_cells() -> None:
    """What is written for a column is recognised when it is read, shadow cell and mark of a deleted family too."""
    column = PLAIN.column("ad", "control:é")
    assert PLAIN.seen[column.key] == ("control:é", False, "control")
    assert PLAIN.seen[column.shadow_key] == ("control:é", True, "control")
    assert PLAIN.seen[b"control:"] == ("control:", False, "control")
    assert PLAIN.seen[b"control:\x00\xc2\x80\xc2\x80"] == ("control:", True, "control")


@given(st.text(st.characters(min_codepoint=0x1F, exclude_categories=["Cs"]), min_size=1, max_size=20))
def test_rows_come_back_from_their_keys(row: str) -> None:
    """Row keys are the text itself, after one byte of salt where the table has salts."""
    assert PLAIN.row_key("ad", row) == row.encode()
    salted = SALTED.row_key("ad", row)
    assert salted[1:] == row.encode() and salted[0] < 4
    assert PLAIN.row_of("ad", row.encode()) == SALTED.row_of("ad", salted) == row


def test_index_rows_of_one_entity_share_a_salt() -> None:
    """The salt is of the key's first part, so that a prefix scan over an entity's index rows reads one range."""
    salts = {SALTED.row_key("ad_by_campaign", f"7\x1f{ad}")[:1] for ad in range(100)}
    assert len(salts) == 1
    salt = salts.pop()
    assert SALTED.ranges("ad_by_campaign", "7\x1f", "", "") == [KeyRange(salt + b"7\x1f", salt + b"7 ")]
    assert len({SALTED.row_key("ad", f"{ad}")[0] for ad in range(100)}) == 4
    assert [over.start for over in SALTED.ranges("ad", "7", "", "")] == [b"%c7" % salt for salt in range(4)]


bounds = st.sampled_from(["", "a", "a\x1f", "ab", "\U0010ffff", "b"])


@given(
    st.lists(st.sampled_from(["a", "a\x1f1", "ab", "b", "\U0010ffff", "\U0010ffffz", "é"]), unique=True),
    bounds,
    bounds,
    bounds,
    st.sampled_from([PLAIN, SALTED]),
)
def test_ranges_have_exactly_the_rows_wanted(
    rows: list[str], prefix: str, after: str, before: str, names: HbaseNames
) -> None:
    """Keys within the ranges are those of rows that begin with the prefix, are after and before the bounds."""
    ranges = names.ranges("ad", prefix, after, before)
    found = [row for row in rows for r in ranges if r.start <= names.row_key("ad", row) and _below(names, row, r)]
    assert found == [r for r in rows if r.startswith(prefix) and r > after and (not before or r < before)]


def _below(names: HbaseNames, row: str, over: KeyRange) -> bool:
    return over.stop is None or names.row_key("ad", row) < over.stop


def test_hbase_tables_have_the_prefix() -> None:
    """Table names carry the installation's prefix, and are recognised by it."""
    assert SALTED.hbase_table("ad") == b"ns:p.ad"
    assert (SALTED.table_of(b"ns:p.ad"), SALTED.table_of(b"ad"), PLAIN.table_of(b"ad")) == ("ad", None, "ad")
