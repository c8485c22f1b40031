"""Errors of the batch workflows.

BatchError
├── ImportRefused       an export or its mapping cannot be read at all; nothing was written
├── UnknownSelection    a refresh or resync names a table or id that does not exist
├── SyncIncomplete      what is in flight did not arrive, so differences could not be told from it
├── BaseRefused         a base index failed a gate; it was not published and the old one stays
├── UnknownWorkflow     there is no workflow of that name
├── UnknownRun          there is no run of that id, or none that can be resumed
├── BadParameters       a workflow's parameters, schedule or policy cannot be used
├── RunBusy             the workflow runs already, or waits to; one run of a kind at a time
├── RunStopped          the run was told to stop: cancelled, or its process is to end
├── LeaseLost           another process has taken the run's place: this one must not go on
├── TooManyFailures     items failed, and the run's policy says to stop
├── UpdaterAway         the Updater's RPC does not answer, or refuses what it is sent
├── SnapshotDamaged     a Parquet snapshot cannot be read, or what was imported of it is not what was taken
└── BadRunRecord        a cell of the workflows' own table cannot be read
"""

from __future__ import annotations

from typing import Any

from catalog.portable import Portable


class BatchError(Portable):
    """Base of the batch workflows' errors."""


class ImportRefused(BatchError):
    """Raised before anything is written when an export or its mapping cannot be used."""


class UnknownSelection(BatchError):
    """Raised when a selection names something that does not exist."""


class SyncIncomplete(BatchError):
    """Raised at the end of a sync that could not judge all rows, since the pipeline is down or held."""


class BaseRefused(BatchError):
    """Raised when a base index fails a gate; the report names the fields and sample documents."""

    def __init__(self, text: str, report: dict[str, Any] | None = None) -> None:
        super().__init__(text)
        self.report = report or {}


class UnknownWorkflow(BatchError):
    """Raised for a name that no workflow is registered by."""


class UnknownRun(BatchError):
    """Raised when a run is named that there is no record of, or that cannot be resumed."""


class BadParameters(BatchError):
    """Raised before a run starts when its parameters do not fit the workflow."""


class RunBusy(BatchError):
    """Raised when another run holds the workflow's lease, or one waits in the queue."""


class RunStopped(BatchError):
    """Raised inside a run that is to stop; what was checkpointed stays and the run can be resumed."""


class LeaseLost(BatchError):
    """Raised inside a process whose lease another one has taken: it must not go on, nor record an outcome."""


class TooManyFailures(BatchError):
    """Raised by the policy: at the first failed item, or after more than the run allows."""


class BadRunRecord(BatchError):
    """Raised when a cell of the workflows' own table does not parse; it names the row."""


class SnapshotDamaged(BatchError):
    """Raised when a snapshot's file cannot be read, or an import does not have its digests."""


class UpdaterAway(BatchError):
    """Raised when the Updater does not answer for long; what it had taken is stored, and the run can be resumed."""
