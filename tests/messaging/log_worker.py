"""A process under test: publishes, consumes or holds a log until its input ends or somebody kills it."""

from __future__ import annotations

import json
import os
import random
import select
import sys
import time
from collections.abc import Callable
from typing import Any

from messaging import Consumer, Log, OutRecord, Position
from tests.messaging.log_backends import open_address


def stopping() -> bool:
    """Tell whether the parent has closed our input."""
    return bool(select.select([sys.stdin], [], [], 0)[0])


def say(line: str) -> None:
    """Print a line for the parent."""
    print(line, flush=True)


def dawdle() -> None:
    """Give a killer time to strike here: most steps are too short for that."""
    if random.random() < 0.2:
        time.sleep(0.01)


def append(fd: int, lines: list[str]) -> None:
    """Append lines to a file in one write. A kill may tear it: whole lines end with " ." and start after a new line."""
    os.write(fd, "".join(["\n", *(line + " .\n" for line in lines)]).encode())


def poll(log: Log, group: str, topics: list[str]) -> None:
    """Poll once, print what came, and stay alive without committing until the input ends."""
    consumer = log.consumer(group, topics)
    consumer.poll(1, 0)
    say("ready")
    for record in consumer.poll(1000, 30):
        say(f"{record.topic} {record.partition} {record.offset} {record.value.decode()}")
    sys.stdin.read()


def hold(log: Log, *, group: str, topics: list[str], member: str) -> None:
    """Poll once as a named member, say how many came, and stay alive without committing until the input ends."""
    consumer = log.consumer(group, topics, member=member)
    say("ready")
    say(str(len(consumer.poll(100, 30))))
    sys.stdin.read()


def publish(log: Log, *, topic: str, incarnation: str, acks: str, keys: int, batch: int) -> None:
    """Publish numbered batches over several keys, each with a position, and write down what was acknowledged."""
    fd = os.open(acks, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    say("ready")
    number = 0
    while not stopping():
        records = [
            OutRecord(topic, f"{incarnation}-{number % keys}", f"{incarnation} {number}".encode())
            for number in range(number, number + batch)
        ]
        number += batch
        log.publish(records, [Position(incarnation, topic, 0, number)])
        dawdle()
        append(fd, [f"{incarnation} {n}" for n in range(number - batch, number)])


def consume(log: Log, *, group: str, topics: list[str], effects: str, max_records: int) -> None:
    """Write down every record polled, then commit."""
    fd = os.open(effects, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    consumer: Consumer = log.consumer(group, topics)
    say("ready")
    while not stopping():
        if records := consumer.poll(max_records, 0.1):
            dawdle()
            append(fd, [f"{r.partition} {r.offset} {int(r.maybe_redelivered)} {r.value.decode()}" for r in records])
            dawdle()
            consumer.commit()
    consumer.close()


def wait(log: Log, topics: list[str], positions: list[list[Any]]) -> None:
    """Wait for a record and print the answer."""
    say("ready")
    say(str(log.wait(topics, {(topic, partition): offset for topic, partition, offset in positions}, 30)))


def main() -> None:
    """Run the mode named by the arguments."""
    parameters = json.loads(sys.argv[2])
    log = open_address(parameters.pop("address"))
    modes: dict[str, Callable[..., None]] = {
        "poll": poll,
        "hold": hold,
        "publish": publish,
        "consume": consume,
        "wait": wait,
    }
    modes[sys.argv[1]](log, **parameters)
    log.close()


if __name__ == "__main__":
    main()
