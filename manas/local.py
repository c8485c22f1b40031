"""The serving index in the caller's own process, for commands that run while no server does."""

from __future__ import annotations

from catalog import Catalog
from manas._follower import Follower
from manas._serving_settings import ServingSettings
from manas.index import Index
from messaging.api import Log
from messaging.home import Home


def open_local_index(home: Home, catalog: Catalog, log: Log, *, base_fallback: bool = False) -> Index:
    """Build the index that a server would have now, from the base and all that is in the log. Writes nothing.

    What a server has folded is used. Raises IndexIncomplete when the log no longer has deltas that are needed, and
    SegmentError for a base that cannot be used unless `base_fallback` lets an earlier one stand in.
    """
    index = Index(catalog)
    follower = Follower(home.base, log, index, settings=ServingSettings(fold=None, base_fallback=base_fallback))
    follower.start()
    follower.catch_up()
    follower.close()
    return index
