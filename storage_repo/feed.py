"""How far the WAL proxy is behind its Repo, whatever the backend: for people, and for `up --until-idle`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from messaging.api import Log
from messaging.topics import REPO_FEED, WAL_PROXY_GROUP
from storage_repo.api import ChangeFeedRepo


@dataclass(frozen=True, slots=True)
class FeedLag:
    """What waits between Repo and WAL proxy, in units of the backend."""

    waiting: int
    end: int
    position: int
    place: str
    meaning: str


class RepoFeed(Protocol):
    """Looks at the feed of one Repo."""

    def lag(self) -> FeedLag:
        """Return what is known without asking anybody to do anything. Raises LogError, RepoError."""

    def confirm(self) -> int:
        """Return 0 if all that was committed before this call is in the log as notifications, else how much waits.

        May write to the Repo and wait for a second or two, so it is for who must know. Raises LogError, RepoError, and
        FeedStuck when it was asked for a minute and more and nothing arrives.
        """


class StoredFeed:
    """The feed that an embedded Repo stores with its commits: both sides count commits (implements RepoFeed)."""

    def __init__(self, repo: ChangeFeedRepo, log: Log) -> None:
        self._repo, self._log = repo, log

    def lag(self) -> FeedLag:
        """Compare the newest commit with the WAL proxy's position."""
        last = self._repo.last_commit_ts()
        position = self._log.committed(WAL_PROXY_GROUP, REPO_FEED).get(0, 0) if REPO_FEED in self._log.topics() else 0
        waiting = max(0, last - position)
        return FeedLag(waiting, last, position, "Repo change feed", "commits that have not become notifications")

    def confirm(self) -> int:
        """The position says it all."""
        return self.lag().waiting
