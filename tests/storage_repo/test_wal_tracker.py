"""The WAL proxy's pure core: which edits, in which batches and which order, give which notifications."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catalog import LaneName, load_catalog
from messaging.api import OutRecord
from messaging.headers import new_header
from messaging.proto import adsindex_pb2 as pb
from messaging.topics import PENDING
from storage_repo import Origin, RepoSchema
from storage_repo._origin import encode_origin
from storage_repo.hbase.names import HbaseNames
from storage_repo.hbase.wal._cells import Batch, RowEdits, RowKey
from storage_repo.hbase.wal._pending import decode_pending
from storage_repo.hbase.wal._tracker import Recent, Taken, Tracker
from storage_repo.hbase.wal.proxy import table_columns
from storage_repo.wal_proxy import ChangeNotifier

CATALOG = load_catalog()
WATCHED = {"ad": frozenset({"control:status", "control:name", "control:pin_id"})}
NAMES = HbaseNames(RepoSchema.of((("ad", ("control",)),)), "p_")
START = 1_795_316_117_977_000_000
COMMIT = START + 50
KEY: RowKey = (b"p_ad", b"1", START)
HEADER = new_header(LaneName.HIGH, 1_000, "trace")
ORIGIN = encode_origin(Origin("updater", "ads_db", "v1", "trace", 1, 1_000, HEADER.SerializeToString()))


def new_tracker() -> Tracker:
    """Make a tracker that remembers nothing."""
    return Tracker(NAMES, table_columns(NAMES, WATCHED), ChangeNotifier(CATALOG, WATCHED))


def edits(
    columns: str = "", shadows: str = "", *, deleted: str = "", commit: int = COMMIT, origin: bytes | None = None
) -> RowEdits:
    """Make what a batch says of a row; columns without their family, by spaces."""
    made = RowEdits(5)
    made.columns, made.shadows, made.deleted = (
        {f"control:{column}" for column in text.split()} for text in (columns, shadows, deleted)
    )
    made.commit_ts = commit if shadows else None
    made.origin = origin if origin is not None or not columns else ORIGIN
    return made


def by_java(columns: str = "", shadows: str = "", *, deleted: str = "") -> RowEdits:
    """Make what a batch says of a row that a client without our origin cell writes, cell by cell."""
    made = edits(columns, shadows, deleted=deleted)
    made.origin = None
    return made


def take(tracker: Tracker, *rows: tuple[RowKey, RowEdits], read: Mapping[RowKey, RowEdits] | None = None) -> Taken:
    """Give a batch that gets published."""
    batch = Batch()
    batch.rows.update(rows)
    taken = tracker.take(batch, read or {}, 7_000)
    tracker.done(taken)
    return taken


def said(taken: Taken) -> list[tuple[str, ...]]:
    """Return notifications as their columns, and pending records as "pending" or "settled"."""
    return [_said(record) for record in taken.records]


def _said(record: OutRecord) -> tuple[str, ...]:
    if record.topic == PENDING:
        pending = decode_pending(record.value)
        assert (pending.key, record.key) == (KEY, "ad/1")
        return ("settled",) if pending.settled else ("pending",)
    message = pb.Notification.FromString(record.value)
    assert (message.table, message.row, record.key) == ("ad", "1", "ad/1")
    return tuple(message.columns)


def test_one_batch_with_everything_gives_one_notification() -> None:
    """Nothing is written to the topic of open transactions when all comes at once."""
    taken = take(new_tracker(), (KEY, edits("status name", "status name")))
    assert said(taken) == [("name", "status")]
    message = pb.Notification.FromString(taken.records[0].value)
    assert (message.commit_ts, message.writer, message.header.trace_id) == (COMMIT, "updater/ads_db", "trace")
    assert (message.header.lane, message.header.hops[-1].entered_us) == (pb.LANE_HIGH, 7_000)


def test_data_first_and_shadow_cells_later() -> None:
    """What is open is recorded; the notification names all columns and takes the record back."""
    tracker = new_tracker()
    assert said(take(tracker, (KEY, edits("status name")))) == [("pending",)]
    assert said(take(tracker, (KEY, edits("", "status name")))) == [("name", "status"), ("settled",)]
    assert tracker.notified(KEY) == {"control:name", "control:status"}


def test_shadow_cells_one_by_one_are_one_notification() -> None:
    """The first says that all is committed; the last takes the record back."""
    tracker = new_tracker()
    take(tracker, (KEY, edits("status name")))
    assert said(take(tracker, (KEY, edits("", "name")))) == [("name", "status")]
    assert said(take(tracker, (KEY, edits("", "status")))) == [("settled",)]


def test_a_commit_whose_shadow_cells_are_not_all_there_stays_open() -> None:
    """All is notified at once; the record lets somebody write the missing ones if the writer does not."""
    tracker = new_tracker()
    assert said(take(tracker, (KEY, edits("status name", "name")))) == [("name", "status"), ("pending",)]
    assert said(take(tracker, (KEY, edits("", "status")))) == [("settled",)]


def test_data_in_several_batches_is_recorded_once() -> None:
    """More columns of a transaction that is open are remembered; the record says only that it is open."""
    tracker = new_tracker()
    assert said(take(tracker, (KEY, edits("status")))) == [("pending",)]
    assert said(take(tracker, (KEY, edits("name")))) == []
    assert said(take(tracker, (KEY, edits("name")))) == []
    assert said(take(tracker, (KEY, edits("", "status name")))) == [("name", "status"), ("settled",)]


def test_shadow_cells_alone_must_be_completed_from_the_store() -> None:
    """Their data came to somebody else; what the store has gives columns and origin, and takes the record back."""
    tracker = new_tracker()
    batch = Batch()
    batch.rows[KEY] = edits("", "status")
    assert tracker.unknown(batch) == [KEY]
    stored = edits("status name", "status name")
    taken = take(tracker, (KEY, batch.rows[KEY]), read={KEY: stored})
    assert said(taken) == [("name", "status"), ("settled",)]
    assert pb.Notification.FromString(taken.records[0].value).writer == "updater/ads_db"
    assert tracker.unknown(batch) == []


def test_a_writer_without_origin_is_notified_in_the_low_lane() -> None:
    """Java clients do not say who they are: counted, and never a reason to miss a change."""
    taken = take(new_tracker(), (KEY, by_java("status", "status")), read={KEY: by_java("status", "status")})
    assert said(taken) == [("status",), ("settled",)]
    assert taken.ignored == {"no_origin": 1}
    message = pb.Notification.FromString(taken.records[0].value)
    assert (message.header.lane, message.header.origin_us) == (pb.LANE_LOW, COMMIT // 1000)


def test_repetitions_give_nothing_while_they_are_remembered() -> None:
    """A log that is sent again from its start is counted as repeated."""
    tracker = new_tracker()
    take(tracker, (KEY, edits("status", "status")))
    taken = take(tracker, (KEY, edits("status", "status")))
    assert (said(taken), taken.ignored) == ([], {"repeated": 1})
    assert said(take(tracker, (KEY, edits("status")))) == []
    other = new_tracker()
    assert said(take(other, (KEY, edits("status", "status")))) == [("status",)]


def test_a_batch_that_was_not_published_leaves_no_trace() -> None:
    """The next time the same batch gives the same."""
    tracker, batch = new_tracker(), Batch()
    batch.rows[KEY] = edits("status", "status")
    for _ in range(3):
        assert said(tracker.take(batch, {}, 7_000)) == [("status",)]
    assert not tracker.notified(KEY)


def test_rolled_back_edits_give_nothing() -> None:
    """All at once, or later, when the record is taken back; a column that stays is still open."""
    tracker = new_tracker()
    taken = take(tracker, (KEY, edits("status", deleted="status")))
    assert (said(taken), taken.ignored) == ([], {"rolled_back": 1})
    take(tracker, (KEY, edits("status name")))
    assert said(take(tracker, (KEY, edits(deleted="status")))) == []
    assert said(take(tracker, (KEY, edits(deleted="name status")))) == [("settled",)]


def test_collected_versions_give_nothing() -> None:
    """Garbage collection deletes old versions like a roll-back does; nothing is open, and nothing gets recorded."""
    tracker = new_tracker()
    taken = take(tracker, (KEY, edits(deleted="status")))
    assert (said(taken), taken.ignored) == ([], {"collected": 1})
    take(tracker, (KEY, edits("status", "status")))
    assert said(take(tracker, (KEY, edits(deleted="status")))) == []


def test_rows_of_which_nobody_watches_a_column_give_nothing() -> None:
    """Only their origin comes through the decoder."""
    nothing = edits()
    nothing.origin = ORIGIN
    assert said(take(new_tracker(), (KEY, nothing))) == []


@pytest.mark.parametrize("origin", [b"\xff", b"\x97", encode_origin(Origin("x"))[:-1]])
def test_a_spoilt_origin_is_counted(origin: bytes) -> None:
    """The notification goes out without it."""
    taken = take(new_tracker(), (KEY, edits("status", "status", origin=origin)))
    assert (said(taken), taken.ignored["bad_origin"]) == ([("status",)], 1)


def unread(tracker: Tracker, made: RowEdits) -> bool:
    """Tell whether the tracker wants the row read before it takes these edits."""
    batch = Batch()
    batch.rows[KEY] = made
    return tracker.unknown(batch) == [KEY]


def test_a_java_clients_row_is_never_closed_from_memory() -> None:
    """One process saw one cell, another one the other; the first shadow cell alone must not take the record back."""
    first, second = new_tracker(), new_tracker()
    assert said(take(first, (KEY, by_java("status")))) == [("pending",)]
    assert said(take(second, (KEY, by_java("name")))) == [("pending",)]
    assert unread(first, by_java("", "status"))
    stored = by_java("status name", "status")  # its writer died before the other shadow cell
    assert said(take(first, (KEY, by_java("", "status")), read={KEY: stored})) == [("name", "status")]
    assert not unread(first, by_java("", "name"))
    assert said(take(first, (KEY, by_java("", "name")))) == [("settled",)]


def test_a_commit_that_was_not_read_stays_open() -> None:
    """What came may be all of the row or not; without a look nobody can tell."""
    taken = take(new_tracker(), (KEY, by_java("status", "status")))
    assert said(taken) == [("status",), ("pending",)]


def test_a_java_clients_roll_back_is_left_to_whoever_looks_it_up() -> None:
    """What was rolled back here may not be all of the row: only a look at the row can take the record back."""
    tracker = new_tracker()
    take(tracker, (KEY, by_java("status")))
    taken = take(tracker, (KEY, by_java(deleted="status")))
    assert (said(taken), taken.ignored) == ([], {"rolled_back": 1})


def test_a_data_cell_after_its_rows_notification_is_opened() -> None:
    """An order that was not kept hides nothing: what the notification did not name is open, and read at its commit."""
    tracker = new_tracker()
    take(tracker, (KEY, by_java("status", "status")), read={KEY: by_java("status", "status")})
    assert said(take(tracker, (KEY, by_java("status")))) == []
    assert said(take(tracker, (KEY, by_java("name")))) == [("pending",)]
    assert unread(tracker, by_java("", "name"))
    taken = take(tracker, (KEY, by_java("", "name")), read={KEY: by_java("status name", "status name")})
    assert said(taken) == [("name",), ("settled",)]
    assert tracker.notified(KEY) == {"control:name", "control:status"}


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_whatever_java_clients_leave_is_notified_by_somebody(data: st.DataObject) -> None:
    """Cell by cell, to two processes that forget all now and then, and a writer that dies after any shadow cell.

    Each column is in a notification, or the record of the row stays, for the resolver to read and finish the row.
    """
    columns = sorted(data.draw(st.sets(st.sampled_from(["status", "name", "pin_id"]), min_size=1)))
    written = data.draw(st.integers(0, len(columns)))
    shadows = data.draw(st.permutations(columns))[:written]
    steps = [(by_java(column), 0) for column in data.draw(st.permutations(columns))]
    steps += [(by_java("", column), place) for place, column in enumerate(shadows, 1)]
    processes = [new_tracker(), new_tracker()]
    records = list[OutRecord]()
    for step, place in steps:
        which = data.draw(st.integers(0, 1))
        if data.draw(st.integers(0, 5)) == 0:
            processes[which] = new_tracker()
        for _ in range(data.draw(st.integers(1, 2))):  # what was not acknowledged comes again
            made = by_java()
            made.add(step)
            ahead = data.draw(st.integers(place, written))  # HBase may be ahead of its log
            stored = by_java(" ".join(columns), " ".join(shadows[:ahead]))
            read = {KEY: stored} if place and unread(processes[which], made) else {}
            records += take(processes[which], (KEY, made), read=read).records
    outcomes = [_said(record) for record in records]
    is_open = [said for said in outcomes if said in (("pending",), ("settled",))][-1] == ("pending",)
    notified = {column for said in outcomes if said not in (("pending",), ("settled",)) for column in said}
    assert is_open or notified == set(columns)
    assert is_open or written == len(columns), "nobody would write the missing shadow cells"


@settings(max_examples=200)
@given(st.data())
def test_any_cutting_into_batches_notifies_all_columns_once(data: st.DataObject) -> None:
    """Data cells before shadow cells, each edit anywhere, some of it twice: every column, and one notification."""
    columns = data.draw(st.sets(st.sampled_from(["status", "name", "pin_id"]), min_size=1))
    steps = [edits(column) for column in sorted(columns)] + [edits("", column) for column in sorted(columns)]
    tracker, records = new_tracker(), list[OutRecord]()
    at = 0
    while at < len(steps):
        count = data.draw(st.integers(1, len(steps) - at))
        again = data.draw(st.integers(0, min(at, 2)))  # what was not acknowledged comes again
        batch = Batch()
        for step in steps[at - again : at + count]:
            one = Batch()
            one.rows[KEY] = edits()
            one.rows[KEY].add(step)
            batch.add(one)
        taken = tracker.take(batch, {}, 7_000)
        tracker.done(taken)
        records += taken.records
        at += count
    notified = [_said(record) for record in records if record.topic != PENDING]
    assert notified == [tuple(sorted(columns))]
    assert [_said(record) for record in records if record.topic == PENDING][-1:] in ([], [("settled",)])


def test_what_was_set_longest_ago_is_forgotten() -> None:
    """Memory is bounded, and what was set lately stays."""
    recent: Recent[int] = Recent(10)
    for number in range(1_000):
        recent.put((b"", b"", number), number)
    assert 10 <= len(recent) <= 20
    assert [recent.get((b"", b"", number)) for number in (5, 995, 999)] == [None, 995, 999]
    recent.forget((b"", b"", 999))
    assert recent.get((b"", b"", 999)) is None
