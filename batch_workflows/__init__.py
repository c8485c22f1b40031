"""What must be rebuilt, compared, refreshed or thrown away?"""

from batch_workflows._exceptions import BaseRefused, BatchError, ImportRefused, UnknownSelection

__all__ = ["BaseRefused", "BatchError", "ImportRefused", "UnknownSelection"]
