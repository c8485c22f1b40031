"""A schema of one's own: collections, lists of references, keys of several columns, derived columns, MySQL's types."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from argus import builtin_handlers, load_registry
from argus.testing import run_handler
from catalog import Column, DependencyError, Family, InvalidCatalog, InvalidValue, ValueType, load_catalog
from catalog.keys import join_key, key_columns, split_key
from catalog.values import check, check_source
from tests.support import ROOT

FILE = ROOT / "examples" / "sakila" / "sakila.yaml"
TEXT = FILE.read_text(encoding="utf-8")
CATALOG = load_catalog(FILE)


def replaced(old: str, new: str) -> str:
    """Return the films' catalogue with the only `old` replaced."""
    assert TEXT.count(old) == 1, f"{old!r} occurs {TEXT.count(old)} times"
    return TEXT.replace(old, new)


def test_the_films_catalogue_says_what_is_joined_once_and_what_as_a_list() -> None:
    """What lies behind a list of references is gathered, however many single references further on."""
    assert CATALOG.gathered("film") == {"actor", "category", "store", "address", "city", "country"}
    assert CATALOG.gathered("store") == frozenset()
    assert CATALOG.fields["language"].type is ValueType.STRING
    assert CATALOG.fields["actors"].type is ValueType.STRING_LIST
    assert CATALOG.source_tables()["film_actor"] == (CATALOG.tables["film"], "film_id")
    assert (CATALOG.serving.bid, CATALOG.serving.budget_key, CATALOG.serving.score) == (None, None, "rental_rate")


def test_derived_columns_are_handlers_in_order_and_need_no_package() -> None:
    """A derived column runs for its table's rows, on the document table for the document's root, and says its line."""
    registry = load_registry(CATALOG)
    assert CATALOG.handlers == ()
    assert list(registry.plans) == ["actor", "film"]
    assert [s.handler.name for s in registry.plans["actor"].steps] == ["actor.name"]
    declaration = registry.handlers["film_document.terms"].declaration
    assert (declaration.root, declaration.watches) == (
        "film", ("film.title", "film.description", "actor.name", "category.name")
    )  # fmt: skip
    assert str(FILE) in str(declaration)
    assert "analyze" in TEXT.splitlines()[declaration.line - 1]


@pytest.mark.parametrize(
    ("name", "values", "made"),
    [
        ("actor.name", {"actor.first_name": "ED", "actor.last_name": "CHASE"}, "ED CHASE"),
        ("actor.name", {"actor.last_name": "CHASE"}, " CHASE"),
        ("actor.name", {}, None),
        ("film_document.stores", {"film.store_ids": [2, 1, 2, 1]}, [1, 2]),
        ("film_document.stores", {"film.store_ids": []}, None),
        ("film_document.copies", {"film.store_ids": [2, 1, 2]}, 3),
        ("film_document.copies", {}, 0),
        ("film_document.copies_by_store", {"film.store_ids": [10, 9, 10]}, ["9=1", "10=2"]),
        (
            "film_document.terms",
            {"film.title": "Señor's, 2 cats", "actor.name": ["ED CHASE", "A. CAT"], "category.name": None},
            ["2", "a", "cat", "cats", "chase", "ed", "senor"],
        ),
    ],
)
def test_operations(name: str, values: dict[str, Any], made: Any) -> None:
    """Each operation makes what it says of values, of nulls, and of lists gathered from many rows."""
    values = {ref: value for ref, value in values.items() if value is not None}
    (result,) = run_handler(load_registry(CATALOG).handlers[name], values, catalog=CATALOG).values()
    assert result == made


def test_first_takes_the_first_value_and_then_the_default(tmp_path: Path) -> None:
    """`first` is how one column stands in for another; `default` stands in for all of them."""
    file = tmp_path / "films.yaml"
    file.write_text(
        replaced(
            "      last_name: {type: string, from: actor.last_name}\n",
            "      last_name: {type: string, from: actor.last_name}\n"
            "      short: {type: string, derive: {first: [last_name, first_name]}, default: nobody}\n",
        )
    )
    catalog = load_catalog(file)
    short = load_registry(catalog).handlers["actor.short"]
    for values, made in (
        ({"actor.first_name": "ED", "actor.last_name": "CHASE"}, "CHASE"),
        ({"actor.first_name": "ED"}, "ED"),
        ({}, "nobody"),
    ):
        assert run_handler(short, values, catalog=catalog) == {"actor.short": made}


