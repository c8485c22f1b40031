"""A segment with what changes about it: which documents newer layers hide, budgets, and the hour."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pyroaring import BitMap

from catalog import Serving
from manas._bits import Bits, Words, words_of
from manas._clauses import Clause, Condition, HasVector, Is, Special
from manas._lately import Lately
from manas._layer import After, Boost, Candidates, Counts, Ids
from manas._number_column import Column
from manas._postings import Posting
from manas._program import Program, bonus_lists, compile_program
from manas._program_source import estimate_ids
from manas._runner import Runner
from manas._special import Found, SpecialFinder
from manas.segment import Segment

_KEPT_FRAGMENTS = 512 << 20
"""Bytes of unpacked lists that compiled parts of requests hold in memory, a list counted for each part that has it: so
it is far less in fact, and most of that would be there anyway."""


class SegmentView:
    """Answers conditions over one segment by kernels. Not safe for threads: its owner locks."""

    def __init__(self, segment: Segment) -> None:
        self.layer = segment
        self.count = segment.count
        self.live = Bits(segment.count, full=True)
        """Ids that are not hidden by newer layers."""
        self.funded = Bits(segment.count)
        """Ids whose budget has something left."""
        self._schedule: _Schedule | None = None
        self.fragments = Lately(_KEPT_FRAGMENTS)
        self._runner = Runner()
        self._special = SpecialFinder(segment.targets, segment.posting, segment.count)
        self._everything: dict[str, tuple[int, Words, int]] = {}
        """By vector field what matches without any other condition, and how many lived then: only ever fewer do."""

    # ---- what programs read ----

    def posting(self, field: str, term: str) -> Posting | None:
        """Return the posting list of a term, None when no document has it."""
        return self.layer.posting(field, term)

    def column(self, field: str) -> Column | None:
        """Return a numeric column."""
        return self.layer.column(field)

    def scheduled(self, starts: str, ends: str, at_us: int) -> Bits:
        """Return the ids whose schedule has the instant; kept until it crosses a start or an end."""
        schedule = self._schedule
        if schedule is None or (schedule.starts_field, schedule.ends_field) != (starts, ends):
            schedule = self._schedule = _Schedule(self.layer, starts, ends)
        return schedule.at(at_us)

    def with_vector(self, field: str) -> Bits:
        """Return the ids that have a vector."""
        store = self.layer.vectors(field)
        return store.having if store is not None else Bits(self.count)

    def internal(self, document_id: str) -> int | None:
        """Return the internal id of a document, alive or not."""
        return self.layer.internal(document_id)

    def special(self, clause: Special) -> Found:
        """Return the lists of a predicate, circles, points or weekly hours."""
        return self._special.find(clause)

    # ---- what changes ----

    def hide(self, document_id: str) -> None:
        """Note that a newer layer has this document."""
        internal = self.layer.internal(document_id)
        if internal is not None:
            self.live.discard_id(internal)

    def hide_id(self, internal: int) -> None:
        """Note that a newer layer has this document, perhaps once more."""
        self.live.discard_id(internal)

    def hide_ids(self, ids: Ids) -> None:
        """Note that newer layers have these documents, each at most once in `ids`."""
        self.live.discard(ids)

    def fund(self, field: str, keys: Iterable[str], funded: bool) -> None:
        """Note that budgets have something left, or nothing any more."""
        change = self.funded.add if funded else self.funded.discard
        for key in keys:
            posting = self.layer.posting(field, key)
            if posting is not None:
                change(posting.ids)

    # ---- answers ----

    def __len__(self) -> int:
        return self.live.count

    def __contains__(self, internal: int) -> bool:
        return internal in self.live

    def holders(self, field: str, term: str) -> BitMap:
        """Return the ids whose field has the term, alive or not."""
        posting = self.layer.posting(field, term)
        if posting is None:
            return BitMap()
        return BitMap(posting.ids)

    def live_frequency(self, field: str, term: str) -> int:
        """Return how many live documents have the term."""
        posting = self.layer.posting(field, term)
        if posting is None:
            return 0
        if self.live.count == self.count:
            return posting.count
        if posting.dense is not None:
            return int(np.bitwise_count(posting.dense & self.live.words).sum())
        ids = posting.ids
        bits = self.live.words[ids >> np.uint32(6)] >> (ids & np.uint32(63)).astype(np.uint64)
        return int(np.count_nonzero(bits & np.uint64(1)))

    def holds(self, clause: Clause, internal: int) -> bool:
        """Tell whether one id satisfies a clause."""
        return bool(self._matched([Is(self.layer.document_id(internal)), clause])[0])

    def counts(self, conditions: Sequence[Condition], deadline: float | None = None) -> Counts:
        """Return how many live documents satisfy each condition, the cheapest first, and all of them."""
        ranked = sorted(((estimate_ids(self, c.clause), place) for place, c in enumerate(conditions)))
        rows: list[dict[str, Any]] = []
        done: list[Clause] = []
        remaining, whole = len(self), True
        for expected, place in ranked:
            condition = conditions[place]
            done.append(condition.clause)
            row: dict[str, Any] = {"clause": condition.name, "words": condition.words, "estimate": expected}
            row["matched"], alone = self._matched([condition.clause], deadline)
            row["remaining"], together = self._matched(done, deadline)
            remaining, whole = row["remaining"], whole and alone and together
            rows.append(row if alone and together else {**row, "partial": True})
        return Counts(rows, remaining, whole)

    def matching(self, conditions: Sequence[Condition], deadline: float | None = None) -> tuple[Words, int, bool]:
        """Return the live ids that satisfy all conditions as words, their number, and whether these are all."""
        alone = conditions[0].clause if len(conditions) == 1 else None
        if isinstance(alone, HasVector) and (kept := self._everything.get(alone.field)) and kept[0] == len(self):
            return kept[1], kept[2], True
        words, count, whole = self._runner.match(self._program(conditions), self.layer.scores.blocks, deadline)
        if isinstance(alone, HasVector) and whole:
            self._everything[alone.field] = len(self), words.copy(), count
        return words, count, whole

    def best(
        self,
        conditions: Sequence[Condition],
        boosts: Sequence[Boost],
        serving: Serving,
        limit: int,
        *,
        counting: bool = True,
        deadline: float | None = None,
        after: After | None = None,
    ) -> Candidates:
        """Return the best `limit` ids (0: all) by light score, ties decided by the smaller document id."""
        program = self._program(conditions)
        bonuses = bonus_lists(self, boosts) if boosts else ()
        scores = self.layer.scores
        size = min(limit, self.count) if limit else self.count  # room that nothing comes to is never touched
        if size == 0:
            return Candidates(np.empty(0, np.uint32), np.empty(0), 0, True, True, "nothing")
        counting = counting or limit == 0
        behind = None if after is None else (after.score, self.layer.tie_before(after.key))
        best = self._runner.best(program, scores, size, bonuses, counting=counting, deadline=deadline, after=behind)
        words = f"blocks {best.blocks} of {scores.blocks}, {program.drivers} lists drive"
        # With room for every id there is no reason to stop early: all that matches is in.
        counted = best.counted or (best.complete and size == self.count and after is None)
        keys = self.layer.keys_of_ties(best.ties)
        return Candidates(best.ids, best.scores, best.matched, counted, best.complete, words, True, keys)

    def numbers(self, field: str, ids: Ids) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        """Return the field's numbers of `ids`, 0 where missing, and which are there."""
        column = self.layer.column(field)
        if column is None:
            return np.zeros(len(ids)), np.zeros(len(ids), bool)
        values = column.at(ids)
        if column.present is None:
            return values, np.ones(len(ids), bool)
        bits = column.present[ids >> np.uint32(6)] >> (ids & np.uint32(63)).astype(np.uint64)
        return values, bits & np.uint64(1) != 0

    def payloads(self, field: str, term: str, ids: Ids) -> npt.NDArray[np.float64]:
        """Return the payload that the term has with each of `ids` (1 without payloads), 0 where they lack it."""
        posting = self.layer.posting(field, term)
        return np.zeros(len(ids)) if posting is None else posting.payloads_of(ids)

    def describe_term(self, field: str, term: str) -> dict[str, Any]:
        """Return kind, length and bytes of a term's posting list, for `explain`."""
        posting = self.layer.posting(field, term)
        if posting is None:
            return {"kind": "none", "ids": 0}
        kind, held = ("dense", posting.dense) if posting.dense is not None else ("split", posting.split)
        found: dict[str, Any] = {"kind": kind, "ids": posting.count, "bytes": 0 if held is None else held.nbytes}
        if posting.payloads is not None:
            found |= {
                "payload_bytes": posting.payloads.values.nbytes,
                "most": float(posting.payloads.bounds.max(initial=0.0)),
            }
        return found

    def _program(self, conditions: Sequence[Condition]) -> Program:
        return compile_program(self, [condition.clause for condition in conditions])

    def _matched(self, clauses: Sequence[Clause], deadline: float | None = None) -> tuple[int, bool]:
        return self._runner.match(compile_program(self, clauses), self.layer.scores.blocks, deadline)[1:]


