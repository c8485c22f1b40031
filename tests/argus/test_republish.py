"""What was committed is published, whoever dies in between: judged by what was published, not by what is stored."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest

from argus import ArgusCore, Hint, Outcome
from argus._hints import Want
from argus.core import MAX_ATTEMPTS, Computed
from argus.sources import PerformanceRow
from catalog import LaneName
from catalog.model import RUN
from catalog.values import encode
from messaging.proto import adsindex_pb2 as pb
from storage_repo import Origin
from tests.argus.test_convergence import Serving
from tests.argus.world import AD, AD_GROUP, ADVERTISER, CAMPAIGN, PIN, World, notification


def again(hints: Iterable[Hint]) -> list[Hint]:
    """Return hints as the log delivers them to the successor of whoever died with them."""
    return [Hint(h.notification, redelivered=True) for h in hints]


def follow_ups(outcome: Outcome) -> list[Hint]:
    """Return what a published outcome puts into the log."""
    return [*map(Hint, outcome.notifications), *(Hint(n, deferred=True) for n in outcome.deferred)]


def finish(world: World, core: ArgusCore, serving: Serving, waiting: list[Hint], batch: int = 256) -> None:
    """Process and publish until nothing is left."""
    while waiting:
        outcome = core.process_hints(waiting[:batch])
        serving.apply(outcome.deltas)
        waiting = waiting[batch:] + follow_ups(outcome) + world.hints()


def campaigns_of(world: World, sizes: dict[int, int]) -> Serving:
    """Store a campaign with one ad group and so many ads per entry, and serve them all."""
    world.ad()
    serving, entities, ad = Serving(), [], 1
    for campaign, size in sizes.items():
        entities.append(("campaign", campaign, CAMPAIGN))
        entities.append(("ad_group", campaign, {**AD_GROUP, "campaign_id": campaign}))
        for _ in range(size):
            entities.append(("ad", ad, {**AD, "id": ad, "ad_group_id": campaign}))
            ad += 1
    world.put_many(entities)
    finish(world, world.core(), serving, world.hints())
    assert sum(body is not None for body in serving.all_bodies().values()) == sum(sizes.values())
    return serving


def check_served(world: World, serving: Serving, ads: Iterable[int]) -> None:
    """What was published last of every ad is what its inputs say."""
    keys = [str(ad) for ad in ads]
    expected = world.expected(keys)
    served = serving.all_bodies()
    assert {ad for ad in keys if served.get(ad) != expected[ad]} == set()


def pause(world: World, *campaigns: int) -> None:
    """Pause campaigns."""
    for campaign in campaigns:
        world.put("campaign", campaign, **{**CAMPAIGN, "status": "PAUSED"})


@pytest.mark.parametrize("sizes", [{1: 101, 2: 300, 3: 300}, {1: 700, 2: 300, 3: 300}])
def test_a_redelivered_fan_out_that_becomes_a_continuation_is_published(world: World, sizes: dict[int, int]) -> None:
    """The batch of the successor holds other fan-outs that use up its budget, so the dead worker's fan-out goes back
    to the queue, whole or with its border elsewhere; its ads are published all the same."""
    serving = campaigns_of(world, sizes)
    pause(world, 1)
    dead = world.hints()
    world.core().process_hints(dead)
    pause(world, 2, 3)
    finish(world, world.core(), serving, world.hints() + again(dead))
    assert not any(serving.all_bodies().values())
    check_served(world, serving, range(1, sum(sizes.values()) + 1))


def test_a_redelivered_fan_out_in_a_lower_lane_has_another_border(world: World) -> None:
    """The dead worker's chunk was merged into the high lane; the successor sees the low hint alone, with its small
    chunks."""
    serving = campaigns_of(world, {1: 200})
    pause(world, 1)
    low = notification("campaign", 1, "status", lane=LaneName.LOW, commit_ts=world.repo.last_commit_ts())
    high = world.hints()
    world.core().process_hints([low, *high])
    finish(world, world.core(), serving, again([low]))
    assert not any(serving.all_bodies().values())


def test_a_successor_that_dies_too_passes_it_on(world: World) -> None:
    """The continuation of a redelivered fan-out still has to be published after any number of deaths."""
    serving = campaigns_of(world, {1: 101, 2: 300, 3: 300})
    pause(world, 1)
    dead = world.hints()
    world.core().process_hints(dead)
    pause(world, 2, 3)
    batch = world.hints() + again(dead)
    published = world.core().process_hints(batch)
    serving.apply(published.deltas)
    rest = follow_ups(published)
    world.core().process_hints(rest)
    finish(world, world.core(), serving, again(rest))
    assert not any(serving.all_bodies().values())


def test_a_row_that_goes_back_after_conflicts_is_still_published(world: World) -> None:
    """A redelivered hint whose run never gets through returns to its queue and is published from there."""
    serving = campaigns_of(world, {1: 1})
    pause(world, 1)
    dead = world.hints()
    world.core().process_hints(dead)
    core = world.core()
    real = core.compute

    def compute(*arguments: object) -> Computed:
        computed = real(*arguments)  # type: ignore[arg-type]
        transaction = world.repo.begin(Origin(stage="test"))
        transaction.put("ad_document", "1", RUN, encode([0, "other"]))
        transaction.commit()
        return computed

    core.compute = compute  # type: ignore[method-assign, assignment]
    outcome = core.process_hints(again(dead))
    assert (outcome.counts["conflicts"], outcome.deltas) == (MAX_ATTEMPTS, [])
    finish(world, world.core(), serving, follow_ups(outcome))
    assert serving.all_bodies() == {"1": None}


def test_a_dead_letter_of_a_fan_out_is_not_lost_with_its_worker(world: World) -> None:
    """What an ad of a redelivered fan-out failed at is told again, also from a continuation."""
    campaigns_of(world, {1: 200, 2: 300, 3: 300})
    world.put("advertiser", 2, **{**ADVERTISER, "currency": "XXX"})
    world.put("campaign", 1, **{**CAMPAIGN, "advertiser_id": 2})
    world.core().process_hints(dead := world.hints())
    pause(world, 2, 3)
    core, letters, waiting = world.core(), [], world.hints() + again(dead)
    while waiting:
        outcome = core.process_hints(waiting)
        letters += [(letter.reason, letter.row) for letter in outcome.dead_letters]
        waiting = follow_ups(outcome) + world.hints()
    assert sorted(letters) == sorted(("unknown_currency", str(ad)) for ad in range(1, 201))


@pytest.mark.parametrize("gone", ["moved", "deleted", "group moved"])
def test_an_ad_that_the_redelivered_fan_out_does_not_reach_any_more_is_published(world: World, gone: str) -> None:
    """The dead worker took the ad down for its campaign; then the ad went elsewhere, with the same document, so
    neither the old campaign's hint nor a changed document speaks of it."""
    serving = campaigns_of(world, {1: 2, 2: 1})
    pause(world, 2)
    finish(world, world.core(), serving, world.hints())
    pause(world, 1)
    world.core().process_hints(dead := world.hints())
    if gone == "moved":
        world.put("ad", 1, **{**AD, "id": 1, "ad_group_id": 2})
    elif gone == "deleted":
        world.delete("ad", 1)
    else:
        world.put("ad_group", 1, **{**AD_GROUP, "campaign_id": 2})
    finish(world, world.core(), serving, world.hints() + again(dead))
    assert serving.all_bodies()["1"] is None
    check_served(world, serving, [1, 2, 3])


