"""What a segment keeps of predicates, circles, points and weekly hours, beside the terms that lead to candidates.

| file | content |
| --- | --- |
| `targets.FIELD.open` | bitmap of the ids without a value: predicates, circles and hours put no condition on them |
| `targets.FIELD.of` | predicates, hours: int32 by id, the number of its value; -1 without one |
| `targets.FIELD.names` | MessagePack; predicates: dimensions ("type:name") as steps number them; hours: texts |
| `targets.FIELD.entries`, `.steps`, `.elements` | predicates: programs as `kernels.predicate_layout` says |
| `targets.FIELD.ids`, `.starts`, `.circles` | circles: ascending ids that have some; where theirs begin; float64 rows |
| `targets.FIELD.codes`, `.order`, `.places` | points: ascending codes (`_geo.codes`); their ids and unit vectors |
"""

from __future__ import annotations

import mmap
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import numpy as np
import numpy.typing as npt

from catalog import Destination
from catalog.hours import USER, Hours, HoursError, hour_of_week, parse, time_zone
from manas import _geo
from manas._bits import Words, padded, words_of
from manas._clauses import Asked
from manas._layer import Ids
from manas._predicates import Bench, Programs, Verdicts
from manas._schema import DocumentSchema, PreparedDocument

_KEPT_HOURS = 64
"""Bitmaps of weekly hours kept per field and segment: users of some forty zones, before and after the hour."""
Save = Callable[[str, npt.NDArray[Any]], None]


class TargetsWriter:
    """Gathers the special fields of the documents of a segment to be."""

    def __init__(self, schema: DocumentSchema) -> None:
        self._schema = schema
        self._values: dict[str, tuple[list[int], list[Any]]] = {name: ([], []) for name in schema.special_fields}

    def add(self, place: int, document: PreparedDocument) -> None:
        """Take a document; `place` is its number in the order of input."""
        for field, value in document.targets.items():
            places, values = self._values[field]
            places.append(place)
            values.append(value)

    def write(self, save: Save, internal: npt.NDArray[np.uint32]) -> None:
        """Write all files; `internal` leads from the order of input to internal ids."""
        count = len(internal)
        for field, (places, values) in self._values.items():
            holders = internal[np.array(places, np.int64)]
            order = np.argsort(holders, kind="stable")
            ids, sorted_values = holders[order], [values[i] for i in order.tolist()]
            taken = np.ones(count, bool)
            taken[ids] = False
            save(f"targets.{field}.open", words_of(np.flatnonzero(taken).astype(np.uint32), count))
            match self._schema.fields[field].index:
                case Destination.PREDICATE:
                    self._predicates(save, field, ids, sorted_values, count)
                case Destination.CIRCLES:
                    _write_circles(save, field, ids, sorted_values)
                case Destination.POINT:
                    _write_points(save, field, ids, sorted_values)
                case Destination.HOURS:
                    _write_hours(save, field, ids, sorted_values, count)

    def _predicates(self, save: Save, field: str, ids: Ids, values: Sequence[str], count: int) -> None:
        programs = Programs(self._schema.catalog.dimensions.values())
        known: dict[str, int] = {}
        for text in values:
            if text not in known:
                known[text] = programs.add(text, self._schema.predicate(text))
        save(f"targets.{field}.of", _numbers_by_id(ids, [known[text] for text in values], count))
        save(f"targets.{field}.names", _packed(programs.names))
        save(f"targets.{field}.entries", np.array(programs.entries, np.int32))
        save(f"targets.{field}.steps", np.array(programs.steps, np.int32))
        save(f"targets.{field}.elements", np.array(programs.elements, np.int64))


def _write_circles(save: Save, field: str, ids: Ids, values: Sequence[Any]) -> None:
    counts = np.array([len(rows) for rows in values], np.int64)
    save(f"targets.{field}.ids", ids)
    save(f"targets.{field}.starts", np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))
    save(f"targets.{field}.circles", np.array([row for rows in values for row in rows], np.float64).reshape(-1, 4))


def _write_points(save: Save, field: str, ids: Ids, values: Sequence[Any]) -> None:
    places = np.array(values, np.float64).reshape(-1, 2)
    codes = _geo.codes(places[:, 0], places[:, 1])
    order = np.argsort(codes, kind="stable")
    save(f"targets.{field}.codes", codes[order])
    save(f"targets.{field}.order", ids[order])
    save(f"targets.{field}.places", _geo.vectors(places[order, 0], places[order, 1]))


