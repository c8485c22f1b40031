"""The forward index: what documents say, in families of fields that are read together.

| file | content |
| --- | --- |
| `forward.FAMILY.blob` | per document an LZ4 block: the canonical map of the family's fields; in order of input |
| `forward.FAMILY.dictionary` | what blocks may refer to as if it came before each of them; perhaps empty |
| `forward.FAMILY.starts` | by internal id: where the block begins; uint32 where they all fit, else uint64 |
| `forward.FAMILY.lengths` | by internal id: bytes of the block; uint16 where they all fit, else uint32 |

The length of a file tells which of the two types it has. `stored` in the manifest has for each family the bytes of all
maps and of the longest.

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
from manas._arrays import write_array
from manas._dictionary import shortest
from manas._exceptions import InvalidDocument
from manas._manifest import StoredFamily
from manas._stored import Blocks, Squeezer

_split = msgspec.msgpack.Decoder(dict[str, msgspec.Raw])
_join = msgspec.msgpack.Encoder(order="sorted")


class ForwardWriter:
    """Writes the families of one segment."""

    def __init__(self, directory: Path, families: Mapping[str, str]) -> None:
        """`families` has the family of every declared field."""
        self._directory = directory
        self._family = dict(families)
        self._names = sorted({BODY, *families.values()})
        self._squeezers = {name: Squeezer() for name in self._names}
        self._lengths: dict[str, list[npt.NDArray[np.int64]]] = {name: [] for name in self._names}
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
        blocks, ends = self._squeezers[name].add(parts)
        write_array(self._blobs[name], blocks)
        self._lengths[name].append(np.diff(ends, prepend=0))

    def finish(self, inputs: npt.NDArray[np.int64]) -> dict[str, StoredFamily]:
        """Write the places, and return what there is of each family; `inputs` has the order of input by internal id."""
        self._files.close()
        for name, parts in self._lengths.items():
            lengths = np.concatenate([np.empty(0, np.int64), *parts])
            starts = np.cumsum(lengths, dtype=np.uint64) - lengths.astype(np.uint64)
            short = len(lengths) == 0 or int(lengths.max()) < 1 << 16
            narrow = lengths.astype(np.uint16 if short else np.uint32)
            for file, values in (("starts", shortest(starts)), ("lengths", narrow)):
                with (self._directory / f"forward.{name}.{file}").open("xb") as handle:
                    write_array(handle, values[inputs])
            (self._directory / f"forward.{name}.dictionary").write_bytes(self._squeezers[name].dictionary)
        return {name: StoredFamily(own.bytes, own.longest) for name, own in self._squeezers.items()}

    def close(self) -> None:
        """Close the files; safe to call twice."""
        self._files.close()


class Forward:
    """The families of one segment, mapped."""

    def __init__(self, families: Mapping[str, str], blocks: Mapping[str, Blocks]) -> None:
        """`families` has the family of every field, `blocks` what there is of each family."""
        self._family, self._blocks = dict(families), dict(blocks)

    def body(self, internal: int) -> bytes:
        """Return the canonical document."""
        if len(self._blocks) == 1:
            return self._blocks[BODY][internal]
        whole: dict[str, msgspec.Raw] = {}
        for blocks in self._blocks.values():
            whole |= _split.decode(blocks[internal])
        return _join.encode(whole)

    def fields(self, internal: int, names: Iterable[str]) -> dict[str, Any]:
        """Return some fields of a document, those that it has; only their families are read."""
        wanted = list(names)
        found: dict[str, Any] = {}
        for family in sorted({self._family.get(name, BODY) for name in wanted}):
            part = decode_document(self._blocks[family][internal])
            found |= {name: part[name] for name in wanted if name in part}
        return found
