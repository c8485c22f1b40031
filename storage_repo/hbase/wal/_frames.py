"""The frames of HBase's RPC, both ways: preamble, headers, parameters and the block of cells behind them.

After the preamble and the connection header every request and answer is an int32 length, then a header, then (if the
header says so) a parameter or result, each with its length as a varint before it, then a block of cells.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from io import BufferedReader
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from storage_repo.hbase.wal._errors import WireError
from storage_repo.hbase.wal.proto import hbase_rpc_pb2 as rpc

M = TypeVar("M", bound=Message)

PREAMBLE = b"HBas\x00\x50"
"""Magic, version 0, simple authentication."""
CODEC = "org.apache.hadoop.hbase.codec.KeyValueCodecWithTags"
MAX_FRAME_BYTES = 256 << 20
"""HBase's own limit of a request (hbase.ipc.max.request.size)."""
MAX_HEADER_BYTES = 64 << 10
"""Of a connection header: user, service and class names."""

_INT32 = struct.Struct(">i")


@dataclass(frozen=True, slots=True)
class Request:
    """One call: `frame[parameter]` is the serialized parameter, the cells begin at `cells`."""

    call_id: int
    method: str
    frame: bytes
    parameter: slice
    cells: int


def open_connection(service: str, user: str) -> bytes:
    """Return what a client says first."""
    header = rpc.ConnectionHeader(service_name=service, cell_block_codec_class=CODEC)
    header.user_info.effective_user = user
    content = header.SerializeToString()
    return PREAMBLE + _INT32.pack(len(content)) + content


def accept_connection(stream: BufferedReader) -> rpc.ConnectionHeader | None:
    """Read what a client says first; None if it went away before. Raises WireError for what we cannot serve."""
    preamble = stream.read(len(PREAMBLE))
    if not preamble:
        return None
    if preamble != PREAMBLE:
        raise WireError(f"a client begins with {preamble!r}; only HBase's RPC with simple authentication is served")
    header = rpc.ConnectionHeader()
    parse(header, _read_frame(stream, MAX_HEADER_BYTES))
    if header.cell_block_codec_class not in ("", CODEC):
        raise WireError(
            f"cells are sent by {header.cell_block_codec_class}, we read {CODEC}; unset hbase.replication.rpc.codec"
        )
    if header.cell_block_compressor_class:
        raise WireError("cells are sent compressed; unset hbase.client.rpc.compressor in HBase's configuration")
    return header


def request(call_id: int, method: str, parameter: Message) -> bytes:
    """Return a request without cells."""
    header = rpc.RequestHeader(call_id=call_id, method_name=method, request_param=True)
    return _frame(_delimited(header.SerializeToString()) + _delimited(parameter.SerializeToString()))


def read_request(stream: BufferedReader) -> Request | None:
    """Read the next request; None when the client has gone. Raises WireError."""
    try:
        frame = _read_frame(stream, MAX_FRAME_BYTES)
    except EOFError:
        return None
    header = rpc.RequestHeader()
    end = _parse_delimited(header, frame, 0)
    parameter = slice(end, end)
    if header.request_param:
        size, start = _varint(frame, end)
        parameter = slice(start, start + size)
    if len(frame) - parameter.stop != header.cell_block_meta.length:
        raise WireError(
            f"{header.method_name}: {len(frame) - parameter.stop} bytes follow the parameter, "
            f"its header says {header.cell_block_meta.length}"
        )
    return Request(header.call_id, header.method_name, frame, parameter, parameter.stop)


def answer(call_id: int, result: bytes = b"") -> bytes:
    """Return the answer with a serialized result."""
    return _frame(_delimited(rpc.ResponseHeader(call_id=call_id).SerializeToString()) + _delimited(result))


def refusal(call_id: int, exception: str, text: str, *, retry: bool) -> bytes:
    """Return the answer that raises a Java exception at the client."""
    header = rpc.ResponseHeader(call_id=call_id)
    header.exception.exception_class_name = exception
    header.exception.stack_trace = text
    header.exception.do_not_retry = not retry
    return _frame(_delimited(header.SerializeToString()))


def read_answer(stream: BufferedReader, into: Message) -> rpc.ResponseHeader:
    """Read an answer; `into` is filled unless the header has an exception. Raises WireError, EOFError."""
    frame = _read_frame(stream, MAX_FRAME_BYTES)
    header = rpc.ResponseHeader()
    end = _parse_delimited(header, frame, 0)
    if not header.HasField("exception"):
        _parse_delimited(into, frame, end)
    return header


def _frame(content: bytes) -> bytes:
    return _INT32.pack(len(content)) + content


def _read_frame(stream: BufferedReader, limit: int) -> bytes:
    head = stream.read(_INT32.size)
    if len(head) < _INT32.size:
        raise EOFError
    (size,) = _INT32.unpack(head)
    if not 0 <= size <= limit:
        raise WireError(f"a frame of {size} bytes is not within 0..{limit}")
    content = stream.read(size)
    if len(content) < size:
        raise EOFError
    return content


def _delimited(content: bytes) -> bytes:
    size, out = len(content), bytearray()
    while size > 0x7F:
        out.append(size & 0x7F | 0x80)
        size >>= 7
    out.append(size)
    return bytes(out) + content


def _varint(frame: bytes, at: int) -> tuple[int, int]:
    """Return the number at a place and the place after it."""
    number = shift = 0
    for byte in frame[at : at + 5]:
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            if at + number > len(frame):
                break
            return number, at
        shift += 7
    raise WireError(f"no length of a message at byte {at} of a frame of {len(frame)}")


def _parse_delimited(into: Message, frame: bytes, at: int) -> int:
    size, start = _varint(frame, at)
    parse(into, frame[start : start + size])
    return start + size


def parse(into: M, content: bytes) -> M:
    """Fill a message. Raises WireError."""
    try:
        into.ParseFromString(content)
        return into
    except DecodeError as error:
        raise WireError(f"no {into.DESCRIPTOR.name} in {content[:60]!r}: {error}") from error
