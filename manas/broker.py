"""One answer from many shards: exactly what one index of all documents would have answered.

Where requests need to know all documents (how rare a word is, the vector of `similar_to`), that is found out first and
sent along; `_broker_job` has what becomes of each request, `_rounds` how shards are asked.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from catalog import Catalog
from catalog.documents import decode_document
from manas import _explain
from manas._base import shard_of
from manas._broker_job import Job
from manas._common import Ask, Common
from manas._exceptions import InvalidDocument, InvalidRequest, ManasError, ManasUnavailable
from manas._explain_query import ANSWER, RANK
from manas._rounds import Round, SearchShard, Shards
from manas._schema import DocumentSchema
from manas._shard_stats import merged_stats
from manas.api import Answer, Hit
from messaging.proto import adsindex_pb2 as pb

T = TypeVar("T")


class Broker:
    """Answers from all shards; shard i must hold the documents whose `shard_of` is i. Safe for threads."""

    def __init__(
        self, catalog: Catalog, shards: Sequence[SearchShard], *, timeout_s: float = 10.0, concurrent: int = 4
    ) -> None:
        """`timeout_s`: how long a shard may take where the caller does not say; the rest then answers without it.

        `concurrent`: how many of its callers' questions a shard is asked at the same time.
        """
        if not shards:
            raise ManasError("a broker needs at least one shard")
        self._schema = DocumentSchema(catalog)
        self._shards = Shards(shards, concurrent)
        self._timeout_s = timeout_s

    def __enter__(self) -> Broker:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Ask no more; safe to call twice. The shards' clients stay open."""
        self._shards.close()

    def search(
        self,
        request: Mapping[str, Any],
        k: int = 10,
        *,
        counting: bool = True,
        timeout_s: float | None = None,
        common: Common | None = None,
    ) -> Answer:
        """Return the best `k` ads of all shards; 0 means all.

        A shard that has not answered after `timeout_s` (or cannot) is named in `missing_shards`, and the answer is
        partial. Raises InvalidRequest, and ManasUnavailable when no shard answers or the one that has `similar_to`.
        """
        _, answer = self._answered(Ask(request, k, counting, common), timeout_s)
        return answer

    def search_batch(
        self,
        requests: Sequence[Mapping[str, Any]],
        k: int = 10,
        *,
        counting: bool = True,
        timeout_s: float | None = None,
    ) -> list[Answer | ManasError]:
        """Return the answers of many requests, asked of every shard in one call; an error in the place of a bad one.

        `timeout_s` is for all of them together. Raises ManasUnavailable when no shard answers.
        """
        return self.search_each([Ask(request, k, counting) for request in requests], timeout_s=timeout_s)

    def search_each(
        self, asks: Sequence[Ask], *, shared: Common | None = None, timeout_s: float | None = None
    ) -> list[Answer | ManasError]:
        """Return the answers of requests that each have their own options, as `search_batch` does."""
        if shared is not None:
            raise InvalidRequest(_NO_COMMON)
        found = self._run(asks, timeout_s)
        return [one if isinstance(one, ManasError) else _done(one) for one in found]

    def explain(
        self,
        request: Mapping[str, Any],
        k: int = 10,
        ad_id: int | str | None = None,
        *,
        timeout_s: float | None = None,
        common: Common | None = None,
    ) -> dict[str, Any]:
        """Return the answer with every shard's plan, and why an ad is or is not in it.

        Its conditions are judged by its own shard, its rank is that among all. `timeout_s` is for everything: what
        there was no time for is named in "cut" of the plan, or of the shards' own. Raises what `search` raises, and
        ManasUnavailable when the ad's shard is missing.
        """
        ends = None if timeout_s is None else time.monotonic() + timeout_s
        job, answer = self._answered(Ask(request, k, common=common), timeout_s)
        result: dict[str, Any] = dict(answer)
        round_ = self._round(_until(ends))
        words = job.words
        alike = replace(job.common, documents=words.documents, frequencies=words.frequencies) if words else job.common
        home = -1 if ad_id is None else shard_of(str(ad_id), len(self._shards))

        def explained(number: int, shard: SearchShard) -> dict[str, Any]:
            own = ad_id if number == home else None
            return shard.explain(job.asked, k, own, timeout_s=_until(ends), common=alike)

        plans = self._shards.ask(explained, round_)
        plan = result["plan"] = {"shards": {self._shards.name(n): found["plan"] for n, found in sorted(plans.items())}}
        cut = [ANSWER] if answer["partial"] else []
        cut += [f"plan of shard {name}: {why}" for name, why in self._shards.named(round_.missing).items()]
        if home in plans:
            ranked, whole = job.candidates, not answer["partial"]
            if ranked is None:
                ranked, whole = self._everything(job, _until(ends))
            cut += [] if whole else [RANK]
            hits = [str(hit["ad_id"]) for hit in answer["hits"]]
            ad = _concluded(plans[home]["ad"], ranked, hits, k, job.most, whole=whole)
            result["ad"] = {**ad, "shard": self._shards.name(home)}
        if cut:
            plan["cut"] = cut
        if home >= 0 and home not in plans:
            raise ManasUnavailable(f"ad {ad_id} belongs to shard {self._shards.name(home)}: {round_.missing[home]}")
        return result

    def statistics(self, requests: Sequence[Mapping[str, Any]]) -> Common:
        """Return what idf needs of all shards for the words of requests; those that are missing count nothing."""
        return self._counted(requests, self._round())

    def get(self, document_ids: Sequence[str], fields: Sequence[str] | None = None) -> list[pb.ServedDocument]:
        """Return what serving has of each document, in the order asked. Raises ManasUnavailable without its shard."""
        served, missing = self._documents(document_ids, fields, self._round())
        if missing:
            raise ManasUnavailable(_away(missing))
        return [served[document_id] for document_id in document_ids]

    def stats(self) -> dict[str, Any]:
        """Return what the shards say, added up as of one index, every shard's own words, and who is missing."""
        round_ = self._round()
        found = self._shards.ask(lambda _, s: s.stats(), round_)
        return merged_stats({self._shards.name(n): found[n] for n in sorted(found)}, self._shards.named(round_.missing))

    def budget(self, campaign_id: str) -> pb.BudgetState | None:
        """Return the newest budget state that any shard knows: each of them has all budgets."""
        round_ = self._round()
        found = self._shards.ask(lambda _, s: s.budget(campaign_id), round_)
        if not found:
            raise self._nobody(round_)
        return max(filter(None, found.values()), key=lambda state: state.version, default=None)

    # ---- rounds ----

    def _round(self, timeout_s: float | None = None) -> Round:
        return Round(time.monotonic() + (self._timeout_s if timeout_s is None else timeout_s))

    def _nobody(self, round_: Round) -> ManasUnavailable:
        return ManasUnavailable(f"no shard answers: {self._shards.named(round_.missing)}")

    def _answered(self, ask: Ask, timeout_s: float | None) -> tuple[Job, Answer]:
        [found] = self._run([ask], timeout_s)
        if isinstance(found, ManasError):
            raise found
        return found, _done(found)

    def _run(self, asks: Sequence[Ask], timeout_s: float | None) -> list[Job | ManasError]:
        """Return every request's job when it is done, or what is wrong with the request."""
        round_ = self._round(timeout_s)
        found: list[Job | ManasError] = [self._job(ask) for ask in asks]
        live = {place: job for place, job in enumerate(found) if isinstance(job, Job)}
        shared = self._words(live.values(), round_)
        for job in live.values():
            job.words = shared
        for place, error in self._find_vectors(live, round_).items():
            found[place] = error
            del live[place]
        while live:
            questions = [job.ask() for job in live.values()]

            def ask_all(_: int, shard: SearchShard, asked: list[Ask] = questions) -> list[Answer | ManasError]:
                return shard.search_each(asked, shared=shared, timeout_s=None if timeout_s is None else round_.left())

            replies = self._shards.ask(ask_all, round_)
            if not replies:
                raise self._nobody(round_)
            for position, (place, job) in enumerate(list(live.items())):
                answers = [reply[position] for _, reply in sorted(replies.items())]
                if errors := [answer for answer in answers if isinstance(answer, ManasError)]:
                    found[place] = errors[0]
                else:
                    job.take([a for a in answers if not isinstance(a, ManasError)], self._shards.named(round_.missing))
                if errors or job.answer is not None:
                    del live[place]
        return found

    def _job(self, ask: Ask) -> Job | ManasError:
        try:
            if ask.common is not None:
                raise InvalidRequest(_NO_COMMON)
            return Job(self._schema, ask)
        except InvalidRequest as error:
            return error
        except (ArithmeticError, ValueError, RecursionError) as error:
            return InvalidRequest(f"a value of the request is beyond what can be read: {error}")

    def _words(self, jobs: Iterable[Job], round_: Round) -> Common | None:
        """Return how often all shards have the words of requests, None when there are no words."""
        texts = [job.asked for job in jobs if "text" in job.asked]
        if not texts or self._schema.catalog.serving.text is None:
            return None
        ahead = round_.ahead()
        counted = self._counted(texts, ahead)
        round_.missing.update(ahead.missing)  # who has not been counted is not to be scored by these counts
        return counted

    def _counted(self, requests: Sequence[Mapping[str, Any]], round_: Round) -> Common:
        parts = self._shards.ask(lambda _, s: s.statistics(requests), round_)
        words = Counter[str]()
        for part in parts.values():
            words.update(part.frequencies)
        return Common(sum(part.documents or 0 for part in parts.values()), dict(words))

    def _find_vectors(self, jobs: Mapping[int, Job], round_: Round) -> dict[int, ManasError]:
        """Give the vectors of `similar_to` to requests that name one; return why some cannot be had."""
        failed: dict[int, ManasError] = {}
        wanted: dict[str, dict[int, str]] = {}
        for place, job in jobs.items():
            field = job.asked.get("vector_field", self._schema.catalog.serving.vector)
            if "similar_to" not in job.asked or "vector" in job.asked or not isinstance(field, str):
                continue
            key = self._key(job.asked["similar_to"])
            if key is not None and field in self._schema.vector_fields:
                wanted.setdefault(field, {})[place] = key
        for field, keys in wanted.items():
            found, missing = self._documents(list(dict.fromkeys(keys.values())), [field], Round(round_.ends).ahead())
            for place, key in keys.items():
                if key in found:
                    jobs[place].common = replace(jobs[place].common, vector=_vector(found[key], field))
                else:
                    failed[place] = ManasUnavailable(f"similar_to: {_away(missing)}")
        return failed

    def _documents(
        self, keys: Sequence[str], fields: Sequence[str] | None, round_: Round
    ) -> tuple[dict[str, pb.ServedDocument], dict[str, str]]:
        """Return what serving has of documents, and the shards that have not said it, with why."""
        by_shard: dict[int, list[str]] = {}
        for key in keys:
            by_shard.setdefault(shard_of(key, len(self._shards)), []).append(key)
        found = self._shards.ask(lambda n, s: s.get(by_shard[n], fields), round_, only=by_shard)
        served = {document.document_id: document for documents in found.values() for document in documents}
        return served, self._shards.named(round_.missing)

    def _key(self, document_id: Any) -> str | None:
        """Return the document's id as it is stored; None leaves it to the shards to say what is wrong with it."""
        if not isinstance(document_id, int | str) or isinstance(document_id, bool):
            return None
        try:
            return str(self._schema.key(str(document_id)))
        except (InvalidDocument, ValueError):  # the latter for a number that Python refuses to write out
            return None

    def _everything(self, job: Job, timeout_s: float | None) -> tuple[list[Hit], bool]:
        """Return all that fits a request, in order, whatever it shares, and whether nothing is missing."""
        request = {name: value for name, value in job.asked.items() if name != "max_per_advertiser"}
        answer = self.search(request, 0, timeout_s=timeout_s)
        return list(answer["hits"]), not answer["partial"]


