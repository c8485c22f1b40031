"""Which ads fit this request? Base and delta behind one lock: readers never see half a batch or half a swap."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyroaring import BitMap

from catalog import Catalog
from catalog.documents import decode_document
from manas import _explain
from manas._base import Base
from manas._delta import Entry
from manas._exceptions import InvalidDocument, InvalidRequest
from manas._layer import LayerView
from manas._ranking import PlannerLimits, Ranked, idf_weights, rank_light, rank_similar, score_words
from manas._request import Query, RequestParser
from manas._schema import DocumentSchema, Floats, PreparedDocument, normalized
from manas._view import Outcome, View
from manas.api import Answer, Hit
from manas.budgets import BudgetTable
from manas.segment import Segment
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
    ) -> None:
        """Raises UnusableCatalog, or CatalogMismatch when `base` contradicts the catalogue."""
        self.schema = DocumentSchema(catalog)
        self._parser = RequestParser(self.schema)
        self._limits = limits or PlannerLimits()
        self._lock = threading.Lock()
        self._budgets = BudgetTable()
        self._view = View(self.schema, base, base_version, graph_from=self._limits.exact_survivors)
        self._outcomes: Counter[str] = Counter()
        self._last_applied_us = 0
        self.describe: Callable[[], Mapping[str, Any]] = dict
        """Adds what only the owner knows (positions, problems) to `stats`."""

    # ---- writing: one thread at a time ----

    def new_view(self, base: Base | Segment | None, base_version: str = "") -> View:
        """Return a view of another base to be filled aside and handed to `swap`. Raises CatalogMismatch."""
        view = View(self.schema, base, base_version, graph_from=self._limits.exact_survivors)
        with self._lock:
            funded = set(self._budgets.funded)
        view.set_funded(funded)
        return view

    def swap(self, view: View) -> None:
        """Answer from `view` from now on. Its deltas must reach as far as those of the view it replaces."""
        with self._lock:
            for key in view.funded_keys ^ self._budgets.funded:
                view.fund(key, key in self._budgets.funded)
            for document_id, entry in view.delta.entries.items():
                before = self._view.delta.entries.get(document_id)
                if before is not None and before.version == entry.version:
                    entry.answerable_us = before.answerable_us
            self._view = view

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

        With `view`, one from `new_view` that is not in service yet, nothing becomes visible and nothing is counted.
        `replay`: they were answerable before this process started, nobody knows since when.
        """
        if view is not None:
            outcomes = [_apply(view, delta)[0] for delta in deltas]
            view.delta.tend()
            return outcomes
        with self._lock:
            results = [_apply(self._view, delta) for delta in deltas]
            self._view.delta.tend()
            now = now_us()
            for entry in (entry for _, entry in results if entry is not None):
                self._last_applied_us = now
                entry.answerable_us = 0 if replay else now
            outcomes = [outcome for outcome, _ in results]
            self._outcomes.update(outcome.value for outcome in outcomes)
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
        self, request: Mapping[str, Any], k: int = 10, *, counting: bool = True, timeout_s: float | None = None
    ) -> Answer:
        """Return the best `k` ads that fit the request; 0 means all. Raises InvalidRequest.

        Without `counting`, `total` may be a lower bound, and says so, and the search ends as soon as
        nothing better can come. `timeout_s`: what was found until then is returned as partial.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        query = self._parse(request, k)
        with self._lock:
            ranked, chosen = self._rank(query, self._view.layers(), k, counting=counting, deadline=deadline)
        return self._answer(ranked, chosen)

    def explain(self, request: Mapping[str, Any], k: int = 10, ad_id: int | str | None = None) -> dict[str, Any]:
        """Return the answer, the plan with estimates and actual counts per layer, and an ad's way through it.

        Raises InvalidRequest.
        """
        query = self._parse(request, k)
        with self._lock:
            views = self._view.layers()
            traces: list[list[dict[str, Any]]] = [[] for _ in views]
            survivors = [v.survive(query.conditions, trace) for v, trace in zip(views, traces, strict=True)]
            ranked, chosen = self._rank(query, views, k)
            result: dict[str, Any] = dict(self._answer(ranked, chosen))
            result["plan"] = {
                "score": "cosine similarity"
                if self._vector(query) is not None
                else score_words(self.schema.catalog.serving),
                "layers": [
                    {"layer": v.layer.name, "documents": len(v), "clauses": t, "survivors": len(s), "ranking": how}
                    for v, t, s, how in zip(views, traces, survivors, ranked.strategies, strict=True)
                ],
            }
            if ad_id is not None:
                wanted = str(ad_id)
                everything, _ = self._rank(query, views, 0, diversity=False)
                hits = [str(ranked.keys[i]) for i in chosen]
                result["ad"] = _explain.explain_ad(self._view, self._budgets, query, wanted, everything, hits, k)
        return result

    def get(self, document_ids: Sequence[str]) -> list[pb.ServedDocument]:
        """Return what serving has of each document, in the order asked; unknown ones with found = false."""
        with self._lock:
            return [self._get(document_id) for document_id in document_ids]

    def budget(self, campaign_id: str) -> pb.BudgetState | None:
        """Return the newest budget state known of a campaign."""
        with self._lock:
            return self._budgets.get(campaign_id)

    def documents(self) -> int:
        """Return the number of live documents."""
        with self._lock:
            return self._view.documents()

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
                },
                "delta": {
                    "documents": len(view.delta.live),
                    "tombstones": len(view.delta.entries) - len(view.delta.live),
                    "slots": view.delta.slots,
                },
                "budgets": {"campaigns": len(self._budgets), "funded": len(self._budgets.funded)},
                "outcomes": dict(self._outcomes),
                "last_applied_us": self._last_applied_us,
                "catalog": {"name": self.schema.catalog.name, "fingerprint": self.schema.catalog.fingerprint},
                **self.describe(),
            }

    # ---- inside, with the lock held ----

    def _parse(self, request: Mapping[str, Any], k: int) -> Query:
        if isinstance(k, bool) or not isinstance(k, int) or k < 0:
            raise InvalidRequest(f"k: a whole number from 0 (all), got {k!r}")
        return self._parser.parse(request)

    def _vector(self, query: Query) -> Floats | None:
        if query.similar_to is None:
            return query.vector
        place = self._view.find(query.similar_to)
        if place is None:
            raise InvalidRequest(f"similar_to: no ad {query.similar_to} in the index")
        field = self.schema.catalog.serving.vector or ""
        raw = decode_document(place[0].layer.body(place[1])).get(field)
        if raw is None:
            raise InvalidRequest(f"similar_to: ad {query.similar_to} has no {field}")
        return normalized(raw)

    def _rank(
        self,
        query: Query,
        views: Sequence[LayerView],
        k: int,
        *,
        diversity: bool = True,
        counting: bool = True,
        deadline: float | None = None,
    ) -> tuple[Ranked, Sequence[int]]:
        """Return candidates in order and which of them are the answer."""
        serving, int_keys = self.schema.catalog.serving, self.schema.int_keys
        vector = self._vector(query)
        weights = idf_weights(views, serving.text, query.text_terms) if serving.text is not None else {}
        survivors = [v.survive(query.conditions) for v in views] if vector is not None else []
        diverse = diversity and query.max_per_group is not None
        limit = 4 * k if diverse else k
        while True:
            if vector is not None and serving.vector is not None:
                ranked = rank_similar(views, survivors, serving.vector, vector, limit, self._limits, int_keys=int_keys)
            else:
                ranked = rank_light(
                    views, query, serving, weights, limit, int_keys=int_keys, counting=counting, deadline=deadline
                )
            if not diverse:
                return ranked, range(len(ranked.ids))
            chosen = self._diversify(ranked, views, query.max_per_group or 0, k)
            if ranked.exhausted or not ranked.complete or (k and len(chosen) == k):
                return ranked, chosen
            limit *= 4

    def _diversify(self, ranked: Ranked, views: Sequence[LayerView], most: int, k: int) -> list[int]:
        """Return the first `k` candidates of which at most `most` share a value of the diversity field."""
        field = self.schema.catalog.serving.diversity or ""
        taken: Counter[str] = Counter()
        closed = [BitMap() for _ in views]
        chosen: list[int] = []
        for place, (layer, internal) in enumerate(zip(ranked.layers.tolist(), ranked.ids.tolist(), strict=True)):
            if internal in closed[layer]:  # nobody of a full group is looked at again: documents read = hits
                continue
            chosen.append(place)
            if len(chosen) == k:
                break
            for group in self.schema.terms_of(field, views[layer].layer.body(internal)):
                taken[group] += 1
                if taken[group] == most:
                    for full, view in zip(closed, views, strict=True):
                        full.update(view.holders(field, group))
        return chosen

    def _answer(self, ranked: Ranked, chosen: Sequence[int]) -> Answer:
        keys, scores = ranked.keys.tolist(), ranked.scores.tolist()
        hits: list[Hit] = [{"ad_id": keys[i], "score": scores[i]} for i in chosen]
        return {
            "hits": hits,
            "total": ranked.matched,
            "total_is_lower_bound": not ranked.counted,
            "partial": not ranked.complete,
        }

    def _get(self, document_id: str) -> pb.ServedDocument:
        entry = self._view.delta.entries.get(document_id)
        served = pb.ServedDocument(document_id=document_id)
        if entry is not None:
            header = pb.Header.FromString(entry.header)
            served.found, served.deleted, served.layer = entry.slot >= 0, entry.slot < 0, "delta"
            served.version, served.answerable_us = entry.version, entry.answerable_us
            served.trace_id, served.origin_us = header.trace_id, header.origin_us
            served.hops.extend(header.hops)
            if entry.slot >= 0:
                served.body = self._view.delta.body(entry.slot)
        elif (place := self._view.find(document_id)) is not None:
            layer, internal = place[0].layer, place[1]
            served.found, served.layer = True, layer.name
            served.version, served.body = layer.version(internal), layer.body(internal)
        return served


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
