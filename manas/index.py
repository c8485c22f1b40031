"""Which ads fit this request? Base and delta behind one lock: readers never see half a batch or half a swap."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from catalog import Catalog
from catalog.documents import encode_document
from manas._base import Base
from manas._clauses import And, Condition, Not, Term
from manas._common import Ask, Common, with_shared
from manas._delta import Delta, Entry
from manas._exceptions import InvalidDocument, InvalidRequest, ManasError, NotServing
from manas._explain_query import explained, unexplained
from manas._fold_files import Fold
from manas._layer import Layer
from manas._paging import INSTANTS
from manas._request import Query, RequestParser
from manas._schema import DocumentSchema, PreparedDocument
from manas._scoring import Scorer
from manas._search import Searcher
from manas._segment_view import SegmentView
from manas._turns import Turns
from manas._vector_ranking import PlannerLimits
from manas._view import Outcome, View
from manas.api import Answer
from manas.budgets import BudgetTable
from manas.segment import Segment
from manas.shards import WHOLE, Shard
from messaging.headers import now_us
from messaging.proto import adsindex_pb2 as pb


@dataclass(frozen=True, slots=True)
class PreparedDelta:
    """A delta checked and taken apart, so that applying it holds the lock only briefly."""

    document_id: str
    version: int
    header: bytes
    document: PreparedDocument | None
    """None for a deletion."""


class Index:
    """The documents of one base and the deltas since, budgets, and the answering of requests. Safe for threads."""

    def __init__(
        self,
        catalog: Catalog,
        base: Base | Segment | None = None,
        *,
        base_version: str = "",
        limits: PlannerLimits | None = None,
        shard: Shard = WHOLE,
    ) -> None:
        """Raises UnusableCatalog, or CatalogMismatch when `base` contradicts the catalogue."""
        self.shard = shard
        self.schema = DocumentSchema(catalog)
        self._parser = RequestParser(self.schema)
        self._searcher = Searcher(self.schema, limits or PlannerLimits())
        self._lock = Turns()
        self._budgets = BudgetTable()
        self._view = View(self.schema, base, base_version)
        self._outcomes: Counter[str] = Counter()
        self._last_applied_us = 0
        self.describe: Callable[[], Mapping[str, Any]] = dict
        """Adds what only the owner knows (positions, problems) to `stats`."""
        self.refusal = ""
        """Why no search is answered; set by the owner. One that has begun comes to its end."""
        self.caveat = ""
        """What answers lack, said with each of them; set by the owner."""

    # ---- writing: one thread at a time ----

    def new_view(self, base: Base | Segment | None, base_version: str = "") -> View:
        """Return a view of another base to be filled aside and handed to `swap`. Raises CatalogMismatch."""
        view = View(self.schema, base, base_version)
        with self._lock:
            funded = set(self._budgets.funded)
        view.set_funded(funded)
        return view

    def swap(self, view: View) -> None:
        """Answer from `view` from now on. Its deltas must reach as far as those of the view it replaces."""
        for key in view.funded_keys ^ self._budgets.funded:
            view.fund(key, key in self._budgets.funded)
        for document_id, entry in view.delta.entries.items():
            before = self._view.entry(document_id)
            if before is not None and before.version == entry.version:
                entry.answerable_us = before.answerable_us
        with self._lock:
            self._view = view

    def freeze(self, view: View) -> Delta:
        """Have a view, in service or not, go on with an empty delta and return the one so far, to be folded."""
        with self._lock:
            return view.freeze()

    def adopt(self, view: View, fold: Fold, prepared: SegmentView, merged: int) -> None:
        """Answer from a folded segment instead of the frozen delta and the youngest `merged` older ones."""
        with self._lock:
            view.adopt(fold, prepared, merged)

    @property
    def view(self) -> View:
        """What is in service. For the thread that writes."""
        return self._view

    def prepare(self, delta: pb.DocumentDelta) -> PreparedDelta:
        """Check a delta and take its document apart. Raises InvalidDocument."""
        if not delta.document_id or delta.version <= 0:
            raise InvalidDocument(
                f"delta of document {delta.document_id!r} has version {delta.version}; both are needed"
            )
        if delta.deleted:
            self.schema.key(delta.document_id)
            document = None
        else:
            document = self.schema.prepare(delta.document_id, delta.version, delta.body)
        return PreparedDelta(delta.document_id, delta.version, delta.header.SerializeToString(), document)

    def apply(
        self, deltas: Iterable[PreparedDelta], view: View | None = None, *, replay: bool = False
    ) -> list[Outcome]:
        """Apply deltas in one step; the newest version of a document wins in whatever order they come.

        Searches wait meanwhile, and one that does goes before the next call. With `view`, one from `new_view` that is
        not in service yet, nothing becomes visible and nothing is counted. `replay`: they were answerable before this
        process started, nobody knows since when.
        """
        if view is not None:
            outcomes = [_apply(view, delta)[0] for delta in deltas]
            return outcomes
        with self._lock:
            results = [_apply(self._view, delta) for delta in deltas]
            now = now_us()
            for entry in (entry for _, entry in results if entry is not None):
                self._last_applied_us = now
                entry.answerable_us = 0 if replay else now
            outcomes = [outcome for outcome, _ in results]
            self._outcomes.update(outcome.value for outcome in outcomes)
        self._lock.give_way()
        return outcomes

    def apply_documents(self, deltas: Iterable[pb.DocumentDelta]) -> list[Outcome]:
        """Prepare and apply deltas. Raises InvalidDocument, and then none of them is applied."""
        return self.apply([self.prepare(delta) for delta in deltas])

    def apply_budgets(self, states: Iterable[pb.BudgetState]) -> list[Outcome]:
        """Apply budget states; the newest version of a campaign's state wins."""
        outcomes = []
        with self._lock:
            for state in states:
                known = self._budgets.get(state.campaign_id)
                if self._budgets.apply(state):
                    self._view.fund(state.campaign_id, state.campaign_id in self._budgets.funded)
                    outcomes.append(Outcome.APPLIED)
                else:
                    same = known is not None and known.version == state.version
                    outcomes.append(Outcome.DUPLICATE if same else Outcome.STALE)
        return outcomes

    # ---- reading: any thread ----

    def search(
        self,
        request: Mapping[str, Any],
        k: int = 10,
        *,
        counting: bool = True,
        timeout_s: float | None = None,
        score: Scorer | None = None,
        common: Common | None = None,
    ) -> Answer:
        """Return the best `k` ads that fit the request; 0 means all. Raises InvalidRequest, NotServing.

        Without `counting`, `total` may be a lower bound, and says so, and the search ends as soon as
        nothing better can come. `timeout_s`: what was found until then is returned as partial. `score` is a Python
        function that scores the candidates of the second phase, instead of an expression in the request.
        """
        self.check_serving()
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        query = self._read(request, k)
        if not self._acquired(deadline):
            answer: Answer = {"hits": [], "total": 0, "total_is_lower_bound": True, "partial": True}
        else:
            try:
                view = self._view
                found = self._searcher.run(
                    view, query, k, counting=counting, deadline=deadline, scorer=score, common=common
                )
                answer = self._searcher.answer(view, found, common)
            finally:
                self._lock.release()
        if self.caveat:
            answer["problem"] = self.caveat
        return answer

    def explain(
        self,
        request: Mapping[str, Any],
        k: int = 10,
        ad_id: int | str | None = None,
        *,
        timeout_s: float | None = None,
        common: Common | None = None,
    ) -> dict[str, Any]:
        """Return the answer, the plan with estimates and actual counts per layer, and an ad's way through it.

        `timeout_s`: what there was no time for is named in the plan's "cut". Raises InvalidRequest, NotServing.
        """
        self.check_serving()
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        query = self._read(request, k)
        ad = None if ad_id is None else str(ad_id)
        if not self._acquired(deadline):
            result = unexplained(ad)
        else:
            try:
                result = explained(
                    self._searcher, self._view, self._budgets, query, k, ad, common=common, deadline=deadline
                )
            finally:
                self._lock.release()
        if self.caveat:
            result["problem"] = self.caveat
        return result

    def search_each(
        self, asks: Sequence[Ask], *, shared: Common | None = None, timeout_s: float | None = None
    ) -> list[Answer | ManasError]:
        """Return the answers of several requests in order, a bad one's error in its place. Raises NotServing.

        `timeout_s` is for all of them together; those that it leaves no time for are partial and empty.
        """
        ends = None if timeout_s is None else time.monotonic() + timeout_s
        answers: list[Answer | ManasError] = []
        for ask in asks:
            left = None if ends is None else max(0.0, ends - time.monotonic())
            common = with_shared(ask.common, shared)
            try:
                answer = self.search(ask.request, ask.k, counting=ask.counting, timeout_s=left, common=common)
                answers.append(answer)
            except InvalidRequest as error:
                answers.append(error)
        return answers

    def statistics(self, requests: Sequence[Mapping[str, Any]]) -> Common:
        """Return what idf needs of this index for the words of requests, for a broker to add up. Raises NotServing.

        A request that cannot be read has none: who searches with it is told what is wrong.
        """
        self.check_serving()
        field, terms = self.schema.catalog.serving.text or "", set[str]()
        for request in requests:
            with suppress(InvalidRequest):
                terms.update(self._read(request, 0).text_terms)
        with self._lock:
            views = self._view.layers()
            frequencies = {term: sum(v.live_frequency(field, term) for v in views) for term in sorted(terms)}
            return Common(sum(map(len, views)), frequencies)

    def get(self, document_ids: Sequence[str], fields: Sequence[str] | None = None) -> list[pb.ServedDocument]:
        """Return what serving has of each document, in the order asked; unknown ones with found = false.

        With `fields`, bodies have only these, and only the families that they are in are read. Raises InvalidRequest.
        """
        unknown = sorted(set(fields or ()) - self.schema.fields.keys())
        if unknown:
            raise InvalidRequest(f"fields: no field {unknown[0]!r}; there are {', '.join(sorted(self.schema.fields))}")
        with self._lock:
            return [self._get(document_id, fields) for document_id in document_ids]

    def budget(self, campaign_id: str) -> pb.BudgetState | None:
        """Return the newest budget state known of a campaign."""
        with self._lock:
            return self._budgets.get(campaign_id)

    def documents(self) -> int:
        """Return the number of live documents."""
        with self._lock:
            return self._view.documents()

    def check_serving(self) -> None:
        """Raises NotServing while the owner of the index has it refuse."""
        if self.refusal:
            raise NotServing(self.refusal)

    @property
    def last_applied_us(self) -> int:
        """When the last batch of deltas became answerable, microseconds since the epoch; 0 before the first."""
        return self._last_applied_us

    @property
    def base_version(self) -> str:
        """Name of the base in service, "" without one."""
        return self._view.base_version

    def stats(self) -> dict[str, Any]:
        """Return sizes, versions, outcomes and what `describe` adds."""
        with self._lock:
            view = self._view
            manifest = view.manifest
            return {
                "documents": view.documents(),
                "base": None
                if manifest is None
                else {
                    "version": view.base_version,
                    "documents": manifest.documents,
                    "snapshot_ts": manifest.snapshot_ts,
                    "created_at": manifest.created_at,
                    "fingerprint": manifest.fingerprint,
                    "fields_missing": view.fields_missing_in_base,
                    "postings": manifest.postings,
                    "postings_by_field": manifest.postings_by_field,
                },
                "delta": view.since_base(),
                "budgets": {"campaigns": len(self._budgets), "funded": len(self._budgets.funded)},
                "outcomes": dict(self._outcomes),
                "last_applied_us": self._last_applied_us,
                "catalog": {"name": self.schema.catalog.name, "fingerprint": self.schema.catalog.fingerprint},
                **self.describe(),
            }

    # ---- inside ----

    def _acquired(self, deadline: float | None) -> bool:
        """Take the lock, or return False when the deadline comes first."""
        return self._lock.acquire(timeout=-1 if deadline is None else max(0.0, deadline - time.monotonic()))

    def _read(self, request: Mapping[str, Any], k: int) -> Query:
        """Return a request, checked. Raises InvalidRequest, whatever is in it."""
        try:
            query = self._parse(request, k)
        except (ArithmeticError, ValueError, RecursionError) as error:  # a number of a thousand digits, for example
            raise InvalidRequest(f"a value of the request is beyond what can be read: {error}") from error
        if query.at_us not in INSTANTS:
            raise InvalidRequest(f"at: an instant in the years 1 to 9999 by every clock, got {request.get('at')!r:.80}")
        return query

    def _parse(self, request: Mapping[str, Any], k: int) -> Query:
        if isinstance(k, bool) or not isinstance(k, int) or k < 0:
            raise InvalidRequest(f"k: a whole number from 0 (all), got {k!r}")
        query = self._parser.parse(request)
        if not query.seen or not (capped := self._budgets.capped(query.seen)):
            return query
        key = self.schema.catalog.serving.budget_key or ""
        clause = And(tuple(Not(Term(key, campaign)) for campaign in capped))
        words = f"is of no {key} that the user has seen as often as its cap allows ({len(capped)} of {len(query.seen)})"
        return replace(query, conditions=(*query.conditions, Condition("frequency", clause, words)))

    def _get(self, document_id: str, fields: Sequence[str] | None) -> pb.ServedDocument:
        entry = self._view.entry(document_id)
        served = pb.ServedDocument(document_id=document_id)
        if entry is not None:
            header = pb.Header.FromString(entry.header)
            served.found, served.deleted, served.layer = entry.slot >= 0, entry.slot < 0, "delta"
            served.version, served.answerable_us = entry.version, entry.answerable_us
            served.trace_id, served.origin_us = header.trace_id, header.origin_us
            served.hops.extend(header.hops)
            if entry.slot >= 0 and (place := self._view.find(document_id)) is not None:
                served.body = _body(place[0].layer, place[1], fields)
        elif (place := self._view.find(document_id)) is not None:
            layer, internal = place[0].layer, place[1]
            served.found, served.layer = True, layer.name
            served.version, served.body = layer.version(internal), _body(layer, internal, fields)
        return served


def _body(layer: Layer, internal: int, fields: Sequence[str] | None) -> bytes:
    return layer.body(internal) if fields is None else encode_document(layer.fields(internal, fields))


def _apply(view: View, delta: PreparedDelta) -> tuple[Outcome, Entry | None]:
    outcome = view.judge(delta.document_id, delta.version)
    if outcome is not Outcome.APPLIED:
        return outcome, None
    entry = Entry(delta.version, -1, delta.header)
    if delta.document is None:
        view.delete(delta.document_id, entry)
    else:
        view.upsert(delta.document, entry)
    return outcome, entry
