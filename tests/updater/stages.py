"""The Updater's stage on a real home."""

from __future__ import annotations

import threading
from pathlib import Path

from catalog import load_catalog
from messaging import open_embedded_log
from messaging.home import Home
from messaging.metrics import StageMetrics
from messaging.stage import StageContext
from messaging.topics import ensure_topics
from storage_repo import Repo
from tests.updater.support import open_repo


def stage_context(root: Path, process: str) -> tuple[StageContext, Repo]:
    """Open a home and return what a stage is given."""
    home = Home.open(root)
    catalog = load_catalog()
    log = open_embedded_log(home.log, home.wake)
    ensure_topics(log)
    context = StageContext(
        name="updater",
        worker=0,
        home=home,
        catalog=catalog,
        log=log,
        metrics=StageMetrics(home.metrics, process),
        stop=threading.Event(),
        ready=lambda port: None,
    )
    return context, open_repo(root, catalog)
