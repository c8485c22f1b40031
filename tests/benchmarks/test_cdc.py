"""`bench cdc`: the real Gateway and the real Debezium on one real binlog, and every row accounted for."""

from __future__ import annotations

import json
import os
import sys
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pymysql
import pytest
from sqlalchemy.engine import make_url

from benchmarks import BenchmarkFailed, _cdc_debezium, cdc, markdown_benchmark
from benchmarks._cdc_rows import PER_STATEMENT, Application
from benchmarks._cdc_tail import Tail
from benchmarks._stack_servers import Servers
from catalog.values import decode
from compose import ServerInfo
from messaging.kafka import open_kafka_log
from messaging.proto import adsindex_pb2 as pb
from messaging.topics import UPDATES
from tests.support import IN_CI

TINY = cdc.Sizes(bulk=1_200, single=1_200, warm_ups=1, repeats=1, peers=(cdc.DEBEZIUM,))
"""More than one of the Gateway's batches of 500 between a row's insert and its update, so none become one message."""

_ECHO = """
import json, sys
for line in sys.stdin:
    print(json.dumps({"rows": int(line) + int(sys.argv[1])}), flush=True)
"""


_SPIN = """
import os, sys, threading
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0))).start()
while True: pass
"""


@pytest.fixture(scope="module")
def servers(mysql_server: ServerInfo, kafka_server: ServerInfo) -> Servers:
    """A database and a topic prefix of our own on the shared servers."""
    name = f"ads_cdc_{uuid.uuid4().hex[:8]}"
    url = make_url(mysql_server.url).set(database=name).render_as_string(hide_password=False)
    pids = {"mysql": mysql_server.pid, "kafka": kafka_server.pid}
    return Servers(url, f"{kafka_server.url}/{name}-", pids)


@pytest.fixture(scope="module")
def result(servers: Servers) -> dict[str, Any]:
    """One run at sizes that say nothing about speed."""
    if missing := _cdc_debezium.missing_tools():
        text = f"no Debezium without {' and '.join(missing)}: apt-get install default-jdk-headless maven"
        if IN_CI:
            pytest.fail(text)
        pytest.skip(text)
    return cdc.run(quick=True, sizes=TINY, given=servers)


def figures(result: dict[str, Any], case: str, metric: str) -> list[dict[str, Any]]:
    """Return the results of a case and metric, by the words in them."""
    return [row for row in result["results"] if case in row["case"] and row["metric"] == metric]


def test_both_shapes_have_figures_of_both(result: dict[str, Any]) -> None:
    """Rows per second and processor seconds, cold and warm, in bulk and one by one, ours and Debezium's."""
    assert json.loads(json.dumps(result)) == result
    assert result["benchmark"] == "cdc"
    for shape in (cdc.BULK, cdc.SINGLE):
        for metric in ("rows/s", "cpu s/100,000 rows"):
            found = figures(result, shape, metric)
            assert {row["case"].endswith("first round") for row in found} == {True, False}
            assert all(row["peer_name"] == cdc.DEBEZIUM for row in found)
            measured = [row for row in found if "server" not in row["case"]]
            assert all(row["ours"] > 0 and row["peer"] > 0 and row["ratio"] > 0 for row in measured)


def test_a_ratio_above_one_means_that_ours_is_better(result: dict[str, Any]) -> None:
    """More rows per second is better, more processor seconds is worse."""
    for row in figures(result, cdc.BULK, "rows/s"):
        assert row["ratio"] == pytest.approx(row["ours"] / row["peer"], rel=0.01)
    for row in figures(result, f"{cdc.BULK}, first", "cpu s/100,000 rows"):
        assert row["ratio"] == pytest.approx(row["peer"] / row["ours"], rel=0.01)


def test_the_aim_is_judged_by_the_figures(result: dict[str, Any]) -> None:
    """The note on the aim names the shapes in which the Gateway takes more processor time than Debezium, if any."""
    (verdict,) = (note for note in result["notes"] if note.startswith("aim: "))
    for shape in (cdc.BULK, cdc.SINGLE):
        (row,) = (
            row
            for row in figures(result, shape, "cpu s/100,000 rows")
            if row["case"].endswith(shape) and row["peer_name"] == cdc.DEBEZIUM
        )
        assert (shape in verdict) == (row["ours"] > row["peer"])
    assert any(note.startswith("medians of 1 rounds after 1 to warm up") for note in result["notes"])


