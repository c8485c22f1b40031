"""The TSO client against Apache Omid's real TSO: many at once, order, lost connections, fail-over."""

from __future__ import annotations

import os
import random
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from urllib.parse import parse_qs, urlsplit

import happybase
import pytest
from kazoo.client import KazooClient

from compose import ServerInfo, Stack
from storage_repo.omid import (
    Aborted,
    CommitRequest,
    Committed,
    CommitUnknown,
    Outcome,
    TsoClient,
    TsoClosed,
    TsoIncompatible,
    TsoSettings,
    TsoUnavailable,
    ids,
    layout,
    protocol,
)
from storage_repo.omid._open_requests import OpenRequests
from storage_repo.omid.proto import omid_pb2 as pb
from tests.storage_repo.tso_wire import Wire, wait_until, wire_to

IMPATIENT = TsoSettings(request_timeout_s=0.5, give_up_s=2.0)
_random = random.Random()


def fresh_cell() -> int:
    """Return the id of a cell that nobody has used.

    Spread like hashes: the TSO keeps a cell in one of 32 places from its id's on, and ids in a row that come out of
    order fill these, so that it forgets the newest commits first and refuses whoever began before them.
    """
    return _random.getrandbits(62)


def request(start_ts: int, *cells: int) -> CommitRequest:
    """A transaction that writes cells of one table."""
    return CommitRequest(start_ts, cells or (fresh_cell(),), (7,))


@pytest.fixture(scope="module")
def tso_port(hbase_server: ServerInfo, shared_stack: Stack) -> int:
    """Port of the real TSO."""
    return shared_stack.status(["omid"])["omid"].port


@pytest.fixture
def tso(tso_port: int) -> Iterator[TsoClient]:
    """A client that is connected directly."""
    with TsoClient.open(f"omid://127.0.0.1:{tso_port}") as client:
        yield client


@pytest.fixture
def wire(tso_port: int) -> Iterator[Wire]:
    """A wire to the real TSO."""
    with wire_to(tso_port) as between:
        yield between


@pytest.fixture
def zookeeper(hbase_server: ServerInfo) -> str:
    """host:port of ZooKeeper."""
    return zookeeper_of(hbase_server)


def zookeeper_of(hbase: ServerInfo) -> str:
    """Return host:port of HBase's ZooKeeper."""
    parts = urlsplit(hbase.url)
    return parts.netloc if parts.scheme == "zookeeper" else parse_qs(parts.query)["zookeeper"][0]


def in_commit_table(hbase: ServerInfo, start_ts: int) -> layout.CommitEntry | None:
    """Read what the real commit table says."""
    parts = urlsplit(hbase.url)
    with closing(happybase.Connection(parts.hostname, parts.port)) as connection:
        row = connection.table(layout.COMMIT_TABLE).row(layout.commit_key(start_ts))
    return layout.commit_entry(start_ts, row.get(layout.COMMIT_COLUMN), row.get(layout.INVALID_COLUMN))


def test_timestamps_ascend_and_are_never_given_twice(tso: TsoClient) -> None:
    """From many threads, one by one and in bulk: all different, multiples of 50, ascending for each caller."""

    def take(count: int) -> list[int]:
        return [ts for _ in range(5) for ts in tso.begin_many(count)]

    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(take, [1, 10, 100, 1, 10, 100, 1, 500]))
    assert tso.begin_many(0) == []
    together = [ts for each in taken for ts in each]
    assert len(set(together)) == len(together) == 5 * 723
    assert all(ts % layout.VERSIONS_PER_TRANSACTION == 0 for ts in together)
    assert all(each == sorted(each) for each in taken)


