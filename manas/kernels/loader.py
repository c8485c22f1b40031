"""Machine code of the kernels: compiled once per machine by Numba in a process of its own, loaded without Numba."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path

import llvmlite.binding as llvm
import msgspec

from manas._exceptions import ManasError

_HERE = Path(__file__).parent
_SOURCES = (
    "_intrinsics.py",
    "_block_intrinsics.py",
    "_block_source.py",
    "_codes_source.py",
    "_source.py",
    "layout.py",
    "_list_source.py",
    "list_layout.py",
    "_heap_source.py",
    "_vector_intrinsics.py",
    "_vector_source.py",
    "_walk_source.py",
    "vector_layout.py",
    "_predicate_source.py",
    "predicate_layout.py",
    "_stored_source.py",
    "stored_layout.py",
    "_compile.py",
)
Kernel = Callable[[int], None]
_COMPILE_SECONDS = 600.0
"""Compiling takes about ten seconds on an idle machine."""


class KernelsUnavailable(ManasError):
    """The kernels could not be compiled or loaded; the text has the compiler's words."""


class Entries:
    """The kernels' entry points; parameters are addresses of int64 arrays."""

    def __init__(self, entries: Mapping[str, Kernel]) -> None:
        self.top_k = entries["top_k"]
        self.match = entries["match"]
        self.scan_near = entries["scan_near"]
        self.probe_near = entries["probe_near"]
        self.walk_near = entries["walk_near"]
        self.score_near = entries["score_near"]
        self.judge = entries["judge"]
        self.pack = entries["pack"]
        self.unpack = entries["unpack"]
        self.squeeze = entries["squeeze"]
        self.expand = entries["expand"]
        self.locate = entries["locate"]


class Kernels(Entries):
    """The kernels, which release the interpreter's lock when called, and as `brief` the same without that.

    Who releases the lock waits for it afterwards, as long as `sys.getswitchinterval` if another thread took it: that
    is far more than a call takes that looks at few documents.
    """

    def __init__(self, names: dict[str, str], code: bytes) -> None:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        machine = llvm.Target.from_default_triple().create_target_machine()
        self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
        self._engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        self._engine.finalize_object()
        places = {name: self._engine.get_function_address(symbol) for name, symbol in names.items()}
        releasing, brief = ctypes.CFUNCTYPE(None, ctypes.c_void_p), ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
        super().__init__({name: releasing(place) for name, place in places.items()})
        self.brief = Entries({name: brief(place) for name, place in places.items()})


@cache
def load() -> Kernels:
    """Return the kernels of this process, compiling them first where this machine has not yet.

    Raises KernelsUnavailable. Processes that start together wait for one compilation.
    """
    file = cache_directory() / f"{_fingerprint()}.kernels"
    if not file.exists():
        _compile(file)
    try:
        return Kernels(*msgspec.msgpack.decode(file.read_bytes(), type=tuple[dict[str, str], bytes]))
    except (msgspec.MsgspecError, KeyError, RuntimeError, OSError) as error:
        raise KernelsUnavailable(f"{file} does not hold kernels ({error}); remove it and start again") from error


def cache_directory() -> Path:
    """Return where machine code is kept: ADSINDEX_CACHE, or the user's cache directory."""
    given = os.environ.get("ADSINDEX_CACHE")
    base = Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adsindex"
    return base / "kernels"


def _fingerprint() -> str:
    digest = hashlib.sha256()
    for name in _SOURCES:
        digest.update((_HERE / name).read_bytes())
    host = (llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten(), version("numba"), version("llvmlite"))
    digest.update(repr(host).encode())
    return digest.hexdigest()[:24]


def _compile(file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with (file.parent / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if file.exists():
                return
            part = file.with_suffix(f".{os.getpid()}.part")
            done = subprocess.run(
                [sys.executable, "-m", "manas.kernels._compile", str(part)],
                cwd=_HERE.parent.parent,
                capture_output=True,
                text=True,
                timeout=_COMPILE_SECONDS,
                check=False,
            )
            if done.returncode != 0:
                raise KernelsUnavailable(f"Numba could not compile the kernels: {done.stderr.strip()[-2000:]}")
            part.replace(file)
    except OSError as error:
        raise KernelsUnavailable(
            f"cannot keep machine code in {file.parent}: {error}; set ADSINDEX_CACHE to a directory"
        ) from error
