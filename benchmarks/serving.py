"""Serving over gRPC while deltas arrive: latency of single searches, of batches, and of deltas until answerable.

`python -m benchmarks.serving --ads 1000000` builds a base, starts as many Manas processes as asked for on one port, and
asks first with the log at rest, then while `deltas_per_s` deltas arrive; it prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks._exceptions import BenchmarkFailed
from catalog import Catalog, load_catalog
from catalog.documents import encode_document
from cli.runtime import ROOT, process_file
from manas import ManasClient, ManasError, SegmentWriter, publish
from messaging.api import Log, OutRecord
from messaging.embedded import open_embedded_log
from messaging.home import Home
from messaging.proto import adsindex_pb2 as pb
from messaging.rpc import reserve_shared_port
from messaging.topics import BUDGETS, DELTAS, ensure_topics

_CAMPAIGNS = 2_000
_COUNTRIES = ("US", "GB", "DE", "FR", "BR", "IN", "JP", "CA", "AU", "MX", "ES", "IT")
_WORDS = tuple(f"word{i}" for i in range(5_000))
_SNAPSHOT = 1_000
_START_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Load:
    """What is served and asked."""

    ads: int = 100_000
    seconds: float = 10.0
    deltas_per_s: int = 500
    processes: int = 1
    clients: int = 1
    batch: int = 32
    k: int = 100
    seed: int = 7


def measure(load: Load) -> dict[str, Any]:
    """Return the figures: milliseconds per call at p50 and p99, and requests per second, at rest and under deltas.

    Raises BenchmarkFailed when a server does not start or a search fails.
    """
    with tempfile.TemporaryDirectory(prefix="adsindex-bench-") as directory:
        home = Home.open(Path(directory) / "home")
        catalog = load_catalog()
        log = open_embedded_log(home.log, home.wake)
        try:
            ensure_topics(log)
            built_s = _build(home, catalog, log, load, Path(directory) / "built")
            with _servers(home, load.processes) as (port, ready_s):
                figures: dict[str, Any] = {"load": asdict(load), "build_s": built_s, "ready_s": ready_s}
                figures["at_rest"] = _ask(port, catalog, load)
                with _deltas(home, load) as sent:
                    figures["under_deltas"] = _ask(port, catalog, load)
                with ManasClient(port, catalog) as client:
                    figures["deltas_sent"] = sent.value
                    figures["folded"] = client.stats()["folding"]
                return figures
        finally:
            log.close()


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


def _build(home: Home, catalog: Catalog, log: Log, load: Load, directory: Path) -> float:
    chance = random.Random(load.seed)
    dimensions = catalog.dimensions
    budgets = [pb.BudgetState(campaign_id=str(c), version=1) for c in range(_CAMPAIGNS)]
    log.publish([OutRecord(BUDGETS, b.campaign_id, b.SerializeToString()) for b in budgets])
    began = time.monotonic()
    documents = ((str(i), 1, encode_document(_document(i, chance, dimensions))) for i in range(1, load.ads + 1))
    SegmentWriter(directory, catalog).write(documents, _SNAPSHOT, log.end_offsets(DELTAS), {})
    publish(home.base, directory)
    return time.monotonic() - began


@contextmanager
def _servers(home: Home, processes: int) -> Iterator[tuple[int, float]]:
    """Start the servers; the time is that from starting the last one until all are ready."""
    with reserve_shared_port() as holder:
        port = holder.getsockname()[1]
        command = [sys.executable, "-m", "cli.worker", "manas", "--home", str(home.root), "--set", f"port={port}"]
        command += ["--set", "shared_port=true", "--worker"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        began = time.monotonic()
        running = [
            subprocess.Popen([*command, str(n)], cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
            for n in range(processes)
        ]
        try:
            for number, process in enumerate(running):
                while (values := process_file(home, f"manas-{number}").read()) is None or values["state"] != "ready":
                    if process.poll() is not None or time.monotonic() - began > _START_SECONDS:
                        raise BenchmarkFailed(f"manas-{number} did not start; try it with `adsindex up`")
                    time.sleep(0.01)
            yield port, time.monotonic() - began
        finally:
            for process in running:
                process.send_signal(signal.SIGTERM)
            for process in running:
                process.wait()


@contextmanager
def _deltas(home: Home, load: Load) -> Iterator[Any]:
    """Publish deltas at a steady rate in a process of its own, a fifth of them of new ads; gives how many were sent."""
    spawn = multiprocessing.get_context("spawn")
    stop, sent = spawn.Event(), spawn.Value("q", 0)
    process = spawn.Process(target=_publish, args=(home.root, load, stop, sent))
    process.start()
    try:
        while sent.value == 0 and process.is_alive():
            time.sleep(0.01)
        yield sent
    finally:
        stop.set()
        process.join()


def _publish(root: Path, load: Load, stop: Any, sent: Any) -> None:
    home, catalog, chance = Home.open(root), load_catalog(), random.Random(load.seed + 1)
    log = open_embedded_log(home.log, home.wake)
    began = time.monotonic()
    while not stop.wait(0.01):
        records = []
        for number in range(sent.value + 1, int((time.monotonic() - began) * load.deltas_per_s) + 1):
            ad_id = load.ads + number if chance.random() < 0.2 else chance.randrange(1, load.ads + 1)
            body = encode_document(_document(ad_id, chance, catalog.dimensions))
            delta = pb.DocumentDelta(document_id=str(ad_id), version=_SNAPSHOT + number, body=body)
            records.append(OutRecord(DELTAS, delta.document_id, delta.SerializeToString()))
        if records:
            log.publish(records)
            sent.value += len(records)
    log.close()


def _ask(port: int, catalog: Catalog, load: Load) -> dict[str, Any]:
    single = _round(port, catalog, load, 1)
    batches = _round(port, catalog, load, load.batch)
    return {"single": single, "batch": batches}


def _round(port: int, catalog: Catalog, load: Load, size: int) -> dict[str, float]:
    taken: list[list[float]] = [[] for _ in range(load.clients)]
    failures: list[ManasError] = []

    def ask(number: int) -> None:
        chance = random.Random(load.seed + 10 * number)
        requests = [_request(chance, catalog.dimensions) for _ in range(1_000)]
        try:
            with ManasClient(port, catalog, connections=2 * load.processes) as client:
                for request in requests[:50]:
                    client.search(request, load.k, counting=False)
                ends = time.monotonic() + load.seconds / 2
                place = 0
                while (began := time.perf_counter()) and time.monotonic() < ends:
                    some = [requests[(place + n) % len(requests)] for n in range(size)]
                    place += size
                    if size == 1:
                        client.search(some[0], load.k, counting=False)
                    else:
                        client.search_batch(some, load.k, counting=False)
                    taken[number].append(time.perf_counter() - began)
        except ManasError as error:
            failures.append(error)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(load.clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise BenchmarkFailed(f"a search failed: {failures[0]}")
    calls = sorted(second for one in taken for second in one)
    return {
        "calls": len(calls),
        "requests_per_s": size * len(calls) / (load.seconds / 2),
        "p50_ms": _at(calls, 0.50) * 1e3,
        "p99_ms": _at(calls, 0.99) * 1e3,
    }


def _at(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in asdict(Load()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    sys.stdout.write(json.dumps(measure(Load(**vars(parser.parse_args()))), indent=1) + "\n")


if __name__ == "__main__":
    main()
