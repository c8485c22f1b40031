"""What a build has finished, so that a run that was killed goes on: ranges that were read, shards that were built.

The checkpoint lies beside the documents that tasks leave for each other, and goes with them. Another run takes it over
only for a build of the very same input by the same rules, holds the same snapshot, and compares every file that it
keeps with its checksum. What does not pass is done again; where nothing can be kept, the reason is said.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import msgspec
import structlog

from batch_workflows._base_tasks import KeyRange, RangeReport, ShardReport, digest_of, shard_name
from batch_workflows._objects_errors import ObjectMissing, ObjectsError
from batch_workflows.base_gates import Freshness, Tally
from batch_workflows.objects import Objects
from manas import MANIFEST, FileEntry, SegmentCorrupt, SegmentFormat, parse_manifest
from messaging import Log
from messaging.headers import now_us
from messaging.topics import BUDGETS, DELTAS
from storage_repo import Repo, Snapshot, SnapshotTooOld

FILE = "checkpoint.json"
_SAVE_EVERY_S = 1.0
"""What is lost by a kill is done again; writing after every range would cost more than that where objects are far."""
MAX_AGE_S = 3_600.0
"""Of a build that is gone on with: a new one takes less time than that, and has newer rows."""


class RangeDone(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A range whose documents lie in the spool."""

    after: str
    before: str
    tally: dict[str, Any]
    """`Tally.to_json`."""
    digests: dict[str, str]
    """File in the spool -> checksum."""


class State(msgspec.Struct, forbid_unknown_fields=True):
    """The contents of the file."""

    version: str
    rules: dict[str, str]
    """What the documents depend on besides the snapshot; all of it must be equal."""
    snapshot_ts: int
    shards: int
    delta_positions: dict[int, int]
    budget_positions: dict[int, int]
    fresh: Freshness
    begun_us: int
    """When the snapshot was taken, in microseconds since the epoch."""
    ranges: dict[int, RangeDone] = {}
    built: dict[str, FileEntry] = {}
    """Shard -> its manifest's file."""


class NotKept(Exception):
    """Raised where nothing of an earlier attempt can be used; its text says why."""


class Checkpoint:
    """What one build has finished. Only for who holds the home's lock of building."""

    def __init__(self, spool: Objects, state: State) -> None:
        self.state = state
        self._spool, self._saved = spool, 0.0

    @classmethod
    def load(cls, spool: Objects, rules: Mapping[str, str], log: Log) -> Checkpoint:
        """Return what an earlier attempt left in its spool. Raises NotKept, ObjectsError."""
        try:
            state = msgspec.json.decode(spool.read(FILE), type=State)
        except ObjectMissing:
            raise NotKept("it had not finished anything") from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise NotKept(f"its checkpoint cannot be read ({error})") from None
        if changed := sorted(name for name in {*rules, *state.rules} if rules.get(name) != state.rules.get(name)):
            raise NotKept(f"{', '.join(changed)} changed meanwhile")
        if not 0 <= (age_s := (now_us() - state.begun_us) / 1e6) <= MAX_AGE_S:
            raise NotKept(f"it was begun {age_s / 60:.0f} minutes ago")
        for topic, positions in ((DELTAS, state.delta_positions), (BUDGETS, state.budget_positions)):
            starts = log.start_offsets(topic)
            if any(starts.get(partition, 0) > position for partition, position in positions.items()):
                raise NotKept(f"records of {topic} that would follow its base have been trimmed")
        return cls(spool, state)

    def snapshot(self, repo: Repo, pin: str, seconds: float) -> Snapshot:
        """Pin and open the snapshot that it was built from. Raises NotKept when that is too late, RepoError."""
        try:
            repo.pin(pin, self.state.snapshot_ts, seconds)
            return repo.snapshot(self.state.snapshot_ts)
        except (SnapshotTooOld, ValueError) as error:  # a ValueError: the Repo was put back to before it
            repo.unpin(pin)
            raise NotKept(f"its snapshot cannot be read any more ({error})") from None

    def begin(self) -> None:
        """Store that the build has begun. Raises ObjectsError."""
        self._save(at_once=True)

    def leave(self) -> None:
        """Store all that was finished, as the build ends; where that fails, what was stored before has to do."""
        try:
            self._save(at_once=True)
        except ObjectsError as error:
            structlog.get_logger().warning("base_index.checkpoint_not_stored", error=str(error))

    def range_done(self, report: RangeReport) -> None:
        """Keep a range. Raises ObjectsError."""
        within = report.within
        done = RangeDone(within.after, within.before, report.tally.to_json(), report.digests)
        self.state.ranges[within.number] = done
        self._save()

    def shard_done(self, report: ShardReport) -> None:
        """Keep a shard. Raises ObjectsError."""
        self.state.built[report.name] = report.own
        self._save(at_once=True)

    def kept_range(self, within: KeyRange) -> Tally | None:
        """Return what a range came to if its documents are all there and whole, else None. Raises ObjectsError."""
        done = self.state.ranges.get(within.number)
        if done is None or (done.after, done.before) != (within.after, within.before):
            return None
        for name, digest in done.digests.items():
            try:
                if digest_of(self._spool.chunks(name)) != digest:
                    return None
            except ObjectMissing:
                return None
        return Tally.from_json(done.tally)

    def kept_shard(self, shard: int, target: Objects) -> ShardReport | None:
        """Return a shard's report if every file of it is there and whole, else None. Raises ObjectsError."""
        name = shard_name(shard)
        own = self.state.built.get(name)
        if own is None:
            return None
        try:
            data = target.read(f"{name}/{MANIFEST}")
            if (len(data), digest_of((data,))) != (own.bytes, own.blake2b):
                return None
            manifest = parse_manifest(data, f"{target.address}/{name}/{MANIFEST}")
            for file, entry in manifest.files.items():
                if digest_of(target.chunks(f"{name}/{file}")) != entry.blake2b:
                    return None
        except (ObjectMissing, SegmentCorrupt, SegmentFormat):
            return None
        return ShardReport(name, manifest, own)

    def _save(self, *, at_once: bool = False) -> None:
        if at_once or time.monotonic() - self._saved >= _SAVE_EVERY_S:
            self._spool.write(FILE, msgspec.json.encode(self.state), durable=False)
            self._saved = time.monotonic()


def left_behind(spool: Objects, rules: Mapping[str, str], log: Log) -> tuple[Checkpoint | None, str]:
    """Return the checkpoint of an earlier attempt, or why there is none to go on with."""
    try:
        return Checkpoint.load(spool, rules, log), ""
    except NotKept as reason:
        return None, str(reason)
    except ObjectsError as error:
        return None, f"its spool cannot be read ({error})"
