"""The serving index in the caller's own process, for commands that run while no server does."""

from __future__ import annotations

from catalog import Catalog
from manas._follower import Follower
from manas.index import Index
from messaging.api import Log
from messaging.home import Home


def open_local_index(home: Home, catalog: Catalog, log: Log) -> Index:
    """Build the index that a server would have now, from the base and all that is in the log. Writes nothing.

    Raises IndexIncomplete when the log no longer has deltas that are needed.
    """
    index = Index(catalog)
    follower = Follower(home.base, log, index)
    follower.start()
    follower.catch_up()
    return index
