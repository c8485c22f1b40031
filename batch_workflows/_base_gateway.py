"""Whether the Gateway reads the ads DB while a base is built: what it has not read is in no base, and in no log.

How far it is behind comes from where health has it (`gateway.feed_lag`), so that a Gateway that is down or held is seen
although the Repo looks idle. One that moves is at work, however much it has before it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from gateway import AdsDb, AdsDbUnavailable, FeedLag, PositionLost, feed_lag
from messaging import Log

_LOOK_S = 0.2
_sleep = time.sleep


class GatewayWatch:
    """Looks at the Gateway from the beginning of a build to its end."""

    def __init__(self, ads_db: AdsDb, log: Log) -> None:
        self._ads_db, self._log = ads_db, log
        self._done = _done(self._look())

    def fault(self, patience_s: float, check: Callable[[], None]) -> str | None:
        """Return a sentence if the ads DB has changes unread and the Gateway stands still; waits so long for a move.

        `check` is called while it waits; it may raise to end it. Raises LogError.
        """
        deadline = time.monotonic() + patience_s
        while True:
            lag = self._look()
            if isinstance(lag, str):
                return f"nobody knows what the Gateway has not read: {lag}"
            if not lag.waiting or _done(lag) != self._done:
                return None
            if time.monotonic() >= deadline:
                return (
                    f"the Gateway stands still, with {lag.waiting} {lag.unit} of the ads DB before it that it has not "
                    f"read, and has done so for {patience_s:g} s at least: start the service, or set back the switch "
                    "that holds it"
                )
            check()
            _sleep(_LOOK_S)

    def _look(self) -> FeedLag | str:
        try:
            return feed_lag(self._ads_db, self._log)
        except (AdsDbUnavailable, PositionLost) as error:
            return str(error)


def _done(lag: FeedLag | str) -> int:
    """Return a number that grows with whatever the Gateway does, and with nothing that others do."""
    if isinstance(lag, str) or not lag.position:
        return 0
    return lag.end - lag.waiting
