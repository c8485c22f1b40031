"""Which handlers does this change concern, and what do they derive?

For authors of handlers: `handler`, `Inputs`, `HandlerContext`, `InvalidInput`, `SourceUse`; see HANDLERS.md.
For the pipeline: `load_registry`, `ArgusCore`, `compute_documents`, and `argus.stage.run`.
"""

from argus._exceptions import (
    ArgusError,
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
from argus._registry import Registry, builtin_handlers, load_registry
from argus._rows import Inputs
from argus.compute import compute_documents
from argus.core import ArgusCore, Outcome

__all__ = [
    "ArgusCore",
    "ArgusError",
    "DeclarationError",
    "Handler",
    "HandlerContext",
    "Hint",
    "Inputs",
    "InvalidInput",
    "Outcome",
    "Registry",
    "SourceBehind",
    "SourceError",
    "SourceTimeout",
    "SourceUnavailable",
    "SourceUse",
    "UndeclaredRead",
    "UndeclaredWrite",
    "Value",
    "builtin_handlers",
    "compute_documents",
    "handler",
    "load_registry",
]
