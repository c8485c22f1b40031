"""The servable document's canonical bytes: equal documents have equal bytes, whoever built them and when.

A document is a map from field name to value, fields without a value left out, names sorted, as MessagePack.
Nothing that depends on the run (timestamps of commits, traces, versions) is in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from catalog.kinds import ValueType
from catalog.model import Catalog

_encoder = msgspec.msgpack.Encoder(order="sorted")
_decoder = msgspec.msgpack.Decoder(dict[str, Any])
_parts = msgspec.msgpack.Decoder(dict[str, msgspec.Raw])


def encode_document(fields: Mapping[str, Any]) -> bytes:
    """Return the canonical bytes of a document."""
    return _encoder.encode({name: value for name, value in fields.items() if value is not None})


def decode_document(body: bytes) -> dict[str, Any]:
    """Return the fields of canonical bytes. Raises msgspec.DecodeError, also for more levels than can be read."""
    try:
        return _decoder.decode(body)
    except RecursionError as error:
        raise msgspec.DecodeError(f"{len(body)} bytes of too many levels of lists or maps") from error


def is_canonical(body: bytes) -> bool:
    """Tell whether the fields that were decoded are in the order and the frame that `encode_document` gives them."""
    return _encoder.encode(_parts.decode(body)) == body


def readable_document(catalog: Catalog, body: bytes) -> dict[str, Any]:
    """Return the fields in a form that JSON can show: vectors as lists of floats, bytes as hex."""
    shown: dict[str, Any] = {}
    for name, value in decode_document(body).items():
        declared = catalog.fields.get(name)
        if declared is not None and declared.type is ValueType.VECTOR:
            shown[name] = [round(float(x), 6) for x in np.frombuffer(value, dtype="<f4")]
        else:
            shown[name] = value.hex() if isinstance(value, bytes) else value
    return shown
