"""Backfill: a content signal of many rows from a file, by the Updater's RPC, at low priority and a bounded rate."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import grpc
import structlog
from pydantic import Field

from batch_workflows._backfill_rows import BackfillFile, Line
from batch_workflows._clocks import elapsed_s, wall_us
from batch_workflows._exceptions import BadParameters, UpdaterAway
from batch_workflows._runs_model import Stored
from batch_workflows.runner import Counts, Parameters, RunContext, workflow
from catalog import LaneName
from catalog.model import DELETED, SOURCE_VERSION
from messaging.headers import new_header
from messaging.home import Home
from messaging.proto import adsindex_pb2 as pb
from messaging.proto import adsindex_pb2_grpc as rpc
from messaging.rpc import open_channel
from messaging.switches import Switches
from storage_repo import LimitExceeded

BATCH = 250
"""Rows of a request: some milliseconds of the Updater's time, so that its other work hardly waits."""
PATIENCE_S = 60.0
"""For an Updater that does not answer: it is started again within seconds, or somebody has to look."""
_REQUEST_S = 30.0
_HELD_S = 0.5


class BackfillParameters(Parameters):
    """Of backfill."""

    file: str = Field(max_length=4_000)
    """CSV with a header line, or Parquet, on this machine."""
    table: str
    signal: str
    """Name of the content signal, as the catalogue's columns say `from: signal:NAME`."""
    key: str = "id"
    """Column of the file with the row's key."""
    columns: dict[str, str] = {}
    """Column of the file -> column of the table; default: those of the same name."""
    version: int = Field(default=0, ge=0, lt=1 << 63)
    """Of the signal; 0: the time at which the run began, in microseconds. Rows that have a newer one keep it."""
    rate: float = Field(default=2_000.0, ge=0)
    """Rows per second; 0: as fast as the Updater answers."""
    dry_run: bool = False
    """Say what would be stored and refused, and store nothing."""


class _State(Stored):
    rows: int = 0
    """Rows of the file that are done."""
    version: int
    fingerprint: str
    outcomes: dict[str, int] = {}


@workflow(
    "backfill", "write a signal of many rows from a Parquet or CSV file, at low priority", BackfillParameters,
    resumable=True,
)  # fmt: skip
def backfill(context: RunContext[BackfillParameters]) -> Counts:
    """Send the file's rows to the Updater; what it cannot take is counted by reason with line numbers."""
    asked = context.parameters
    table = context.catalog.tables.get(asked.table)
    if table is None:
        raise BadParameters(f"there is no table {asked.table!r}; there are {', '.join(context.catalog.tables)}")
    file = BackfillFile(Path(asked.file).expanduser(), table, asked.signal, asked.key, asked.columns)
    if context.state is None:
        state = _State(version=asked.version or wall_us(), fingerprint=file.fingerprint())
        context.checkpoint(state.model_dump(mode="json"))
    else:
        state = _State.model_validate(context.state)
        if state.fingerprint != file.fingerprint():
            raise BadParameters(f"{asked.file} has changed since line {state.rows + 1} was read; begin a new run")
    outcomes = Counter(state.outcomes)
    total, begun, sent = file.total(), elapsed_s(), 0
    lines, switches = file.lines(state.rows), Switches(context.log)
    with _Updater(context, switches) as updater:
        while batch := list(islice(lines, BATCH)):
            outcomes.update(_send(context, updater, batch, state.version))
            sent += len(batch)
            state = state.model_copy(update={"rows": state.rows + len(batch), "outcomes": dict(outcomes)})
            context.counts.update(outcomes)
            context.checkpoint(state.model_dump(mode="json"))
            context.progress(state.rows, max(total, state.rows), "rows")
            if asked.rate:
                _pause(context, begun + sent / asked.rate)
            context.check()
    return {"rows": state.rows, "version": state.version, "columns": [*file.columns], **outcomes}