FILM_KEY = "      key: film_id\n      satellites"
FAULTS: list[tuple[str, str, str, str, str]] = [  # name, old, new, part of its line, part of its text
    (
        "two ways to come",
        "{type: int, from: film.length}",
        "{type: int, from: film.length, derive: {count: store_ids}}",
        "from: film.length, derive",
        "both `from` and `derive`",
    ),
    ("no way to come", "{type: int, from: film.length}", "{type: int}", "length: {type: int}", "'from' is missing"),
    (
        "two operations",
        "derive: {count: film.store_ids}",
        "derive: {count: film.store_ids, unique: film.store_ids}",
        "count: film.store_ids, unique",
        "exactly one of",
    ),
    ("unknown operation", "{constant: film}", "{python: film}", "python:", "unknown key 'python'"),
    (
        "unknown input",
        "{count: film.store_ids}",
        "{count: film.stores}",
        "count: film.stores",
        "unknown column 'film.stores'",
    ),
    ("out of reach", '"{first_name} {last_name}"', '"{first_name} {film.title}"', "film.title}", "cannot be joined"),
    (
        "wrong input type",
        "{count: film.store_ids}",
        "{count: film.title}",
        "count: film.title",
        "film.title is string here",
    ),
    ("gathered input", "{analyze: [film.title,", "{analyze: [store.address_id,", "analyze", "list<int> here"),
    (
        "wrong output type",
        "copies: {type: int, derive",
        "copies: {type: string, derive",
        "copies: {type: string",
        "makes int",
    ),
    ("not a format", '"{first_name} {last_name}"', '"{first_name!r}"', "first_name!r", "is not a format"),
    ("format of nothing", '"{first_name} {last_name}"', '"name"', 'format: "name"', "names no {column}"),
    (
        "constant of an entity",
        '{format: "{first_name} {last_name}"}',
        "{constant: someone}",
        "constant: someone",
        "belongs to the document table",
    ),
    (
        "constant of another type",
        "{type: string, derive: {constant: film}}",
        "{type: int, derive: {constant: film}}",
        "constant: film",
        "`constant` does not fit",
    ),
    (
        "collection that is no list",
        "actor_ids: {type: list<int>, from",
        "actor_ids: {type: int, from",
        "actor_ids: {type: int",
        "comes from a collection",
    ),
    (
        "list reference of another type",
        "actor_ids: {type: list<int>",
        "actor_ids: {type: list<string>",
        "actor: actor_ids",
        "but the key is int",
    ),
    (
        "gathered field without lists",
        "from: city.name, index: term",
        "from: city.founded",
        "cities:",
        "cannot be in a list",
    ),
    (
        "gathered numbers in a range",
        "{from: city.name, index: term}",
        "{from: store.address_id, index: numeric}",
        "cities:",
        "is list<int>",
    ),
    (
        "scale of text",
        "replacement_cost: {type: string, from: film.replacement_cost}",
        "replacement_cost: {type: string, from: film.replacement_cost, scale: 100}",
        "scale: 100",
        "only an int column",
    ),
    (
        "split of an int",
        "{type: int, from: film.length}",
        "{type: int, from: film.length, split: x}",
        "split: x",
        "can be `split`",
    ),
    ("default that does not fit", "default: unrated", "default: adult", "default: adult", "`default` does not fit"),
    (
        "key of several columns for ints",
        FILM_KEY,
        FILM_KEY.replace("film_id", "[film_id, title]"),
        "source:",
        "key: string",
    ),
    (
        "keys of different widths",
        "film_actor: film_id",
        "film_actor: [film_id, actor_id]",
        "collections:",
        "this one 2",
    ),
    (
        "satellite and collection",
        "satellites: {film_text: film_id}",
        "satellites: {film_text: film_id, inventory: film_id}",
        "collections:",
        "a satellite and a collection",
    ),
    (
        "two ways to a table",
        "    references: {address: address_id}\n",
        "    references: {address: address_id, language: address_id}\n",
        "references: {address",
        "joined over 'film' already",
    ),
    (
        "bid and score",
        "  score: rental_rate\n",
        "  score: rental_rate\n  bid: price_micros\n",
        "  score:",
        "both `bid` and `score`",
    ),
    ("score that is no number", "  score: rental_rate\n", "  score: title\n", "score: title", "index 'numeric'"),
]


