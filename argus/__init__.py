"""Which handlers does this change concern, and what do they derive?

For authors of handlers: `handler`, `Inputs`, `HandlerContext`, `InvalidInput`, `SourceUse`; see HANDLERS.md.
For the pipeline: `load_registry`, `ArgusCore`, `compute_documents`, and `argus.stage.run`.
"""

from argus._exceptions import (
    ArgusError,
    CannotPause,
    DeclarationError,
    InvalidInput,
    SourceBehind,
    SourceError,
    SourceTimeout,
    SourceUnavailable,
    UndeclaredRead,
    UndeclaredWrite,
)
from argus._handler import Handler, HandlerContext, SourceUse, Value, handler
from argus._hints import Hint
from argus._pause import check_pausable, paused_handlers
from argus._registry import Registry, builtin_handlers, load_registry
from argus._rows import Inputs
from argus._run import HANDLER_FAILED, SOURCE_BEHIND, SOURCE_UNAVAILABLE, Paused, RunResult
from argus.compute import compute_documents, compute_runs
from argus.core import ArgusCore, Outcome

__all__ = [
    "HANDLER_FAILED",
    "SOURCE_BEHIND",
    "SOURCE_UNAVAILABLE",
    "ArgusCore",
    "ArgusError",
    "CannotPause",
    "DeclarationError",
    "Handler",
    "HandlerContext",
    "Hint",
    "Inputs",
    "InvalidInput",
    "Outcome",
    "Paused",
    "Registry",
    "RunResult",
    "SourceBehind",
    "SourceError",
    "SourceTimeout",
    "SourceUnavailable",
    "SourceUse",
    "UndeclaredRead",
    "UndeclaredWrite",
    "Value",
    "builtin_handlers",
    "check_pausable",
    "compute_documents",
    "compute_runs",
    "handler",
    "load_registry",
    "paused_handlers",
]
