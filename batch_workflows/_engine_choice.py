"""Which engine a person asked a workflow's tasks to run on: the same parameters for all that have tasks."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from batch_workflows.engines import Engine, open_engine
from batch_workflows.runner import Parameters


class EngineChoice(Parameters):
    """Where tasks run. Results are the same on all engines."""

    engine: Literal["local", "inline", "spark"] = "local"
    """A pool of processes of this machine, this process, or Spark."""
    processes: int = Field(default=0, ge=0)
    """Of the engine local; 0: one per processor, and none for few rows; 1: this one."""
    master: str = ""
    """Of the engine spark, as spark-submit takes it."""

    @model_validator(mode="after")
    def _belong(self) -> Self:
        if self.master and self.engine != "spark":
            raise ValueError(f"master={self.master} is of the engine spark: add engine=spark")
        if self.processes and self.engine != "local":
            raise ValueError(f"processes={self.processes} is of the engine local; Spark's are as its master says")
        return self

    def open_engine(self) -> Engine:
        """Return the engine that is asked for. Raises EngineFailed."""
        return open_engine(self.engine, processes=self.processes, master=self.master)