def transact_in_threads(tso: TsoClient, times: int) -> tuple[list[tuple[int, int]], int]:
    """Commit transactions of 24 threads, all of different cells; return (start, commit) of each, and how many the TSO
    refused. It must refuse none, but for a retry: one that comes while its own commit is on its way into the commit
    table by Omid's other writer looks like a conflict with itself."""

    def transact(group: int) -> list[tuple[int, Outcome]]:
        done: list[tuple[int, Outcome]] = []
        for _ in range(times):
            starts = tso.begin_many(group)
            done += zip(starts, tso.commit_many([request(ts) for ts in starts]), strict=True)
        return done

    with ThreadPoolExecutor(24) as pool:
        outcomes = [pair for each in pool.map(transact, [1, 5, 20] * 8) for pair in each]
    assert len(outcomes) == 8 * times * 26
    done = [(start, outcome.commit_ts) for start, outcome in outcomes if isinstance(outcome, Committed)]
    others = [outcome for _, outcome in outcomes if not isinstance(outcome, Committed)]
    assert others == [Aborted(after_retry=True)] * len(others)
    return done, len(others)


def test_thousands_of_transactions_share_one_connection(tso: TsoClient) -> None:
    """Begins and commits of many threads overtake nothing that matters, and their answers come many at a time."""
    done, refused = transact_in_threads(tso, 30)
    assert all(start < commit for start, commit in done)
    assert len({ts for pair in done for ts in pair}) == 2 * len(done)
    counted = tso.statistics()
    assert (counted["commits"], counted["aborts"]) == (len(done), refused)
    assert counted["begins"] == 8 * 30 * 26
    if not counted["begins_resent"] + counted["commits_retried"]:  # on a machine that lets the TSO answer within 5 s
        assert (counted["connections"], refused) == (1, 0)
    assert refused <= counted["commits_retried"]
    assert counted["responses"] > counted["reads"]  # how many at a time depends on how busy the machine is


def commits_in(frames: bytes) -> list[tuple[int, bool]]:
    """Return (start, is it a retry?) of the commits among requests that go over the wire."""
    found = []
    while frames:
        length = int.from_bytes(frames[: protocol.LENGTH_BYTES], "big")
        message, frames = frames[protocol.LENGTH_BYTES :][:length], frames[protocol.LENGTH_BYTES + length :]
        commit = pb.Request.FromString(message).commit
        found.append((commit.start_ts, commit.is_retry))
    return found


def test_commits_are_asked_again_one_after_the_other() -> None:
    """A retry goes out when the one before it is answered; what was never sent is none and waits for nothing."""
    counters: Counter[str] = Counter()
    requests = OpenRequests(counters)

    def answer(start: int) -> list[tuple[int, bool]]:
        response = pb.CommitResponse(aborted=False, start_ts=start, commit_ts=start + 1000)
        return commits_in(requests.answered([pb.Response(commit=response)])[1])

    sent = [request(start) for start in (50, 100, 150, 200)]
    call, _ = requests.commit(sent, is_connected=True)
    requests.commit([request(250)], is_connected=False)
    assert commits_in(requests.again()) == [(250, False), (50, True)]
    before = requests.oldest_sent_at()
    assert answer(250) == []
    assert answer(50) == [(100, True)]
    assert (requests.oldest_sent_at() or 0) > (before or 0), "those that wait for their turn are not overdue"
    requests.give_up_commits([sent[2]], "its caller's time is over")
    assert answer(100) == [(200, True)]
    assert answer(200) == []
    assert (call.missing, requests.oldest_sent_at(), counters["commits_retried"]) == (0, None, 3)