@pytest.mark.parametrize(("old", "new", "line", "text"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_a_fault_is_reported_with_its_line(tmp_path: Path, old: str, new: str, line: str, text: str) -> None:
    """Whatever is wrong with a declaration is said with its line and in words, before anything runs."""
    broken = replaced(old, new)
    if "city.founded" in new:
        broken = broken.replace(
            "      country_id: {type: int, from: city.country_id}\n",
            "      country_id: {type: int, from: city.country_id}\n"
            "      founded: {type: time, from: city.last_update}\n",
        )
    file = tmp_path / "films.yaml"
    file.write_text(broken, encoding="utf-8")
    with pytest.raises(InvalidCatalog) as caught:
        load_catalog(file)
    found = [f for f in caught.value.faults if text in f.text]
    assert found, str(caught.value)
    assert line in broken.splitlines()[found[0].line - 1], str(caught.value)


def test_derived_columns_that_need_each_other_are_refused(tmp_path: Path) -> None:
    """A cycle among derived columns is named with the catalogue's lines."""
    file = tmp_path / "films.yaml"
    file.write_text(replaced('{format: "{first_name} {last_name}"}', '{format: "{name}"}'))
    with pytest.raises(DependencyError, match=r"actor\.name -> actor\.name"):
        load_registry(load_catalog(file))


def test_a_catalogue_runs_the_packages_that_it_names_and_no_other() -> None:
    """The ads handlers belong to the ads catalogue; a package that is not there is named."""
    ads = load_catalog()
    assert set(load_registry(ads).handlers) == {h.name for h in builtin_handlers()}
    with pytest.raises(Exception, match=r"'argus\.nothing', which cannot be imported"):
        load_registry(replace(ads, handlers=("argus.nothing",)))


KEY_PART = st.one_of(st.text(max_size=6), st.integers(), st.sampled_from(["%", ",", "%2C", "%25"]))
KEY_PARTS = st.lists(KEY_PART, min_size=2, max_size=4)


@given(KEY_PARTS, KEY_PARTS)
def test_keys_of_several_columns_are_told_apart(one: list[Any], other: list[Any]) -> None:
    """A row key gives back its values, and different values never make the same one."""
    assert split_key(str(join_key(one))) == tuple(map(str, one))
    assert (join_key(one) == join_key(other)) == (list(map(str, one)) == list(map(str, other)))


def test_keys_that_are_none() -> None:
    """A null part makes no key, and what is neither text nor a whole number is given on to be refused."""
    assert key_columns("a,b") == ("a", "b")
    assert join_key([None, 1]) is None
    assert join_key([1.5, 1]) == 1.5
    assert join_key(["1,2"]) == "1,2"


def column(kind: ValueType, **more: Any) -> Column:
    """Return a column of a type."""
    return Column("t", "c", kind, Family.CONTENT, "t.c", 1, **more)


@pytest.mark.parametrize(
    ("declared", "value", "taken"),
    [
        (column(ValueType.FLOAT), Decimal("4.99"), 4.99),
        (column(ValueType.STRING), Decimal("20.90"), "20.90"),
        (column(ValueType.STRING), Decimal("1E+3"), "1000"),
        (column(ValueType.INT), Decimal("7.00"), 7),
        (column(ValueType.INT, scale=1_000_000), Decimal("0.99"), 990_000),
        (column(ValueType.INT, scale=1_000_000), 0.99, 990_000),
        (column(ValueType.INT, scale=100), "12.5", 1_250),
        (column(ValueType.INT, scale=100, default=0), None, 0),
        (column(ValueType.STRING_LIST, split=","), "Trailers,Deleted Scenes", ["Trailers", "Deleted Scenes"]),
        (column(ValueType.STRING_LIST, split=","), "", []),
        (column(ValueType.STRING_LIST, split=","), b"a,b", ["a", "b"]),
        (column(ValueType.TIME), date(1970, 1, 2), 86_400_000_000),
        (column(ValueType.BOOL), 1, True),
    ],
)
def test_types_of_mysql(declared: Column, value: object, taken: object) -> None:
    """DECIMAL, SET, DATE and TINYINT(1) become the declared type without losing anything."""
    assert check_source(declared, value) == taken
    assert check(declared, taken) == taken, "the Updater checks again, and must not scale or split again"


@pytest.mark.parametrize(
    ("declared", "value", "reason"),
    [
        (column(ValueType.INT), Decimal("7.5"), "bad_type"),
        (column(ValueType.INT, scale=100), Decimal("0.999"), "out_of_range"),
        (column(ValueType.INT, scale=100), "many", "bad_type"),
        (column(ValueType.INT, scale=100), Decimal("Infinity"), "bad_type"),
        (column(ValueType.FLOAT), Decimal("NaN"), "out_of_range"),
        (column(ValueType.INT, scale=10**12), 10**12, "out_of_range"),
        (column(ValueType.STRING_LIST, split=","), b"\xff", "invalid_utf8"),
    ],
)
def test_values_that_do_not_fit(declared: Column, value: object, reason: str) -> None:
    """What would lose something is refused with its reason."""
    with pytest.raises(InvalidValue) as caught:
        check_source(declared, value)
    assert caught.value.reason == reason