def test_a_busy_machine_makes_fewer_rounds(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the time for it no further round is begun; the note says how many were counted."""
    monkeypatch.setattr(cdc, "_LONGEST_S", 0.0)
    given = Servers(servers.ads_db, servers.log.removesuffix("-") + "-busy-", servers.pids)
    sizes = cdc.Sizes(bulk=400, single=10, warm_ups=3, repeats=50, peers=())
    notes = cdc.run(quick=True, sizes=sizes, given=given)["notes"]
    assert any(note.startswith("medians of 1 rounds after 1 to warm up") for note in notes)


def test_a_result_is_printed_as_markdown(result: dict[str, Any]) -> None:
    """Every figure is a row of one table, what is missing a dash, and every note stands below it."""
    text = markdown_benchmark(result)
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + len(result["results"]) and {len(row) for row in rows} == {6}
    for cells, row in zip(rows[2:], result["results"], strict=True):
        assert cells[:2] == [row["case"], row["metric"]]
        assert (cells[5] == "–") == (row["ratio"] is None)
        if row["ours"] is not None:
            assert float(cells[2].replace(",", "")) == pytest.approx(row["ours"], rel=1e-3)
    assert all(f"* {note}" in text for note in result["notes"])


def test_every_row_change_is_in_the_log(result: dict[str, Any], servers: Servers) -> None:
    """An independent recount: Kafka holds one update per row change, the last of each row with its final value."""
    rounds = TINY.warm_ups + TINY.repeats
    last: dict[str, tuple[int, int]] = {}
    count = 0
    with closing(open_kafka_log(servers.log)) as log:
        for topic in UPDATES.values():
            for partition, end in log.end_offsets(topic).items():
                offset = 0
                while offset < end:
                    records = log.read(topic, partition, offset, 1_000)
                    offset = records[-1].offset + 1
                    count += len(records)
                    for record in records:
                        update = pb.EntityUpdate.FromString(record.value)
                        values = {column.name: decode(column.value) for column in update.columns}
                        assert values["name"].startswith("Sommerschlußverkauf") and not update.deleted
                        last[update.row] = max(last.get(update.row, (0, 0)), (update.source_version, values["id"]))
    assert count == rounds * (TINY.bulk + TINY.single)
    assert set(last) == {str(i) for i in range(1, rounds * (TINY.bulk + TINY.single) // 2 + 1)}
    assert all(int(row) == found for row, (_, found) in last.items())


def test_without_debezium_the_gateway_is_measured_and_the_lack_is_said(
    servers: Servers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without Java and Maven the peer's figures are null and a note says why; ours are there."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert _cdc_debezium.missing_tools() == ["java", "javac", "mvn"]
    given = Servers(servers.ads_db, servers.log.removesuffix("-") + "-alone-", servers.pids)
    sizes = cdc.Sizes(bulk=1_000, single=10, warm_ups=1, repeats=1, peers=(cdc.DEBEZIUM,))
    result = cdc.run(quick=True, sizes=sizes, given=given)
    for row in figures(result, cdc.BULK, "rows/s"):
        assert row["ours"] > 0 and row["peer_name"] == cdc.DEBEZIUM and row["peer"] is None and row["ratio"] is None
    assert any(note.startswith("java and javac and mvn not found") for note in result["notes"])


def test_without_servers_nothing_is_measured_and_the_lack_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On a machine without MariaDB or Java every figure is null, and a note says what to install."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("ADSINDEX_STACK_INSTALL", "0")
    result = cdc.run(quick=True, sizes=TINY)
    assert result["results"] and all(row["ours"] is None and row["peer"] is None for row in result["results"])
    assert any("no figures at all" in note and "install" in note for note in result["notes"])


@pytest.fixture
def application(servers: Servers) -> Iterator[Application]:
    """An application on a database of its own."""
    url = make_url(servers.ads_db)
    with Application(url.set(database=f"{url.database}_rows").render_as_string(hide_password=False)) as application:
        yield application


def transactions(application: Application) -> int:
    """Return how many transactions the server has committed to its binlog."""
    url = application.url
    connection = pymysql.connect(
        host=url.host or "", port=url.port or 0, user=url.username or "", password=url.password or ""
    )
    with closing(connection), connection.cursor() as cursor:
        cursor.execute("SELECT @@gtid_binlog_pos")
        (position,) = cursor.fetchone() or ("",)
    return int(str(position).rpartition("-")[2])


def test_the_application_writes_in_the_shapes_it_promises(application: Application) -> None:
    """Bulk: a transaction per hundred rows; one by one: a transaction per row; eight columns; half inserts."""
    before = transactions(application)
    application.bulk(6 * PER_STATEMENT)
    assert transactions(application) - before == 6
    application.one_by_one(40)
    assert transactions(application) - before == 46
    url = application.url
    connection = pymysql.connect(
        host=url.host or "", port=url.port or 0, user=url.username or "", password=url.password or "",
        database=url.database,
    )  # fmt: skip
    with closing(connection), connection.cursor() as cursor:
        assert cursor.execute("SELECT * FROM ads") == 320
        assert len(cursor.description) == 8
        assert cursor.execute("SELECT id FROM ads WHERE bid_micros <> id % 9000 + 1") == 0


def test_a_tail_that_miscounts_makes_the_figures_void(tmp_path: Path) -> None:
    """An answer with another number of rows is an error, never a figure."""
    with Tail("echo", [sys.executable, "-c", _ECHO, "1"], tmp_path / "log") as tail:
        tail.hold()
        with pytest.raises(BenchmarkFailed, match="dealt with 11 rows, but 10 were written"):
            tail.take(10, 30.0)


def test_a_tail_that_dies_is_named_with_the_end_of_its_log(tmp_path: Path) -> None:
    """The error quotes what the process wrote last."""
    command = [sys.executable, "-c", "import sys; sys.stdin.readline(); sys.exit('no such binlog')"]
    with Tail("dying", command, tmp_path / "log") as tail, pytest.raises(BenchmarkFailed, match=r"dying.*no such binl"):
        tail.take(10, 30.0)


def test_a_held_tail_uses_no_processor(tmp_path: Path) -> None:
    """A process that would spin does nothing while it is held, and what it used before is counted."""
    with Tail("spin", [sys.executable, "-c", _SPIN], tmp_path / "log") as tail:
        while tail.cpu_s() < 0.1:
            tail.check()
        tail.hold()
        held = tail.cpu_s()
        assert held >= 0.1
        started = os.times().elapsed
        while os.times().elapsed - started < 0.3:
            assert tail.cpu_s() - held < 0.02