def test_a_storm_of_retries_does_not_end_the_tso(tso_port: int, shared_stack: Stack) -> None:
    """HBase is silent for longer than the client's patience, so that hundreds of commits are asked for again."""
    hbase = shared_stack.status(["hbase"])["hbase"].pid
    with TsoClient.open(f"omid://127.0.0.1:{tso_port}", TsoSettings(request_timeout_s=0.3)) as tso:
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(transact_in_threads, tso, 20)
            for _ in range(4):
                enough = tso.statistics()["commits"] + 200
                while not running.done() and tso.statistics()["commits"] < enough:
                    time.sleep(0.005)
                os.kill(hbase, signal.SIGSTOP)
                try:
                    wait_until(lambda: running.done() or tso.waiting > 50)
                    time.sleep(0.6)  # twice the patience; retries go out one by one, so none of them tells it
                finally:
                    os.kill(hbase, signal.SIGCONT)
            done, refused = running.result()
        counted = tso.statistics()
    assert refused <= counted["commits_retried"]
    assert counted["commits_retried"] > 50
    assert len(done) > 20 * 26 * 7


def test_begins_fill_the_batches_of_the_tso(tso: TsoClient, tso_port: int) -> None:
    """A begin does not wait for the time after which the TSO takes a batch that is not full."""

    def seconds(client: TsoClient) -> float:
        started = time.perf_counter()
        client.begin()
        return time.perf_counter() - started

    with TsoClient.open(f"omid://127.0.0.1:{tso_port}", TsoSettings(batch=1)) as waits:
        times = [(seconds(tso), seconds(waits)) for _ in range(150)]
        assert waits.statistics()["pads"] == 0
    filled, waited = (sorted(each)[len(times) // 4] for each in zip(*times, strict=True))
    assert waited > 0.001  # batchPersistTimeoutInMs
    assert filled < 0.8 * waited
    counted = tso.statistics()
    assert (counted["begins"], counted["pads"]) == (150, 7 * 150)


def test_of_two_that_write_a_cell_the_first_wins(tso: TsoClient) -> None:
    """Also within one request; the loser's other cells stay free, and a later start may write the cell again."""
    cell, other = fresh_cell(), fresh_cell()
    first, second, third = tso.begin_many(3)
    outcomes = tso.commit_many([request(second, cell), request(first, cell, other), request(third, other)])
    assert isinstance(outcomes[0], Committed)
    assert outcomes[1] == Aborted(after_retry=False)
    assert isinstance(outcomes[2], Committed)
    assert isinstance(tso.commit(tso.begin(), [cell], [7]), Committed)
    assert tso.statistics()["aborts"] == 1


def test_answers_are_known_by_their_transaction() -> None:
    """Commits may be answered in any order, between timestamps; what nobody waits for is counted and dropped."""
    counters: Counter[str] = Counter()
    requests = OpenRequests(counters)
    commits, _ = requests.commit([request(100), request(50), request(150)], is_connected=True)
    begins, _ = requests.begin(2)
    answers = [
        pb.Response(commit=pb.CommitResponse(aborted=False, start_ts=150, commit_ts=1150)),
        pb.Response(timestamp=pb.TimestampResponse(start_ts=200)),
        pb.Response(commit=pb.CommitResponse(aborted=True, start_ts=100)),
        pb.Response(commit=pb.CommitResponse(aborted=False, start_ts=999, commit_ts=1999)),
        pb.Response(timestamp=pb.TimestampResponse(start_ts=250)),
        pb.Response(commit=pb.CommitResponse(start_ts=50, commit_ts=1050)),
    ]
    done, more = requests.answered(answers)
    assert done == [begins, commits]
    assert not more
    assert list(begins.answers.values()) == [200, 250]
    assert [commits.answers[index] for index in range(3)] == [Aborted(), Committed(1050), Committed(1150)]
    assert requests.count() == 0
    assert counters["answers_unexpected"] == 1


def test_a_begin_sees_every_smaller_commit_in_the_commit_table(tso: TsoClient, hbase_server: ServerInfo) -> None:
    """The rule that snapshot isolation rests on: when a begin returns, all older commits can be read."""
    parts = urlsplit(hbase_server.url)
    with (
        ThreadPoolExecutor(1) as pool,
        closing(happybase.Connection(parts.hostname, parts.port)) as connection,
    ):
        table = connection.table(layout.COMMIT_TABLE)
        table.row(b"x")  # so that the connection is there
        starts = tso.begin_many(2_000)
        committing = pool.submit(tso.commit_many, [request(ts) for ts in starts])
        seen = []
        while not committing.done():
            ts = tso.begin()
            seen.append((ts, {key for key, _ in table.scan(columns=[layout.COMMIT_COLUMN], batch_size=5_000)}))
        commits = dict(zip(starts, committing.result(), strict=True))
    checked = 0
    for ts, keys in seen:
        for start, outcome in commits.items():
            assert isinstance(outcome, Committed)
            if outcome.commit_ts < ts:
                assert layout.commit_key(start) in keys
                checked += 1
    assert checked


def test_a_fence_refuses_those_begun_before_it(tso: TsoClient) -> None:
    """Of the fenced table only, also without a conflict set; whoever begins later may write it."""
    mine, other = ids.table_id(str(fresh_cell()).encode()), fresh_cell()
    before, free, elsewhere = tso.begin_many(3)
    fence = tso.fence(mine)
    assert fence > elsewhere
    outcomes = tso.commit_many(
        [
            CommitRequest(before, [fresh_cell()], [other, mine]),
            CommitRequest(free, [], [mine]),
            CommitRequest(elsewhere, [fresh_cell()], [other]),
        ]
    )
    assert [type(outcome) for outcome in outcomes] == [Aborted, Aborted, Committed]
    assert isinstance(tso.commit(tso.begin(), [fresh_cell()], [mine]), Committed)


def test_fences_of_one_table_are_asked_one_after_the_other(tso: TsoClient) -> None:
    """Their answers could not be told apart, so each thread waits for its own; all are different."""
    tables = [fresh_cell(), fresh_cell()]
    with ThreadPoolExecutor(16) as pool:
        fences = list(pool.map(tso.fence, tables * 16))
    assert len(set(fences)) == 32
    assert tso.statistics()["answers_unexpected"] == 0


def test_a_commit_whose_answer_was_lost_is_asked_for_again(wire: Wire, hbase_server: ServerInfo) -> None:
    """The TSO looks into the commit table and gives the timestamp that it had given; waiting begins go on as well."""
    with TsoClient.open(wire.url) as tso, ThreadPoolExecutor(2) as pool:
        start = tso.begin()
        wire.lose_answers()
        committing = pool.submit(tso.commit, start, [fresh_cell()], [7])
        wait_until(lambda: in_commit_table(hbase_server, start) is not None)
        beginning = pool.submit(tso.begin_many, 3)
        wait_until(lambda: tso.waiting == 4)
        assert not committing.done()
        wire.cut()
        outcome = committing.result()
        assert isinstance(outcome, Committed)
        assert in_commit_table(hbase_server, start) == layout.CommitEntry(outcome.commit_ts)
        assert min(beginning.result()) > outcome.commit_ts
        counted = tso.statistics()
    assert (counted["commits_retried"], counted["begins_resent"], counted["connections"]) == (1, 3, 2)


def test_a_commit_that_never_arrived_commits_at_the_second_attempt(wire: Wire) -> None:
    """That it says to be a retry does no harm."""
    with TsoClient.open(wire.url) as tso, ThreadPoolExecutor(1) as pool:
        start = tso.begin()
        wire.freeze()
        committing = pool.submit(tso.commit, start, [fresh_cell()], [7])
        wait_until(lambda: tso.waiting == 1)
        wire.cut()
        assert isinstance(committing.result(), Committed)
        assert tso.statistics()["commits_retried"] == 1


def test_a_refusal_of_a_retry_says_so(wire: Wire, tso: TsoClient) -> None:
    """The caller must make sure of it in the commit table, because the first attempt might still get there."""
    cell = fresh_cell()
    with TsoClient.open(wire.url) as mine, ThreadPoolExecutor(1) as pool:
        start = mine.begin()
        assert isinstance(tso.commit(tso.begin(), [cell], [7]), Committed)
        wire.lose_answers()
        committing = pool.submit(mine.commit, start, [cell], [7])
        wait_until(lambda: mine.waiting == 1)
        wire.cut()
        assert committing.result() == Aborted(after_retry=True)


def test_an_overdue_answer_makes_a_new_connection(wire: Wire) -> None:
    """A TSO that hangs, or a network that swallows, is left after the time limit; the caller notices only the delay."""
    with TsoClient.open(wire.url, TsoSettings(request_timeout_s=0.3)) as tso:
        tso.begin()
        wire.freeze()
        started = time.monotonic()
        tso.begin()
        assert time.monotonic() - started > 0.3
        assert tso.statistics()["connections"] == 2


def test_a_commit_without_an_answer_is_unknown(wire: Wire, hbase_server: ServerInfo) -> None:
    """When time is over nobody can say whether it committed, and the error says where to look; others go on."""
    with TsoClient.open(wire.url, IMPATIENT) as tso, ThreadPoolExecutor(1) as pool:
        start = tso.begin()
        wire.lose_answers()
        committing = pool.submit(tso.commit, start, [fresh_cell()], [7])
        wait_until(lambda: in_commit_table(hbase_server, start) is not None)
        wire.refuse()
        with pytest.raises(CommitUnknown, match=f"transaction {start} .* commit table") as caught:
            committing.result()
        assert caught.value.start_ts == start
        wire.accept()
        assert isinstance(tso.commit(tso.begin(), [fresh_cell()], [7]), Committed)
        assert tso.statistics()["commits_unknown"] == 1


def test_what_was_never_sent_has_not_happened(wire: Wire) -> None:
    """Without a TSO begins, fences and commits end as unavailable; the same commit may be asked for again later."""
    with (
        TsoClient.open(wire.url, TsoSettings(request_timeout_s=0.3, give_up_s=0.6)) as tso,
        ThreadPoolExecutor(3) as pool,
    ):
        start = tso.begin()
        wire.refuse()
        wait_until(lambda: not tso.is_connected)
        calls: list[Future[object]] = [
            pool.submit(tso.begin),
            pool.submit(tso.fence, 5),
            pool.submit(tso.commit, start, [fresh_cell()], [7]),
        ]
        for call in calls:
            with pytest.raises(TsoUnavailable):
                call.result()
        assert tso.waiting == 0
        wire.accept()
        wait_until(lambda: tso.is_connected)
        assert isinstance(tso.commit(start, [fresh_cell()], [7]), Committed)
        assert tso.statistics()["commits_unknown"] == 0


def test_a_transaction_is_committed_once(wire: Wire, hbase_server: ServerInfo) -> None:
    """Asking twice at the same time, or for what would harm the server, is refused and leaves nothing behind."""
    with TsoClient.open(wire.url) as tso, ThreadPoolExecutor(1) as pool:
        start, other = tso.begin_many(2)
        with pytest.raises(ValueError, match="once only"):
            tso.commit_many([request(start), request(start)])
        with pytest.raises(ValueError, match="would end the TSO"):
            tso.commit_many([request(other), request(start, ids.FORBIDDEN_ID)])
        assert tso.commit_many([]) == []
        assert tso.waiting == 0
        wire.lose_answers()
        committing = pool.submit(tso.commit, start, [fresh_cell()], [7])
        wait_until(lambda: in_commit_table(hbase_server, start) is not None)  # else the retry may be refused
        with pytest.raises(ValueError, match="once only"):
            tso.commit(start, [fresh_cell()], [7])
        wire.cut()
        assert isinstance(committing.result(), Committed)


def test_close_wakes_whoever_waits(wire: Wire) -> None:
    """A begin ends as closed, a commit as unknown; later calls are refused; closing again does nothing."""
    others = {thread for thread in threading.enumerate() if thread.name == "tso-client"}
    tso = TsoClient.open(wire.url)
    start = tso.begin()
    wire.lose_answers()
    with ThreadPoolExecutor(3) as pool:
        beginning = pool.submit(tso.begin)
        fencing = pool.submit(tso.fence, 5)
        committing = pool.submit(tso.commit, start, [fresh_cell()], [7])
        wait_until(lambda: tso.waiting == 3)
        tso.close()
        for call in (beginning, fencing):
            with pytest.raises(TsoClosed):
                call.result()
        with pytest.raises(CommitUnknown, match="closed"):
            committing.result()
    tso.close()
    with pytest.raises(TsoClosed):
        tso.begin()
    assert {thread for thread in threading.enumerate() if thread.name == "tso-client"} <= others


def test_nobody_there(zookeeper: str) -> None:
    """A port on which nobody listens, a ZooKeeper that is away, and one that names no TSO."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        free = taken.getsockname()[1]
    hasty = TsoSettings(request_timeout_s=0.3, give_up_s=0.6)
    with pytest.raises(TsoUnavailable, match=f"127.0.0.1:{free} cannot be reached"):
        TsoClient.open(f"omid://127.0.0.1:{free}", hasty)
    with pytest.raises(TsoUnavailable, match="ZooKeeper"):
        TsoClient.open(f"zookeeper://127.0.0.1:{free}", hasty)
    with pytest.raises(TsoUnavailable, match="/nowhere/current-tso"):
        TsoClient.open(f"zookeeper://{zookeeper}/nowhere", hasty)


@pytest.mark.parametrize(
    "greeting", [b"HTTP/1.1 400 Bad Request\r\n", b"\x00\x00\x00\x08\x1a\x06\x08\x01\x12\x00\x18\x01"]
)
def test_a_server_that_cannot_serve_us(greeting: bytes) -> None:
    """Another protocol, and a TSO that leaves the commit table to its clients, are refused at once."""
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:
        opening = pool.submit(TsoClient.open, f"omid://127.0.0.1:{server.getsockname()[1]}")
        peer, _ = server.accept()
        peer.sendall(greeting)
        with pytest.raises(TsoIncompatible):
            opening.result(timeout=10)
        peer.close()


def test_a_server_that_says_nothing() -> None:
    """The handshake has a time limit."""
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(TsoUnavailable, match="handshake"):
        TsoClient.open(f"omid://127.0.0.1:{server.getsockname()[1]}", TsoSettings(0.2, 0.5))


@pytest.mark.parametrize(
    "url", ["", "omid://", "omid://h", "omid://a:1,b:2", "omid://h:1/x", "http://h:1", "zookeeper://h"]
)
def test_other_urls_are_refused(url: str) -> None:
    """With a sentence that says what to write."""
    with pytest.raises(ValueError, match="write omid://host:port"):
        TsoClient.open(url)


def test_the_tso_in_charge_is_followed(zookeeper: str, tso_port: int) -> None:
    """When ZooKeeper names another one the client leaves the present one; no timestamp is below the epoch."""
    root = f"/test-{fresh_cell()}"
    keeper = KazooClient(zookeeper)
    keeper.start()
    with wire_to(tso_port) as first, wire_to(tso_port) as second:
        keeper.create(f"{root}/current-tso", f"127.0.0.1:{first.port}#50".encode(), makepath=True)
        with TsoClient.open(f"zookeeper://{zookeeper}{root}") as tso:
            ts = tso.begin()
            assert (tso.address, tso.epoch) == (f"127.0.0.1:{first.port}", 50)
            epoch = ts + 1_000_000 * 700  # the TSO's clock gets there in 0.7 s
            keeper.set(f"{root}/current-tso", f"127.0.0.1:{second.port}#{epoch}".encode())
            wait_until(lambda: tso.epoch == epoch)
            assert tso.begin() >= epoch
            assert tso.address == f"127.0.0.1:{second.port}"
            assert tso.statistics()["connections"] == 2
    keeper.stop()
    keeper.close()
