"""Is this update newer than what we have, and is it stored?"""

from updater._exceptions import RefusedUpdate, UpdaterError
from updater.core import ApplyOutcome, UpdaterCore

__all__ = ["ApplyOutcome", "RefusedUpdate", "UpdaterCore", "UpdaterError"]
