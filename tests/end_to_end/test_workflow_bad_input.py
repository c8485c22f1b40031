"""Workflows on bad input, by command: the error names what, where and what to do; what goes on is counted."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from catalog import DEFAULT_CATALOG, load_catalog
from cli.runtime import open_catalog, open_repo, remember_catalog
from messaging.home import Home
from messaging.topics import DEAD_LETTERS
from storage_repo import Origin
from tests.debug_ui.pipeline import Pipeline, fill
from tests.end_to_end.command import adsindex, as_json, environment
from tests.support import IN_CI, ROOT

pytestmark = pytest.mark.timeout(900)
ADS = 40
REFUSED = [
    ("run nope", ["no workflow 'nope'", "base-index", "snapshot-import"]),
    ("run refresh --table nope", ["nothing runs for 'nope'", "handlers run for"]),
    ("run refresh --table ad --ids 7", ["no ad with id 7 in the Storage Repo"]),
    ("run refresh --set handler=nope", ["no handler 'nope'", "loud_title"]),
    ("run refresh --set field=nope", ["no field 'nope'"]),
    ("run refresh --set below=campaign", ["TABLE/ROW", "'campaign'"]),
    ("run refresh --advertiser 99", ["no advertiser '99' in the Storage Repo"]),
    ("run refresh --table ad --set where=bid", ["'bid' is no condition", "COLUMN=VALUE"]),
    ("run refresh --table ad --set where=shoe=4", ["has no column 'shoe'"]),
    ("run refresh --set changed_since=lately", ["'lately'", "2h"]),
    ("run sync --set tables=nope", ["no table nope", "campaign"]),
    ("run sync --set parts=nope", ["parts", "served"]),
    ("run gc --set older_than=7d", ["at least 8d"]),
    ("run backfill --set file=none.csv --set table=nope --set signal=s", ["no table 'nope'", "campaign"]),
    ("run backfill --set file=none.csv --set table=ad --set signal=performance", ["none.csv"]),
    ("run snapshot --set to=s3://key:secret@bucket/x", ["name a bucket and no credentials"]),
    ("run snapshot-import --set source=nowhere", ["nowhere", "has no snapshot"]),
    ("run base-index --set engine=horses", ["engine", "spark"]),
    ("run base-index --set max_shrink=much", ["max_shrink"]),
    ("run rollback-base", ["no base before"]),
    ("run verify-base --set version=v0", ["v0"]),
    ("schedule nope --every 6h", ["no workflow 'nope'"]),
    ("cancel nope", ["nope"]),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home at rest, whose catalogue has a handler that raises for three pins."""
    folder = tmp_path_factory.mktemp("bad")
    text = DEFAULT_CATALOG.read_text().replace(
        "handlers: [argus.handlers]", "handlers: [argus.handlers, tests.end_to_end.raising]"
    )
    at = "      title: {type: string, from: pins.title, max_bytes: 4096}\n"
    assert at in text
    catalog = folder / "ads.yaml"
    catalog.write_text(text.replace(at, at + "      loud_title: {type: string, from: handler:loud_title}\n"))
    home = folder / "home"
    with closing(Pipeline.open(home, load_catalog(catalog))) as pipeline:
        remember_catalog(Home.open(home), catalog)
        fill(pipeline, ADS // 2)
        pipeline.run()
        pipeline.sql("UPDATE pins SET title = 'BOOM' WHERE id IN ('pin-100', 'pin-200', 'pin-300')")
        pipeline.run()
        letters = pipeline.log.read(DEAD_LETTERS, 0, 0, 100)
        assert len(letters) == 3
    return home


@pytest.mark.parametrize(("line", "words"), REFUSED, ids=[line for line, _ in REFUSED])
def test_what_cannot_be_is_refused_in_a_sentence(home: Path, line: str, words: Sequence[str]) -> None:
    """Unknown workflows, selections, tables, files, addresses and settings: named, with what there is instead."""
    done = adsindex("workflow", *line.split(), home=home, check=False)
    assert done.returncode != 0 and "Traceback" not in done.stderr and "secret" not in done.stderr, done.stderr
    assert [word for word in words if word not in done.stderr] == [], done.stderr


def test_a_handler_that_raises_is_counted_and_the_run_goes_on(home: Path) -> None:
    """Base and sync leave it to the others and count it; told to stop, the run ends at the first and says where."""
    built = as_json("workflow", "run", "base-index", home=home)
    assert built["documents"] == ADS and built["failures"] == {"document: loud_title:handler_failed": 3}
    found = as_json("workflow", "run", "sync", "--set", "patience_s=1", home=home)
    assert found["failing"] == 3 and found["failures"] == {"document: handler_failed": 3}
    assert "the policy is to go on" in found["said"]
    stopped = adsindex("workflow", "run", "sync", "--on-error", "stop", home=home, check=False)
    assert stopped.returncode == 1 and "Traceback" not in stopped.stderr
    for said in ("document pin/", "handler_failed", "loud_title", "a bug of the handler", "the policy is to stop"):
        assert said in stopped.stderr, stopped.stderr
    shown = as_json("workflow", "show", "sync", home=home)
    assert shown["outcome"] == "failed" and shown["failures"][0]["count"] == 1


@pytest.mark.parametrize(
    ("workflow", "asked", "again", "made"),
    [("snapshot", "", "--resume", "_days/*.json"), ("base-index", "--set engine=inline", "", "CURRENT")],
)
def test_a_full_disk(home: Path, tmp_path: Path, workflow: str, asked: str, again: str, made: str) -> None:
    """On a real file system without space the run ends with the file's name and what to do, and nothing is taken for
    whole; when there is space, it is made."""
    run = f"{sys.executable} -m cli.main workflow run {workflow} --home {home}"
    count = f'echo "$? $(ls {tmp_path}/{made} 2>/dev/null | wc -l)"'
    script = f"""
        mount -t tmpfs -o size=64k tmpfs {tmp_path} || exit 77
        {run} {asked} --set to={tmp_path} > /dev/null
        {count}
        mount -o remount,size=64m {tmp_path}
        {run} {again or f"{asked} --set to={tmp_path}"} > /dev/null
        {count}
    """  # what is mounted is seen by these commands only
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script], cwd=ROOT, env=environment(), capture_output=True, text=True,
        timeout=200, check=False,
    )  # fmt: skip
    if done.returncode == 77 or "unshare" in done.stderr:
        text = f"no small file system to fill, which takes the right to mount one: {done.stderr.strip()}"
        if IN_CI:
            pytest.fail(text)
        warnings.warn(text, stacklevel=1)
        pytest.skip(text)
    [said] = [line for line in done.stderr.splitlines() if not line.startswith("{")]  # which are the log
    assert said.startswith(f"adsindex: {workflow}: {tmp_path}/"), done.stderr
    assert "No space left on device" in said and "free some space" in said
    assert done.stdout.splitlines() == ["1 0", "0 1"]


