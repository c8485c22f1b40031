"""The forward index: what documents say, in families of fields that are read together.

| file | content |
| --- | --- |
| `forward.FAMILY.blob` | per document the canonical map of the family's fields, in order of input |
| `forward.FAMILY.starts` | by internal id: where the map begins; uint32 where they all fit, else uint64 |
| `forward.FAMILY.lengths` | by internal id: bytes of the map; uint16 where they all fit, else uint32 |

The length of a file tells which of the two types it has.

With one family the map is the document. With more, a document is put together again from all of them, byte by byte as
it came. Fields that the catalogue does not know are in the family `body`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from catalog.documents import decode_document
from catalog.model import BODY
from manas._dictionary import shortest
from manas._exceptions import InvalidDocument

_LONGEST = (1 << 32) - 1
_split = msgspec.msgpack.Decoder(dict[str, msgspec.Raw])
_join = msgspec.msgpack.Encoder(order="sorted")


class ForwardWriter:
    """Writes the families of one segment."""

    def __init__(self, directory: Path, families: Mapping[str, str]) -> None:
        """`families` has the family of every declared field."""
        self._directory = directory
        self._family = dict(families)
        self._names = sorted({BODY, *families.values()})
        self._lengths: dict[str, list[npt.NDArray[np.uint64]]] = {name: [] for name in self._names}
        self._files = ExitStack()
        self._blobs = {
            name: self._files.enter_context((directory / f"forward.{name}.blob").open("xb")) for name in self._names
        }

    def add(self, bodies: Sequence[bytes]) -> None:
        """Append documents. Raises InvalidDocument for one that would not come back byte by byte."""
        if len(self._names) == 1:
            self._append(BODY, bodies)
            return
        parts: dict[str, list[bytes]] = {name: [] for name in self._names}
        for body in bodies:
            fields = _split.decode(body)
            if _join.encode(fields) != body:
                raise InvalidDocument(f"a document of {len(body)} bytes is not canonical: {sorted(fields)[:5]}")
            own: dict[str, dict[str, msgspec.Raw]] = {name: {} for name in self._names}
            for field, raw in fields.items():
                own[self._family.get(field, BODY)][field] = raw
            for name, part in own.items():
                parts[name].append(_join.encode(part))
        for name, encoded in parts.items():
            self._append(name, encoded)

    def _append(self, name: str, parts: Sequence[bytes]) -> None:
        self._blobs[name].write(b"".join(parts))
        lengths = np.fromiter(map(len, parts), np.uint64, len(parts))
        if len(lengths) and int(lengths.max()) > _LONGEST:
            raise InvalidDocument(f"a document has more than {_LONGEST} bytes")
        self._lengths[name].append(lengths)

    def finish(self, inputs: npt.NDArray[np.int64]) -> None:
        """Write the places; `inputs` has the order of input by internal id."""
        self._files.close()
        for name, parts in self._lengths.items():
            lengths = np.concatenate([np.empty(0, np.uint64), *parts])
            starts = np.cumsum(lengths, dtype=np.uint64) - lengths
            short = len(lengths) == 0 or int(lengths.max()) < 1 << 16
            narrow = lengths.astype(np.uint16 if short else np.uint32)
            for file, values in (("starts", shortest(starts)), ("lengths", narrow)):
                with (self._directory / f"forward.{name}.{file}").open("xb") as handle:
                    values[inputs].tofile(handle)

    def close(self) -> None:
        """Close the files; safe to call twice."""
        self._files.close()


class Forward:
    """The families of one segment, mapped."""

    def __init__(
        self,
        families: Mapping[str, str],
        blobs: Mapping[str, Any],
        starts: Mapping[str, npt.NDArray[Any]],
        lengths: Mapping[str, npt.NDArray[Any]],
    ) -> None:
        """`families` has the family of every field; the others are by family."""
        self._family = dict(families)
        self._blobs, self._starts, self._lengths = blobs, starts, lengths

    def body(self, internal: int) -> bytes:
        """Return the canonical document."""
        if len(self._blobs) == 1:
            return self._part(BODY, internal)
        whole: dict[str, msgspec.Raw] = {}
        for name in self._blobs:
            whole |= _split.decode(self._part(name, internal))
        return _join.encode(whole)

    def fields(self, internal: int, names: Iterable[str]) -> dict[str, Any]:
        """Return some fields of a document, those that it has; only their families are read."""
        wanted = list(names)
        found: dict[str, Any] = {}
        for family in sorted({self._family.get(name, BODY) for name in wanted}):
            part = decode_document(self._part(family, internal))
            found |= {name: part[name] for name in wanted if name in part}
        return found

    def _part(self, family: str, internal: int) -> bytes:
        start = int(self._starts[family][internal])
        part: bytes = self._blobs[family][start : start + int(self._lengths[family][internal])]
        return part
