"""Keys of several columns and collections on SQLite: the triggers, the reads and the row keys mean the same thing."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from catalog import Catalog, load_catalog
from catalog.keys import join_key
from gateway import SchemaMismatch
from messaging.proto import adsindex_pb2 as pb
from tests.gateway.gateway_support import Captured, values_of

CATALOG = """
version: 1
name: stock
tables:
  item:
    owner: stock
    key: string
    source:
      table: items
      key: [shelf, number]
      satellites: {notes: [place, item]}
      collections: {tags: [shelf, number]}
    columns:
      label: {type: string, from: items.label, default: none}
      note: {type: string, from: notes.note}
      tags: {type: list<string>, from: tags.tag}
      weights: {type: list<int>, from: tags.weight}
  item_document: {owner: stock, key: string, root: item}
fields:
  label: {from: item.label}
"""
SCHEMA = """
CREATE TABLE items (shelf TEXT, number INTEGER, label TEXT, PRIMARY KEY (shelf, number));
CREATE TABLE notes (place TEXT, item INTEGER, note TEXT);
CREATE TABLE tags (shelf TEXT, number INTEGER, tag TEXT, weight INTEGER);
"""
ODD = ("a", "a,1", "a%2C1", "100%", "ü ")


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    """A catalogue whose entities have a key of two columns."""
    file = tmp_path / "stock.yaml"
    file.write_text(CATALOG)
    return load_catalog(file)


@pytest.fixture
def stock(catalog: Catalog, tmp_path: Path) -> Iterator[Captured]:
    """A captured database of that schema."""
    with sqlite3.connect(tmp_path / "ads.db") as connection:
        connection.executescript(SCHEMA)
    connection.close()
    captured = Captured(tmp_path / "ads.db", catalog)
    yield captured
    captured.close()


def by_row(stock: Captured, after: int = 0) -> dict[str, pb.EntityUpdate]:
    """Materialize what changed after a number; row -> update."""
    result = stock.materialize(after)
    assert not result.dead_letters
    return {update.row: update for update in result.updates}


def test_odd_parts_make_the_row_keys_that_python_makes(stock: Captured) -> None:
    """Commas and percent signs in a part are told apart, in triggers as in `join_key`, and each row is found again."""
    for shelf in ODD:
        stock.app.execute("INSERT INTO items VALUES (?, 7, ?)", (shelf, f"label of {shelf}"))
    updates = by_row(stock)
    assert {row: values_of(u)["label"] for row, u in updates.items()} == {
        str(join_key([shelf, 7])): f"label of {shelf}" for shelf in ODD
    }
    assert not any(update.deleted for update in updates.values())


def test_a_key_that_changes_is_a_delete_and_an_insert(stock: Captured) -> None:
    """Either part may change; the old row is gone and the new one whole."""
    stock.app.execute("INSERT INTO items VALUES ('a', 1, 'x')")
    end = stock.feed.end()
    stock.app.execute("UPDATE items SET number = 2")
    updates = by_row(stock, end)
    assert {row: update.deleted for row, update in updates.items()} == {"a,1": True, "a,2": False}


def test_satellites_and_collections_by_keys_of_several_columns(stock: Captured) -> None:
    """Their rows find the entity by both columns; parallel lists are in one order, whatever the order of the rows."""
    stock.app.execute("INSERT INTO items VALUES ('a', 1, NULL), ('a', 2, 'y')")
    stock.app.execute("INSERT INTO notes VALUES ('a', 1, 'fragile')")
    stock.app.execute("INSERT INTO tags VALUES ('a', 1, 'z', 1), ('a', 2, 'q', 9), ('a', 1, 'b', 5), ('a', 1, 'b', 2)")
    first, second = (values_of(by_row(stock)[row]) for row in ("a,1", "a,2"))
    assert first == {"label": "none", "note": "fragile", "tags": ["b", "b", "z"], "weights": [2, 5, 1]}
    assert second == {"label": "y", "note": None, "tags": ["q"], "weights": [9]}
    end = stock.feed.end()
    stock.app.execute("DELETE FROM tags WHERE number = 1")
    assert values_of(by_row(stock, end)["a,1"]) == {**first, "tags": None, "weights": None}


def test_a_row_of_a_collection_that_belongs_to_nobody_is_no_fault(stock: Captured) -> None:
    """A null in its key means that it has no entity, and there is nothing to correct."""
    stock.app.execute("INSERT INTO tags VALUES (NULL, 1, 'z', 1)")
    assert by_row(stock) == {}


def test_a_value_that_does_not_fit_a_list_takes_the_list(stock: Captured) -> None:
    """The column is null with a dead letter that names it; the others are sent."""
    stock.app.execute("INSERT INTO items VALUES ('a', 1, 'x')")
    stock.app.execute("INSERT INTO tags VALUES ('a', 1, 'z', 'heavy'), ('a', 1, 'y', 1)")
    result = stock.materialize()
    assert values_of(result.updates[0]) == {"label": "x", "note": None, "tags": ["y", "z"], "weights": None}
    (letter,) = result.dead_letters
    assert (letter.reason, letter.row) == ("bad_type", "a,1")
    assert "tags.weight" in letter.error


def test_a_missing_part_of_a_key_is_named(tmp_path: Path, catalog: Catalog) -> None:
    """A key column that the database does not have is a fault of the catalogue's line."""
    with sqlite3.connect(tmp_path / "ads.db") as connection:
        connection.executescript(SCHEMA.replace("place TEXT, item INTEGER", "place TEXT"))
    connection.close()
    with pytest.raises(SchemaMismatch, match="'notes' has no key column 'item'"):
        Captured(tmp_path / "ads.db", catalog)