_NO_COMMON = "common: a broker finds out by itself what its shards have in common; leave it out"


def _until(ends: float | None) -> float | None:
    """Return the seconds until a time of the monotonic clock, None for none."""
    return None if ends is None else max(0.0, ends - time.monotonic())


def _done(job: Job) -> Answer:
    if job.answer is None:
        raise ManasError("a request was given up before it was answered")  # cannot be: rounds end with an answer
    return job.answer


def _away(missing: Mapping[str, str]) -> str:
    return f"documents of shards that do not answer: {dict(missing)}"


def _vector(served: pb.ServedDocument, field: str) -> bytes | None:
    value = decode_document(served.body).get(field) if served.found and not served.deleted else None
    return value if isinstance(value, bytes) else None


def _concluded(
    ad: dict[str, Any], ranked: Sequence[Hit], hits: Sequence[str], k: int, most: int | None, *, whole: bool
) -> dict[str, Any]:
    """Return an ad's explanation by its own shard, with its place among all ads instead of that in the shard."""
    steps = [step for step in ad["steps"] if step["clause"] not in _explain.LAST_STEPS]
    keys = [str(hit["ad_id"]) for hit in ranked]
    return _explain.conclude(ad["ad_id"], steps, keys, [hit["score"] for hit in ranked], hits, k, most, whole=whole)
