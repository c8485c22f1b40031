"""Rate and time left of a run, from how far it says it is."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from batch_workflows._clocks import elapsed_s, wall_us
from batch_workflows._runs_model import Progress

WINDOW_S = 30.0
"""The rate is that of the last half minute: long enough to be steady, short enough to follow a change of speed."""
_STEP_S = 0.5


class Pace:
    """Turns "so many of so many" into a rate and a time left. A clock that is set does not disturb it."""

    def __init__(self, elapsed: Callable[[], float] = elapsed_s) -> None:
        self._elapsed = elapsed
        self._marks: deque[tuple[float, int]] = deque()
        self._unit = ""

    def at(self, done: int, total: int | None, unit: str) -> Progress:
        """Return the progress; what goes back, or counts another unit, starts the measurement again."""
        now = self._elapsed()
        marks = self._marks
        if unit != self._unit or (marks and done < marks[-1][1]):
            marks.clear()
            self._unit = unit
        if not marks or now - marks[-1][0] >= _STEP_S:
            marks.append((now, done))
        while len(marks) > 2 and now - marks[1][0] >= WINDOW_S:
            marks.popleft()
        spent = now - marks[0][0]
        rate = (done - marks[0][1]) / spent if spent > 0 and done > marks[0][1] else None
        left = None if rate is None or total is None else max(0, total - done) / rate
        return Progress(
            done=done,
            total=total,
            unit=unit,
            rate=None if rate is None else round(rate, 2),
            eta_s=None if left is None else round(left, 1),
            at_us=wall_us(),
        )
