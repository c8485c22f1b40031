"""A store restored without its log is refused, repaired by one workflow, and everything is right again."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from catalog import load_catalog
from catalog.documents import decode_document
from cli.inprocess import InProcess
from cli.workflows import run_workflow
from messaging.home import Home
from storage_repo import StoreUnavailable
from storage_repo.wal_proxy import check_feed
from tests.end_to_end.test_catalogue_edit import AD

MORE = """
INSERT INTO ads (id, ad_group_id, pin_id, name)
VALUES (3, 1, 'p1', 'three'), (4, 1, 'p1', 'four'), (5, 1, 'p2', 'five');
"""
WITHOUT_CAPTURE = """
SELECT 'DROP TRIGGER "' || name || '"' FROM sqlite_master
WHERE type = 'trigger' AND name LIKE '!_adsindex!_%' ESCAPE '!'
"""
ADS = [str(number) for number in range(1, 8)]


def served(pipeline: InProcess) -> dict[str, tuple[object, int]]:
    """Return ad -> title and version of everything that is served."""
    found = pipeline.backends.serving.get(ADS)
    return {s.document_id: (decode_document(s.body).get("title"), s.version) for s in found if s.body}


def titles(served_now: Mapping[str, tuple[object, int]]) -> dict[str, object]:
    """Leave the versions out."""
    return {ad: title for ad, (title, _) in served_now.items()}


def workflow(home: Home, name: str) -> dict[str, object]:
    """Run a workflow as the command does."""
    return run_workflow(home, name, table="", ids=(), advertiser="", stored=False, force=False)


@pytest.mark.parametrize("with_base", [False, True])
@pytest.mark.parametrize("backup", ["older", "none"])
def test_repair_after_restore(tmp_path: Path, with_base: bool, backup: str) -> None:
    """Whatever was published and lost, served documents are those of the ads DB, and follow it from then on."""
    home, catalog = Home.open(tmp_path / "home"), load_catalog()
    with InProcess(home, catalog) as pipeline:
        pipeline.backends.ads_db.execute(AD + MORE)
        pipeline.until_idle()
    shutil.copytree(home.store, tmp_path / "backup")
    with InProcess(home, catalog) as pipeline:
        sql = pipeline.backends.ads_db.execute
        sql("INSERT INTO ads (id, ad_group_id, pin_id, name) VALUES (6, 1, 'p1', 'late'), (7, 1, 'p2', 'ghost')")
        sql("UPDATE pins SET title = 'Rooibos' WHERE id = 'p1'")
        sql("DELETE FROM ads WHERE id = 3")
        pipeline.until_idle()
        lost = served(pipeline)
        assert titles(lost) == {"1": "Rooibos", "2": "Black tea", "4": "Rooibos", "5": "Black tea", "6": "Rooibos",
                                "7": "Black tea"}  # fmt: skip
    if with_base:
        workflow(home, "base-index")
    shutil.rmtree(home.store)
    if backup == "older":
        shutil.copytree(tmp_path / "backup", home.store)
    # As in the backup again, so that nothing differs from it; and some that nobody can know of from the change feed.
    with InProcess(home, catalog, stages=()) as at_rest:
        at_rest.backends.ads_db.execute("UPDATE pins SET title = 'Green tea' WHERE id = 'p1'")
        at_rest.backends.ads_db.execute("DELETE FROM ads WHERE id IN (5, 7)")
        with pytest.raises(StoreUnavailable, match="repair-after-restore"):  # as the stage, and `up` before it, begins
            check_feed(at_rest.backends.log, at_rest.backends.repo)
    done = workflow(home, "repair-after-restore")
    assert done["documents"] == (5 if backup == "older" else 0)
    assert done["gone"] == (2 if backup == "older" else 0), "3 and 5 are in the backup alone"
    with InProcess(home, catalog) as pipeline:
        pipeline.until_idle()
        now = served(pipeline)
        assert titles(now) == {"1": "Green tea", "2": "Black tea", "4": "Green tea", "6": "Green tea"}
        assert min(version for _, version in now.values()) > max(version for _, version in lost.values())
        pipeline.backends.ads_db.execute(
            "UPDATE pins SET title = 'Oolong' WHERE id = 'p1'; DELETE FROM ads WHERE id = 2"
        )
        pipeline.until_idle()
        assert titles(served(pipeline)) == {"1": "Oolong", "4": "Oolong", "6": "Oolong"}
    with InProcess(home, catalog) as pipeline:
        pipeline.until_idle()
        assert titles(served(pipeline)) == {"1": "Oolong", "4": "Oolong", "6": "Oolong"}


def test_resync_finds_rows_that_were_deleted_while_capture_was_off(tmp_path: Path) -> None:
    """Rows that went without a trigger are still served, and go with the resync; all others stay."""
    home, catalog = Home.open(tmp_path / "home"), load_catalog()
    with InProcess(home, catalog) as pipeline:
        pipeline.backends.ads_db.execute(AD + MORE)
        pipeline.until_idle()
    with InProcess(home, catalog, stages=()) as at_rest:
        db = at_rest.backends.ads_db
        db.execute("; ".join(str(row[0]) for row in db.execute(WITHOUT_CAPTURE)[0].rows))
        db.execute("DELETE FROM ads WHERE id IN (2, 4); UPDATE ads SET pin_id = 'p2' WHERE id = 1")
    with InProcess(home, catalog) as pipeline:
        pipeline.until_idle()
        assert served(pipeline).keys() == {"1", "2", "3", "4", "5"}, "the deleted ones cannot be known yet"
        assert titles(served(pipeline))["1"] == "Black tea", "what is there was read again"
        done = workflow(home, "resync")
        assert (done["rows"], done["gone"]) == (8, 2)
        pipeline.until_idle()
        assert titles(served(pipeline)) == {"1": "Black tea", "3": "Green tea", "5": "Black tea"}
        assert workflow(home, "resync")["gone"] == 0
