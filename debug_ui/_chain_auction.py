"""Step 11 of the diagnosis: who outbids the campaign. What a score is made of is the catalogue's to say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from catalog import Column, ValueType
from catalog.values import decode
from debug_ui._chain import Candidate, Fact, Finding, Search, Stop, literal, sql
from debug_ui._chain_repo import registry_of, rows_of
from debug_ui._chain_serving import REQUESTS_TRIED, SLOTS, at, explain, fields_of
from debug_ui._values import money

_MICROS = 1_000_000


@dataclass(frozen=True, slots=True)
class _Loser:
    """An ad that is not among the first for the request that it targets, and the score that it would need."""

    candidate: Candidate
    request: Mapping[str, Any]
    rank: int
    score: float
    bar: float


@dataclass(frozen=True, slots=True)
class _Value:
    """What ranks an ad, and what it would have to be."""

    name: str
    now: float
    needed: float
    where: str
    currency: str | None = None
    """None: it is no money."""
    statement: str = ""
    """Sets it in the ads DB; "" if it does not come from one column there."""

    def shown(self, value: float) -> str:
        """Return an amount of it for people."""
        return f"{value:g}" if self.currency is None else money(value, self.currency)


def able_to_win(search: Search) -> Finding:
    """Step 11: the best ad of the campaign gets into the first slots of the answer to its own request."""
    words = _score_words(search)
    losers: list[_Loser] = []
    by_id = {c.ad_id: c for c in search.candidates}
    tried: set[str] = set()
    for ad_id, request in search.requests.items():
        if ad_id not in by_id or len(tried) >= REQUESTS_TRIED:
            continue
        tried.add(ad_id)
        explained = explain(search, request, by_id[ad_id])
        if explained["rank"] is None:
            continue
        rank, score = int(explained["rank"]), float(explained["score"])
        answer = search.backends.serving.search(at(search, request), SLOTS)
        if rank <= SLOTS:
            facts = [
                Fact("request", request, f"made from the targeting of ad {ad_id}"),
                Fact(f"rank of ad {ad_id}", rank, f"Manas, of {answer['total']} ads that fit"),
                Fact("score", score, f"Manas, {words}"),
                *_rivals(answer["hits"]),
            ]
            search.bodies = {ad_id: search.bodies[ad_id], **search.bodies}
            return Finding(True, f"ad {ad_id} ranks {rank} of {answer['total']} for the request it targets", facts)
        losers.append(_Loser(by_id[ad_id], request, rank, score, float(answer["hits"][-1]["score"])))
    if not losers:
        return Finding(None, "not judged: the ads left the index while the diagnosis ran; run it again")
    best = min(losers, key=lambda loser: loser.bar / loser.score if loser.score > 0 else math.inf)
    raise _outbid(search, best, words)


def _outbid(search: Search, loser: _Loser, words: str) -> Stop:
    ad_id, quality = loser.candidate.ad_id, _quality(search, loser.candidate)
    answer = search.backends.serving.search(at(search, loser.request), SLOTS)
    value = _value(search, loser, quality)
    said = f"the best ad {ad_id} ranks {loser.rank} of {answer['total']} for {SLOTS} slots"
    facts = [
        Fact("request", loser.request, f"made from the targeting of ad {ad_id}"),
        Fact("rank", loser.rank, f"Manas, of {answer['total']} ads that fit"),
        Fact("score", loser.score, f"Manas, {words}"),
        Fact(f"score of slot {SLOTS}", loser.bar, "Manas"),
        Fact("quality", quality, "served document"),
    ]
    if value is None:
        return Stop(
            f"outranked: {said}",
            [*facts, *_rivals(answer["hits"])],
            "The ad is a candidate for every request that fits it, and others come before it.",
            ["aim at requests with less competition"],
        )
    facts += [
        Fact(value.name, value.now, value.where),
        Fact(f"{value.name} needed", value.needed, "score of the last slot / quality"),
    ]
    is_bid = value.currency is not None
    raise_it = (
        value.statement
        or f"raise what {value.name} is made of: {value.shown(value.now)} would have to be {value.shown(value.needed)}"
    )
    return Stop(
        f"{'outbid' if is_bid else 'outranked'}: {said}; {'it bids' if is_bid else f'its {value.name} is'} "
        f"{value.shown(value.now)} and would need {value.shown(value.needed)}",
        [*facts, *_rivals(answer["hits"])],
        "The ad takes part in every auction it may, and loses it to others who bid more or perform better."
        if is_bid
        else "The ad is a candidate for every request that fits it, and others score higher.",
        [raise_it, "or improve its quality (a better creative), or aim at requests with less competition"],
    )


def _score_words(search: Search) -> str:
    serving = search.backends.catalog.serving
    first = "bid" if serving.bid is not None else serving.score or "1"
    return f"{first} x quality" if serving.quality is not None else first


def _value(search: Search, loser: _Loser, quality: float) -> _Value | None:
    """Return what the score is made of, in the currency and column where an advertiser sets it, if it is one."""
    serving, fields = search.backends.catalog.serving, fields_of(search, loser.candidate)
    needed = loser.bar / quality if quality > 0 else math.inf
    if serving.bid is None:
        if serving.score is None:
            return None
        return _Value(serving.score, float(fields.get(serving.score) or 0), needed, "served document")
    micros = math.floor(needed * _MICROS) + 1 if needed < math.inf else 1 << 62
    bid = _Value(serving.bid, int(fields.get(serving.bid) or 0), micros, "served document", "")
    rates = search.backends.catalog.exchange_rates
    if rates is not None:
        bid = _Value(bid.name, bid.now, bid.needed, bid.where, rates.account)
    set_by, currency_by = _origin(search, serving.bid)
    if set_by is None:
        return bid
    rows = dict(rows_of(search, loser.candidate))
    now, currency = _stored(search, rows, set_by), _stored(search, rows, currency_by)
    if not isinstance(now, int):
        return bid
    if rates is not None and currency is not None:
        micros = rates.from_account(micros, currency)
    where = f"Repo, {set_by.table} {rows[set_by.table]}"
    return _Value(
        set_by.name,
        now,
        micros,
        where,
        currency or bid.currency,
        _statement(search, set_by, rows[set_by.table], micros),
    )


def _origin(search: Search, field: str) -> tuple[Column | None, Column | None]:
    """Return the ads DB's column that a money field is made of, and the one with its currency: itself, or the only
    number and the only text that the handler which writes it takes in. None where that is not clear."""
    catalog = search.backends.catalog
    column = catalog.fields[field].column
    if column.source_table is not None:
        return column, None
    for handler in registry_of(catalog).handlers.values():
        if column.ref in handler.declaration.writes:
            inputs = [catalog.column(ref) for ref in handler.declaration.inputs]
            numbers = [c for c in inputs if c.source_table is not None and c.type is ValueType.INT]
            texts = [c for c in inputs if c.source_table is not None and c.type is ValueType.STRING]
            return numbers[0] if len(numbers) == 1 else None, texts[0] if len(texts) == 1 else None
    return None, None


def _stored(search: Search, rows: Mapping[str, str], column: Column | None) -> Any:
    if column is None or column.table not in rows:
        return None
    return decode(search.backends.repo.snapshot().get(column.table, rows[column.table]).get(column.cell))


def _statement(search: Search, column: Column, row: str, value: int) -> str:
    table = search.table(column.table)
    if table.source is None or column.source_table is None:
        return ""
    key = literal(int(row) if table.key_type is ValueType.INT else row)
    place = table.source.tables()[column.source_table]
    return sql(f"UPDATE {column.source_table} SET {column.source_column} = {value} WHERE {place} = {key}")


def _quality(search: Search, candidate: Candidate) -> float:
    field = search.backends.catalog.serving.quality
    value = fields_of(search, candidate).get(field) if field else None
    return 1.0 if value is None else float(value)


def _rivals(hits: Sequence[Mapping[str, Any]]) -> list[Fact]:
    shown = [f"ad {hit['ad_id']} scores {hit['score']:.4g}" for hit in hits[:SLOTS]]
    return [Fact("the best ads for this request", shown, "Manas, search")]
