"""The set of opened backends that every view of the debug UI reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from catalog import Catalog
from gateway.ads_db import AdsDb
from manas import SearchBackend
from messaging.api import Log
from messaging.home import Home
from storage_repo import Repo
from storage_repo.feed import RepoFeed


@dataclass(frozen=True, slots=True)
class Backends:
    """Opened backends of one home. Read only, except that replaying a dead letter publishes to `log`."""

    home: Home
    catalog: Catalog
    log: Log
    repo: Repo
    repo_feed: RepoFeed
    """How far the WAL proxy is behind the Repo."""
    ads_db: AdsDb
    """The truth: what advertisers have set."""
    serving: SearchBackend
    """A running Manas server, or the local index read from base and deltas when none runs."""
    open_repo: Callable[[], Repo] | None = None
    """Opens the Repo in another process (it can be pickled); None: the home's embedded one."""
