"""How the pipeline is doing: processes, lag, latency, throughput, what was dropped, the Repo and the base index."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import psutil
from pydantic import JsonValue

from catalog.values import micros_of
from debug_ui._base_age import base_problem
from debug_ui._values import jsonable
from debug_ui.backends import Backends
from debug_ui.dead_letters import DeadLetterCount, count_dead_letters
from debug_ui.switches import ADS_DB_PLACE, SwitchView, switch_views
from debug_ui.views import View
from gateway import feed_lag
from manas import ManasError, list_bases
from messaging.api import Log
from messaging.headers import now_us
from messaging.home import Home
from messaging.metrics import Histogram, merged_counters, merged_histograms, read_metrics
from messaging.topics import (
    ARGUS_GROUP,
    BUDGETS,
    DEAD_LETTERS,
    DEFERRED,
    DEFERRED_GROUP,
    DELTAS,
    GATEWAY_GROUP,
    LANES,
    NOTIFICATIONS,
    SIGNALS,
    UPDATER_GROUP,
    UPDATES,
    WAL_PROXY_GROUP,
)

RATE_WINDOW_S = 60.0
"""Throughput is over the last minute: long enough to be steady, short enough to show that something stopped."""

STAGE_ORDER = ("gateway", "updater", "wal_proxy", "argus", "serving")


class StageStatus(View):
    """One process of the service."""

    process: str
    stage: str
    worker: int
    pid: int
    port: int
    alive: bool
    state: str
    """starting, ready, ..., or "dead" when the file's process is gone."""
    restarts: int
    uptime_s: float | None
    cpu_seconds: float | None
    memory_bytes: int | None


class Lag(View):
    """What waits between two places."""

    place: str
    group: str
    waiting: int
    """Records; for the feeds, positions not yet passed on."""
    end: int
    position: int
    meaning: str


class LatencyRow(View):
    """Latency of one part in one lane, milliseconds; "total" is from commit at the source to answerable by search."""

    lane: str
    part: str
    count: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float


class Rate(View):
    """How much went through a topic in the last minute."""

    topic: str
    per_second: float
    last_at_us: int | None


class BaseIndex(View):
    """The base index that serving has loaded."""

    version: str
    built_at_us: int | None
    age_s: float | None
    documents: int | None
    coverage: dict[str, float]


class PipelineStatus(View):
    """All of it at one moment."""

    home: str
    at_us: int
    up: bool
    ui_port: int
    stages: tuple[StageStatus, ...]
    lags: tuple[Lag, ...]
    idle: bool
    """Nothing waits anywhere."""
    latency: tuple[LatencyRow, ...]
    throughput: tuple[Rate, ...]
    counters: dict[str, dict[str, int]]
    """Stage -> counter -> value, since the home was made."""
    conflicts: int
    retries: int
    dropped: dict[str, int]
    dead_lettered: dict[str, int]
    """By reason, as the stages counted them."""
    switches: tuple[SwitchView, ...]
    """Every switch, with who set it, when and why."""
    dead_letters: tuple[DeadLetterCount, ...]
    """By stage and reason, as they lie in the topic."""
    repo: dict[str, int]
    log: dict[str, int]
    serving_answers: bool
    serving_error: str
    documents: int | None
    """Documents that serving answers from."""
    base: BaseIndex | None
    serving: dict[str, JsonValue]
    problems: tuple[str, ...]
    """What needs somebody's eye, the worst first."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values, with latencies also as lane -> part -> quantiles in milliseconds."""
        by_lane: dict[str, dict[str, dict[str, float]]] = {}
        for row in self.latency:
            values = {"count": row.count, "p50": row.p50_ms, "p90": row.p90_ms, "p99": row.p99_ms, "max": row.max_ms}
            by_lane.setdefault(row.lane, {})[row.part] = values
        return {**self.model_dump(mode="json", exclude={"latency"}), "latency_ms": by_lane}


def pipeline_status(backends: Backends) -> PipelineStatus:
    """Look at every part once and return what was seen. Raises LogError, RepoError when a store cannot be read."""
    home, log = backends.home, backends.log
    up = _process_file(home, "up")
    stages = _stages(home)
    serving, serving_error = _serving_stats(backends)
    lags = pipeline_lags(backends, serving)
    metrics = read_metrics(home.metrics)
    counters: dict[str, Counter[str]] = {}
    for data in metrics:
        stage = str(data["process"]).rpartition("-")[0] or str(data["process"])
        counters.setdefault(stage, Counter()).update(data["counters"])
    letters = count_dead_letters(log)
    base = _base(home, serving)
    status = PipelineStatus(
        home=str(home.root),
        at_us=now_us(),
        up=up is not None,
        ui_port=int((up or {}).get("ui_port") or 0),
        stages=stages,
        lags=lags,
        idle=all(lag.waiting == 0 for lag in lags),
        latency=latency_rows(merged_histograms(metrics, "latency")),
        throughput=tuple(_rate(log, topic) for topic in _RATED if topic in log.topics()),
        counters={stage: dict(sorted(found.items())) for stage, found in sorted(counters.items())},
        conflicts=sum(c["conflicts"] for c in counters.values()),
        retries=sum(c["retries"] for c in counters.values()),
        dropped=merged_counters(metrics, "dropped"),
        dead_lettered=merged_counters(metrics, "dead_letters"),
        switches=switch_views(log),
        dead_letters=tuple(letters),
        repo={name: int(value) for name, value in backends.repo.statistics().items()},
        log={name: int(value) for name, value in log.statistics().items()},
        serving_answers=not serving_error,
        serving_error=serving_error,
        documents=_number(serving, "documents"),
        base=base,
        serving=serving,
        problems=(),
    )
    aged = base_problem(log, home.base, status.at_us)
    return status.model_copy(update={"problems": (*([aged] if aged else ()), *_problems(status))})


