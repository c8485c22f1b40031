"""Hot loops of retrieval as machine code."""

from manas.kernels.loader import Kernels, KernelsUnavailable, load

__all__ = ["Kernels", "KernelsUnavailable", "load"]
