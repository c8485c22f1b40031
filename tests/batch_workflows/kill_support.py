"""Workflows that are killed -9 on the way, again and again, and then run to their end."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from batch_workflows.runner import find_workflow
from batch_workflows.runs import RunStore
from messaging.home import Home
from tests.support import ROOT


@dataclass
class Worker:
    """A process that forks runs, see killed_worker."""

    home: Home
    moments: dict[str, list[int]] = field(default_factory=dict)
    """Workflow -> how many moments its last, whole attempt had."""

    def __post_init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.batch_workflows.killed_worker", str(self.home.root)],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=(self.home.logs / "worker.log").open("w"),
            text=True,
        )  # fmt: skip

    def run(
        self,
        store: RunStore,
        workflow: str,
        kills: Sequence[int],
        parameters: Mapping[str, Any],
        later_s: float = 0.0,
        between: Callable[[], None] = lambda: None,
    ) -> Any:
        """Have it killed at each of the moments, with `between` after each, and then run to its end; return its record.

        A run that can be resumed is, any other begins anew.
        """
        answer: Any = {}
        for attempt, kill_at in enumerate((*kills, 0)):
            last = next(iter(store.runs(workflow, 1)), None)
            resume = attempt > 0 and last is not None and last.resumable and find_workflow(workflow).resumable
            asked = {
                "workflow": workflow, "parameters": {} if resume else dict(parameters), "resume": resume,
                "kill_at": kill_at, "later_s": later_s,
            }  # fmt: skip
            answer = self._ask(asked)
            assert answer["killed"] == bool(kill_at), f"{workflow}, killed at {kill_at}: {answer}"
            if kill_at:
                between()
        assert "record" in answer, answer
        self.moments.setdefault(workflow, []).append(answer["moments"])
        return answer["record"]

    def _ask(self, asked: Mapping[str, Any]) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        while (line := self._process.stdout.readline()) == "ready\n":
            pass
        return json.loads(line)

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)
