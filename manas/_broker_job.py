"""One request on its way through shards: what each of them is asked, and one answer out of theirs.

A plain request takes one round: the shards' pages merged. With diversity shards tell candidates with their groups, in
rounds of growing size until k are found. With a second phase every shard scores as many candidates as one index would,
and tells their light scores: only the best of all by those count, so the answer is the one of one index.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import msgspec

from catalog.values import datetime_of, micros_of
from manas._common import Ask, Common
from manas._exceptions import InvalidRequest
from manas._layer import After
from manas._paging import KEY, Page, check_size, read_page, write_page
from manas._schema import DocumentSchema
from manas._scoring import MAX_RERANK, default_rerank
from manas.api import Answer, Hit
from messaging.headers import now_us

_GROWTH = 4
"""Candidates for diversity, in multiples of the hits wanted, and of those of the round before."""


class Job:
    """A request's state between rounds: `ask`, then `take`, until `answer` is there."""

    def __init__(self, schema: DocumentSchema, ask: Ask) -> None:
        """Raises InvalidRequest for what no shard needs to be asked about; shards find the rest."""
        request, self._k, self._counting = ask.request, ask.k, ask.counting
        if isinstance(self._k, bool) or not isinstance(self._k, int) or self._k < 0:
            raise InvalidRequest(f"k: a whole number from 0 (all), got {self._k!r}")
        if not isinstance(request, Mapping):
            raise InvalidRequest(f"a request is a JSON object, got {request!r:.80}")
        self._page = read_page(request, int_keys=schema.int_keys)
        if self._page is not None:
            check_size(self._k)
        self.asked = _pinned(request, self._page)
        self.common = Common()
        self.words: Common | None = None
        """How often all shards have the words of its text, None where it has no text."""
        self.answer: Answer | None = None
        self.candidates: list[Hit] | None = None
        """With a second phase: all that it has scored, in order of their scores."""
        most = self.asked.get("max_per_advertiser") if schema.catalog.serving.diversity is not None else None
        self.most = most if type(most) is int and most > 0 else None
        self._scored = self._candidates() if "score" in self.asked else None
        self._limit = self._first_limit()

    def _candidates(self) -> int | None:
        """Return how many candidates the second phase has, 0 for all; None leaves it to the shards to refuse."""
        rerank = self.asked.get("rerank")
        if self._page is not None and self._page.rerank:
            return self._page.rerank
        if "rerank" in self.asked:
            valid = type(rerank) is int and 1 <= rerank <= MAX_RERANK and rerank >= self._k
            return rerank if valid else None
        return max(self._k, default_rerank(self._k)) if self._k else 0

    def _first_limit(self) -> int:
        if self._scored is not None:
            return self._scored
        if self.most is None or "score" in self.asked:
            return self._k
        return _GROWTH * (self._k + (self._page.seen if self._page is not None else 0)) if self._k else 0

    def ask(self) -> Ask:
        """Return what every shard is to be asked now."""
        common = replace(self.common, diversity=self.most is None, light=self._scored is not None)
        request = self.asked
        if self._scored and self._scored <= MAX_RERANK:  # else it is k, and more candidates than hits are not had
            request = {**request, "rerank": self._scored}
        elif not self._scored and self.most is None and self._page is not None:
            request = self._inner_page(self._page)
        plain = common.vector is None and common.diversity and not common.light
        return Ask(request, self._limit, self._counting, None if plain else common)

    def take(self, answers: Sequence[Answer], missing: Mapping[str, str]) -> None:
        """Merge one round's answers; `missing` names the shards that gave none, and why."""
        merged = _merged(answers, missing)
        hits = list(merged["hits"])
        if self._scored is not None:
            hits = self._best_candidates(hits)
            self.candidates = hits
        elif self._limit:
            hits = hits[: self._limit]
        if self._scored is None and self.most is None:
            chosen = hits
        else:
            behind = None if self._page is None else self._page.after
            chosen = _chosen(hits, self.most, self._k, behind)
            whole = self._limit == 0 or merged["partial"] or len(chosen) == self._k or len(hits) < self._limit
            if self._scored is None and not whole:
                self._limit *= _GROWTH
                return
        merged["hits"] = chosen
        if self._page is not None:
            if len(chosen) == self._k:
                merged["page_token"] = self._next_page(self._page, chosen)
            elif not merged["partial"]:
                merged["page_token"] = ""
        self.answer = merged

    def _best_candidates(self, hits: list[Hit]) -> list[Hit]:
        """Return those that one index would have scored, best first."""
        hits.sort(key=lambda hit: (-hit.get("light", 0.0), hit["ad_id"]))
        best = hits[: self._scored] if self._scored else hits
        return sorted(best, key=lambda hit: (-hit["score"], hit["ad_id"]))

    def _inner_page(self, page: Page) -> dict[str, Any]:
        """Return what to ask the shards for a page: their token belongs to the request as they get it."""
        first = read_page({**self.asked, KEY: ""}, int_keys=isinstance(page.key, int))
        if first is None or page.after is None:
            return self.asked
        token = msgspec.structs.replace(first, score=page.score, key=page.key, seen=page.seen, at_us=self._instant())
        return {**self.asked, KEY: write_page(token)}

    def _next_page(self, page: Page, hits: Sequence[Hit]) -> str:
        last = hits[-1]
        return write_page(
            msgspec.structs.replace(
                page,
                at_us=self._instant(),
                rerank=self._scored or 0,
                score=last["score"],
                key=last["ad_id"],
                seen=page.seen + len(hits),
            )
        )

    def _instant(self) -> int:
        at = self.asked["at"]
        try:
            return micros_of(datetime.fromisoformat(at))
        except (TypeError, ValueError):
            raise InvalidRequest(f"at: an ISO time like 2026-01-31T12:00:00Z, got {at!r:.80}") from None


def _pinned(request: Mapping[str, Any], page: Page | None) -> dict[str, Any]:
    """Return a request that means the same to all shards: "now" is one instant, that of the first page."""
    asked = {name: value for name, value in request.items() if name != KEY}
    if "at" not in asked:
        asked["at"] = datetime_of(page.at_us if page is not None and page.at_us else now_us()).isoformat()
    return asked


def _merged(answers: Sequence[Answer], missing: Mapping[str, str]) -> Answer:
    hits = [hit for answer in answers for hit in answer["hits"]]
    hits.sort(key=lambda hit: (-hit["score"], hit["ad_id"]))
    merged: Answer = {
        "hits": hits,
        "total": sum(answer["total"] for answer in answers),
        "total_is_lower_bound": bool(missing) or any(answer["total_is_lower_bound"] for answer in answers),
        "partial": bool(missing) or any(answer["partial"] for answer in answers),
    }
    if missing:
        merged["missing_shards"] = dict(missing)
    if problems := {answer["problem"] for answer in answers if "problem" in answer}:
        merged["problem"] = "; ".join(sorted(problems))
    return merged


def _chosen(hits: Sequence[Hit], most: int | None, k: int, behind: After | None) -> list[Hit]:
    """Return the first `k` (0: all) behind a page, of which, with all before, at most `most` share a group."""
    taken: Counter[str] = Counter()
    chosen: list[Hit] = []
    for hit in hits:
        if most is not None:
            groups = set(hit.get("groups", []))
            if any(taken[group] >= most for group in groups):
                continue
            taken.update(groups)
        if behind is None or (-hit["score"], hit["ad_id"]) > (-behind.score, behind.key):
            chosen.append({"ad_id": hit["ad_id"], "score": hit["score"]})
            if len(chosen) == k:
                break
    return chosen
