"""How the binlog's reader ends: what a server's errors mean, and faults of the program itself."""

from __future__ import annotations

import pymysql
import pytest

from gateway import AdsDbUnavailable, PositionLost
from gateway._binlog_plain import PlainTransactions
from gateway._binlog_stream import failure_of
from gateway._exceptions import BinlogFormat, GatewayError
from tests.gateway.mysql_support import Ads, Tail

SAME_ID = "A slave with the same server_uuid/server_id as this slave has connected to the master; the first event ''"


@pytest.mark.parametrize(
    ("code", "text", "kind"),
    [
        (1236, "Could not find first log file name in binary log index file", PositionLost),
        (1236, "binlog truncated in the middle of event; consider out of disk space on master", PositionLost),
        (1236, "bogus data in log event; the first event 'binlog.000001' at 4", PositionLost),
        (1236, "Client requested master to start replication from position > file size", PositionLost),
        (1236, "log event entry exceeded max_allowed_packet; Increase max_allowed_packet on master", PositionLost),
        (1789, "Cannot replicate because the source purged required binary logs", PositionLost),
        (1236, SAME_ID, AdsDbUnavailable),
        (1236, SAME_ID.replace("slave", "replica").replace("master", "source"), AdsDbUnavailable),
        (1053, "Server shutdown in progress", AdsDbUnavailable),
        (1227, "Access denied; you need the REPLICATION SLAVE privilege", AdsDbUnavailable),
    ],
)
def test_error_of_a_dump_by_its_number(code: int, text: str, kind: type[GatewayError]) -> None:
    """In whatever words, 1236 means that the position is of no use, unless another reader has the same id."""
    failure = failure_of("mysql://ads@db/ads", pymysql.OperationalError(code, text))
    assert type(failure) is kind
    assert text in str(failure)
    assert ("resync workflow" in str(failure)) is (kind is PositionLost)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_fault_of_the_reader_itself_is_told(mysql: Ads, tail: Tail, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception that nobody expects ends the reader with its cause, not as a silence that is tried for ever."""

    def faulty(self: object, packets: object, pieces: object) -> bool:
        raise TypeError("a fault of the program")

    monkeypatch.setattr(PlainTransactions, "read", faulty)
    mysql.run("INSERT INTO ads (id, ad_group_id) VALUES (1, 1)")
    with pytest.raises(BinlogFormat, match=r"TypeError.*a fault of the program") as caught:
        tail.until(lambda *_: False, 5)
    assert isinstance(caught.value.__cause__, TypeError)