def _send(context: RunContext[Any], updater: _Updater, batch: list[Line], version: int) -> Iterator[str]:
    """Send what can be sent and yield what became of each row."""
    asked, good = context.parameters, []
    there = _rows_there(context, asked.table, [line.key for line in batch if not line.reason])
    for line in batch:
        if line.reason:
            context.failed("row", f"line {line.number}", line.reason, line.detail)
            yield "rejected"
        elif line.key not in there:
            context.failed("row", f"line {line.number}", "no_such_row", f"there is no {asked.table} {line.key[:80]!r}")
            yield "rejected"
        else:
            good.append(line)
    now = wall_us()
    updates = [
        pb.EntityUpdate(
            header=new_header(LaneName.LOW, now), table=asked.table, row=line.key, source=asked.signal,
            source_version=version, columns=line.columns,
        )
        for line in good
    ]  # fmt: skip
    if not updates:
        return
    for line, result in zip(good, updater.apply(updates, asked.dry_run), strict=True):
        if result.error:
            context.failed("row", f"line {line.number}", "refused_by_updater", result.error)
        yield "rejected" if result.outcome == "dead_letter" else result.outcome


def _rows_there(context: RunContext[Any], table: str, keys: list[str]) -> set[str]:
    """Return the keys that the Repo has a living row of: a signal must not make rows that the ads DB does not have."""
    try:
        found = context.repo.snapshot().get_many([(table, k) for k in keys], {table: [SOURCE_VERSION, DELETED]})
    except LimitExceeded:  # one of them is no key: ask for each
        return {key for key in keys if _is_there(context, table, key)}
    return {row for (_, row), cells in found.items() if SOURCE_VERSION in cells and DELETED not in cells}


def _is_there(context: RunContext[Any], table: str, key: str) -> bool:
    try:
        cells = context.repo.snapshot().get(table, key, [SOURCE_VERSION, DELETED])
    except LimitExceeded:
        return False
    return SOURCE_VERSION in cells and DELETED not in cells


def _pause(context: RunContext[Any], until_s: float) -> None:
    """Wait until a moment, or until the run is to end."""
    while (left := until_s - elapsed_s()) > 0 and not context.stopping():
        time.sleep(min(left, 0.2))


class _Updater:
    """The Updater's RPC, waited for while the service starts it again or a switch pauses the low lane."""

    def __init__(self, context: RunContext[Any], switches: Switches) -> None:
        self._context, self._switches = context, switches
        self._channel: grpc.Channel | None = None

    def __enter__(self) -> _Updater:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def apply(self, updates: list[pb.EntityUpdate], dry_run: bool) -> list[pb.UpdateResult]:
        """Have updates applied and return what became of each; the same ones again change nothing. Raises UpdaterAway,
        and RunStopped when the run is to end while it waits."""
        while self._switches.paused(LaneName.LOW):
            _pause(self._context, elapsed_s() + _HELD_S)
            self._context.check()
        begun = elapsed_s()
        while True:
            try:
                stub = rpc.UpdaterStub(self._open())
                reply = stub.Apply(pb.UpdateBatch(updates=updates, dry_run=dry_run), timeout=_REQUEST_S)
                return list(reply.results)
            except (grpc.RpcError, UpdaterAway) as error:
                self._close()
                if isinstance(error, grpc.RpcError) and error.code() not in _AGAIN:
                    raise UpdaterAway(f"the Updater refused a batch: {error.code().name}: {error.details()}") from error
                if elapsed_s() - begun > PATIENCE_S:
                    raise UpdaterAway(
                        f"the Updater has not answered for {PATIENCE_S:.0f} s ({error}); start the service with "
                        "./adsindex up, then go on with --resume"
                    ) from error
                structlog.get_logger().warning("backfill_waits", error=str(error)[:300])
                _pause(self._context, elapsed_s() + _HELD_S)
                self._context.check()

    def _open(self) -> grpc.Channel:
        if self._channel is None:
            self._channel = open_channel(updater_port(self._context.home))
        return self._channel

    def _close(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None


_AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)


def updater_port(home: Home) -> int:
    """Return the port of the running Updater's RPC. Raises UpdaterAway."""
    try:
        values = json.loads((home.run / "updater-0.json").read_text())
        if values.get("state") == "ready" and int(values["port"]) > 0:
            return int(values["port"])
    except (OSError, ValueError, KeyError) as error:
        raise UpdaterAway(f"no Updater runs on {home.root}") from error
    raise UpdaterAway(f"the Updater of {home.root} is not ready")
