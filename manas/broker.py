"""One answer from many shards: exactly what one index of all documents would have answered.

Where a request needs to know all documents (how rare a word is, the vector of `similar_to`), that is found out first
and sent along. Diversity is decided here, over candidates whose groups the shards tell.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Protocol, TypeVar

import msgspec

from catalog import Catalog
from catalog.documents import decode_document
from catalog.values import datetime_of, micros_of
from manas._base import shard_of
from manas._common import Common
from manas._exceptions import InvalidRequest, ManasError, ManasUnavailable
from manas._layer import After
from manas._paging import KEY, Page, read_page, write_page
from manas._schema import DocumentSchema
from manas._scoring import default_rerank
from manas.api import Answer, Hit
from messaging.headers import now_us
from messaging.proto import adsindex_pb2 as pb

T = TypeVar("T")
_GRACE_SECONDS = 0.1
"""After a shard's deadline: for an answer that is already on its way."""
_THREADS_PER_SHARD = 4


class SearchShard(Protocol):
    """A shard: an `Index` in process, or a `ManasClient`."""

    def search(
        self,
        request: Mapping[str, Any],
        k: int = 10,
        *,
        counting: bool = True,
        timeout_s: float | None = None,
        common: Common | None = None,
    ) -> Answer:
        """Return the shard's best."""

    def explain(
        self,
        request: Mapping[str, Any],
        k: int = 10,
        ad_id: int | str | None = None,
        *,
        common: Common | None = None,
    ) -> dict[str, Any]:
        """Return the shard's plan, and why an ad of it is or is not in its answer."""

    def statistics(self, request: Mapping[str, Any]) -> Common:
        """Return what idf needs of the shard."""

    def get(self, document_ids: Sequence[str]) -> list[pb.ServedDocument]:
        """Return what the shard has of documents."""

    def stats(self) -> dict[str, Any]:
        """Return sizes, versions and positions."""

    def budget(self, campaign_id: str) -> pb.BudgetState | None:
        """Return a campaign's budget state."""


@dataclass(slots=True)
class _Round:
    """One request on its way: until when, and which shards are given up, and why."""

    ends: float
    timeout_s: float | None
    counting: bool
    common: Common | None = None
    missing: dict[int, str] = field(default_factory=dict)


