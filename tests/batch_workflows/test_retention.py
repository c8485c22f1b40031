"""Retention drops only what nobody can ask for any more."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from batch_workflows import retention
from batch_workflows.base_mirror import mirror
from batch_workflows.base_store import BaseStore, remember_address
from batch_workflows.engines import InlineEngine
from batch_workflows.retention import apply_retention
from catalog import LaneName, load_catalog
from catalog.documents import encode_document
from manas import SegmentMissing, SegmentWriter, current_base, list_bases, prune_bases, publish, rollback
from messaging import EmbeddedLog, OutRecord, Position, open_embedded_log
from messaging.dead_letters import parse
from messaging.home import Home
from messaging.proto import adsindex_pb2 as pb
from messaging.topics import BUDGETS, DELTAS, UPDATER_GROUP, UPDATES, ensure_topics
from tests.batch_workflows.base_support import Built

HIGH = UPDATES[LaneName.HIGH]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """An empty home."""
    return Home.open(tmp_path / "home")


@pytest.fixture
def log(home: Home) -> Iterator[EmbeddedLog]:
    """Its log, with all topics."""
    opened = open_embedded_log(home.log, home.wake)
    ensure_topics(opened)
    yield opened
    opened.close()


def base(home: Home, snapshot_ts: int, positions: dict[int, int]) -> str:
    """Publish a base of one document."""
    building = home.base / ".building"
    body = encode_document({"ad_id": 1})
    SegmentWriter(building, load_catalog()).write([("1", snapshot_ts, body)], snapshot_ts, positions, {0: 0})
    return publish(home.base, building)


def test_stage_topics_keep_what_is_not_done_and_the_latest(
    home: Home, log: EmbeddedLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records go only below the group's position less what is kept to look at."""
    monkeypatch.setattr(retention, "RECORDS_KEPT", 5)
    log.publish([OutRecord(HIGH, "one", b"x") for _ in range(30)])
    (partition,) = (p for p, end in log.end_offsets(HIGH).items() if end)
    assert apply_retention(home, log).records == {}
    log.set_committed([Position(UPDATER_GROUP, HIGH, partition, 20)])
    assert apply_retention(home, log).records == {HIGH: 15}
    assert log.start_offsets(HIGH)[partition] == 15
    assert apply_retention(home, log).records == {}


def test_deltas_are_kept_for_the_oldest_base_and_for_a_server_that_is_behind(home: Home, log: EmbeddedLog) -> None:
    """Every base kept can still be rolled back to; without a base all deltas stay."""
    log.publish([OutRecord(DELTAS, str(n), b"d") for n in range(400)])
    ends = log.end_offsets(DELTAS)
    assert apply_retention(home, log).records == {}
    versions = [base(home, n + 1, dict.fromkeys(ends, 10 * (n + 1))) for n in range(5)]
    assert apply_retention(home, log).records == {}, "no server has said yet how far it is"
    log.set_committed([Position("manas", DELTAS, p, end) for p, end in ends.items()])
    log.set_committed([Position("manas-1", DELTAS, p, 15) for p in ends])
    assert apply_retention(home, log).records == {DELTAS: 15 * len(ends)}, "the second shard is behind"
    log.set_committed([Position("manas-1", DELTAS, p, end) for p, end in ends.items()])
    trimmed = apply_retention(home, log)
    assert [b.version for b in list_bases(home.base)] == versions[2:]
    assert log.start_offsets(DELTAS) == dict.fromkeys(ends, 30) and trimmed.records == {DELTAS: 15 * len(ends)}


def test_the_base_in_service_is_never_removed(home: Home, log: EmbeddedLog) -> None:
    """A base that was rolled back to stays, however many newer ones there are; of those that were rolled back from only
    the last does."""
    versions = [base(home, n + 1, {0: 0}) for n in range(3)]
    rollback(home.base, versions[0])
    for n in range(3):
        base(home, n + 10, {0: 0})
        rollback(home.base, versions[0])
    apply_retention(home, log)
    assert current_base(home.base) == versions[0]
    left = [b.version for b in list_bases(home.base)]
    assert left[0] == versions[0] and len(left) == 2 and left[1] > versions[2]


