"""Catalogues and schemas that change or are wrong: the home stays usable, and one sentence says where to mend what."""

from __future__ import annotations

import os
import shutil
import signal
import time
from contextlib import closing
from pathlib import Path

import pytest

from catalog import DEFAULT_CATALOG
from tests.debug_ui.pipeline import Pipeline
from tests.end_to_end.command import adsindex, as_json, documents, readable_documents, running, stage_pids, until_idle
from tests.end_to_end.test_catalogue_edit import edited_catalog

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def resting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home at rest with a generated sample of 40 ads."""
    home = tmp_path_factory.mktemp("rest") / "home"
    until_idle(home, "--sample", "40", "--seed", "5")
    return home


@pytest.fixture
def home(resting: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may spoil."""
    return Path(shutil.copytree(resting, tmp_path / "home", ignore=shutil.ignore_patterns("wake")))


def line_of(file: Path, text: str) -> int:
    """Return the first line that has a text."""
    return next(number for number, line in enumerate(file.read_text().splitlines(), 1) if text in line)


def test_a_catalogue_that_is_wrong_is_not_remembered(home: Path, tmp_path: Path) -> None:
    """Of form, for the handlers or for the ads DB: `up` names file and line, and the home goes on with its own."""
    text = DEFAULT_CATALOG.read_text()
    file = tmp_path / "wrong.yaml"
    for wrong, where in (
        (text.replace("from: ads.name}", "from: ads.name, colour: red}"), "colour: red"),
        (text.replace("from: ads.name}", "from: ads.nickname}"), "ads.nickname"),
    ):
        file.write_text(wrong)
        done = adsindex("up", "--until-idle", "--sample", "0", "--catalog", file, home=home, check=False)
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert f"{file}:{line_of(file, where)}:" in done.stderr
        assert as_json("status", home=home)["documents"] == len(documents(home)) > 20
    file.write_text(text.replace("handler:", "handler:no_such_handler"))
    done = adsindex("up", "--until-idle", "--sample", "0", "--catalog", file, home=home, check=False)
    assert done.returncode == 1 and "no_such_handler" in done.stderr and "Traceback" not in done.stderr
    file.unlink()
    until_idle(home)


def test_a_catalogue_may_be_edited_while_the_service_runs(home: Path, tmp_path: Path) -> None:
    """All stages of a run, restarted ones too, and all commands beside it, use what it began with; the next run not."""
    adsindex("sql", "ALTER TABLE ads ADD COLUMN tracking_code VARCHAR(64) DEFAULT 'spring'", home=home)
    file = edited_catalog(tmp_path)
    edited = file.read_text()
    file.write_text(DEFAULT_CATALOG.read_text())
    other = tmp_path / "other.yaml"
    other.write_text(edited)
    with running(home, "--sample", "0", "--catalog", str(file)):
        refused = adsindex("up", "--catalog", other, home=home, check=False)
        assert refused.returncode == 1 and "already up" in refused.stderr
        for text in ("this: [is not", edited):
            file.write_text(text)
            before = stage_pids(home)
            for name in ("argus-0", "gateway-0"):
                os.kill(before[name], signal.SIGKILL)
            deadline = time.monotonic() + 120
            while any(stage_pids(home, ready=True).get(n) in (None, before[n]) for n in ("argus-0", "gateway-0")):
                assert time.monotonic() < deadline, (home / "logs" / "argus-0.log").read_text()[-2000:]
                time.sleep(0.05)
            assert as_json("status", home=home)["documents"] > 20
        adsindex("sql", "UPDATE ads SET name = 'renamed while both were alive'", home=home)
        while as_json("status", home=home)["documents"] == 0:
            assert time.monotonic() < deadline
        assert not [d for d in readable_documents(home).values() if "tracking" in d]
    until_idle(home)
    found = readable_documents(home).values()
    assert len(found) > 20 and all(document["tracking"] == "spring" for document in found)
    file.write_text("this: [is not")
    done = adsindex("up", home=home, check=False)
    assert done.returncode == 1 and f"{file}:" in done.stderr, "errors name the person's file"


def test_a_schema_fault_blocks_no_command_but_up(home: Path) -> None:
    """Looking, and the SQL that mends it, work while the ads DB lacks a column; `up` says which, and works after it."""
    changed = adsindex("sql", "ALTER TABLE ads RENAME COLUMN review_status TO verdict", home=home).stdout
    assert changed.strip() == "done"
    assert as_json("search", "--request", "{}", home=home)["total"] >= 0
    assert as_json("status", home=home)["documents"] == len(documents(home)) > 20
    assert as_json("show", "campaign", "1001", home=home)
    assert as_json("why", "campaign", "1001", home=home)["steps"]
    refused = adsindex("up", "--until-idle", home=home, check=False)
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    assert f"{DEFAULT_CATALOG}:{line_of(DEFAULT_CATALOG, 'ads.review_status')}:" in refused.stderr
    assert adsindex("sql", "SELECT count(*) FROM ads", home=home).returncode == 0
    adsindex("sql", "ALTER TABLE ads RENAME COLUMN verdict TO review_status", home=home)
    assert until_idle(home)["documents"] > 20


def test_a_broken_catalogue_does_not_block_sql(home: Path, tmp_path: Path) -> None:
    """SQL needs no catalogue, not even one that can be read."""
    (home / "catalog.path").write_text(str(tmp_path / "gone.yaml"))
    assert as_json("sql", "SELECT count(*) FROM ads", home=home)["rows"] == [[40]]


def test_up_refuses_a_store_without_its_log_until_it_is_repaired(home: Path, tmp_path: Path) -> None:
    """The sentence names the workflow; after it the service starts, and has every document."""
    before = readable_documents(home)
    shutil.copytree(home / "store", tmp_path / "backup")
    with closing(Pipeline.open(home, capture=False)) as pipeline:  # what `up` would do, without starting it
        pipeline.sql("UPDATE ads SET name = 'later' WHERE id % 2 = 0")
        pipeline.run()
    shutil.rmtree(home / "store")
    shutil.copytree(tmp_path / "backup", home / "store")
    refused = adsindex("up", "--until-idle", home=home, check=False)
    assert refused.returncode == 1 and "workflow run repair-after-restore" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert as_json("workflow", "run", "repair-after-restore", home=home)["documents"] == len(before)
    assert until_idle(home)["documents"] == len(before)
    assert readable_documents(home).keys() == before.keys()


def test_workflows_are_listed(home: Path) -> None:
    """Every workflow has a line, with --home like every command."""
    listed = adsindex("workflow", "list", home=home).stdout
    assert all(name in listed for name in ("base-index", "resync", "repair-after-restore"))
