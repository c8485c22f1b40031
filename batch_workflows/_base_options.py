"""What a build of a base index is asked for, what it is told while it goes on, and what it reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from batch_workflows.base_gates import GateLimits, Tally

RANGE_ROWS = 4_000
"""Root rows per task: some seconds of work, so that progress moves and a lost task costs little."""
BASES_KEPT = 3
"""The one in service, the one to roll back to, and one more in case that one is bad as well."""


@dataclass(frozen=True, slots=True)
class BaseReport:
    """What was built, and how it differs from what the pipeline had stored."""

    base_version: str
    documents: int
    snapshot_ts: int
    coverage: dict[str, float]
    differing: int
    """Documents that the handlers derive otherwise than stored: updates in flight, or something that was lost."""
    recomputed: bool
    sample_differing: list[str]
    address: str = ""
    """Where it was published."""
    shards: int = 0
    bytes: int = 0
    rows: int = 0
    """Root rows in the snapshot; those without a servable document are in no base."""
    kept_out: int = 0
    """Documents that lack a critical field and nothing else."""
    volume_change: float = 0.0
    """Against the base that was in service, -1..; 0 without one."""
    newest_source_us: int = 0
    waiting_since_us: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    """handler:reason -> documents; of those the handler's previous outputs were taken."""
    samples: dict[str, list[str]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    """Gates that did not pass, and were overruled by `force` or refused the base."""
    removed: list[str] = field(default_factory=list)
    """Older bases that went."""
    kept_ranges: int = 0
    kept_shards: int = 0
    """Of an earlier attempt that was killed, and not done again."""
    begun_anew: str = ""
    """Why nothing of the earlier attempt could be used, where the run was to go on with it."""
    seconds: dict[str, float] = field(default_factory=dict)
    """By step: read, build, publish."""

    def to_json(self) -> dict[str, Any]:
        """Return a form for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How a base is built. The defaults suit one machine."""

    recompute: bool = True
    """Run the handlers over the snapshot's rows; otherwise take the stored documents."""
    force: bool = False
    """Publish although a gate refuses."""
    address: str = ""
    """Where to publish; "": where the home says."""
    keep: int = BASES_KEPT
    shards: int = 0
    """0: by the number of documents and of the engine's processes."""
    range_rows: int = RANGE_ROWS
    limits: GateLimits = field(default_factory=GateLimits)
    resume: str = ""
    """Version of an unfinished build to go on with (see `Hooks.begun`); one that cannot be used is begun anew."""
    code_version: str = ""
    """Of the handlers: an unfinished build is only gone on with by the same."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """What a run is told while it goes on. Each may raise, and the build then ends and publishes nothing."""

    progress: Callable[[int, int | None, str], None] = lambda _done, _total, _unit: None
    check: Callable[[], None] = lambda: None
    """Called between tasks and right before the base is published."""
    read: Callable[[Tally], None] = lambda _tally: None
    """Called with what each range of rows came to."""
    begun: Callable[[str], None] | None = None
    """Called with the version of what is begun: what is finished of it then stays if the build ends without a verdict,
    for `BuildOptions.resume`, until the next build. Without it nothing stays."""
