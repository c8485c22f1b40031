"""The producer of whole batches, on a real broker: what is acknowledged is in the log, whatever goes wrong after it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from compose import ServerInfo
from messaging import LogUnavailable
from messaging.kafka import KafkaLog, open_kafka_log
from tests.messaging.test_log_contract import numbers, out


@pytest.fixture
def log(kafka_server: ServerInfo) -> Iterator[KafkaLog]:
    """Return an empty log with the topic "t" of one partition."""
    with open_kafka_log(f"{kafka_server.url}/t{uuid.uuid4().hex[:10]}-") as log:
        assert isinstance(log, KafkaLog)
        log.ensure_topic("t", 1)
        yield log


@pytest.mark.parametrize(
    ("failure", "told"),
    [(OSError("the connection broke"), LogUnavailable), (RuntimeError("loop closed"), RuntimeError)],
)
def test_failure_after_the_broker_appended_costs_no_later_record(
    log: KafkaLog, failure: Exception, told: type[Exception]
) -> None:
    """After any failure the next publish has sequence numbers of its own: the broker does not take it for a repeat."""
    log.publish(out("t", 1))
    session = log._producer._session
    assert session is not None
    run: Callable[..., Any] = session.wire.net.run

    def fails_at_the_end(*arguments: Any) -> Any:
        run(*arguments)
        raise failure

    session.wire.net.run = fails_at_the_end
    with pytest.raises(told):
        log.publish(out("t", 1, start=1))
    log.publish(out("t", 1, start=2))
    assert numbers(log.read("t", 0, 0, 100)) == [0, 1, 2]
