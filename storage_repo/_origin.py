"""How an engine stores who wrote: one compact record per transaction (embedded) or per written row (HBase)."""

from __future__ import annotations

import msgspec

from storage_repo.api import Origin

_encode = msgspec.msgpack.encode
_decode = msgspec.msgpack.Decoder(tuple[str, str, str, str, int, int, bytes]).decode


def encode_origin(origin: Origin) -> bytes:
    """Return the stored form of an origin."""
    return _encode(
        (
            origin.stage,
            origin.handler,
            origin.code_version,
            origin.trace_id,
            origin.lane,
            origin.origin_us,
            origin.hops,
        )
    )


def decode_origin(record: bytes | memoryview) -> Origin:
    """Return the origin of a stored record. Raises msgspec.DecodeError for bytes that are none."""
    return Origin(*_decode(record))
