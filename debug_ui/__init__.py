"""What happened to this ad, and why isn't it spending?"""

from debug_ui._exceptions import BadInput, DebugUIError, NotReplayable, UnknownEntity, UnknownKind
from debug_ui.backends import Backends
from debug_ui.diagnosis import Diagnosis, diagnose_ad, diagnose_campaign
from debug_ui.health import PipelineStatus, pipeline_status
from debug_ui.inspect import inspect_entity
from debug_ui.render import render_diagnosis, render_status, render_text
from debug_ui.views import EntityView

__all__ = [
    "Backends",
    "BadInput",
    "DebugUIError",
    "Diagnosis",
    "EntityView",
    "NotReplayable",
    "PipelineStatus",
    "UnknownEntity",
    "UnknownKind",
    "diagnose_ad",
    "diagnose_campaign",
    "inspect_entity",
    "pipeline_status",
    "render_diagnosis",
    "render_status",
    "render_text",
]