_RATED = (*UPDATES.values(), SIGNALS, *NOTIFICATIONS.values(), DELTAS, BUDGETS, DEAD_LETTERS)


def latency_rows(histograms: Mapping[str, Histogram]) -> tuple[LatencyRow, ...]:
    """Return rows of "lane:part" histograms of microseconds, lanes by priority, "total" first, then by stage."""
    rows = []
    for label, histogram in histograms.items():
        lane, _, part = label.partition(":")
        summary = histogram.summary()
        if not part or not histogram.count:
            continue
        p50, p90, p99, top = (float(summary[q] or 0.0) / 1000 for q in ("p50", "p90", "p99", "max"))
        rows.append(
            LatencyRow(lane=lane, part=part, count=histogram.count, p50_ms=p50, p90_ms=p90, p99_ms=p99, max_ms=top)
        )
    lanes = [lane.value for lane in LANES]

    def place(row: LatencyRow) -> tuple[int, int, int, str]:
        stage = row.part.removeprefix("queue:").replace("-", "_")
        order = -1 if row.part == "total" else STAGE_ORDER.index(stage) if stage in STAGE_ORDER else len(STAGE_ORDER)
        return (lanes.index(row.lane) if row.lane in lanes else len(lanes), order, 0 if ":" in row.part else 1, stage)

    return tuple(sorted(rows, key=place))


def _process_file(home: Home, name: str) -> dict[str, Any] | None:
    """Return run/<name>.json if its process lives."""
    try:
        values: dict[str, Any] = json.loads((home.run / f"{name}.json").read_text())
    except FileNotFoundError:
        return None
    return values if _process(values) is not None else None


def _process(values: Mapping[str, Any]) -> psutil.Process | None:
    """Return the process that a process file names, None if it is gone or its pid has been given to another."""
    try:
        process = psutil.Process(int(values["pid"]))
        born = float(values.get("born") or 0)
        if process.status() == psutil.STATUS_ZOMBIE or (born and abs(process.create_time() - born) > 1.0):
            return None
        return process
    except psutil.NoSuchProcess:
        return None


def _stages(home: Home) -> tuple[StageStatus, ...]:
    found = []
    for file in sorted(home.run.glob("*.json")):
        try:
            values = json.loads(file.read_text())
        except FileNotFoundError:
            continue  # A process that ended between the listing and the reading.
        if "stage" not in values:
            continue  # up.json: the supervisor itself.
        process = _process(values)
        uptime = cpu = memory = None
        if process is not None:
            try:
                with process.oneshot():
                    uptime = time.time() - process.create_time()
                    times = process.cpu_times()
                    cpu = times.user + times.system
                    memory = process.memory_info().rss
            except psutil.NoSuchProcess:
                process = None
        found.append(
            StageStatus(
                process=str(values.get("process", file.stem)),
                stage=str(values["stage"]),
                worker=int(values.get("worker", 0)),
                pid=int(values["pid"]),
                port=int(values.get("port") or 0),
                alive=process is not None,
                state=str(values.get("state", "")) if process is not None else "dead",
                restarts=int(values.get("restarts") or 0),
                uptime_s=uptime,
                cpu_seconds=cpu,
                memory_bytes=memory,
            )
        )
    order = {name: i for i, name in enumerate((*STAGE_ORDER[:-1], "manas", "broker", "debug_ui"))}
    return tuple(sorted(found, key=lambda s: (order.get(s.stage, len(order)), s.worker)))


