"""What people and programs may ask of workflows: start, list, show, cancel, schedule. Behind the command line, the RPC
and the debug UI alike; all of it goes through the Storage Repo, so it works from any machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from batch_workflows._clocks import wall_us
from batch_workflows._exceptions import BadParameters
from batch_workflows._runs_model import MAX_TEXT, Policy, RunRecord, RunRequest
from batch_workflows.runner import Workflow, all_workflows, find_workflow
from batch_workflows.runs import RunStore
from batch_workflows.schedules import Schedule, ScheduleStore, make_schedule
from storage_repo import Repo


@dataclass(frozen=True, slots=True)
class WorkflowState:
    """A workflow, its schedule, and its last run."""

    workflow: Workflow
    schedule: Schedule | None
    next_due_us: int
    """0 without a schedule."""
    last: RunRecord | None


class WorkflowControl:
    """Workflows of one installation. Every start, cancel and schedule is logged with who asked for it and why."""

    def __init__(self, repo: Repo) -> None:
        self.runs, self.schedules = RunStore(repo), ScheduleStore(repo)

    def states(self) -> list[WorkflowState]:
        """Return every workflow as it stands. Raises RepoError, BadRunRecord."""
        schedules = {schedule.workflow: schedule for schedule in self.schedules.all()}
        last, now = self.runs.latest(), wall_us()
        return [
            WorkflowState(
                workflow,
                schedules.get(name),
                schedules[name].next_due_us(now) if name in schedules else 0,
                last.get(name),
            )
            for name, workflow in all_workflows().items()
        ]

    def request(self, request: RunRequest) -> RunRecord:
        """Put a run in the queue of the running service and return it as it waits.

        Raises UnknownWorkflow, BadParameters, RunBusy, UnknownRun (there is nothing to resume), RepoError.
        """
        workflow = find_workflow(request.workflow)
        if workflow.needs_rest:
            raise BadParameters(
                f"{workflow.name} needs the service to be down: stop it, then ./adsindex workflow run {workflow.name}"
            )
        if request.resume is None:
            workflow.check(request.parameters)
        else:
            workflow.check_resumable()
            self.runs.resumed(request)
        bounded = request.model_copy(
            update={"who": request.who[:200] or "unknown", "why": request.why[:MAX_TEXT], "at_us": wall_us()}
        )
        self.runs.submit(bounded, workflow.lease)
        structlog.get_logger().warning(
            "workflow_requested", workflow=workflow.name, who=bounded.who, why=bounded.why, trigger=bounded.trigger
        )
        return self.runs.runs(workflow.name, 1)[0]

    def find(self, name: str) -> RunRecord:
        """Return a run by its id, or the last one of a workflow by its name. Raises UnknownRun."""
        if name in all_workflows() and (found := self.runs.runs(name, 1)):
            return found[0]
        return self.runs.get(name)

    def cancel(self, name: str, who: str, why: str = "") -> RunRecord:
        """Ask a run to end: by its id, or the one of a workflow that runs or waits. Raises UnknownRun."""
        found = self.find(name) if not name.endswith("-0") else None
        cancelled = self.runs.cancel(name if found is None else found.id, who[:200] or "unknown", why[:MAX_TEXT])
        structlog.get_logger().warning("workflow_cancelled", run=cancelled.id, who=who, why=why)
        return cancelled

    def schedule(
        self,
        name: str,
        *,
        every: str = "",
        cron: str = "",
        parameters: Mapping[str, Any] | None = None,
        policy: Policy | None = None,
        who: str = "",
        why: str = "",
    ) -> Schedule:
        """Have a workflow run by itself from now on. Raises UnknownWorkflow, BadParameters."""
        schedule = make_schedule(
            name, every=every, cron=cron, parameters=parameters, policy=policy, who=who[:200], why=why[:MAX_TEXT]
        )
        self.schedules.set(schedule)
        structlog.get_logger().warning("workflow_scheduled", workflow=name, schedule=str(schedule), who=who, why=why)
        return schedule

    def pause_schedule(self, name: str, who: str, why: str) -> Schedule:
        """Keep a schedule, but out of force until it is enabled. Raises UnknownWorkflow, BadParameters without one."""
        by = f"by {who[:200] or 'unknown'}{f': {why[:MAX_TEXT]}' if why else ''}"
        return self._change(name, lambda schedule: schedule.model_copy(update={"paused": by}), "paused", who, why)

    def enable_schedule(self, name: str, who: str, why: str) -> Schedule:
        """Put a paused schedule in force from now on; what was due meanwhile is not made up for.

        Raises UnknownWorkflow, BadParameters without one. One that is not paused stays as it is.
        """

        def enabled(schedule: Schedule) -> Schedule:
            return schedule.model_copy(update={"paused": "", "set_us": wall_us()}) if schedule.paused else schedule

        return self._change(name, enabled, "enabled", who, why)

    def _change(self, name: str, change: Callable[[Schedule], Schedule], what: str, who: str, why: str) -> Schedule:
        find_workflow(name)
        changed = self.schedules.change(name, change)
        if changed is None:
            raise BadParameters(f"{name} has no schedule; set one with every (6h) or cron (0 3 * * *)")
        structlog.get_logger().warning(f"workflow_schedule_{what}", workflow=name, who=who, why=why)
        return changed

    def unschedule(self, name: str, who: str) -> bool:
        """Take a workflow's schedule away; return whether there was one. Raises UnknownWorkflow."""
        find_workflow(name)
        removed = self.schedules.remove(name)
        structlog.get_logger().warning("workflow_unscheduled", workflow=name, who=who, was_scheduled=removed)
        return removed