def test_rows_that_do_not_parse_are_counted_and_named(home: Path) -> None:
    """A base leaves them out up to its limit, a snapshot keeps their bytes; a sync says that the service is needed."""
    opened = Home.open(home)
    catalog = open_catalog(opened)
    with closing(open_repo(opened, catalog)) as repo:
        (ad, before), (other, _) = list(repo.snapshot().scan("ad", limit=2))
        cell = catalog.tables["ad"].columns["status"].cell
        for row in (ad, other):
            transaction = repo.begin(Origin("test"))
            transaction.put("ad", row, cell, b"\xd9\xff")
            transaction.commit()
        refused = adsindex("workflow", "run", "base-index", home=home, check=False)
        assert refused.returncode == 1 and "2 of 40" in refused.stderr and ad in refused.stderr, refused.stderr
        built = as_json("workflow", "run", "base-index", "--set", "max_unreadable=0.1", home=home)
        assert built["documents"] == ADS - 2, built
        taken = as_json("workflow", "run", "snapshot", home=home)
        assert taken["failures"] == {"cell: not_readable": 2}
        stopped = adsindex("workflow", "run", "snapshot", "--on-error", "stop", home=home, check=False)
        assert stopped.returncode == 1 and f"cell ad/{ad} {cell}: not_readable" in stopped.stderr
        down = adsindex("workflow", "run", "sync", "--set", "patience_s=1", home=home, check=False)
        assert down.returncode == 1 and "rows differ" in down.stderr and "Start the service" in down.stderr
        assert before[cell] not in (b"", b"\xd9\xff")
