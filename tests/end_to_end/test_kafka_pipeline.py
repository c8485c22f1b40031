"""The whole pipeline over Kafka: the same documents as over the embedded log, also with parts of it killed."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
import uuid
from contextlib import closing
from pathlib import Path

from cli.runtime import process_file
from compose import Stack
from messaging.home import Home
from tests.end_to_end.command import as_json, documents, running, until_idle
from tests.stack_support import up_or_skip

SAMPLE = ("--sample", "300")


def _on_kafka(tmp_path: Path, url: str) -> Path:
    home = tmp_path / "kafka"
    as_json("topics", "apply", "--log", f"{url}/e{uuid.uuid4().hex[:8]}-", home=home)
    return home


def _touch(home: Path, word: str) -> None:
    with closing(sqlite3.connect(home / "ads.db", timeout=30, isolation_level=None)) as connection:
        connection.execute("UPDATE ads SET name = name || ?", (word,))
        connection.execute("UPDATE campaigns SET name = name || ?", (word,))


def test_same_documents_with_a_worker_and_the_broker_killed(own_stack: Stack, tmp_path: Path) -> None:
    """Gateway, Updater, Argus and the broker are killed -9 while updates flow; in the end the documents are the ones
    that the embedded pipeline makes of the same ads, and nothing was dropped."""
    url = up_or_skip(own_stack, ["kafka"])["kafka"].url
    embedded = tmp_path / "embedded"
    until_idle(embedded, *SAMPLE)
    for word in ("a", "b", "c"):
        _touch(embedded, word)
    until_idle(embedded)

    home = _on_kafka(tmp_path, url)
    until_idle(home, *SAMPLE)
    with running(home):
        for word, victim in (("a", "gateway-0"), ("b", "kafka"), ("c", "updater-0")):
            _touch(home, word)
            time.sleep(0.3)
            if victim == "kafka":
                own_stack.kill("kafka")
                own_stack.restart("kafka")
            else:
                _kill(home, victim)
        _kill(home, "argus-0")
        time.sleep(2)
    report = until_idle(home)
    assert report["dropped"].get("too_old", 0) == 0
    assert documents(home) == documents(embedded)


def _kill(home: Path, process: str) -> None:
    deadline = time.monotonic() + 60
    while (values := process_file(Home.open(home), process).read()) is None:
        assert time.monotonic() < deadline, f"{process} does not run"
        time.sleep(0.05)
    os.kill(int(values["pid"]), signal.SIGKILL)
