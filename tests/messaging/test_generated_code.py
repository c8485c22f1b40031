"""The committed protobuf modules are those that `messaging.generate` makes of the .proto file."""

from __future__ import annotations

from pathlib import Path

import pytest

from messaging.generate import ROOT, generate
from messaging.proto import adsindex_pb2 as pb


def test_generated_code_is_up_to_date(tmp_path: Path) -> None:
    """Generating again gives the committed files, byte by byte, and no file more."""
    generate(tmp_path)
    made = {file.relative_to(tmp_path): file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert {file.name for file in made} == {"adsindex_pb2.py", "adsindex_pb2.pyi", "adsindex_pb2_grpc.py"}
    for file, content in made.items():
        assert (ROOT / file).read_bytes() == content, f"{file} is stale; run python -m messaging.generate"


def test_every_stage_message_carries_a_header() -> None:
    """What goes from stage to stage has trace, lane, origin and hops, under the same field number."""
    for message in (
        pb.Change, pb.EntityUpdate, pb.Notification, pb.DocumentDelta, pb.BudgetState, pb.DeadLetter,
    ):  # fmt: skip
        header = message.DESCRIPTOR.fields_by_name["header"]
        assert (header.number, header.message_type.name) == (1, "Header"), message


def test_a_broken_proto_file_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """protoc's refusal is not passed over."""
    proto = tmp_path / "messaging" / "proto" / "adsindex.proto"
    proto.parent.mkdir(parents=True)
    proto.write_text("syntax = nothing")
    monkeypatch.setattr("messaging.generate.ROOT", tmp_path)
    with pytest.raises(SystemExit, match="protoc failed"):
        generate(tmp_path)
