"""Where one installation keeps its state: every file of a home, in one place."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from messaging._exceptions import HomeUnavailable


def default_home() -> Path:
    """Return $ADSINDEX_HOME, else the user's state directory (XDG base directory specification)."""
    if explicit := os.environ.get("ADSINDEX_HOME"):
        return Path(explicit)
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "adsindex"


@dataclass(frozen=True, slots=True)
class Home:
    """Paths below one home. Two homes share nothing."""

    root: Path

    @classmethod
    def open(cls, root: Path | None = None) -> Home:
        """Return the home at `root` (default: the user's), creating its directories. Raises HomeUnavailable."""
        home = cls((root or default_home()).expanduser().resolve())
        try:
            for directory in (home.root, home.log, home.store, home.run, home.wake, home.metrics, home.base, home.logs):
                directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            text = f"home {home.root}: {error.strerror}: {error.filename}; name another with --home"
            raise HomeUnavailable(text) from error
        return home

    @property
    def ads_db(self) -> Path:
        """SQLite ads DB of the embedded set."""
        return self.root / "ads.db"

    @property
    def performance_db(self) -> Path:
        """SQLite reporting database: the external source of historical performance."""
        return self.root / "performance.db"

    @property
    def log(self) -> Path:
        """Embedded message log (an LMDB environment)."""
        return self.root / "log"

    @property
    def store(self) -> Path:
        """Embedded Storage Repo (an LMDB environment)."""
        return self.root / "store"

    @property
    def base(self) -> Path:
        """Published base indexes: base/<version>/ and the pointer file base/CURRENT."""
        return self.root / "base"

    @property
    def run(self) -> Path:
        """Files of running processes: pids, ports, locks."""
        return self.root / "run"

    @property
    def wake(self) -> Path:
        """Named pipes that wake up waiting consumers."""
        return self.run / "wake"

    @property
    def metrics(self) -> Path:
        """One metrics file per stage process."""
        return self.root / "metrics"

    @property
    def logs(self) -> Path:
        """Structured logs, one file per stage process."""
        return self.root / "logs"

    @property
    def catalog_pointer(self) -> Path:
        """Names the catalogue file this home was started with, if not the built-in one."""
        return self.root / "catalog.path"