class _Schedule:
    """The ids whose schedule has an instant, moved along with the clock instead of computed anew."""

    def __init__(self, segment: Segment, starts: str, ends: str) -> None:
        self.starts_field, self.ends_field = starts, ends
        self._starts, self._ends = segment.column(starts), segment.column(ends)
        self._count = segment.count
        self._bits: Bits | None = None
        self._valid = (0, 0)

    def at(self, at_us: int) -> Bits:
        """Return the ids for an instant. They stay as they are when the next instant has others."""
        if self._bits is None or not self._valid[0] <= at_us < self._valid[1]:
            bits = Bits(self._count, full=True)
            for column, late in ((self._starts, True), (self._ends, False)):
                if column is not None:
                    found = column.slice(at_us + 1, None) if late else column.slice(None, at_us)
                    bits.words &= ~words_of(column.order[found], self._count)
            self._bits = bits
            self._valid = self._until(at_us)
        return self._bits

    def _until(self, at_us: int) -> tuple[int, int]:
        """Return the interval around an instant in which nothing starts or ends."""
        low, high = -(1 << 62), 1 << 62
        for column in (self._starts, self._ends):
            if column is not None:
                place = column.slice(None, at_us).stop
                if place:
                    low = max(low, int(column.ranked(place - 1)))
                if place < len(column.order):
                    high = min(high, int(column.ranked(place)))
        return low, high