def test_a_move_that_the_dead_run_has_seen_already_is_published(world: World) -> None:
    """The dead worker found the ad in campaign 1, but ran it after its move to campaign 2: both hints that are left
    are covered by its run or do not reach the ad."""
    serving = campaigns_of(world, {1: 1, 2: 1})
    world.put("campaign", 1, **{**CAMPAIGN, "objective": "SALES"})
    dead = world.hints()
    core, outcome = world.core(), Outcome()
    expanded = core.expand(dead, outcome)
    world.put("ad", 1, **{**AD, "id": 1, "ad_group_id": 2, "status": "PAUSED"})
    plan = world.registry.plans["ad"]
    core.commit(core.compute(plan, list(expanded.wants["ad"].values()), 1), outcome)
    finish(world, world.core(), serving, world.hints() + again(dead))
    check_served(world, serving, [1, 2])


def test_a_hint_covered_by_a_run_of_the_same_process_costs_nothing(world: World) -> None:
    """One's own runs are published in the same step or earlier, so what they cover is left out for good."""
    world.ad()
    core = world.core()
    world.settle(core)
    pause(world, 1)
    core.process_hints(hints := world.hints())
    outcome = core.process_hints(hints)
    assert (outcome.deltas, outcome.counts["covered"], outcome.counts["rows_written"]) == ([], 1, 0)


