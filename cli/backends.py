"""Open everything a command needs to look at a home, whether or not `up` is running on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from catalog import Catalog
from cli.runtime import open_catalog, open_log, open_repo, process_file, repo_feed, repo_opener
from cli.serving import HomeServing
from cli.settings import EMBEDDED, Settings
from debug_ui.backends import Backends
from gateway import AdsDb
from messaging.home import Home


def open_ads_db(home: Home, capture: Catalog | None = None, *, settings: Settings | None = None) -> AdsDb:
    """Open the ads DB that the home's settings name, or those given, its tables made.

    With `capture`, changes from now on are captured also where `up` does not run; where it does, capture is the
    Gateway's alone, which may run with another catalogue. Raises SettingsError, GatewayError.
    """
    chosen = (settings or Settings.load(home)).ads_db
    ads_db = AdsDb.open(home.ads_db if chosen == EMBEDDED else chosen)
    if capture is not None and process_file(home, "up").read() is None:
        ads_db.ensure_capture(capture)
    return ads_db


def open_backends(
    home: Home, catalog: Catalog, *, server_only: bool = False, settings: Settings | None = None
) -> Backends:
    """Return the backends of a home; serving is the running Manas server, else the index opened in this process.

    `settings` name the ads DB where the home's own are not to.
    """
    with ExitStack() as stack:  # closes those that are open when another one cannot be opened
        log = open_log(home)
        stack.callback(log.close)
        repo = open_repo(home, catalog)
        stack.callback(repo.close)
        ads_db = open_ads_db(home, settings=settings)
        stack.callback(ads_db.close)
        opened = Backends(
            home=home,
            catalog=catalog,
            log=log,
            repo=repo,
            repo_feed=repo_feed(home, catalog, repo, log),
            ads_db=ads_db,
            serving=HomeServing(home, catalog, log, server_only=server_only),
            open_repo=repo_opener(home, catalog),
        )
        stack.pop_all()
        return opened


def close_backends(opened: Backends) -> None:
    """Close all of them, also when one cannot be closed in good order; safe to call twice.

    A Repo on HBase that is left open would keep this process from ending while ZooKeeper is away.
    """
    with ExitStack() as stack:
        stack.callback(opened.ads_db.close)
        stack.callback(opened.log.close)
        stack.callback(opened.repo.close)
        if isinstance(opened.serving, HomeServing):
            stack.callback(opened.serving.close)


@contextmanager
def backends(home: Home) -> Iterator[Backends]:
    """Open the backends of a home for one command and close them after it."""
    opened = open_backends(home, open_catalog(home))
    try:
        yield opened
    finally:
        close_backends(opened)
