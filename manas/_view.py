"""Base and what came since merged: a newer version of a document hides older ones, tombstones hide it altogether."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum

import numpy as np

from manas._base import Base
from manas._delta import Delta, Entry
from manas._delta_view import DeltaView
from manas._fold_files import Fold, base_layer
from manas._schema import DocumentSchema, PreparedDocument
from manas._segment_view import SegmentView
from manas.segment import Segment


class Outcome(StrEnum):
    """What became of a delta or budget state."""

    APPLIED = "applied"
    STALE = "stale"
    """A newer version is known."""
    DUPLICATE = "duplicate"
    """This very version is known."""
    COVERED = "covered"
    """At or before the base's snapshot."""


class View:
    """One base (or none) with what came since: folded segments, a delta being folded, and the live delta.

    Newer layers hide what they replace in older ones. Only one thread may write. What it shows to readers changes in
    `upsert`, `delete`, `fund`, `freeze` and `adopt`, for which its owner locks.
    """

    def __init__(self, schema: DocumentSchema, base: Base | Segment | None, version: str = "") -> None:
        """Raises CatalogMismatch when the base contradicts the catalogue."""
        self.schema = schema
        self.manifest = base.manifest if base is not None else None
        self.base_version = version
        self.fields_missing_in_base = base.check_catalog(schema.catalog) if base is not None else []
        self.delta = Delta(schema)
        self.frozen: Delta | None = None
        """A delta that changes no more, while it is being folded."""
        self.folds: list[Fold] = []
        """Oldest first."""
        self.funded_keys: set[str] = set()
        self._budget_key = schema.catalog.serving.budget_key or ""  # "": nothing is funded or not
        segments = base.segments if base is not None else ()
        self.base_layers = {base_layer(number): segment for number, segment in enumerate(segments)}
        """Name, as folded segments call it, -> a segment of the base."""
        self._bases = {name: SegmentView(segment) for name, segment in self.base_layers.items()}
        self._folded: list[SegmentView] = []
        self._frozen: DeltaView | None = None
        self._delta = DeltaView(self.delta)
        self._arrange()

    def entry(self, document_id: str) -> Entry | None:
        """Return what deltas since the base have said of a document; its slot is -1 where it was deleted."""
        for delta in (self.delta, self.frozen):
            if delta is not None and (known := delta.entries.get(document_id)) is not None:
                return known
        for fold in reversed(self.folds):
            if (known := fold.entry(document_id)) is not None:
                return known
        return None

    def judge(self, document_id: str, version: int) -> Outcome:
        """Return what would become of this version of a document."""
        known = self.entry(document_id)
        if known is not None:
            if version > known.version:
                return Outcome.APPLIED
            return Outcome.DUPLICATE if version == known.version else Outcome.STALE
        if self.manifest is not None and version <= self.manifest.snapshot_ts:
            return Outcome.COVERED
        return Outcome.APPLIED

    def upsert(self, document: PreparedDocument, entry: Entry) -> None:
        """Put a document that `judge` has let pass."""
        self._hide(document.document_id)
        self.delta.upsert(document, entry)
        if self.funded_keys.isdisjoint(document.terms.get(self._budget_key, ())):
            self._delta.funded.discard(entry.slot)
        else:
            self._delta.funded.add(entry.slot)

    def delete(self, document_id: str, entry: Entry) -> None:
        """Put a tombstone that `judge` has let pass."""
        self._hide(document_id)
        self.delta.delete(document_id, entry)

    def _hide(self, document_id: str) -> None:
        """Hide the document in the newest layer that has it; what is older is hidden already."""
        if document_id in self.delta.entries:
            return
        if self.frozen is not None and (known := self.frozen.entries.get(document_id)) is not None:
            if known.slot >= 0:
                self.frozen.live.discard(known.slot)
            return
        for fold, view in zip(reversed(self.folds), reversed(self._folded), strict=True):
            if (known := fold.entry(document_id)) is not None:
                if known.slot >= 0:
                    view.hide_id(known.slot)
                return
        for base in self._bases.values():
            base.hide(document_id)

    def set_funded(self, keys: Iterable[str]) -> None:
        """Take over which budgets have something left, all at once, in a view that knows of none yet."""
        self.funded_keys = set(keys)
        for view in self.layers():
            view.fund(self._budget_key, self.funded_keys, True)

    def fund(self, key: str, funded: bool) -> None:
        """Note that one budget has something left again, or nothing any more."""
        if funded == (key in self.funded_keys):
            return
        (self.funded_keys.add if funded else self.funded_keys.discard)(key)
        for view in self.layers():
            view.fund(self._budget_key, (key,), funded)

    # ---- folding ----

    def stack(self, folds: Sequence[Fold]) -> None:
        """Put folded segments, oldest first, upon the base of a view that knows of no delta yet."""
        for fold in folds:
            view = self._new_folded(fold)
            below = self._bases | {f.name: v for f, v in zip(self.folds, self._folded, strict=True)}
            for name, ids in fold.hides.items():
                below[name].hide_ids(ids)
            self.folds.append(fold)
            self._folded.append(view)
        self._arrange()

    def freeze(self) -> Delta:
        """Go on with an empty delta and return the one so far, which is answered from until `adopt`."""
        if self.frozen is not None:
            raise RuntimeError("a delta is being folded already")
        self.frozen, self._frozen = self.delta, self._delta
        self.delta = Delta(self.schema)
        self._delta = DeltaView(self.delta)
        self._arrange()
        return self.frozen

    def prepare_fold(self, fold: Fold) -> SegmentView:
        """Return a folded segment as it must look from now on: without what the live delta replaces.

        Shows nothing to readers yet, so it needs no lock; nothing may be written until `adopt`.
        """
        view = self._new_folded(fold)
        known = (fold.entry(document_id) for document_id in self.delta.entries)
        view.hide_ids(np.array([entry.slot for entry in known if entry is not None and entry.slot >= 0], np.uint32))
        return view

    def adopt(self, fold: Fold, view: SegmentView, merged: int) -> None:
        """Answer from a folded segment instead of the frozen delta and the youngest `merged` older ones."""
        keep = len(self.folds) - merged
        self.folds = [*self.folds[:keep], fold]
        self._folded = [*self._folded[:keep], view]
        self.frozen = self._frozen = None
        self._arrange()

    def _new_folded(self, fold: Fold) -> SegmentView:
        fold.segment.check_catalog(self.schema.catalog)
        view = SegmentView(fold.segment)
        view.fund(self._budget_key, self.funded_keys, True)
        return view

    def _arrange(self) -> None:
        frozen = [] if self._frozen is None else [self._frozen]
        self._layers: tuple[SegmentView | DeltaView, ...] = (*self._bases.values(), *self._folded, *frozen, self._delta)

    def layers(self) -> tuple[SegmentView | DeltaView, ...]:
        """Return the layers that have documents or could have, those of the base first and the live delta last."""
        return self._layers

    def find(self, document_id: str) -> tuple[SegmentView | DeltaView, int] | None:
        """Return where a live document is."""
        for view in reversed(self.layers()):
            internal = view.layer.internal(document_id)
            if internal is not None and internal in view:
                return view, internal
        return None

    def documents(self) -> int:
        """Return the number of live documents."""
        return sum(map(len, self.layers()))

    def since_base(self) -> dict[str, int]:
        """Return sizes of what came since the base; a document changed often counts once per layer that has it."""
        deltas = [delta for delta in (self.delta, self.frozen) if delta is not None]
        return {
            "documents": sum(len(delta.live) for delta in deltas) + sum(map(len, self._folded)),
            "tombstones": sum(delta.tombstones for delta in deltas) + sum(fold.tombstones for fold in self.folds),
            "slots": sum(delta.slots for delta in deltas),
        }
