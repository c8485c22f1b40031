"""`bench serving`: a shard of a million ads over gRPC while 500 deltas a second arrive, and what batches save.

One process serves one shard on two cores that it shares with the caller, the publisher of deltas and the process that
folds them. Requests are asked one after the other by one caller, alone and then in batches, first with the log at rest
and then under deltas; all of it several times, and medians count. The time from the start of the process to its first
answer is taken too, with the base in the page cache.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from benchmarks._exceptions import BenchmarkFailed
from benchmarks._report import Report, machine_of
from catalog import Catalog, load_catalog
from catalog.documents import encode_document
from cli.runtime import ROOT, process_file
from manas import ManasClient, ManasError, SegmentWriter, publish
from messaging.api import Log, OutRecord
from messaging.embedded import open_embedded_log
from messaging.headers import now_us
from messaging.home import Home
from messaging.proto import adsindex_pb2 as pb
from messaging.topics import BUDGETS, DELTAS, ensure_topics

_CAMPAIGNS = 2_000
_COUNTRIES = ("US", "GB", "DE", "FR", "BR", "IN", "JP", "CA", "AU", "MX", "ES", "IT")
_WORDS = tuple(f"word{i}" for i in range(5_000))
_SNAPSHOT = 1_000
_START_SECONDS = 120.0
_WARM_UP = 300
"""Requests before the first that counts."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is served and asked."""

    ads: int = 1_000_000
    seconds: float = 4.0
    """Of asking, for each way in each round."""
    rounds: int = 5
    deltas_per_s: int = 500
    batches: tuple[int, ...] = (32, 128)
    k: int = 100
    starts: int = 5
    seed: int = 7


QUICK = Sizes(ads=20_000, seconds=1.0, rounds=1, batches=(32,), starts=1)


def run(quick: bool, sizes: Sizes | None = None) -> dict[str, Any]:
    """Run the benchmark. Raises BenchmarkFailed when a server does not start or a search fails."""
    chosen = sizes or (QUICK if quick else Sizes())
    report = Report()
    with tempfile.TemporaryDirectory(prefix="adsindex-bench-") as name:
        directory = Path(name)
        machine = machine_of(directory)
        home = Home.open(directory / "home")
        catalog = load_catalog()
        with open_embedded_log(home.log, home.wake) as log:
            ensure_topics(log)
            built_s, stored = build(home, catalog, log, chosen, directory / "built")
            report.note(
                f"the base was built in {built_s:.0f} s with the generation of its documents, and has "
                f"{stored / chosen.ads:.0f} bytes per ad"
            )
            measure(report, home, catalog, log, chosen)
    return report.to_json("serving", machine)


def measure(report: Report, home: Home, catalog: Catalog, log: Log, sizes: Sizes) -> None:
    """Start servers on a home that has a base, and ask."""
    case = f"{sizes.ads:,} ads, one shard, k = {sizes.k}"
    for name, seconds in _starts(home, catalog, sizes).items():
        report.add(case, f"ms from the start of the process until {name}", seconds * 1e3)
    with _server(home) as (port, _):
        rested, loaded = [], []
        for number in range(sizes.rounds):
            rested.append(_ask(port, catalog, sizes, number))
            with _deltas(home, port, sizes, number) as applied:
                loaded.append(_ask(port, catalog, sizes, number))
            loaded[-1]["lag"] = applied
            _log.info("round", number=number, at_rest=_shown(rested[-1]), under_deltas=_shown(loaded[-1]))
        with ManasClient(port, catalog) as client:
            folding = client.stats()["folding"]
    under = f"under {sizes.deltas_per_s} deltas/s"
    for name, rounds in (("at rest", rested), (under, loaded)):
        single = _median([_per_s(one["single"], 1) for one in rounds])
        report.add(case, f"p50 ms {name}", _median([_at(one["single"], 0.5) for one in rounds]))
        report.add(case, f"p99 ms {name}", _median([_at(one["single"], 0.99) for one in rounds]))
        report.add(case, f"p99.9 ms {name}", _median([_at(one["single"], 0.999) for one in rounds]))
        for size in sizes.batches:
            rate = _median([_per_s(one[f"batch {size}"], size) for one in rounds])
            metric = f"requests/s in batches of {size} {name}"
            report.add(case, metric, rate, "one by one", single, more_is_better=True)
    worst = max(_at(one["single"], 0.99) for one in loaded)
    report.note(f"{sizes.rounds} rounds; the worst round's p99 under deltas was {worst:.1f} ms")
    lags = np.concatenate([np.array(one["lag"], np.float64) for one in loaded]) / 1e3
    if not len(lags):
        raise BenchmarkFailed("no delta became answerable while deltas were published; look at the server's folding")
    report.add(case, "p50 ms from a delta's publication to answerable", float(np.quantile(lags, 0.5)))
    report.add(case, "p99 ms from a delta's publication to answerable", float(np.quantile(lags, 0.99)))
    report.note(f"{len(lags):,} deltas became answerable while asked; {folding['done']} foldings in the background")


