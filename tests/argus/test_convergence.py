"""Whatever the order of updates, runs, commits and crashes: the documents end up as computed from the inputs alone."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from argus import ArgusCore, Hint, Outcome
from argus.core import MAX_ATTEMPTS, Computed
from argus.sources import PerformanceRow
from catalog.model import DOCUMENT_BODY, RUN
from catalog.values import encode
from messaging.proto import adsindex_pb2 as pb
from storage_repo import Origin
from tests.argus.world import AD, AD_GROUP, ADVERTISER, CAMPAIGN, IMAGE, PIN, World, notification

ADS = (1, 2, 3)


@dataclass
class Worker:
    """One Argus process whose steps are taken by hand: read and run, commit, publish, or die at any point."""

    world: World
    core: ArgusCore
    hints: list[Hint] = field(default_factory=list)
    computed: list[Computed] = field(default_factory=list)
    outcome: Outcome = field(default_factory=Outcome)

    def read(self, hints: list[Hint]) -> None:
        """Take hints, read a snapshot and run the handlers; nothing is written yet."""
        self.hints = hints
        expanded = self.core.expand(hints, self.outcome)
        for root, plan in self.world.registry.plans.items():
            if wants := list(expanded.wants.get(root, {}).values()):
                self.computed.append(self.core.compute(plan, wants, 1))

    def commit(self) -> None:
        """Commit what was run first; what conflicts is read and run again."""
        computed = self.computed.pop(0)
        if conflicted := self.core.commit(computed, self.outcome):
            self.computed.append(self.core.compute(computed.plan, conflicted, 1))

    def reset(self) -> tuple[list[Hint], Outcome]:
        """Forget everything, as after publishing or dying; return what it had."""
        had = self.hints, self.outcome
        self.hints, self.computed, self.outcome = [], [], Outcome()
        return had


@dataclass
class Serving:
    """Applies deltas in any order, as Manas does: the highest version wins."""

    documents: dict[str, pb.DocumentDelta] = field(default_factory=dict)

    def apply(self, deltas: list[pb.DocumentDelta]) -> None:
        """Apply deltas."""
        for delta in deltas:
            known = self.documents.get(delta.document_id)
            if known is None or delta.version > known.version:
                self.documents[delta.document_id] = delta
            elif delta.version == known.version:
                assert (delta.deleted, delta.body) == (known.deleted, known.body)

    def all_bodies(self) -> dict[str, bytes | None]:
        """Return what was published last of every ad, None for one that was taken down."""
        return {ad: None if d.deleted else d.body for ad, d in self.documents.items()}

    def bodies(self) -> dict[str, bytes | None]:
        """Return what is served."""
        served = self.all_bodies()
        return {str(ad): served.get(str(ad)) for ad in ADS}


def change(world: World, kind: int, variant: int) -> None:
    """Make one of many changes to the source."""
    on = variant % 2 == 0
    match kind:
        case 0:
            world.put("advertiser", 1, **{**ADVERTISER, "billing_status": "OK" if on else "SUSPENDED"})
        case 1:
            world.put("campaign", 1, **{**CAMPAIGN, "status": "ACTIVE" if on else "PAUSED", "ends_at": variant})
        case 2:
            world.put("ad_group", 1, **{**AD_GROUP, "bid_micros": 100 + variant})
        case 3:
            world.put("ad_group", 1, **{**AD_GROUP, "targeting_spec": f'{{"interests": [{variant}]}}' if on else "["})
        case 4:
            world.put("pin", "p1", **{**PIN, "title": f"Title {variant}", "price_micros": variant * 10 - 5})
        case 5:
            world.put("image", "i1", **{**IMAGE, "url": f"https://example.com/{variant}.jpg"})
        case 6:
            ad = ADS[variant % len(ADS)]
            world.put("ad", ad, **{**AD, "id": ad, "pin_id": "p1" if variant < 4 else "p2"})
        case 7:
            table, row = [("ad", 1), ("pin", "p1"), ("ad_group", 1), ("campaign", 1), ("ad", 2)][variant % 5]
            world.delete(table, row)
        case 8:
            world.put("pin", "p2", **{**PIN, "id": "p2", "image_id": None, "title": f"Other {variant}"})
        case _:
            world.perform(PerformanceRow(ADS[variant % len(ADS)], variant * 100, variant, 0, 0, variant))


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("change"), st.integers(0, 9), st.integers(0, 7)),
        st.tuples(st.sampled_from(["read", "commit", "publish", "die"]), st.integers(0, 1), st.integers(0, 7)),
    ),
    min_size=10,
    max_size=50,
)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(STEPS, st.randoms(use_true_random=False))
def test_any_interleaving_of_two_workers_converges(steps: list[tuple[str, int, int]], random: object) -> None:
    """Updates, lost races, deaths and redeliveries in any order end in the documents of a clean computation.

    Stored and served documents are judged both; hints are delivered out of order.
    """
    with tempfile.TemporaryDirectory() as directory:
        world = World(Path(directory))
        try:
            _interleave(world, steps, random)
        finally:
            world.close()


def _interleave(world: World, steps: list[tuple[str, int, int]], random: object) -> None:
    world.ad()
    workers = [Worker(world, world.core()), Worker(world, world.core())]
    serving, waiting = Serving(), world.hints()

    def publish(worker: Worker) -> None:
        while worker.computed:
            worker.commit()
        _, outcome = worker.reset()
        serving.apply(outcome.deltas)
        waiting.extend([*map(Hint, outcome.notifications), *(Hint(n, deferred=True) for n in outcome.deferred)])

    for name, which, amount in steps:
        waiting += world.hints()
        random.shuffle(waiting)  # type: ignore[attr-defined]
        worker = workers[which % 2]
        if name == "change":
            change(world, which, amount)
        elif name == "read" and not worker.hints and waiting:
            taken = amount + 1
            worker.read(waiting[:taken])
            del waiting[:taken]
        elif name == "commit" and worker.computed:
            worker.commit()
        elif name == "publish":
            publish(worker)
        elif name == "die":
            hints, _ = worker.reset()
            waiting += [Hint(hint.notification, redelivered=True) for hint in hints]
    for worker in workers:
        publish(worker)
    waiting += world.hints()
    while waiting:
        workers[0].read(waiting[:])
        waiting.clear()
        publish(workers[0])
        waiting += world.hints()
    expected = world.expected(ADS)
    assert world.stored(ADS) == expected
    assert serving.bodies() == expected


def test_a_slow_old_run_loses_against_a_newer_one_that_changed_nothing(world: World) -> None:
    """A, B, back to A: the run that saw B commits last, conflicts on meta:run although no document cell was written
    since, and runs again."""
    world.ad()
    slow, fast = Worker(world, world.core()), Worker(world, world.core())
    world.settle(fast.core)
    before = world.body()
    world.put("campaign", 1, **{**CAMPAIGN, "objective": "SALES"})
    slow.read(world.hints())
    world.put("campaign", 1, **CAMPAIGN)
    fast.read(world.hints())
    fast.commit()
    assert fast.outcome.counts["documents_unchanged"] == 1
    slow.commit()
    assert slow.outcome.counts["conflicts"] == 1
    while slow.computed:
        slow.commit()
    assert world.body() == before


def test_a_conflict_runs_only_its_own_document_again(world: World) -> None:
    """Of a batch of two, the ad that a rival runs meanwhile conflicts and is run again; both come out right."""
    world.ad()
    world.put("ad", 2, **{**AD, "id": 2})
    core = world.core()
    world.settle(core)
    racing, real = [1], core.compute

    def compute(*arguments: object) -> Computed:
        computed = real(*arguments)  # type: ignore[arg-type]
        if racing and computed.plan.is_document:
            racing.pop()
            world.core(code_version="rival").process_hints([notification("ad", 1, "status")])
        return computed

    core.compute = compute  # type: ignore[method-assign, assignment]
    world.put("ad_group", 1, **{**AD_GROUP, "bid_micros": 5})
    outcome = core.process_hints([h for h in world.hints() if "bid_micros" in h.notification.columns])
    counts = outcome.counts
    assert (counts["conflicts"], counts["retries"], counts["returned"]) == (1, 1, 0)
    assert (counts["runs"], counts["documents_changed"]) == (2, 1)
    assert [world.document(a)["bid_micros"] for a in (1, 2)] == [5, 5]


def test_a_row_that_always_conflicts_goes_back_to_its_queue(world: World) -> None:
    """After a few attempts the hot row is queued again, with nothing lost, and the rest of the batch is done."""
    world.ad()
    world.put("ad", 2, **{**AD, "id": 2})
    world.settle()
    slept: list[float] = []
    core = world.core(sleep=slept.append, seed=7)
    real = core.compute

    def compute(*arguments: object) -> Computed:
        computed = real(*arguments)  # type: ignore[arg-type]
        transaction = world.repo.begin(Origin(stage="test"))
        transaction.put("ad_document", "1", RUN, encode([0, "other"]))
        transaction.commit()
        return computed

    core.compute = compute  # type: ignore[method-assign, assignment]
    world.put("campaign", 1, **{**CAMPAIGN, "objective": "SALES"})
    outcome = core.process_hints(world.hints())
    assert outcome.counts["conflicts"] == MAX_ATTEMPTS
    assert outcome.counts["returned"] == 1
    assert len(slept) == MAX_ATTEMPTS - 1
    assert sum(slept) < 0.016
    assert world.document(2)["objective"] == "SALES"
    assert world.document(1)["objective"] == "TRAFFIC"
    (returned,) = outcome.notifications
    assert (returned.table, returned.row, returned.header.lane) == ("ad", "1", pb.LANE_HIGH)
    world.core().process_hints([Hint(returned)])
    assert world.document(1)["objective"] == "SALES"


def test_death_between_commit_and_publish_is_made_up_by_redelivery(world: World) -> None:
    """The document was committed but never published: the redelivered hint publishes it at its own version, and so
    does any other hint that the dead run has covered."""
    world.ad()
    world.settle()
    world.put("campaign", 1, **{**CAMPAIGN, "objective": "SALES"})
    hints = world.hints()
    lost = world.core().process_hints(hints)
    covered = world.core().process_hints(hints)
    assert (covered.counts["covered"], covered.counts["rows_written"]) == (1, 0)
    assert [(d.version, d.body) for d in covered.deltas] == [(d.version, d.body) for d in lost.deltas]
    again = world.core().process_hints([Hint(h.notification, redelivered=True) for h in hints])
    assert [(d.version, d.body) for d in again.deltas] == [(d.version, d.body) for d in lost.deltas]
    assert again.counts["documents_unchanged"] == 1


def test_redelivery_also_repeats_a_delete(world: World) -> None:
    """A document that was taken down without anybody hearing of it is published as deleted again."""
    world.ad()
    world.settle()
    world.put("campaign", 1, **{**CAMPAIGN, "status": "PAUSED"})
    hints = world.hints()
    world.core().process_hints(hints)
    (delta,) = world.core().process_hints([Hint(h.notification, redelivered=True) for h in hints]).deltas
    written = world.repo.history("ad_document", "1", DOCUMENT_BODY)[DOCUMENT_BODY][0]
    assert (delta.deleted, delta.version, written.value) == (True, written.commit_ts, None)


def test_a_refresh_runs_and_publishes_without_writing_a_new_version(world: World) -> None:
    """Unchanged documents are published at the version that they have, and history does not grow."""
    world.ad()
    world.settle()
    before = world.repo.history("ad_document", "1", DOCUMENT_BODY)[DOCUMENT_BODY]
    (delta,) = world.core().process_hints([notification("ad", 1, refresh=True)]).deltas
    assert delta.version == before[0].commit_ts
    assert world.repo.history("ad_document", "1", DOCUMENT_BODY)[DOCUMENT_BODY] == before


def test_a_late_hint_that_a_run_has_covered_costs_no_run(world: World) -> None:
    """meta:run tells that a later snapshot has been run; another code version runs all the same."""
    world.ad()
    world.put("campaign", 1, **{**CAMPAIGN, "objective": "SALES"})
    hints = world.hints()
    world.core().process_hints(hints)
    late = [h for h in hints if h.notification.table == "campaign"]
    assert world.core().process_hints(late).counts["covered"] == 1
    assert world.core(code_version="new").process_hints(late).counts["runs"] == 1


def test_the_check_of_documents_notices_a_wrong_one(world: World) -> None:
    """compute_documents trusts no stored derived column, so it can be used to judge them."""
    world.ad()
    world.settle()
    assert world.stored([1]) == world.expected([1])
    transaction = world.repo.begin(Origin(stage="test"))
    transaction.put("pin", "p1", "derived:category", encode("Wrong"))
    transaction.commit()
    world.core().process_hints([notification("pin", "p1", "category")])
    assert world.document()["category"] == "Wrong"
    assert world.stored([1]) != world.expected([1])
