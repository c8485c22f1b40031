"""The documents of a base indexed by tantivy: `python -m benchmarks._peer_tantivy BASE` prints figures as JSON.

The same fields are indexed: terms as raw text, words tokenized, numbers as fast and indexed fields, the whole body
stored. tantivy has no vectors, so theirs are only part of the stored body. Decoding the bodies is in the timing, as it
is in ours; the handlers' work is in neither of the figures that are compared.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import tantivy

from catalog import Catalog, Destination, ValueType, load_catalog
from catalog.documents import decode_document
from manas import Base

_HEAP_BYTES = 256 << 20


def main(base: Path) -> None:
    """Print {"documents", "seconds", "cpu_s", "bytes"}."""
    catalog = load_catalog()
    documents = [s.body(internal) for s in Base.open(base, verify=False).segments for internal in range(s.count)]
    with tempfile.TemporaryDirectory() as directory:
        started, cpu = time.perf_counter(), _cpu()
        index = tantivy.Index(_schema(catalog), path=directory)
        writer = index.writer(_HEAP_BYTES, 1)
        for body in documents:
            writer.add_document(_document(catalog, decode_document(body), body))
        writer.commit()
        writer.wait_merging_threads()
        seconds, spent = time.perf_counter() - started, _cpu() - cpu
        size = sum(file.stat().st_size for file in Path(directory).iterdir())
    print(json.dumps({"documents": len(documents), "seconds": seconds, "cpu_s": spent, "bytes": size}))


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _schema(catalog: Catalog) -> Any:
    builder = tantivy.SchemaBuilder()
    builder.add_bytes_field("body", stored=True)
    for field in catalog.fields.values():
        if field.index in (Destination.TERM, Destination.TARGETING):
            builder.add_text_field(field.name, tokenizer_name="raw", index_option="basic")
        elif field.index is Destination.TEXT:
            builder.add_text_field(field.name, index_option="freq")
        elif field.index is Destination.NUMERIC and field.type is ValueType.FLOAT:
            builder.add_float_field(field.name, indexed=True, fast=True)
        elif field.index is Destination.NUMERIC:
            builder.add_integer_field(field.name, indexed=True, fast=True)
    return builder.build()


def _document(catalog: Catalog, values: dict[str, Any], body: bytes) -> Any:
    document = tantivy.Document()
    document.add_bytes("body", body)
    for name, value in values.items():
        field = catalog.fields[name]
        if field.index in (Destination.TERM, Destination.TARGETING, Destination.TEXT):
            for one in value if isinstance(value, list) else [value]:
                document.add_text(name, str(one))
        elif field.index is Destination.NUMERIC and field.type is ValueType.FLOAT:
            document.add_float(name, float(value))
        elif field.index is Destination.NUMERIC:
            document.add_integer(name, value)
    return document


if __name__ == "__main__":
    main(Path(sys.argv[1]))
