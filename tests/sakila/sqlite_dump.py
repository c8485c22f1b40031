"""The Sakila dump for SQLite: the tables that the catalogue reads, with their rows and triggers."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path

TABLES = (
    "actor",
    "address",
    "category",
    "city",
    "country",
    "film",
    "film_actor",
    "film_category",
    "inventory",
    "language",
    "store",
)
_NO_COLUMN = ("PRIMARY", "KEY", "UNIQUE", "CONSTRAINT", "SPATIAL", "FULLTEXT")
_KINDS = {"ENUM": "TEXT", "SET": "TEXT", "YEAR": "INTEGER", "TIMESTAMP": "TEXT"}
_EXTRAS = re.compile(r"/\*!.*?\*/,?", re.DOTALL)
"""What only some MySQL versions read: here the GEOMETRY columns and their values."""

_FILM_TEXT = """
CREATE TABLE film_text (film_id INTEGER PRIMARY KEY, title TEXT, description TEXT);
CREATE TRIGGER ins_film AFTER INSERT ON film BEGIN
  INSERT INTO film_text VALUES (new.film_id, new.title, new.description);
END;
CREATE TRIGGER upd_film AFTER UPDATE ON film BEGIN
  UPDATE film_text SET title = new.title, description = new.description, film_id = new.film_id
  WHERE film_id = old.film_id;
END;
CREATE TRIGGER del_film AFTER DELETE ON film BEGIN
  DELETE FROM film_text WHERE film_id = old.film_id;
END;
"""


def load(folder: Path, file: Path) -> None:
    """Create an SQLite database from the dump's files in `folder`."""
    schema = _EXTRAS.sub("", (folder / "sakila-mv-schema.sql").read_text(encoding="utf-8"))
    data = _EXTRAS.sub("", (folder / "sakila-mv-data.sql").read_text(encoding="utf-8", errors="surrogateescape"))
    with sqlite3.connect(file) as connection:
        for table in TABLES:
            connection.execute(_create(table, schema))
        connection.executescript(_FILM_TEXT)
        for insert in re.findall(r"^INSERT INTO .*?\);$", data, re.MULTILINE | re.DOTALL):
            if re.match(r"INSERT INTO `?(\w+)", insert)[1] in TABLES:  # type: ignore[index]
                connection.execute(insert)
    connection.close()


def _create(table: str, schema: str) -> str:
    found = re.search(rf"^CREATE TABLE {table} \(\n(.*?)^\)", schema, re.MULTILINE | re.DOTALL)
    assert found is not None, table
    columns, key = [], ""
    for line in found[1].splitlines():
        name, _, rest = line.strip().rstrip(",").partition(" ")
        if name == "PRIMARY":
            key = line.strip().rstrip(",")
        elif name and name not in _NO_COLUMN:
            kind = rest.split()[0].split("(")[0]
            stamp = " DEFAULT CURRENT_TIMESTAMP" if kind == "TIMESTAMP" else ""
            columns.append(f"{name} {_KINDS.get(kind, 'INTEGER' if kind.endswith('INT') else kind)}{stamp}")
    return f"CREATE TABLE {table} ({', '.join([*columns, key])})"
