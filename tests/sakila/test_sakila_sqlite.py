"""The Sakila films on the embedded backends: documents by a catalogue alone, and exactly the concerned ones follow."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from batch_workflows.base_index import build_base_index
from catalog import load_catalog
from cli.inprocess import InProcess
from manas import open_local_index
from messaging.home import Home
from tests.sakila import castings, sqlite_dump
from tests.sakila.expected import Query
from tests.sakila.films import CATALOG, LIVE_CHANGES, Films, LiveChange, check_searches
from tests.support import data_directory

EPOCH = "CAST(strftime('%s', last_update) AS INTEGER)"


def reader(home: Home) -> Query:
    """Return what runs a SELECT beside the project."""

    def query(sql: str) -> list[tuple[object, ...]]:
        with closing(sqlite3.connect(home.ads_db)) as connection:
            return connection.execute(sql).fetchall()

    return query


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Films]:
    """The pipeline with the whole sample in it; the tests of this module change it one after another."""
    home = Home.open(tmp_path_factory.mktemp("sakila") / "home")
    sqlite_dump.load(data_directory() / "mysql_dumps", home.ads_db)
    with InProcess(home, load_catalog(CATALOG)) as pipeline:
        films = Films(pipeline, reader(home), EPOCH)
        pipeline.until_idle(240)
        yield films


def test_every_film_is_a_document(films: Films) -> None:
    """All thousand documents equal what plain SQL over the source says, field by field, and nothing else is served."""
    assert films.check() == 1000
    assert not films.dead_letters()


def test_films_are_searched(films: Films) -> None:
    """Words, exact values of gathered lists, ranges and the declared score find what SQL finds."""
    check_searches(films)


@pytest.mark.parametrize("change", LIVE_CHANGES, ids=lambda change: change.name)
def test_exactly_the_concerned_films_follow(films: Films, change: LiveChange) -> None:
    """A live change rebuilds the documents that it concerns, at once right, and publishes no other."""
    films.follow(change)


def test_a_base_index_of_the_films_says_the_same(films: Films) -> None:
    """Built from the source columns up after all the changes, it differs from no stored document; it searches alike."""
    backends = films.pipeline.backends
    report = build_base_index(films.pipeline.home, films.pipeline.catalog, backends.repo, backends.log)
    assert (report.documents, report.differing, report.coverage["language"]) == (len(films.served()), 0, 1.0)
    index = open_local_index(films.pipeline.home, films.pipeline.catalog, backends.log)
    request = {"text": "dinosaur", "filter": {"term": {"field": "countries", "value": "Canada"}}}
    assert index.search(request, 0) == backends.serving.search(request, 0)
    assert index.stats()["base"]["version"] == report.base_version


def test_rows_with_a_key_of_two_columns_are_documents(tmp_path: Path) -> None:
    """Each role is found by both parts of its key, and follows when either part changes."""
    home = Home.open(tmp_path / "home")
    sqlite_dump.load(data_directory() / "mysql_dumps", home.ads_db)
    with InProcess(home, load_catalog(castings.CATALOG)) as pipeline:
        pipeline.until_idle(240)
        castings.follow(pipeline, reader(home))