def _write_hours(save: Save, field: str, ids: Ids, values: Sequence[str], count: int) -> None:
    known = {text: number for number, text in enumerate(dict.fromkeys(values))}
    save(f"targets.{field}.of", _numbers_by_id(ids, [known[text] for text in values], count))
    save(f"targets.{field}.names", _packed(list(known)))


def _numbers_by_id(ids: Ids, numbers: Sequence[int], count: int) -> npt.NDArray[np.int32]:
    by_id = np.full(padded(count), -1, np.int32)
    by_id[ids] = numbers
    return by_id


def _packed(names: Sequence[str]) -> npt.NDArray[np.uint8]:
    return np.frombuffer(msgspec.msgpack.encode(names), np.uint8)


class SegmentTargets:
    """The special fields of a mapped segment. Those that it was built without put no condition on its documents."""

    def __init__(self, directory: Path, indexes: Mapping[str, str]) -> None:
        """`indexes` are the fields that the segment has -> how they are indexed."""

        def having(kind: Destination) -> list[str]:
            return [name for name, index in indexes.items() if index == kind.value]

        self.predicates = {name: PredicateFile(directory, name) for name in having(Destination.PREDICATE)}
        self.circles = {name: CircleFile(directory, name) for name in having(Destination.CIRCLES)}
        self.points = {name: PointFile(directory, name) for name in having(Destination.POINT)}
        self.hours = {name: HoursFile(directory, name) for name in having(Destination.HOURS)}


class PredicateFile:
    """Predicates by id."""

    def __init__(self, directory: Path, field: str) -> None:
        self.open: Words = _mapped(directory, field, "open", np.uint64)
        self.open_count = int(np.bitwise_count(self.open).sum())
        self._of = _mapped(directory, field, "of", np.int32)
        self._names = _unpacked(directory, field)
        self._verdicts = Verdicts()
        self._arrays = (
            _mapped(directory, field, "entries", np.int32),
            _mapped(directory, field, "steps", np.int32),
            _mapped(directory, field, "elements", np.int64),
        )

    def bench(self, asked: Asked) -> Bench:
        """Return where the predicates are judged for a request."""
        return Bench(self._names, asked, self._of, *self._arrays, self._verdicts)


class CircleFile:
    """Circles by id."""

    def __init__(self, directory: Path, field: str) -> None:
        self.open: Words = _mapped(directory, field, "open", np.uint64)
        self.open_count = int(np.bitwise_count(self.open).sum())
        self._ids = _mapped(directory, field, "ids", np.uint32)
        self._starts = _mapped(directory, field, "starts", np.int64)
        self._circles = _mapped(directory, field, "circles", np.float64).reshape(-1, 4)

    def inside(self, candidates: Ids, lat: float, lon: float) -> Ids:
        """Return those of ascending `candidates`, which all have circles, that take a position."""
        rows = np.searchsorted(self._ids, candidates)
        starts = self._starts[rows]
        counts = self._starts[rows + 1] - starts
        owners = np.repeat(np.arange(len(rows)), counts)
        places = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(starts, counts)
        return candidates[takes(self._circles[places], owners, len(rows), lat, lon)]


def takes(
    circles: _geo.Doubles, owners: npt.NDArray[np.int64], count: int, lat: float, lon: float
) -> npt.NDArray[np.bool_]:
    """Tell for each of `count` owners of circles whether a position is in one of them, and in none excluded.

    With excluded circles only, everywhere else is taken.
    """
    hit = _geo.within(_geo.vectors(lat, lon), _geo.vectors(circles[:, 0], circles[:, 1]), circles[:, 2])
    excluded = circles[:, 3] != 0
    wants, gets, loses = (
        np.bincount(owners[chosen], minlength=count) for chosen in (~excluded, hit & ~excluded, hit & excluded)
    )
    result: npt.NDArray[np.bool_] = ((gets > 0) | (wants == 0)) & (loses == 0)
    return result