def test_as_many_bases_stay_as_the_build_was_asked_to_keep(tmp_path: Path) -> None:
    """Also when garbage is collected; and where bases are published elsewhere, the deltas of the oldest there."""
    built = Built(tmp_path / "built")
    built.fill(3)
    try:
        assert isinstance(built.log, EmbeddedLog)
        versions = [built.build(engine=InlineEngine(), keep=5).base_version for _ in range(5)]
        assert apply_retention(built.home, built.log).bases == []
        assert built.build(engine=InlineEngine(), keep=2).removed == versions[:4]
        remember_address(built.home, str(tmp_path / "share"))
        built.build(engine=InlineEngine(), keep=5)
        built.log.publish([OutRecord(DELTAS, str(n), b"d") for n in range(400)])
        ends = built.log.end_offsets(DELTAS)
        for _ in range(4):
            version = built.build(engine=InlineEngine(), keep=5).base_version
        mirror(BaseStore.of(built.home), built.home)
        for old in [b.version for b in list_bases(built.home.base) if b.version != version]:
            shutil.rmtree(built.home.base / old)
        built.log.set_committed([Position("manas", DELTAS, p, end) for p, end in ends.items()])
        assert apply_retention(built.home, built.log).records == {}, "the first at the address needs them"
        built.build(engine=InlineEngine(), keep=1)
        built.build(engine=InlineEngine(), keep=1)
        assert apply_retention(built.home, built.log).records == {DELTAS: 400}
    finally:
        built.close()


def test_a_second_bad_base_is_not_answered_with_the_first(home: Home) -> None:
    """Rolled back from, a base is passed over until somebody names it, and takes no place of those that are kept."""
    good = [base(home, n + 1, {0: 0}) for n in range(2)]
    bad = base(home, 3, {0: 0})
    assert rollback(home.base) == good[1]
    worse = base(home, 4, {0: 0})
    assert rollback(home.base) == good[1]
    assert prune_bases(home.base, 2) == [bad], "one of them is enough to look at"
    assert rollback(home.base, worse) == worse, "whoever names it, wants it"
    assert rollback(home.base, good[0]) == good[0]
    newest = base(home, 5, {0: 0})
    assert rollback(home.base) == good[0], "and so are those in between"
    with pytest.raises(SegmentMissing, match=f"no base before {good[0]}; .*{newest} were rolled back from"):
        rollback(home.base)


def test_what_is_no_base_stays_beside_bases(home: Home, log: EmbeddedLog) -> None:
    """Somebody's copies in the bases' directory are neither listed nor removed, whatever their names sort as."""
    for name in ("2023-backup", "2024-backup", "30000101"):
        (home.base / name).mkdir(parents=True)
    versions = [base(home, n + 1, {0: 0}) for n in range(4)]
    assert apply_retention(home, log).bases == versions[:1]
    assert [b.version for b in list_bases(home.base)] == versions[1:]
    assert {"2023-backup", "2024-backup", "30000101"} <= {p.name for p in home.base.iterdir()}


def test_compaction_keeps_the_newest_state_of_every_campaign(
    home: Home, log: EmbeddedLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After compaction a reader from the topic's start learns the same budgets, from fewer records."""
    monkeypatch.setattr(retention, "COMPACT_FROM", 50)
    states = [pb.BudgetState(campaign_id=str(n % 7), version=n + 1, spent_today_micros=n) for n in range(200)]
    states[150], states[157] = states[157], states[150]  # an older version behind a newer one
    log.publish([OutRecord(BUDGETS, s.campaign_id, s.SerializeToString()) for s in states])

    def known() -> dict[str, int]:
        newest: dict[str, int] = {}
        for record in log.read(BUDGETS, 0, log.start_offsets(BUDGETS)[0], 1000):
            state = parse(pb.BudgetState, record)
            newest[state.campaign_id] = max(newest.get(state.campaign_id, 0), state.version)
        return newest

    before = known()
    assert apply_retention(home, log).records == {BUDGETS: 200}
    assert known() == before and log.end_offsets(BUDGETS)[0] - log.start_offsets(BUDGETS)[0] == 7
    assert apply_retention(home, log).records == {}
