"""When workflows run by themselves: every so often, or by a cron expression; times are UTC.

A due time is past or it is not; how many were missed does not matter, they become one run. What is remembered is the
newest due time that led to a run. A clock that jumps ahead leads to one run; one that is set back does not stop a
schedule: a remembered time that lies in the future is forgotten.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import structlog
from croniter import croniter
from pydantic import JsonValue

from batch_workflows._clocks import wall_us
from batch_workflows._exceptions import BadParameters, BadRunRecord
from batch_workflows._runs_model import Policy, Stored
from batch_workflows.runner import find_workflow
from catalog.model import WORKFLOW_TABLE
from storage_repo import Conflict, Origin, Repo, Snapshot, Transaction

MIN_EVERY_S = 10
"""What is to happen more often than that is not batch work."""
MAX_EVERY_S = 366 * 86_400
_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_EVERY = re.compile(r"(\d{1,9})([smhd])")
_CRON_FIELDS = 5
_SCHEDULE, _DUE = "meta:schedule", "meta:due"
_ORIGIN = Origin("workflow", "schedules")
_AHEAD_US = 60_000_000
"""Two machines that share the work may differ so much; a remembered time further ahead is of a clock that was wrong."""
_ATTEMPTS = 20


class Schedule(Stored):
    """When a workflow runs by itself, and with what. Either `every_s` or `cron` is set."""

    workflow: str
    every_s: int = 0
    cron: str = ""
    parameters: dict[str, JsonValue] = {}
    policy: Policy | None = None
    who: str = ""
    why: str = ""
    set_us: int = 0
    """When it was set or last enabled: due times before it count for nothing."""
    paused: str = ""
    """Who paused it and why; "": it is in force."""

    def __str__(self) -> str:
        return f"cron {self.cron} (UTC)" if self.cron else f"every {_span(self.every_s)}"

    def last_due_us(self, now_us: int) -> int:
        """Return the newest due time at or before a time, 0 if there is none since the schedule was set, or none at all
        while it is paused."""
        if self.paused:
            return 0
        if self.cron:
            moment = datetime.fromtimestamp(now_us // 1_000_000 + 1, UTC)  # a second on, since the past is exclusive
            due = croniter(self.cron, moment, ret_type=datetime).get_prev()
            at_us = int(due.timestamp()) * 1_000_000
        else:
            at_us = self.set_us + (now_us - self.set_us) // (self.every_s * 1_000_000) * self.every_s * 1_000_000
        return at_us if at_us > self.set_us else 0

    def next_due_us(self, now_us: int) -> int:
        """Return the first due time after a time, 0 while it is paused."""
        if self.paused:
            return 0
        if self.cron:
            due = croniter(self.cron, datetime.fromtimestamp(now_us / 1e6, UTC), ret_type=datetime).get_next()
            return int(due.timestamp()) * 1_000_000
        step = self.every_s * 1_000_000
        return self.set_us + max(0, (now_us - self.set_us) // step + 1) * step


def parse_every(text: str) -> int:
    """Return the seconds of "90s", "30m", "6h" or "1d". Raises BadParameters."""
    found = _EVERY.fullmatch(text.strip())
    if found is None:
        raise BadParameters(f"--every {text!r} is no span of time; write it as 30m, 6h or 1d")
    seconds = int(found[1]) * _UNITS[found[2]]
    if not MIN_EVERY_S <= seconds <= MAX_EVERY_S:
        raise BadParameters(f"--every {text}: at least {MIN_EVERY_S} seconds, at most a year")
    return seconds


def make_schedule(
    workflow: str,
    *,
    every: str = "",
    cron: str = "",
    parameters: Mapping[str, Any] | None = None,
    policy: Policy | None = None,
    who: str = "",
    why: str = "",
) -> Schedule:
    """Check what a schedule is to be, and return it. Raises UnknownWorkflow, BadParameters."""
    found = find_workflow(workflow)
    if found.needs_rest:
        raise BadParameters(f"{workflow} needs the service to be down, so the service cannot run it by a schedule")
    found.check(parameters or {})
    if bool(every) == bool(cron):
        raise BadParameters("say either every so often (6h) or by a cron expression (0 3 * * *)")
    if cron:
        _check_cron(cron)
    return Schedule(
        workflow=workflow, every_s=parse_every(every) if every else 0, cron=" ".join(cron.split()),
        parameters=dict(parameters or {}), policy=policy, who=who, why=why, set_us=wall_us(),
    )  # fmt: skip


def _check_cron(cron: str) -> None:
    if len(cron.split()) != _CRON_FIELDS:
        raise BadParameters(f"cron {cron!r} needs five fields: minute, hour, day of month, month, day of week")
    try:
        croniter(cron, datetime.now(UTC)).get_next()
    except ValueError as error:  # croniter's errors are
        raise BadParameters(f"cron {cron!r}: {error}") from error


class ScheduleStore:
    """Schedules of one installation, at most one of a workflow, in the workflows' own table."""

    def __init__(self, repo: Repo) -> None:
        self._repo = repo

    def all(self) -> list[Schedule]:
        """Return every schedule, by workflow. One that does not parse is logged and does not run. Raises RepoError."""
        found = []
        for row, cells in self._repo.snapshot().scan(WORKFLOW_TABLE, prefix="schedule/", columns=[_SCHEDULE]):
            try:
                found.append(Schedule.of_cell(f"{WORKFLOW_TABLE}/{row}", cells[_SCHEDULE]))
            except BadRunRecord as error:
                structlog.get_logger().error("workflow_schedule_unreadable", error=str(error))
        return found

    def set(self, schedule: Schedule) -> None:
        """Set or replace a workflow's schedule; its first due time is the next one."""

        def write(transaction: Transaction) -> None:
            transaction.put(WORKFLOW_TABLE, _row(schedule.workflow), _SCHEDULE, schedule.to_cell())
            transaction.put(WORKFLOW_TABLE, _row(schedule.workflow), _DUE, b"0")

        self._commit(write)

    def change(self, workflow: str, change: Callable[[Schedule], Schedule]) -> Schedule | None:
        """Replace a workflow's schedule by what a function makes of it, and return that; None if there is none."""
        changed: Schedule | None = None

        def write(transaction: Transaction) -> None:
            nonlocal changed
            row = _row(workflow)
            cell = transaction.get(WORKFLOW_TABLE, row, [_SCHEDULE]).get(_SCHEDULE)
            changed = None if cell is None else change(Schedule.of_cell(f"{WORKFLOW_TABLE}/{row}", cell))
            if changed is not None:
                transaction.put(WORKFLOW_TABLE, row, _SCHEDULE, changed.to_cell())

        self._commit(write)
        return changed

    def remove(self, workflow: str) -> bool:
        """Take a schedule away; return whether there was one."""
        found = False

        def write(transaction: Transaction) -> None:
            nonlocal found
            cells = transaction.get(WORKFLOW_TABLE, _row(workflow))
            found = _SCHEDULE in cells
            for cell in cells:
                transaction.delete(WORKFLOW_TABLE, _row(workflow), cell)

        self._commit(write)
        return found

    def due(self, schedule: Schedule, now_us: int) -> int:
        """Return the newest due time that has led to no run yet, 0 if there is none."""
        due = schedule.last_due_us(now_us)
        done = self._done(self._repo.snapshot(), schedule.workflow)
        if done > now_us + _AHEAD_US:
            done = 0
        return due if due > done else 0

    def done(self, schedule: Schedule, due_us: int) -> bool:
        """Remember that a due time has led to no run that could begin; return whether nobody else did so before."""
        mine = False

        def write(transaction: Transaction) -> None:
            nonlocal mine
            mine = self.mark(transaction, schedule, due_us)

        self._commit(write)
        return mine

    def mark(self, transaction: Transaction, schedule: Schedule, due_us: int) -> bool:
        """Remember within a transaction that a due time has led to a run; return whether nobody else did so before,
        and the schedule still is the same."""
        row = _row(schedule.workflow)
        cells = transaction.get(WORKFLOW_TABLE, row, [_SCHEDULE])
        same = _SCHEDULE in cells and cells[_SCHEDULE] == schedule.to_cell()
        if not same or self._done(transaction, schedule.workflow) == due_us:
            return False
        transaction.put(WORKFLOW_TABLE, row, _DUE, str(due_us).encode())
        return True

    def _done(self, snapshot: Snapshot, workflow: str) -> int:
        cell = snapshot.get(WORKFLOW_TABLE, _row(workflow), [_DUE]).get(_DUE, b"0")
        return int(cell) if cell.isdigit() else 0

    def _commit(self, write: Any) -> None:
        for attempt in range(_ATTEMPTS):
            transaction = self._repo.begin(_ORIGIN)
            try:
                write(transaction)
                transaction.commit()
                return
            except Conflict:
                if attempt == _ATTEMPTS - 1:
                    raise
            finally:
                transaction.abort()


def _row(workflow: str) -> str:
    return f"schedule/{workflow}"


def _span(seconds: int) -> str:
    for unit in ("d", "h", "m"):
        if seconds % _UNITS[unit] == 0:
            return f"{seconds // _UNITS[unit]}{unit}"
    return f"{seconds}s"
