"""What goes over the wire between a client and the TSO: frames around protobuf messages, as Omid 1.1 has them.

A frame is a 4-byte big-endian length and a message. Timestamp answers come in the order of their requests; answers to
commits and fences are known by their transaction and table.
"""

from __future__ import annotations

from google.protobuf.message import DecodeError

from storage_repo.omid._errors import TsoIncompatible
from storage_repo.omid.ids import FORBIDDEN_ID
from storage_repo.omid.outcomes import CommitRequest
from storage_repo.omid.proto import omid_pb2 as pb

LENGTH_BYTES = 4
MAX_MESSAGE_BYTES = 10 * 1024 * 1024
"""The server closes the connection at a larger one; a commit of a million cells would come near."""


def frame(message: bytes) -> bytes:
    """Put a message's length before it."""
    return len(message).to_bytes(LENGTH_BYTES, "big") + message


HANDSHAKE = frame(pb.Request(handshake=pb.HandshakeRequest(capabilities=pb.Capabilities())).SerializeToString())
"""Must be the first thing said."""
BEGIN = frame(pb.Request(timestamp=pb.TimestampRequest()).SerializeToString())


def commit_frame(request: CommitRequest, *, is_retry: bool = False) -> bytes:
    """Return the frame that asks for a commit. Raises ValueError for what would harm the server."""
    if FORBIDDEN_ID in request.cell_ids:
        raise ValueError(f"cell id {FORBIDDEN_ID} would end the TSO; ids.cell_id never gives it")
    commit = pb.CommitRequest(start_ts=request.start_ts, cell_ids=request.cell_ids, table_ids=request.table_ids)
    if is_retry:
        commit.is_retry = True
    message = pb.Request(commit=commit).SerializeToString()
    if len(message) > MAX_MESSAGE_BYTES:
        raise ValueError(
            f"transaction {request.start_ts} has {len(request.cell_ids)} cells, more than the TSO takes in one message"
        )
    return frame(message)


def fence_frame(table_id: int) -> bytes:
    """Return the frame that asks for a fence around a table."""
    return frame(pb.Request(fence=pb.FenceRequest(table_id=table_id)).SerializeToString())


class ResponseReader:
    """Cuts what is received, in whatever pieces, into responses."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[pb.Response]:
        """Return the responses that are complete now, in order. Raises TsoIncompatible; then the stream is lost."""
        buffer = self._buffer
        buffer += data
        responses: list[pb.Response] = []
        start, end = 0, len(buffer)
        while end - start >= LENGTH_BYTES:
            length = int.from_bytes(buffer[start : start + LENGTH_BYTES], "big")
            if length > MAX_MESSAGE_BYTES:
                raise TsoIncompatible(f"this is no TSO: it announced a message of {length} bytes")
            stop = start + LENGTH_BYTES + length
            if stop > end:
                break
            responses.append(_decode(bytes(buffer[start + LENGTH_BYTES : stop])))
            start = stop
        del buffer[:start]
        return responses


def check_handshake(response: pb.Response) -> None:
    """Raise TsoIncompatible unless the server takes us, and writes the commit table itself."""
    if response.WhichOneof("kind") != "handshake" or not response.handshake.client_compatible:
        raise TsoIncompatible("the TSO refused the handshake; this client speaks Omid 1.1's protocol")
    if response.handshake.low_latency:
        raise TsoIncompatible(
            "the TSO runs with lowLatency: true, where clients write the commit table; set lowLatency: false"
        )


def _decode(message: bytes) -> pb.Response:
    try:
        response = pb.Response.FromString(message)
    except DecodeError as error:
        raise TsoIncompatible(f"this is no TSO: {message[:40]!r} is none of its messages") from error
    if response.WhichOneof("kind") is None:
        raise TsoIncompatible(f"the TSO answered {message[:40]!r}, which this client does not know")
    return response
