"""What is kept of a run of a workflow, as immutable values: parameters, progress, outcome, and failures by reason."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from batch_workflows._exceptions import BadRunRecord

EXAMPLES = 10
"""Of failures for one reason: enough to see a pattern, little enough for a record."""
MAX_TEXT = 2_000


class Outcome(StrEnum):
    """How a run stands or ended."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    REFUSED = "refused"
    """It did its work and a gate refused the result, so nothing was published; or it waited to go on with a run that
    there is nothing left of to go on with. Never resumed."""
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"
    """Its process ended before it did (killed, or told to stop with the service); `--resume` goes on with it."""


ENDED = frozenset(Outcome) - {Outcome.QUEUED, Outcome.RUNNING}
RESUMABLE = frozenset({Outcome.FAILED, Outcome.CANCELLED, Outcome.INTERRUPTED})
"""Outcomes after which a run may go on from its checkpoint."""


class Stored(BaseModel):
    """Base of what is stored as JSON in one cell. Fields of later releases are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    def to_cell(self) -> bytes:
        """Return the cell's bytes."""
        return self.model_dump_json(exclude_defaults=True).encode()

    @classmethod
    def of_cell(cls, where: str, cell: bytes) -> Self:
        """Read a cell. Raises BadRunRecord naming the row."""
        try:
            return cls.model_validate_json(cell)
        except ValidationError as error:
            raise BadRunRecord(f"{where}: {error.errors(include_url=False)[0]['msg']}") from error

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return self.model_dump(mode="json")


class Policy(Stored):
    """What a run does about items that fail."""

    on_error: Literal["continue", "stop"] = "continue"
    max_failures: int = Field(default=1_000, ge=0)
    """With `continue`: after more than so many it stops all the same, because then the fault is a common one."""

    def __str__(self) -> str:
        if self.on_error == "stop":
            return "stop at the first failure"
        return f"go on, and stop after more than {self.max_failures} failures"


class Holder(Stored):
    """A process that runs a workflow."""

    host: str
    machine: str = ""
    """Boot and process namespace: where these are ours, we can look whether the process lives."""
    pid: int
    born: str = ""


class Progress(Stored):
    """How far a run is."""

    done: int = 0
    total: int | None = None
    about: bool = False
    """The total is what the last run like this one came to."""
    unit: str = "documents"
    rate: float | None = None
    """Per second, over the last half minute or so."""
    eta_s: float | None = None
    at_us: int = 0

    def __str__(self) -> str:
        text = (
            f"{self.done:,}"
            + ("" if self.total is None else f" of {'about ' if self.about else ''}{self.total:,}")
            + f" {self.unit}"
        )
        if self.total:
            text += f" ({self.done / self.total:.0%})"
        if self.rate is not None:
            text += f", {self.rate:,.0f}/s"
        if self.eta_s is not None:
            text += f", {_duration(self.eta_s)} left"
        return text


class Failures(Stored):
    """Items of one kind that failed for one reason."""

    kind: str
    reason: str
    count: int = 0
    examples: tuple[str, ...] = ()
    """Keys, each with a detail where there was one; the first EXAMPLES."""


class Attempt(Stored):
    """One process that worked on a run."""

    token: int
    holder: Holder
    started_us: int


class RunRequest(Stored):
    """Who wants which workflow to run, and with what; waits in the queue until a process takes it."""

    workflow: str
    parameters: dict[str, JsonValue] = {}
    policy: Policy | None = None
    """None: the workflow's own."""
    who: str = ""
    why: str = ""
    trigger: Literal["command", "detached", "ui", "rpc", "schedule", "restart"] = "command"
    resume: int | None = None
    """Number of the run to go on with; 0: the last one of the workflow that can be resumed."""
    at_us: int = 0


class RunRecord(Stored):
    """A run: what was asked for, by whom, what became of it."""

    workflow: str
    number: int
    request: RunRequest
    policy: Policy = Policy()
    code_version: str = ""
    attempts: tuple[Attempt, ...] = ()
    outcome: Outcome = Outcome.RUNNING
    ended_us: int = 0
    seconds: float = 0.0
    """Spent working, over all attempts whose end is known."""
    counts: dict[str, JsonValue] = {}
    failures: tuple[Failures, ...] = ()
    error: str = ""
    progress: Progress | None = None
    """As last stored; of its own cell while the run goes on."""
    cancel: str = ""
    """Who asked for the run to be cancelled, and why."""
    has_checkpoint: bool = False

    @property
    def id(self) -> str:
        """How people name it: workflow and number."""
        return f"{self.workflow}-{self.number}"

    @property
    def started_us(self) -> int:
        """When its first attempt began."""
        return self.attempts[0].started_us if self.attempts else self.request.at_us

    @property
    def failed(self) -> int:
        """Items that failed, of all kinds and reasons."""
        return sum(failures.count for failures in self.failures)

    @property
    def said(self) -> str:
        """What to tell people of the end: the error, and what the policy made of items that failed."""
        text = self.error
        if self.failed and self.outcome is Outcome.SUCCEEDED:
            text = f"{self.failed:,} items failed and were left out; the policy is to {self.policy}"
        if self.resumable and self.has_checkpoint:
            text += f"{'; ' if text else ''}`workflow run {self.workflow} --resume` goes on from its checkpoint"
        return text

    @property
    def resumable(self) -> bool:
        """Whether `--resume` can go on with it."""
        return self.outcome in RESUMABLE

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"id": self.id, **self.model_dump(mode="json"), "started_us": self.started_us, "failed": self.failed}


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"