class Broker:
    """Answers from all shards; shard i must hold the documents whose `shard_of` is i. Safe for threads."""

    def __init__(self, catalog: Catalog, shards: Sequence[SearchShard], *, timeout_s: float = 10.0) -> None:
        """`timeout_s`: how long a shard may take where the caller does not say; the rest then answers without it."""
        if not shards:
            raise ManasError("a broker needs at least one shard")
        self._schema = DocumentSchema(catalog)
        self._shards = list(shards)
        self._timeout_s = timeout_s
        self._pool = ThreadPoolExecutor(_THREADS_PER_SHARD * len(shards), thread_name_prefix="broker")

    def __enter__(self) -> Broker:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Ask no more; safe to call twice. The shards' clients stay open."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def search(
        self, request: Mapping[str, Any], k: int = 10, *, counting: bool = True, timeout_s: float | None = None
    ) -> Answer:
        """Return the best `k` ads of all shards; 0 means all.

        A shard that has not answered after `timeout_s` (or cannot) is named in `missing_shards`, and the answer is
        partial. Raises InvalidRequest, and ManasUnavailable when no shard answers or the one that has `similar_to`.
        """
        if isinstance(k, bool) or not isinstance(k, int) or k < 0:
            raise InvalidRequest(f"k: a whole number from 0 (all), got {k!r}")
        if not isinstance(request, Mapping):
            raise InvalidRequest(f"a request is a JSON object, got {request!r:.80}")
        page = read_page(request, int_keys=self._schema.int_keys)
        asked = _pinned(request, page)
        round_ = _Round(time.monotonic() + (timeout_s or self._timeout_s), timeout_s, counting)
        round_.common = self._common(asked, round_)
        most = asked.get("max_per_advertiser") if self._schema.catalog.serving.diversity is not None else None
        if isinstance(most, int):
            answer = self._diverse(asked, most, k, page, round_)
        else:
            answer = self._merged(asked if page is None else _inner_page(asked, page), k, round_)
        if page is not None:
            hits = answer["hits"]
            answer["page_token"] = "" if len(hits) < k else _next_page(page, hits, _instant(asked))
        return answer

    def explain(self, request: Mapping[str, Any], k: int = 10, ad_id: int | str | None = None) -> dict[str, Any]:
        """Return the answer with every shard's plan, and why an ad is or is not in it, as its own shard sees it."""
        result: dict[str, Any] = dict(self.search(request, k))
        asked = _pinned(request, read_page(request, int_keys=self._schema.int_keys))
        round_ = _Round(time.monotonic() + self._timeout_s, None, True)
        common = round_.common = self._common(asked, round_)
        home = -1 if ad_id is None else shard_of(str(ad_id), len(self._shards))

        def explained(number: int, shard: SearchShard) -> dict[str, Any]:
            return shard.explain(asked, k, ad_id if number == home else None, common=common)

        plans = self._ask(explained, round_)
        result["plan"] = {"shards": {self._name(n): found["plan"] for n, found in sorted(plans.items())}}
        if home in plans:
            ad = plans[home]["ad"]
            ad["shard"] = self._name(home)
            included = any(str(hit["ad_id"]) == str(ad_id) for hit in result["hits"])
            if ad["in_answer"] and not included:
                ad["why"] = f"in the answer of shard {ad['shard']}, where its rank is {ad['rank']}; others are better"
            ad["in_answer"] = included
            result["ad"] = ad
        elif home >= 0:
            raise ManasUnavailable(f"ad {ad_id} belongs to shard {self._name(home)}: {round_.missing[home]}")
        return result

    def get(self, document_ids: Sequence[str]) -> list[pb.ServedDocument]:
        """Return what serving has of each document, in the order asked. Raises ManasUnavailable without its shard."""
        by_shard: dict[int, list[str]] = {}
        for document_id in document_ids:
            by_shard.setdefault(shard_of(document_id, len(self._shards)), []).append(document_id)
        round_ = self._round()
        found = self._ask(lambda n, s: s.get(by_shard[n]), round_, only=by_shard)
        if round_.missing:
            raise ManasUnavailable(f"documents of shards that do not answer: {self._named(round_.missing)}")
        served = {document.document_id: document for documents in found.values() for document in documents}
        return [served[document_id] for document_id in document_ids]

    def stats(self) -> dict[str, Any]:
        """Return every shard's stats, the number of documents, and who is missing."""
        round_ = self._round()
        found = self._ask(lambda _, s: s.stats(), round_)
        return {
            "documents": sum(stats["documents"] for stats in found.values()),
            "shards": {self._name(n): stats for n, stats in sorted(found.items())},
            "missing_shards": self._named(round_.missing),
        }

    def budget(self, campaign_id: str) -> pb.BudgetState | None:
        """Return the newest budget state that any shard knows: each of them has all budgets."""
        round_ = self._round()
        found = self._ask(lambda _, s: s.budget(campaign_id), round_)
        if not found:
            raise ManasUnavailable(f"no shard answers: {self._named(round_.missing)}")
        return max(filter(None, found.values()), key=lambda state: state.version, default=None)

    # ---- rounds ----

    def _round(self) -> _Round:
        return _Round(time.monotonic() + self._timeout_s, None, True)

    def _common(self, request: Mapping[str, Any], round_: _Round) -> Common | None:
        serving = self._schema.catalog.serving
        common = None
        if "text" in request and serving.text is not None:
            parts = self._ask(lambda _, s: s.statistics(request), round_)
            words = Counter[str]()
            for part in parts.values():
                words.update(part.frequencies)
            common = Common(sum(part.documents or 0 for part in parts.values()), dict(words))
        field = request.get("vector_field", serving.vector)
        if "similar_to" in request and "vector" not in request and isinstance(field, str):
            vector = self._vector_of(request["similar_to"], field)
            if vector is not None:
                common = replace(common or Common(), vector=vector)
        return common

    def _vector_of(self, document_id: Any, field: str) -> bytes | None:
        """Return the vector of a document; None leaves it to the shards to say what is wrong with the request."""
        if not isinstance(document_id, int | str) or isinstance(document_id, bool):
            return None
        [served] = self.get([str(document_id)])
        value = decode_document(served.body).get(field) if served.found and not served.deleted else None
        return value if isinstance(value, bytes) else None

    def _diverse(self, asked: dict[str, Any], most: int, k: int, page: Page | None, round_: _Round) -> Answer:
        """Ask for candidates until they hold `k` hits of which at most `most` share a group, from the top on."""
        round_.common = replace(round_.common or Common(), diversity=False)
        behind = None if page is None else page.after
        limit = 4 * (k + (page.seen if page is not None else 0)) if k else 0
        final = limit == 0
        if "score" in asked and k:  # a second phase has so many candidates in every shard, and no more
            limit = asked["rerank"] if isinstance(asked.get("rerank"), int) else max(k, default_rerank(k))
            asked, final = {**asked, "rerank": limit}, True
        while True:
            answer = self._merged(asked, limit, round_)
            hits = _chosen(answer["hits"], most, k, behind)
            if final or answer["partial"] or len(hits) == k or len(answer["hits"]) < limit:
                answer["hits"] = hits
                return answer
            limit *= 4

    def _merged(self, asked: Mapping[str, Any], k: int, round_: _Round) -> Answer:
        def ask(_: int, shard: SearchShard) -> Answer:
            left = None if round_.timeout_s is None else max(0.0, round_.ends - time.monotonic())
            return shard.search(asked, k, counting=round_.counting, timeout_s=left, common=round_.common)

        answers = list(self._ask(ask, round_).values())
        missing = round_.missing
        if not answers:
            raise ManasUnavailable(f"no shard answers: {self._named(missing)}")
        hits = [hit for answer in answers for hit in answer["hits"]]
        hits.sort(key=lambda hit: (-hit["score"], hit["ad_id"]))
        merged: Answer = {
            "hits": hits[:k] if k else hits,
            "total": sum(answer["total"] for answer in answers),
            "total_is_lower_bound": bool(missing) or any(answer["total_is_lower_bound"] for answer in answers),
            "partial": bool(missing) or any(answer["partial"] for answer in answers),
        }
        if missing:
            merged["missing_shards"] = self._named(missing)
        problems = {answer["problem"] for answer in answers if "problem" in answer}
        if problems:
            merged["problem"] = "; ".join(sorted(problems))
        return merged

    def _ask(
        self, question: Callable[[int, SearchShard], T], round_: _Round, only: Collection[int] | None = None
    ) -> dict[int, T]:
        """Ask the shards that are not missing yet, all at once; who has no answer in time is missing from then on."""
        missing = round_.missing
        wanted = [n for n in range(len(self._shards)) if n not in missing and (only is None or n in only)]
        futures: dict[int, Future[T]] = {n: self._pool.submit(question, n, self._shards[n]) for n in wanted}
        wait(futures.values(), max(0.0, round_.ends - time.monotonic()) + _GRACE_SECONDS)
        found: dict[int, T] = {}
        for number, future in futures.items():
            if not future.done():
                future.cancel()
                missing[number] = "no answer before the deadline"
                continue
            try:
                found[number] = future.result()
            except InvalidRequest:
                raise
            except ManasError as error:
                missing[number] = str(error)
        return found

    def _name(self, number: int) -> str:
        return f"{number}/{len(self._shards)}"

    def _named(self, missing: Mapping[int, str]) -> dict[str, str]:
        return {self._name(number): missing[number] for number in sorted(missing)}


