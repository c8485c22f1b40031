"""Hot loops of retrieval as machine code."""

from manas.kernels.loader import Kernel, Kernels, KernelsUnavailable, load

__all__ = ["Kernel", "Kernels", "KernelsUnavailable", "load"]
