"""The same ads in tantivy, and the same requests as its queries.

Targeting terms, title words, topics and campaigns are indexed without positions and frequencies, which nobody asks
for; what is ranked or compared by is a fast field; the id is both, for deltas. The body is stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tantivy

from benchmarks._retrieval_corpus import DIMENSIONS, MICROS
from benchmarks._retrieval_requests import Request
from catalog.documents import decode_document
from catalog.targeting import accept_term, any_term, exclude_term

HEAP_BYTES = 1 << 30
"""Of the writer: all of a million ads, so that they become few segments."""
FORMS = ("term queries", "term sets")
"""Ways to ask for one of several terms."""


def build(directory: Path, documents: Iterable[tuple[str, int, bytes]]) -> None:
    """Index documents by one thread."""
    index = tantivy.Index(_schema(), path=str(directory))
    writer = index.writer(HEAP_BYTES, 1)
    for document in documents:
        writer.add_document(_document(*document))
    writer.commit()
    writer.wait_merging_threads()


def change(directory: Path, documents: Iterable[tuple[str, int, bytes]]) -> None:
    """Replace documents by newer versions, in one commit."""
    index = tantivy.Index.open(str(directory))
    writer, schema = index.writer(HEAP_BYTES, 1), index.schema
    for document_id, version, body in documents:
        writer.delete_documents_by_query(tantivy.Query.term_query(schema, "id", int(document_id)))
        writer.add_document(_document(document_id, version, body))
    writer.commit()
    writer.wait_merging_threads()


def _schema() -> Any:
    builder = tantivy.SchemaBuilder()
    builder.add_unsigned_field("id", indexed=True, fast=True)
    for name in ("targeting", "terms"):
        builder.add_text_field(name, tokenizer_name="raw", index_option="basic")
    for name in ("topics", "campaign_id"):
        builder.add_unsigned_field(name, indexed=True)
    for name in ("version", "bid_micros", "price_micros", "rating"):
        builder.add_unsigned_field(name, fast=True)
    for name in ("quality", "score"):
        builder.add_float_field(name, fast=True)
    builder.add_bytes_field("body", stored=True)
    return builder.build()


def _document(document_id: str, version: int, body: bytes) -> Any:
    values, document = decode_document(body), tantivy.Document()
    document.add_unsigned("id", int(document_id))
    document.add_unsigned("version", version)
    for name in ("targeting", "terms"):
        for term in values[name]:
            document.add_text(name, term)
    for topic in values["topics"]:
        document.add_unsigned("topics", topic)
    for name in ("campaign_id", "bid_micros", "price_micros", "rating"):
        document.add_unsigned(name, values[name])
    document.add_float("quality", values["quality"])
    document.add_float("score", values["bid_micros"] / MICROS * values["quality"])
    document.add_bytes("body", body)
    return document


class TantivyEngine:
    """Answers requests from an index of `build`."""

    def __init__(self, directory: Path, form: str) -> None:
        """`form` is one of FORMS."""
        self._index = tantivy.Index.open(str(directory))
        self._schema, self._sets = self._index.schema, form == FORMS[1]
        self._searcher = self._index.searcher()

    def answer(self, request: Request, k: int) -> tuple[list[int], list[tuple[float, Any]]]:
        """Return the best `k` by score: ids; scores and places."""
        hits = self._searcher.search(self._query(request), k, count=False, order_by_field="score").hits
        return self._searcher.fast_field_values("id", [address for _, address in hits]), hits

    @staticmethod
    def rows(answer: tuple[list[int], list[tuple[float, Any]]]) -> list[tuple[int, float]]:
        """Return ids and scores."""
        return [(number, score) for number, (score, _) in zip(*answer, strict=True)]

    def documents(self, answer: tuple[list[int], list[tuple[float, Any]]]) -> list[bytes]:
        """Return the documents of an answer's hits."""
        return [bytes(self._searcher.doc(address)["body"][0]) for _, address in answer[1]]

    def _query(self, request: Request) -> Any:
        must, must_not = tantivy.Occur.Must, tantivy.Occur.MustNot
        parts: list[tuple[Any, Any]] = []
        for name in DIMENSIONS:
            if (said := request[name]) == "*":
                continue
            values = said if isinstance(said, list) else [said]
            accepted = [any_term(name), *(accept_term(name, value) for value in values)]
            parts.append((must, self._some("targeting", accepted)))
            if DIMENSIONS[name].excluded:
                parts.append((must_not, self._some("targeting", [exclude_term(name, value) for value in values])))
        if (price := request.get("price")) is not None:
            parts.append(
                (must, self._range("price_micros", round(price["min"] * MICROS), round(price["max"] * MICROS)))
            )
        match request.get("filter"):
            case {"and": terms}:
                parts += [(must, self._term("terms", node["term"]["value"])) for node in terms]
            case {"or": terms}:
                parts.append((must, self._some("terms", [node["term"]["value"] for node in terms])))
            case {"range": {"field": field, "gte": low}}:
                parts.append((must, self._range(field, low, None)))
        return tantivy.Query.boolean_query(parts)

    def _some(self, field: str, terms: Sequence[str]) -> Any:
        if len(terms) == 1:
            return self._term(field, terms[0])
        if self._sets:
            return tantivy.Query.term_set_query(self._schema, field, list(terms))
        return tantivy.Query.boolean_query([(tantivy.Occur.Should, self._term(field, term)) for term in terms])

    def _term(self, field: str, term: str) -> Any:
        return tantivy.Query.term_query(self._schema, field, term, "basic")

    def _range(self, field: str, low: int, high: int | None) -> Any:
        return tantivy.Query.range_query(self._schema, field, tantivy.FieldType.Unsigned, low, high)