# --- a model of two workers on a partitioned log ---

CAMPAIGNS, GROUPS, PINS, ADS, PARTITIONS = 3, 6, 3, 24, 3


@dataclass
class Partition:
    """Records in order; those before `position` are acknowledged, those before `takeover` may be repeats."""

    records: list[pb.Notification] = field(default_factory=list)
    position: int = 0
    polled: int = 0
    takeover: int = 0


@dataclass
class Process:
    """An Argus worker whose steps are taken one by one."""

    core: ArgusCore
    outcome: Outcome = field(default_factory=Outcome)
    taken: dict[int, int] = field(default_factory=dict)
    """Partition -> position to store."""
    steps: list[tuple[str, list[Want]]] = field(default_factory=list)
    computed: list[Computed] = field(default_factory=list)


class Model:
    """Two workers, their log, random changes and random deaths."""

    def __init__(self, world: World, seed: int) -> None:
        self.world, self.random = world, random.Random(seed)
        self.serving = Serving()
        self.log = [Partition() for _ in range(PARTITIONS)]
        self.owner = [p % 2 for p in range(PARTITIONS)]
        self.workers = [Process(world.core(seed=n)) for n in range(2)]
        self.deaths = 0

    def append(self, hints: Iterable[pb.Notification]) -> None:
        """Put records into the log, by key."""
        for note in hints:
            self.log[zlib.crc32(f"{note.table}/{note.row}".encode()) % PARTITIONS].records.append(note)

    def change(self) -> None:
        """Make a change of the source, moves and deletions among them."""
        choose, world = self.random.choice, self.world
        status = choose(["ACTIVE", "PAUSED"])
        ad, group, campaign = (self.random.randint(1, n) for n in (ADS, GROUPS, CAMPAIGNS))
        match self.random.randrange(9):
            case 0 | 1:
                world.put("campaign", campaign, **{**CAMPAIGN, "status": status})
            case 2:
                bid = choose([0, 5, 7])
                world.put("ad_group", group, **{**AD_GROUP, "campaign_id": campaign, "bid_micros": bid})
            case 3:
                world.put("ad", ad, **{**AD, "id": ad, "ad_group_id": group, "pin_id": f"p{campaign}"})
            case 4:
                world.put("pin", f"p{campaign}", **{**PIN, "id": f"p{campaign}", "title": choose(["One", "Two"])})
            case 5:
                world.delete(*choose([("ad", ad), ("ad_group", group), ("campaign", campaign)]))
            case 6:
                world.put("advertiser", 1, **{**ADVERTISER, "status": status})
            case 7:
                world.perform(PerformanceRow(ad, 100, choose([1, 2]), 0, 0, 5))
            case _:
                world.put("ad", ad, **{**AD, "id": ad, "ad_group_id": ad % GROUPS + 1, "status": status})
        self.append(h.notification for h in world.hints())

    def poll(self, which: int, limit: int) -> None:
        """Take records of the worker's partitions and expand them."""
        worker = self.workers[which]
        hints: list[Hint] = []
        for number, partition in enumerate(self.log):
            if self.owner[number] != which or len(hints) >= limit:
                continue
            end = min(len(partition.records), partition.polled + limit - len(hints))
            for offset in range(partition.polled, end):
                hints.append(Hint(partition.records[offset], redelivered=offset < partition.takeover))
            if end > partition.polled:
                partition.polled = worker.taken[number] = end
        self.random.shuffle(hints)
        expanded = worker.core.expand(hints, worker.outcome)
        for root in self.world.registry.plans:
            wants = list(expanded.wants.get(root, {}).values())
            worker.steps += [(root, list(wants[i : i + 5])) for i in range(0, len(wants), 5)]

    def step(self, which: int) -> None:
        """Take one step of a worker: run a slice, commit it, or publish when there is nothing else."""
        worker = self.workers[which]
        if worker.computed:
            computed = worker.computed.pop()
            if conflicted := worker.core.commit(computed, worker.outcome):
                if self.random.random() < 0.3:
                    worker.outcome.notifications += [want.notification(computed.plan) for want in conflicted]
                else:
                    worker.steps.append((computed.plan.root, list(conflicted)))
        elif worker.steps:
            root, wants = worker.steps.pop(0)
            plan = self.world.registry.plans[root]
            worker.computed.append(worker.core.compute(plan, wants, 1))
        elif worker.taken:
            self.serving.apply(worker.outcome.deltas)
            self.append(h.notification for h in follow_ups(worker.outcome))
            for number, position in worker.taken.items():
                self.log[number].position = position
            worker.taken, worker.outcome = {}, Outcome()
        else:
            self.poll(which, self.random.randint(1, 8))

    def die(self, which: int) -> None:
        """Kill a worker anywhere; its partitions go to the other one or to its own successor."""
        self.deaths += 1
        self.workers[which] = Process(self.world.core(seed=self.deaths + 10))
        for number, partition in enumerate(self.log):
            if self.owner[number] == which:
                self.owner[number] = self.random.randrange(2)
                partition.polled, partition.takeover = partition.position, len(partition.records)

    @property
    def idle(self) -> bool:
        """Whether everything in the log is acknowledged."""
        return all(p.position == len(p.records) for p in self.log)