def build(home: Home, catalog: Catalog, log: Log, sizes: Sizes, directory: Path) -> tuple[float, int]:
    """Publish a base of generated ads; return the seconds it took and its bytes."""
    chance = random.Random(sizes.seed)
    dimensions = catalog.dimensions
    budgets = [pb.BudgetState(campaign_id=str(c), version=1) for c in range(_CAMPAIGNS)]
    log.publish([OutRecord(BUDGETS, b.campaign_id, b.SerializeToString()) for b in budgets])
    began = time.monotonic()
    documents = ((str(i), 1, encode_document(_document(i, chance, dimensions))) for i in range(1, sizes.ads + 1))
    SegmentWriter(directory, catalog).write(documents, _SNAPSHOT, log.end_offsets(DELTAS), {})
    stored = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
    publish(home.base, directory)
    return time.monotonic() - began, stored


def _document(ad_id: int, chance: random.Random, dimensions: Mapping[str, Any]) -> dict[str, Any]:
    """Return an ad with skewed words, countries and bids; most target a country or two and little else."""
    rank = int(chance.paretovariate(0.9))
    targeting = [f"{name}=*" for name in dimensions if name != "country"]
    if chance.random() < 0.2:
        targeting.append("country=*")
    else:
        targeting += [f"country={c}" for c in {_COUNTRIES[min(int(chance.expovariate(0.5)), 11)] for _ in range(2)}]
    return {
        "ad_id": ad_id,
        "ad_group_id": ad_id // 5,
        "campaign_id": ad_id % _CAMPAIGNS,
        "advertiser_id": ad_id % 500,
        "title": f"ad {ad_id}",
        "bid_account_micros": int(chance.lognormvariate(0, 1) * 1_000_000),
        "quality": round(chance.random(), 3),
        "targeting": sorted(targeting),
        "terms": sorted({_WORDS[min(rank + chance.randrange(50), 4_999)] for _ in range(5)}),
        "price_micros": chance.randrange(1, 200) * 1_000_000,
        "currency": "USD",
    }


def _request(chance: random.Random, dimensions: Mapping[str, Any]) -> dict[str, Any]:
    asked: dict[str, Any] = dict.fromkeys(dimensions, "*")
    asked["country"] = _COUNTRIES[min(int(chance.expovariate(0.5)), 11)]
    if chance.random() < 0.5:
        asked["price"] = {"max": chance.randrange(20, 200)}
    if chance.random() < 0.3:
        asked["text"] = " ".join(chance.sample(_WORDS[:200], 2))
    return asked


def _starts(home: Home, catalog: Catalog, sizes: Sizes) -> dict[str, float]:
    """Return the medians of the seconds until a server is ready and until it has given its first answer."""
    request = _request(random.Random(sizes.seed), catalog.dimensions)
    taken: dict[str, list[float]] = {"it is ready": [], "its first answer": []}
    for _ in range(sizes.starts + 1):
        with _server(home) as (port, began), ManasClient(port, catalog) as client:
            taken["it is ready"].append(time.monotonic() - began)
            client.search(request, sizes.k, counting=False)
            taken["its first answer"].append(time.monotonic() - began)
    return {name: _median(seconds[1:]) for name, seconds in taken.items()}  # the first brings files into the cache


@contextmanager
def _server(home: Home) -> Iterator[tuple[int, float]]:
    """Start a server; gives its port once it is ready, and when it was started."""
    command = [sys.executable, "-m", "cli.worker", "manas", "--home", str(home.root)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    file = process_file(home, "manas-0")
    with (home.logs / "manas-0.log").open("ab") as words:
        began = time.monotonic()
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=words, stderr=words)
    try:
        while (values := file.read()) is None or values["state"] != "ready":
            if process.poll() is not None or time.monotonic() - began > _START_SECONDS:
                said = (home.logs / "manas-0.log").read_text(errors="replace")[-300:]
                raise BenchmarkFailed(f"the server did not start: {said}")
            time.sleep(0.002)
        yield int(values["port"]), began
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


