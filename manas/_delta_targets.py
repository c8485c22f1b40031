"""Predicates, circles, points and weekly hours of the delta, by slot."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
from pyroaring import BitMap

from catalog import Destination
from manas import _geo, kernels
from manas._clauses import Asked
from manas._layer import Ids, id_array
from manas._predicates import Bench, Programs, Verdicts, dimension_key
from manas._schema import DocumentSchema, PreparedDocument
from manas._targets import HoursTable, hours_of, takes
from manas.kernels.predicate_layout import Judge

_FIRST_CAPACITY = 1024
_MIN_DEAD = 1_000
"""Values that nobody has any more before they are thrown away: a document may change its predicate again and again."""


class DeltaTargets:
    """The special fields of the delta's documents. Not safe for threads: its owner locks."""

    def __init__(self, schema: DocumentSchema) -> None:
        self._schema = schema
        self._numbered = {
            field: _Numbered()
            for field in schema.special_fields
            if schema.fields[field].index in (Destination.PREDICATE, Destination.HOURS)
        }
        self._rows: dict[str, dict[int, npt.NDArray[np.float64]]] = {
            field: {} for field in schema.special_fields if field not in self._numbered
        }
        self._holders = {field: BitMap() for field in schema.special_fields}
        self._programs: dict[str, tuple[int, Programs]] = {}
        """Field -> (generation of its numbers, the programs of as many texts as were needed so far)."""
        self._verdicts = Verdicts()
        self._made: dict[str, tuple[tuple[int, int], Any]] = {}
        """Field -> (generation and number of its texts, what was made of them)."""

    def set(self, slot: int, document: PreparedDocument | None) -> None:
        """Take over what a slot's document has, None when the slot is free."""
        for field, holders in self._holders.items():
            value = None if document is None else document.targets.get(field)
            if field in self._numbered:
                self._numbered[field].set(slot, value)
            elif value is None:
                self._rows[field].pop(slot, None)
            else:
                self._rows[field][slot] = np.array(value, np.float64)
            (holders.discard if value is None else holders.add)(slot)

    def holders(self, field: str) -> BitMap:
        """Return the slots that have a value."""
        return self._holders.get(field, BitMap())

    def meeting(self, field: str, candidates: BitMap, asked: Asked) -> BitMap:
        """Return those of `candidates` whose predicate holds."""
        ids = id_array(candidates & self._holders[field])
        if not len(ids):
            return BitMap()
        entries, steps, elements = self._kept(field, lambda: self._compiled(field))
        names = [dimension_key(d) for d in self._schema.catalog.dimensions.values()]
        bench = Bench(names, asked, self._numbered[field].of, entries, steps, elements, self._verdicts)
        out = np.zeros(len(ids), np.uint8)
        p = bench.parameters
        p[Judge.IDS], p[Judge.COUNT], p[Judge.OUT] = ids.ctypes.data, len(ids), out.ctypes.data
        kernels.load().judge(bench.address)
        return BitMap(ids[out != 0])

    def _compiled(self, field: str) -> tuple[npt.NDArray[Any], ...]:
        """Return entries, steps and elements of all texts; only new ones are compiled."""
        values = self._numbered[field]
        generation, programs = self._programs.get(field, (-1, None))
        if programs is None or generation != values.generation:
            programs = Programs(self._schema.catalog.dimensions.values())
            self._programs[field] = values.generation, programs
        for text in values.texts[len(programs) :]:
            programs.add(text, self._schema.predicate(text))
        arrays = ((programs.entries, np.int32), (programs.steps, np.int32), (programs.elements, np.int64))
        return tuple(np.array(array, kind) for array, kind in arrays)

    def inside(self, field: str, candidates: BitMap, lat: float, lon: float) -> BitMap:
        """Return those of `candidates` whose circles take a position."""
        ids = id_array(candidates & self._holders[field])
        if not len(ids):
            return BitMap()
        rows = [self._rows[field][slot] for slot in ids.tolist()]
        owners = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
        return BitMap(ids[takes(np.concatenate(rows), owners, len(rows), lat, lon)])

    def near(self, field: str, lat: float, lon: float, metres: float) -> BitMap:
        """Return the slots whose point is no further than so many metres."""
        rows = self._rows.get(field)
        if not rows:
            return BitMap()
        slots = np.array(list(rows), np.uint32)
        places = np.array(list(rows.values()))
        found = _geo.within(_geo.vectors(places[:, 0], places[:, 1]), _geo.vectors(lat, lon), metres)
        return BitMap(slots[found])

    def running(self, field: str, moment: datetime, user_zone: ZoneInfo | None, *, browse: bool) -> BitMap:
        """Return the slots whose weekly hours have a moment."""
        values = self._numbered[field]
        table: HoursTable = self._kept(field, lambda: HoursTable([hours_of(text) for text in values.texts]))
        running = np.append(table.running(moment, user_zone, browse=browse), False)
        found: Ids = np.flatnonzero(running[values.of]).astype(np.uint32)
        return BitMap(found) & self._holders[field]

    def _kept(self, field: str, make: Callable[[], Any]) -> Any:
        state = self._numbered[field].generation, len(self._numbered[field].texts)
        known = self._made.get(field)
        if known is None or known[0] != state:
            known = self._made[field] = (state, make())
        return known[1]


class _Numbered:
    """Texts by slot, each distinct one numbered."""

    def __init__(self) -> None:
        self.of: npt.NDArray[np.int32] = np.full(_FIRST_CAPACITY, -1, np.int32)
        self.texts: list[str] = []
        self.generation = 0
        """Changes whenever texts get other numbers."""
        self._numbers: dict[str, int] = {}
        self._users: list[int] = []
        self._dead = 0

    def set(self, slot: int, text: str | None) -> None:
        """Note the text of a slot, None for none."""
        while slot >= len(self.of):
            self.of = np.concatenate([self.of, np.full_like(self.of, -1)])
        before = int(self.of[slot])
        if before >= 0:
            self._users[before] -= 1
            self._dead += self._users[before] == 0
        if text is None:
            self.of[slot] = -1
        else:
            number = self._number(text)
            self._dead -= self._users[number] == 0
            self._users[number] += 1
            self.of[slot] = number
        if self._dead > max(_MIN_DEAD, len(self.texts) // 2):
            self._forget_dead()

    def _number(self, text: str) -> int:
        number = self._numbers.get(text)
        if number is None:
            number = self._numbers[text] = len(self.texts)
            self.texts.append(text)
            self._users.append(0)
            self._dead += 1
        return number

    def _forget_dead(self) -> None:
        alive = [number for number, users in enumerate(self._users) if users]
        renumbered = np.full(len(self.texts) + 1, -1, np.int32)  # the last is for -1
        renumbered[alive] = np.arange(len(alive), dtype=np.int32)
        self.of = renumbered[self.of]
        self.texts = [self.texts[number] for number in alive]
        self._users = [self._users[number] for number in alive]
        self._numbers = {text: number for number, text in enumerate(self.texts)}
        self._dead = 0
        self.generation += 1
