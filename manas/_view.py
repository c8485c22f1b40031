"""Base and delta merged: the delta's newer version of a document hides the base's, tombstones hide it altogether."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from manas._base import Base
from manas._delta import Delta, Entry
from manas._delta_view import DeltaView
from manas._schema import DocumentSchema, PreparedDocument
from manas._segment_view import SegmentView
from manas._writer import GRAPH_FROM
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
    """One base (or none) with the deltas since. Not safe for threads: its owner locks."""

    def __init__(
        self, schema: DocumentSchema, base: Base | Segment | None, version: str = "", *, graph_from: int = GRAPH_FROM
    ) -> None:
        """Raises CatalogMismatch when the base contradicts the catalogue."""
        self.schema = schema
        self.manifest = base.manifest if base is not None else None
        self.base_version = version
        self.fields_missing_in_base = base.check_catalog(schema.catalog) if base is not None else []
        self.delta = Delta(schema, graph_from=graph_from)
        self.funded_keys: set[str] = set()
        self._budget_key = schema.catalog.serving.budget_key or ""  # "": nothing is funded or not
        self._bases = [SegmentView(segment) for segment in base.segments] if base is not None else []
        self._delta = DeltaView(self.delta)

    def judge(self, document_id: str, version: int) -> Outcome:
        """Return what would become of this version of a document."""
        known = self.delta.entries.get(document_id)
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
        if document_id not in self.delta.entries:
            for base in self._bases:
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

    def layers(self) -> list[SegmentView | DeltaView]:
        """Return the layers that have documents or could have, those of the base first."""
        return [*self._bases, self._delta]

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
