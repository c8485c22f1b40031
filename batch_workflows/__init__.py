"""What must be rebuilt, compared, refreshed or thrown away?"""

from batch_workflows._exceptions import (
    BadParameters,
    BadRunRecord,
    BaseRefused,
    BatchError,
    ImportRefused,
    LeaseLost,
    RunBusy,
    RunStopped,
    SnapshotDamaged,
    SyncIncomplete,
    TooManyFailures,
    UnknownRun,
    UnknownSelection,
    UnknownWorkflow,
    UpdaterAway,
)
from batch_workflows._performance_signals import announce_left_over

__all__ = [
    "BadParameters",
    "BadRunRecord",
    "BaseRefused",
    "BatchError",
    "ImportRefused",
    "LeaseLost",
    "RunBusy",
    "RunStopped",
    "SnapshotDamaged",
    "SyncIncomplete",
    "TooManyFailures",
    "UnknownRun",
    "UnknownSelection",
    "UnknownWorkflow",
    "UpdaterAway",
    "announce_left_over",
]