class PointFile:
    """Points in the order of their codes."""

    def __init__(self, directory: Path, field: str) -> None:
        self._codes = _mapped(directory, field, "codes", np.uint64)
        self._order = _mapped(directory, field, "order", np.uint32)
        self._places = _mapped(directory, field, "places", np.float64).reshape(-1, 3)

    def near(self, lat: float, lon: float, metres: float) -> Ids:
        """Return the ids whose point is no further than so many metres, ascending."""
        pieces = self._pieces(lat, lon, metres)
        places = np.concatenate([np.empty(0, np.int64), *(np.arange(a, b) for a, b in pieces)])
        found = _geo.within(self._places[places], _geo.vectors(lat, lon), metres)
        return np.sort(self._order[places[found]])

    def estimate(self, lat: float, lon: float, metres: float) -> int:
        """Return how many points are in the cells that cover the circle."""
        return sum(b - a for a, b in self._pieces(lat, lon, metres))

    def _pieces(self, lat: float, lon: float, metres: float) -> list[tuple[int, int]]:
        ranges = _geo.code_ranges(lat, lon, metres)
        first = np.searchsorted(self._codes, ranges[:, 0], side="left")
        last = np.searchsorted(self._codes, ranges[:, 1], side="right")
        return [(a, b) for a, b in zip(first.tolist(), last.tolist(), strict=True) if a < b]


class HoursFile:
    """Weekly hours by id; the bitmap of an hour is made once and kept."""

    def __init__(self, directory: Path, field: str) -> None:
        self._of = _mapped(directory, field, "of", np.int32)
        self._table = HoursTable([hours_of(text) for text in _unpacked(directory, field)])
        self._kept: OrderedDict[bytes, tuple[Words, int]] = OrderedDict()
        self._count = int(np.bitwise_count(_mapped(directory, field, "open", np.uint64)).sum()) + int(
            np.count_nonzero(self._of >= 0)
        )

    def running(self, moment: datetime, user_zone: ZoneInfo | None, *, browse: bool) -> tuple[Words, int]:
        """Return the ids that run at a moment, and their number."""
        running = self._table.running(moment, user_zone, browse=browse)
        key = np.packbits(running).tobytes()
        found = self._kept.get(key)
        if found is None:
            flags = np.append(running, True)[self._of]  # -1, without hours, is the last
            flags[self._count :] = False
            found = self._kept[key] = np.packbits(flags, bitorder="little").view(np.uint64), int(flags.sum())
            if len(self._kept) > _KEPT_HOURS:
                self._kept.popitem(last=False)
        else:
            self._kept.move_to_end(key)
        return found


@lru_cache(4_096)
def hours_of(text: str) -> Hours:
    """Return weekly hours; those of a zone that this machine does not know never run."""
    try:
        return parse(text)
    except HoursError:
        return Hours(0, USER)


class HoursTable:
    """Distinct weekly hours, and which of them have a moment."""

    def __init__(self, hours: Sequence[Hours]) -> None:
        zones = list(dict.fromkeys(one.zone for one in hours))
        self._zones = [None if name == USER else time_zone(name) for name in zones]
        number = {zone: place for place, zone in enumerate(zones)}
        self._zone_of = np.array([number[one.zone] for one in hours], np.int64)
        packed = np.frombuffer(b"".join(one.mask.to_bytes(21, "little") for one in hours), np.uint8)
        self._masks = np.unpackbits(packed, bitorder="little").reshape(-1, 168).astype(bool)

    def running(self, moment: datetime, user_zone: ZoneInfo | None, *, browse: bool) -> npt.NDArray[np.bool_]:
        """Tell of each whether it has the moment. `browse` puts no condition on those in the user's zone."""
        if not len(self._masks):
            return np.empty(0, bool)
        zones = [zone if zone is not None else user_zone for zone in self._zones]
        hours = np.array([0 if zone is None else hour_of_week(moment, zone) for zone in zones], np.int64)
        unknown = np.array([zone is None for zone in zones])[self._zone_of]
        running = self._masks[np.arange(len(self._masks)), hours[self._zone_of]]
        result: npt.NDArray[np.bool_] = np.where(unknown, browse | self._masks.all(axis=1), running)
        return result


def _mapped(directory: Path, field: str, what: str, dtype: Any) -> npt.NDArray[Any]:
    file = directory / f"targets.{field}.{what}"
    with file.open("rb") as handle:
        if file.stat().st_size == 0:  # an empty file cannot be mapped
            return np.empty(0, dtype)
        return np.frombuffer(mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ), dtype)


def _unpacked(directory: Path, field: str) -> list[str]:
    return msgspec.msgpack.decode((directory / f"targets.{field}.names").read_bytes(), type=list[str])
