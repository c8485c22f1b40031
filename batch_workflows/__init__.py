"""What must be rebuilt, compared, refreshed or thrown away?"""

from batch_workflows._exceptions import BaseRefused, BatchError, ImportRefused, UnknownSelection
from batch_workflows._performance_signals import announce_left_over

__all__ = ["BaseRefused", "BatchError", "ImportRefused", "UnknownSelection", "announce_left_over"]
