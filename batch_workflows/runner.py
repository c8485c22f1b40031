"""Workflows by name, and what a running one is given.

A workflow is a function of a RunContext, registered by `@workflow`. It does its work in units: between two it calls
`context.check()`, which ends the run when it was cancelled or has lost its lease; after some it stores a checkpoint, so
that a run that was killed goes on from there. What it returns are its counts.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Generic, Protocol, TypeVar

import structlog
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from batch_workflows._exceptions import BadParameters, RunStopped, TooManyFailures, UnknownWorkflow
from batch_workflows._runs_model import EXAMPLES, MAX_TEXT, Failures, Policy, Progress, RunRecord
from batch_workflows._runs_pace import Pace
from batch_workflows.leases import Lease
from catalog import Catalog
from gateway import AdsDb
from messaging import Log
from messaging.home import Home
from storage_repo import Origin, Repo, Transaction
from storage_repo.feed import RepoFeed

STAGE = "workflow"
"""Stage that the writes of workflows name as their origin."""
MODULES: tuple[str, ...] = (
    "batch_workflows.standard_workflows",
    "batch_workflows.backfill",
    "batch_workflows.parquet_workflows",
    "batch_workflows.base_workflows",
    "batch_workflows.refresh",
    "batch_workflows.sync",
    "batch_workflows.gc",
)
"""Modules that register workflows, imported when a workflow is looked for; add yours."""


class Parameters(BaseModel):
    """Base of workflows' parameters: what a run is asked for with, as JSON. Unknown names are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class NoParameters(Parameters):
    """Of a workflow that takes none."""


P = TypeVar("P", bound=Parameters)
Counts = Mapping[str, JsonValue]
"""What a run did: numbers, and short lists or texts for people; it is stored with the run and shown."""


class Opened(Protocol):
    """Opened backends of one home; `debug_ui.backends.Backends` is one."""

    @property
    def home(self) -> Home:
        """Where the installation keeps its files."""

    @property
    def catalog(self) -> Catalog:
        """Its declarations."""

    @property
    def repo(self) -> Repo:
        """Its Storage Repo."""

    @property
    def repo_feed(self) -> RepoFeed:
        """How far the WAL proxy is behind the Repo."""

    @property
    def open_repo(self) -> Callable[[], Repo] | None:
        """Opens the Repo in another process (it can be pickled); None: the home's embedded one."""

    @property
    def log(self) -> Log:
        """Its message log."""

    @property
    def ads_db(self) -> AdsDb:
        """Its ads DB."""


@dataclass(slots=True)
class RunContext(Generic[P]):
    """Handed to a workflow's function. `state` is what its last `checkpoint` stored, None in a run from the start."""

    opened: Opened
    parameters: P
    record: RunRecord
    lease: Lease
    state: Any = None
    policy: Policy = field(default_factory=Policy)
    stop: threading.Event = field(default_factory=threading.Event)
    """Set when the process is to end."""
    code_version: str = ""
    last: RunRecord | None = None
    """The last run of the workflow with the same parameters that succeeded."""
    on_progress: Callable[[Progress], None] | None = None
    counts: dict[str, JsonValue] = field(default_factory=dict)
    """Stored with the run also when it fails; a workflow may write into it as it goes, what it returns is added."""
    _pace: Pace = field(default_factory=Pace)
    _failures: dict[tuple[str, str], Failures] = field(default_factory=dict)

    @property
    def home(self) -> Home:
        """Where the installation keeps its files."""
        return self.opened.home

    @property
    def catalog(self) -> Catalog:
        """Its declarations."""
        return self.opened.catalog

    @property
    def repo(self) -> Repo:
        """Its Storage Repo."""
        return self.opened.repo

    @property
    def repo_feed(self) -> RepoFeed:
        """How far the WAL proxy is behind the Repo."""
        return self.opened.repo_feed

    @property
    def log(self) -> Log:
        """Its message log."""
        return self.opened.log

    @property
    def ads_db(self) -> AdsDb:
        """Its ads DB."""
        return self.opened.ads_db

    @property
    def token(self) -> int:
        """Number of the lease: grows with every process that takes it, so that a zombie's writes can be told."""
        return self.lease.token

    @property
    def origin(self) -> Origin:
        """Who writes, for transactions of the workflow."""
        return Origin(STAGE, self.record.workflow, self.code_version)

    def begin(self, ts: int | None = None) -> Transaction:
        """Begin a transaction of the Repo that cannot commit once another process has the lease. Raises LeaseLost."""
        transaction = self.repo.begin(self.origin, ts)
        self.lease.fence(transaction)
        return transaction

    def fence(self, transaction: Transaction) -> None:
        """Make a transaction conflict if another process takes the lease before it commits. Raises LeaseLost."""
        self.lease.fence(transaction)

    def progress(self, done: int, total: int | None = None, unit: str = "documents", *, about: int = 0) -> None:
        """Say how far the run is, as often as you like; rate and time left are worked out from it.

        Where nobody can know a total without reading everything, `about` so many are expected; by default as many as
        the last run with the same parameters that succeeded came to.
        """
        if total is None:
            before = None if self.last is None else self.last.progress
            about = about or (before.done if before is not None and before.unit == unit else 0)
            if 0 < done <= about:
                shown = self._pace.at(done, about, unit).model_copy(update={"about": True})
            else:
                shown = self._pace.at(done, None, unit)
        else:
            shown = self._pace.at(done, total, unit)
        self.lease.show(shown)
        if self.on_progress is not None:
            self.on_progress(shown)

    def stopping(self) -> bool:
        """Return whether the run is to end soon: cancelled, or its process is to end. Cheap; raises nothing."""
        return self.stop.is_set() or bool(self.lease.cancelled)

    def check(self) -> None:
        """Call between units of work, and before a step that cannot be undone: cheap as long as all is well.

        Raises RunStopped when the run is to end; LeaseLost when another process may have taken its place and has;
        RepoError when the lease can be renewed no more.
        """
        if self.stopping():
            why = self.lease.cancelled or "its process was told to end"
            raise RunStopped(f"{self.record.id} was stopped ({why})")
        self.lease.check()

    def checkpoint(self, state: Any) -> None:
        """Store, durably and fenced, from where a later attempt is to go on: anything msgpack takes, at most 256 KB.

        Everything before it must be durable itself. Raises LeaseLost, RepoError.
        """
        self.state = state
        self.lease.checkpoint(state)

    def failed(self, kind: str, key: str, reason: str, detail: str = "") -> None:
        """Count an item that failed: `kind` of item, its key (or line), a short stable `reason`.

        Returns if the run's policy is to go on, and the item is left out. Raises TooManyFailures if it is to stop.
        """
        found = self._failures.get((kind, reason)) or Failures(kind=kind, reason=reason)
        example = (f"{key}: {detail}" if detail else key)[:MAX_TEXT]
        examples = found.examples if len(found.examples) >= EXAMPLES else (*found.examples, example)
        self._failures[(kind, reason)] = Failures(kind=kind, reason=reason, count=found.count + 1, examples=examples)
        structlog.get_logger().warning("workflow_item_failed", run=self.record.id, kind=kind, reason=reason, key=key)
        if self.policy.on_error == "stop":
            raise TooManyFailures(f"{kind} {key}: {reason}{f' ({detail})' if detail else ''}; the policy is to stop")
        if (total := sum(f.count for f in self._failures.values())) > self.policy.max_failures:
            raise TooManyFailures(
                f"{total} items failed, the last {kind} {key}: {reason}; the policy is to {self.policy}"
            )

    def go_on(self, failures: Iterable[Failures], counts: Mapping[str, JsonValue]) -> None:
        """Take over what earlier attempts of the run had counted at their last checkpoint."""
        self._failures.update({(found.kind, found.reason): found for found in failures})
        self.counts.update(counts)

    @property
    def failures(self) -> tuple[Failures, ...]:
        """What failed so far, by kind and reason."""
        return tuple(self._failures.values())