@pytest.mark.parametrize("seed", range(25))
def test_two_workers_that_die_at_random_publish_everything(
    world: World, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks and budgets are small, batches random, workers die between any two steps; what was published last of
    every ad is what a clean computation says."""
    monkeypatch.setattr("argus._hints.CHUNK", {LaneName.HIGH: 3, LaneName.MEDIUM: 3, LaneName.LOW: 2})
    monkeypatch.setattr("argus._hints.BUDGET", 6)
    world.ad()
    world.put_many([("campaign", c, CAMPAIGN) for c in range(1, CAMPAIGNS + 1)])
    world.put_many([("pin", f"p{p}", {**PIN, "id": f"p{p}"}) for p in range(1, PINS + 1)])
    groups = [("ad_group", g, {**AD_GROUP, "campaign_id": g % CAMPAIGNS + 1}) for g in range(1, GROUPS + 1)]
    world.put_many(groups)
    world.put_many([("ad", a, {**AD, "id": a, "ad_group_id": a % GROUPS + 1}) for a in range(1, ADS + 1)])
    model = Model(world, seed)
    finish(world, world.core(), model.serving, world.hints())
    for _ in range(220):
        which, dice = model.random.randrange(2), model.random.random()
        if dice < 0.12:
            model.change()
        elif dice < 0.17:
            model.die(which)
        else:
            model.step(which)
    for turn in range(4_000):
        if model.idle:
            break
        model.step(turn % 2)
    assert model.idle
    assert model.deaths > 3
    check_served(world, model.serving, range(1, ADS + 1))
