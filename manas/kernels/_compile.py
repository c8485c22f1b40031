"""Compile the kernels to object code: `python -m manas.kernels._compile FILE`."""

# mypy: ignore-errors
from __future__ import annotations

import sys
from pathlib import Path

import llvmlite.binding as llvm
import msgspec

from manas.kernels._list_source import build_lists
from manas.kernels._predicate_source import build_predicates
from manas.kernels._source import build
from manas.kernels._stored_source import build_stored
from manas.kernels._vector_source import build_vectors
from manas.kernels._walk_source import build_walk


def main() -> None:
    """Write name -> symbol, and the object code, to the file."""
    host, features = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    target = llvm.Target.from_default_triple()
    machine = target.create_target_machine(cpu=host, features=features, opt=3, reloc="pic", codemodel="jitdefault")
    names = {}
    whole = llvm.parse_assembly("")
    kernels = build() | build_vectors() | build_walk() | build_predicates() | build_lists() | build_stored()
    for name, kernel in kernels.items():
        module = llvm.parse_assembly(kernel.inspect_llvm())
        unresolved = [f.name for f in module.functions if f.is_declaration and not f.name.startswith("llvm.")]
        if unresolved:
            raise SystemExit(f"kernel {name} would need {', '.join(unresolved)}: it must not raise or allocate")
        names[name] = kernel.native_name
        whole.link_in(module)
    # One object: of several in one engine, LLVM's loader got the jump tables of the later ones wrong.
    Path(sys.argv[1]).write_bytes(msgspec.msgpack.encode((names, machine.emit_object(whole))))


if __name__ == "__main__":
    main()