def pipeline_lags(backends: Backends, serving: Mapping[str, Any] | None = None) -> tuple[Lag, ...]:
    """Return what waits before every stage, in the order of the life of an update.

    `serving` is what `stats()` of serving gave, for the topics that serving follows.
    """
    log = backends.log
    behind = feed_lag(backends.ads_db, log)
    lags = [
        Lag(
            place=ADS_DB_PLACE,
            group=GATEWAY_GROUP,
            waiting=behind.waiting,
            end=behind.end,
            position=behind.position,
            meaning=f"{behind.unit} of the ads DB that the Gateway has not published",
        )
    ]
    for topic in (*UPDATES.values(), SIGNALS):
        lags.append(_topic_lag(log, UPDATER_GROUP, topic, "updates that are not in the Repo yet"))
    repo = backends.repo_feed.lag()
    lags.append(
        Lag(
            place=repo.place,
            group=WAL_PROXY_GROUP,
            waiting=repo.waiting,
            end=repo.end,
            position=repo.position,
            meaning=repo.meaning,
        )
    )
    for topic in NOTIFICATIONS.values():
        lags.append(_topic_lag(log, ARGUS_GROUP, topic, "notifications whose handlers have not run"))
    lags.append(_topic_lag(log, DEFERRED_GROUP, DEFERRED, "rows that wait for an external source"))
    followed = (serving or {}).get("positions")
    if isinstance(followed, dict):
        for topic, meaning in ((DELTAS, "documents not yet applied by serving"), (BUDGETS, "budgets not yet applied")):
            done = {int(p): int(o) for p, o in (followed.get(topic) or {}).items()}
            lags.append(_lag(log, "manas", topic, done, meaning))
    return tuple(lags)


def _topic_lag(log: Log, group: str, topic: str, meaning: str) -> Lag:
    return _lag(log, group, topic, log.committed(group, topic) if topic in log.topics() else {}, meaning)


def _lag(log: Log, group: str, topic: str, done: Mapping[int, int], meaning: str) -> Lag:
    ends = log.end_offsets(topic) if topic in log.topics() else {}
    starts = log.start_offsets(topic) if ends else {}
    waiting = sum(max(0, end - max(done.get(p, 0), starts.get(p, 0))) for p, end in ends.items())
    total = sum(ends.values())
    return Lag(place=topic, group=group, waiting=waiting, end=total, position=total - waiting, meaning=meaning)


def _rate(log: Log, topic: str) -> Rate:
    """Count the records of the last minute by binary search over their times: a few reads, however many there are."""
    since = now_us() - int(RATE_WINDOW_S * 1e6)
    count, last = 0, 0
    starts = log.start_offsets(topic)
    for partition, end in log.end_offsets(topic).items():
        low, high = starts.get(partition, 0), end
        while low < high:
            middle = (low + high) // 2
            records = log.read(topic, partition, middle, 1)
            if not records or records[0].appended_us >= since:
                high = middle
            else:
                low = middle + 1
        count += end - low
        if newest := (log.read(topic, partition, end - 1, 1) if end > starts.get(partition, 0) else []):
            last = max(last, newest[0].appended_us)
    return Rate(topic=topic, per_second=count / RATE_WINDOW_S, last_at_us=last or None)


def _serving_stats(backends: Backends) -> tuple[dict[str, Any], str]:
    try:
        stats = jsonable(dict(backends.serving.stats()))
    except ManasError as error:
        return {}, str(error)
    assert isinstance(stats, dict)
    return stats, ""


def _number(values: Mapping[str, Any], name: str) -> int | None:
    value = values.get(name)
    return int(value) if isinstance(value, int | float) else None


def _base(home: Home, serving: Mapping[str, Any]) -> BaseIndex | None:
    """Return the base that serving has loaded, with what its manifest says."""
    base = serving.get("base")
    if not isinstance(base, dict) or not base.get("version"):
        return None
    built = micros_of(datetime.fromisoformat(str(base["created_at"]))) if base.get("created_at") else None
    manifest = next((b.manifest for b in list_bases(home.base) if b.version == base["version"]), None)
    return BaseIndex(
        version=str(base["version"]),
        built_at_us=built,
        age_s=(now_us() - built) / 1e6 if built else None,
        documents=_number(base, "documents"),
        coverage=dict(manifest.coverage) if manifest is not None else {},
    )


def _problems(status: PipelineStatus) -> Iterable[str]:
    for stage in status.stages:
        if not stage.alive:
            yield f"{stage.process} is dead (pid {stage.pid}); see logs/{stage.process}.log in {status.home}"
        elif stage.restarts:
            yield f"{stage.process} has been restarted {stage.restarts} times; see logs/{stage.process}.log"
    if status.serving_error:
        yield f"serving does not answer: {status.serving_error}"
    missing = status.serving.get("missing_shards")
    for name, why in missing.items() if isinstance(missing, dict) else ():
        yield f"answers are partial, shard {name} is missing: {why}"
    if not status.up and not status.idle:
        waiting = sum(lag.waiting for lag in status.lags)
        yield f"nothing runs, and {waiting} units wait; start the pipeline with ./adsindex up --home {status.home}"
    for switch in status.switches:
        if switch.changed:
            yield f"switch {switch.name} is {switch.value}, set by {switch.who}: {switch.why}"
    for letters in status.dead_letters[:5]:
        yield f"{letters.count} dead letters of {letters.stage}: {letters.reason}"