@contextmanager
def _deltas(home: Home, port: int, sizes: Sizes, number: int) -> Iterator[list[int]]:
    """Have deltas published at a steady rate by a process of its own, a fifth of them of new ads.

    It follows what becomes answerable too, so that the caller's process does nothing but ask. Gives a list that has,
    when the block is left, the microseconds that each delta took.
    """
    spawn = multiprocessing.get_context("spawn")
    stop, flowing, taken = spawn.Event(), spawn.Event(), list[int]()
    here, there = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_publish, args=(home.root, sizes, number, port, stop, flowing, there))
    process.start()
    there.close()
    try:
        while not flowing.wait(0.01) and process.is_alive():
            pass
        yield taken
    finally:
        stop.set()
        with contextlib.suppress(EOFError):  # it ended without a word: its exit code tells
            taken.extend(here.recv())
        process.join()
    if process.exitcode != 0:
        raise BenchmarkFailed(f"the publisher of deltas ended with {process.exitcode}")


def _publish(root: Path, sizes: Sizes, number: int, port: int, stop: Any, flowing: Any, pipe: Any) -> None:
    home, catalog, chance = Home.open(root), load_catalog(), random.Random(sizes.seed + 1 + number)
    version = _SNAPSHOT + (number + 1) * 10_000_000
    taken: list[int] = []
    with open_embedded_log(home.log, home.wake) as log, ManasClient(port, catalog) as client:
        applied = client.follow()

        def collect() -> None:
            for document in applied:
                taken.append(document.answerable_us - document.origin_us)
                flowing.set()

        collector = threading.Thread(target=collect)
        collector.start()
        began, sent = time.monotonic(), 0
        while not stop.wait(0.01):
            due = int((time.monotonic() - began) * sizes.deltas_per_s)
            if due == sent:
                continue
            records = []
            for place in range(sent + 1, due + 1):
                new = chance.random() < 0.2
                ad_id = sizes.ads + place if new else chance.randrange(1, sizes.ads + 1)
                body = encode_document(_document(ad_id, chance, catalog.dimensions))
                delta = pb.DocumentDelta(document_id=str(ad_id), version=version + place, body=body)
                delta.header.origin_us = now_us()
                records.append(OutRecord(DELTAS, delta.document_id, delta.SerializeToString()))
            log.publish(records)
            sent = due
        client.close()
        collector.join()
    pipe.send(taken)


def _ask(port: int, catalog: Catalog, sizes: Sizes, number: int) -> dict[str, Any]:
    """Return milliseconds per call, one request at a time and for each size of batches."""
    chance = random.Random(sizes.seed + 10 * number)
    requests = [_request(chance, catalog.dimensions) for _ in range(2_000)]
    with ManasClient(port, catalog) as client:
        try:
            for request in requests[:_WARM_UP]:
                client.search(request, sizes.k, counting=False)
            taken: dict[str, Any] = {"single": _calls(client, requests, 1, sizes)}
            for size in sizes.batches:
                taken[f"batch {size}"] = _calls(client, requests, size, sizes)
        except ManasError as error:
            raise BenchmarkFailed(f"a search failed: {error}") from error
    return taken


def _calls(client: ManasClient, requests: Sequence[Mapping[str, Any]], size: int, sizes: Sizes) -> list[float]:
    taken: list[float] = []
    ends, place = time.monotonic() + sizes.seconds, 0
    while time.monotonic() < ends:
        some = [requests[(place + n) % len(requests)] for n in range(size)]
        place += size
        began = time.perf_counter()
        if size == 1:
            client.search(some[0], sizes.k, counting=False)
        else:
            client.search_batch(some, sizes.k, counting=False)
        taken.append((time.perf_counter() - began) * 1e3)
    return taken


def _per_s(taken: Sequence[float], size: int) -> float:
    return size * len(taken) / sum(taken) * 1e3


def _at(taken: Sequence[float], share: float) -> float:
    return float(np.quantile(np.array(taken), share))


def _median(values: Sequence[float]) -> float:
    return statistics.median(values)


def _shown(one: Mapping[str, Any]) -> dict[str, float]:
    return {
        "p50_ms": round(_at(one["single"], 0.5), 2),
        "p99_ms": round(_at(one["single"], 0.99), 2),
        "max_ms": round(max(one["single"]), 2),
        **{f"{name} per_s": round(_per_s(v, int(name[6:]))) for name, v in one.items() if name.startswith("batch")},
    }
