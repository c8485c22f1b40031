"""The Sakila films from a real server: the original dump, followed by its binlog, by the same catalogue."""

from __future__ import annotations

import os
import re
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pymysql
import pytest
from sqlalchemy.engine import URL, make_url

from catalog import load_catalog
from cli.inprocess import InProcess
from cli.settings import choose
from compose import ServerInfo
from messaging.home import Home
from tests.end_to_end.command import as_json
from tests.sakila import castings
from tests.sakila.films import CATALOG, LIVE_CHANGES, Films, LiveChange, check_searches
from tests.support import data_directory

EPOCH = "UNIX_TIMESTAMP(last_update)"


class Sakila:
    """One database with the dump in it."""

    def __init__(self, server: ServerInfo, database: str) -> None:
        self.url: URL = make_url(server.url).set(database=database)
        admin = make_url(server.admin_url)
        for file in ("sakila-mv-schema.sql", "sakila-mv-data.sql"):
            sql = (data_directory() / "mysql_dumps" / file).read_bytes()
            subprocess.run(
                [
                    "mariadb",
                    "--no-defaults",
                    f"--host={admin.host}",
                    f"--port={admin.port}",
                    f"--user={admin.username}",
                ],
                input=re.sub(rb"\bsakila\b(?!customer)", database.encode(), sql),
                env={**os.environ, "MYSQL_PWD": str(admin.password)},
                check=True,
            )

    def query(self, sql: str) -> Sequence[Sequence[Any]]:
        """Run a SELECT beside the project."""
        with (
            closing(
                pymysql.connect(
                    host=str(self.url.host),
                    port=int(self.url.port or 0),
                    user=str(self.url.username),
                    password=str(self.url.password),
                    database=str(self.url.database),
                )
            ) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute(sql)
            return list(cursor.fetchall())

    def home(self, folder: Path, **settings: str) -> Home:
        """Return a new home that follows this database."""
        home = Home.open(folder)
        choose(home, ads_db=self.url.render_as_string(hide_password=False), **settings)
        return home


@pytest.fixture(scope="module")
def films(mysql_server: ServerInfo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Films]:
    """The pipeline on the dump; the tests of this module change it one after another."""
    sakila = Sakila(mysql_server, "ads_sakila_films")
    with InProcess(sakila.home(tmp_path_factory.mktemp("sakila") / "home"), load_catalog(CATALOG)) as pipeline:
        films = Films(pipeline, sakila.query, EPOCH)
        pipeline.until_idle(240)
        yield films


def test_every_film_is_a_document(films: Films) -> None:
    """All thousand documents equal what plain SQL over the source says, ENUM, SET, YEAR, DECIMAL and TIMESTAMP too."""
    assert films.check() == 1000
    assert not films.dead_letters()


def test_films_are_searched(films: Films) -> None:
    """Words, exact values of gathered lists, ranges and the declared score find what SQL finds."""
    check_searches(films)


@pytest.mark.parametrize("change", LIVE_CHANGES, ids=lambda change: change.name)
def test_exactly_the_concerned_films_follow(films: Films, change: LiveChange) -> None:
    """A live change rebuilds the documents that it concerns, at once right, and publishes no other."""
    films.follow(change)


def test_rows_with_a_key_of_two_columns_are_documents(mysql_server: ServerInfo, tmp_path: Path) -> None:
    """Each role is found by both parts of its key, and follows when either part changes."""
    sakila = Sakila(mysql_server, "ads_sakila_castings")
    with InProcess(sakila.home(tmp_path / "home"), load_catalog(castings.CATALOG)) as pipeline:
        pipeline.until_idle(240)
        castings.follow(pipeline, sakila.query)


def test_films_over_kafka_follow_live_changes(
    mysql_server: ServerInfo, kafka_server: ServerInfo, tmp_path: Path
) -> None:
    """With the real log between the stages too: all documents and answers are SQL's, before and after every change."""
    sakila = Sakila(mysql_server, "ads_sakila_kafka")
    home = sakila.home(tmp_path / "home", log=f"{kafka_server.url}/sakila{uuid.uuid4().hex[:8]}-")
    as_json("topics", "apply", home=home.root)
    with InProcess(home, load_catalog(CATALOG)) as pipeline:
        films = Films(pipeline, sakila.query, EPOCH)
        pipeline.until_idle(240)
        assert films.check() == 1000
        check_searches(films)
        for change in LIVE_CHANGES:  # all of them: some build on those before
            films.follow(change)
        assert films.check() == 1000
        assert not films.dead_letters()
