"""What every stage process is given: where its state is, what is declared, the log, its metrics, and when to stop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from catalog import Catalog
from messaging.api import Log
from messaging.home import Home
from messaging.metrics import StageMetrics
from messaging.switches import Switches


@dataclass(slots=True)
class StageContext:
    """Handed to a stage's `run(context)`, which returns soon after `stop` is set.

    `ready(port)` is called once when the stage works; `port` is that of its RPC mirror. Between two units of work a
    stage calls `beat()`; one that has not done so for long counts as hung.
    """

    name: str
    worker: int
    home: Home
    catalog: Catalog
    log: Log
    metrics: StageMetrics
    stop: threading.Event
    ready: Callable[[int], None]
    code_version: str = ""
    settings: dict[str, str] = field(default_factory=dict)
    switches: Switches = field(init=False)

    def __post_init__(self) -> None:
        self.switches = Switches(self.log)

    def beat(self) -> None:
        """Say that the stage is alive and write its metrics now and then."""
        self.metrics.flush()
