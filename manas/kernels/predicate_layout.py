"""Places in the parameters and the steps of predicates: shared by the kernels' source and by the callers."""

from __future__ import annotations

from typing import NamedTuple


class _Judge(NamedTuple):
    """Places in what predicates are judged with: addresses, but for TURN and COUNT."""

    OF: int = 0
    """int32 by id: the number of its predicate, -1 where it has none."""
    ENTRIES: int = 1
    """int32 by predicate: its first step, or ACCEPT or REFUSE."""
    STEPS: int = 2
    ELEMENTS: int = 3
    """int64: sorted values of sets, and lows and highs of ranges."""
    STATES: int = 4
    """int64 by dimension: what the request says of it."""
    STARTS: int = 5
    """int64 by dimension, and one more: where its values begin."""
    VALUES: int = 6
    """int64: what the request says."""
    MEMO: int = 7
    """int32 by predicate: TURN x 2 + verdict where it has been judged in this turn already, anything else where not."""
    TURN: int = 8
    IDS: int = 9
    COUNT: int = 10
    OUT: int = 11
    SIZE: int = 12


class _Step(NamedTuple):
    """Columns of a step (int32): one condition, and where to go on."""

    KIND: int = 0
    """Dimension x 4, + RANGE, + DENIED."""
    FIRST: int = 1
    COUNT: int = 2
    IF_MET: int = 3
    """Next step, or ACCEPT or REFUSE."""
    ELSE: int = 4
    WIDTH: int = 5


Judge, Step = _Judge(), _Step()
RANGE, DENIED = 1, 2
ACCEPT, REFUSE = -1, -2
UNKNOWN, GIVEN, BROWSED = 0, 1, 2
""" "*" is BROWSED: every condition counts as met. An UNKNOWN dimension meets none, denied or not."""
