"""Generate the protobuf modules from `proto/adsindex.proto`; a test checks that the committed ones are up to date."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def generate(out: Path) -> None:
    """Write adsindex_pb2.py, adsindex_pb2.pyi and adsindex_pb2_grpc.py under `out`/messaging/proto."""
    from grpc_tools import protoc  # type: ignore[import-untyped,unused-ignore]

    code = protoc.main(
        [
            "protoc",
            f"-I{ROOT}",
            f"--python_out={out}",
            f"--pyi_out={out}",
            f"--grpc_python_out={out}",
            str(ROOT / "messaging/proto/adsindex.proto"),
        ]
    )
    if code != 0:
        raise SystemExit(f"protoc failed with exit code {code} on messaging/proto/adsindex.proto")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