@dataclass(frozen=True, slots=True)
class Workflow:
    """A kind of batch work."""

    name: str
    summary: str
    parameters: type[Parameters]
    function: Callable[[RunContext[Any]], Counts]
    policy: Policy = field(default_factory=Policy)
    """Where the request names none."""
    resumable: bool = False
    """Whether it stores checkpoints; others start anew, which `run` does anyway."""
    lock: str = ""
    """Workflows with the same lock do not run at the same time; default: the name."""
    needs_rest: bool = False
    """No stage may run meanwhile, nor anything else commit: the lease is not renewed while it runs."""
    needs_capture: bool = False
    """Changes of the ads DB must be captured from before it begins, also where the service is down."""

    @property
    def lease(self) -> str:
        """Name of its lease."""
        return self.lock or self.name

    def check_resumable(self) -> None:
        """Return if runs can be gone on with. Raises BadParameters."""
        if not self.resumable:
            raise BadParameters(f"{self.name} keeps no checkpoints, so there is nothing to resume; run it anew")

    def check(self, parameters: Mapping[str, Any]) -> Parameters:
        """Return the parameters as the workflow takes them. Raises BadParameters naming each that it does not."""
        try:
            return self.parameters.model_validate(dict(parameters))
        except ValidationError as error:
            faults = "; ".join(
                f"{'.'.join(map(str, fault['loc'])) or 'parameters'}: {fault['msg'].removeprefix('Value error, ')}"
                for fault in error.errors(include_url=False)
            )
            known = ", ".join(self.parameters.model_fields) or "none"
            raise BadParameters(f"{self.name}: {faults}; its parameters are: {known}") from error


_registered: dict[str, Workflow] = {}
Function = Callable[[RunContext[P]], Counts]


def workflow(
    name: str,
    summary: str,
    parameters: type[P],
    *,
    policy: Policy | None = None,
    resumable: bool = False,
    lock: str = "",
    needs_rest: bool = False,
    needs_capture: bool = False,
) -> Callable[[Function[P]], Function[P]]:
    """Register a function as a workflow; see Workflow for what the options mean."""

    def register(function: Function[P]) -> Function[P]:
        if name in _registered and _registered[name].function.__module__ != function.__module__:
            raise ValueError(f"two workflows are named {name!r}")
        _registered[name] = Workflow(
            name, summary, parameters, function, policy or Policy(), resumable, lock, needs_rest, needs_capture
        )
        return function

    return register


def all_workflows() -> dict[str, Workflow]:
    """Return every workflow by name, in alphabetical order."""
    for module in MODULES:
        import_module(module)
    return dict(sorted(_registered.items()))


def find_workflow(name: str) -> Workflow:
    """Return a workflow. Raises UnknownWorkflow naming those there are."""
    known = all_workflows()
    if name not in known:
        raise UnknownWorkflow(f"no workflow {name!r}; there are {', '.join(known)}")
    return known[name]
