"""The same ads as a table of DuckDB, scanned for every request: what needs no index, and the judge of the others.

Small dimensions are bit masks, interests and words are lists, as somebody would write it who wants the scan fast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from benchmarks._retrieval_corpus import DIMENSIONS, MICROS, Corpus, Lists, word_of
from benchmarks._retrieval_requests import Request

MASKED = tuple(name for name, dimension in DIMENSIONS.items() if dimension.values <= 63)
Found = list[tuple[int, float]]


def build(file: Path, corpus: Corpus, scores: Mapping[str, npt.NDArray[np.float64]], changed: Corpus) -> None:
    """Write tables `ads`, with one more score column for each of `scores`, and `after`, where some have changed."""
    with duckdb.connect(str(file)) as connection:
        connection.register("base", _table(corpus, scores))
        connection.execute("CREATE TABLE ads AS SELECT * FROM base")
        connection.register("news", _table(changed, {}))
        more = "".join(f", 0.0 AS {name}" for name in scores)
        connection.execute(
            f"CREATE TABLE after AS SELECT * FROM ads WHERE id NOT IN (SELECT id FROM news) UNION ALL "
            f"SELECT *{more} FROM news"
        )


def _table(corpus: Corpus, scores: Mapping[str, npt.NDArray[np.float64]]) -> pa.Table:
    columns: dict[str, Any] = {"id": corpus.ids}
    for name in MASKED:
        columns[name] = _mask(corpus.accepted[name])
    columns["no_country"] = _mask(corpus.excluded["country"])
    columns["interest"] = _lists(corpus.accepted["interest"])
    columns["no_interest"] = _lists(corpus.excluded["interest"])
    columns |= {"words": _lists(corpus.words), "topics": _lists(corpus.topics)}
    affinities = pa.array(corpus.affinities.astype(np.int32))
    columns["affinities"] = pa.ListArray.from_arrays(pa.array(corpus.topics.offsets.astype(np.int32)), affinities)
    columns |= {"price_micros": corpus.prices, "rating": corpus.ratings, "score": corpus.scores, **scores}
    return pa.table(columns)


def _mask(lists: Lists) -> npt.NDArray[np.int64]:
    """Return one bit per value; 0 where there is none."""
    owners = np.repeat(np.arange(len(lists.offsets) - 1), np.diff(lists.offsets))
    masks = np.zeros(len(lists.offsets) - 1, np.int64)
    np.bitwise_or.at(masks, owners, np.int64(1) << lists.values.astype(np.int64))
    return masks


def _lists(lists: Lists) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(lists.offsets.astype(np.int32)), pa.array(lists.values))


class DuckDBEngine:
    """Answers requests by scanning."""

    def __init__(self, file: Path, table: str, score: str) -> None:
        self._connection = duckdb.connect(str(file), read_only=True, config={"threads": 1})
        self._table, self._score = table, score
        self._words: dict[str, int] = {}

    def answer(self, request: Request, k: int) -> Found:
        """Return the best `k` by score, and by id where scores are equal."""
        parts = ["true"]
        for name in DIMENSIONS:
            if (said := request[name]) == "*":
                continue
            values = said if isinstance(said, list) else [said]
            if name in MASKED:
                mask = sum(1 << value for value in values)
                parts.append(f"({name} = 0 OR ({name} & {mask}) <> 0)")
                if DIMENSIONS[name].excluded:
                    parts.append(f"(no_{name} & {mask}) = 0")
            else:
                parts.append(f"(len({name}) = 0 OR list_has_any({name}, {values}))")
                parts.append(f"NOT list_has_any(no_{name}, {values})")
        if (price := request.get("price")) is not None:
            low, high = round(price["min"] * MICROS), round(price["max"] * MICROS)
            parts.append(f"price_micros BETWEEN {low} AND {high}")
        match request.get("filter"):
            case {"and": terms}:
                parts.append(f"list_has_all(words, {self._numbers(terms)})")
            case {"or": terms}:
                parts.append(f"list_has_any(words, {self._numbers(terms)})")
            case {"range": {"field": field, "gte": low}}:
                parts.append(f"{field} >= {low}")
        score = self._score
        for boost in request.get("boost", ()):
            place = f"list_position(topics, {boost['value']})"
            score += f" + coalesce({boost['weight']}::DOUBLE * affinities[{place}], 0)"
        rows: Found = self._connection.execute(
            f"SELECT id, {score} AS best FROM {self._table} WHERE {' AND '.join(parts)} "
            f"ORDER BY best DESC, id LIMIT {k}"
        ).fetchall()
        return rows

    @staticmethod
    def documents(answer: Any) -> list[bytes]:
        """Return nothing: the table has columns only."""
        return []

    @staticmethod
    def rows(answer: Found) -> Found:
        """Return ids and scores."""
        return answer

    def _numbers(self, terms: Sequence[Mapping[str, Any]]) -> list[int]:
        if not self._words:
            from benchmarks._retrieval_corpus import WORDS

            self._words = {word_of(number): number for number in range(WORDS)}
        return [self._words[node["term"]["value"]] for node in terms]