def _pinned(request: Mapping[str, Any], page: Page | None) -> dict[str, Any]:
    """Return a request that means the same to all shards: "now" is one instant, that of the first page."""
    asked = {name: value for name, value in request.items() if name != KEY}
    if "at" not in asked:
        asked["at"] = datetime_of(page.at_us if page is not None and page.at_us else now_us()).isoformat()
    return asked


def _instant(asked: Mapping[str, Any]) -> int:
    try:
        return micros_of(datetime.fromisoformat(asked["at"]))
    except (TypeError, ValueError):
        raise InvalidRequest(f"at: an ISO time like 2026-01-31T12:00:00Z, got {asked['at']!r:.80}") from None


def _inner_page(asked: dict[str, Any], page: Page) -> dict[str, Any]:
    """Return what to ask the shards for a page: their token belongs to the request as they get it."""
    first = read_page({**asked, KEY: ""}, int_keys=isinstance(page.key, int))
    if first is None or page.after is None:
        return asked
    token = msgspec.structs.replace(first, score=page.score, key=page.key, seen=page.seen, at_us=_instant(asked))
    return {**asked, KEY: write_page(token)}


def _next_page(page: Page, hits: Sequence[Hit], at_us: int) -> str:
    last = hits[-1]
    return write_page(
        msgspec.structs.replace(page, at_us=at_us, score=last["score"], key=last["ad_id"], seen=page.seen + len(hits))
    )


def _chosen(hits: Sequence[Hit], most: int, k: int, behind: After | None) -> list[Hit]:
    """Return the first `k` (0: all) behind a page, of which, with all before, at most `most` share a group."""
    taken: Counter[str] = Counter()
    chosen: list[Hit] = []
    for hit in hits:
        groups = set(hit.get("groups", []))
        if any(taken[group] >= most for group in groups):
            continue
        taken.update(groups)
        if behind is None or (-hit["score"], hit["ad_id"]) > (-behind.score, behind.key):
            chosen.append({"ad_id": hit["ad_id"], "score": hit["score"]})
            if len(chosen) == k:
                break
    return chosen
