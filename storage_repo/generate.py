"""Generate the protobuf modules of other systems' wire formats; a test checks that those here are up to date."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ("storage_repo/hbase/wal/proto/hbase_rpc.proto", "storage_repo/omid/proto/omid.proto")
"""Each gives a NAME_pb2.py and a NAME_pb2.pyi beside it."""


def generate(out: Path) -> None:
    """Write the modules below `out`, in folders as here."""
    from grpc_tools import protoc  # type: ignore[import-untyped,unused-ignore]

    for proto in PROTOS:
        code = protoc.main(["protoc", f"-I{ROOT}", f"--python_out={out}", f"--pyi_out={out}", str(ROOT / proto)])
        if code != 0:
            raise SystemExit(f"protoc failed with exit code {code} on {proto}")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
