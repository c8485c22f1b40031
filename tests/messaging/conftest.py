"""Fixtures of the messaging tests: a log per backend, and worker processes that end with the test."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from messaging import Log
from tests.messaging.log_backends import Backend, EmbeddedBackend, KafkaBackend, Worker

FAST_SESSIONS = "?session_timeout_ms=1000"
"""So that a killed member is missed within the contract's two seconds; the tests' broker allows it."""


@pytest.fixture(params=["embedded", "kafka"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    """Return an empty log installation; one parameter per backend."""
    if request.param == "embedded":
        return EmbeddedBackend(tmp_path)
    return KafkaBackend(request.getfixturevalue("kafka_server").url + FAST_SESSIONS, f"t{uuid.uuid4().hex[:10]}-")


@pytest.fixture
def log(backend: Backend) -> Iterator[Log]:
    """Return an open, empty log."""
    log = backend.open()
    yield log
    log.close()


@pytest.fixture
def start(backend: Backend) -> Iterator[Callable[..., Worker]]:
    """Return a function that starts a worker process on the log."""
    workers: list[Worker] = []

    def start_worker(mode: str, **parameters: object) -> Worker:
        workers.append(Worker(backend, mode, **parameters))
        return workers[-1]

    yield start_worker
    for worker in workers:
        if worker.process.poll() is None:
            worker.kill()
