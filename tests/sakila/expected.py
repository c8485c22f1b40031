"""What a film's document must be, by plain SELECTs over the source and nothing of the project but its text analysis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

from catalog.text import analyze

Query = Callable[[str], Sequence[Sequence[Any]]]


def documents(query: Query, epoch: str) -> dict[int, dict[str, Any]]:
    """Return film id -> document of every film that can be served; `epoch` turns film.last_update into seconds."""
    languages = dict(pairs(query("SELECT language_id, name FROM language")))
    texts = dict(pairs(query("SELECT film_id, description FROM film_text")))
    actors = lists(
        query(
            "SELECT film_id, actor_id, first_name, last_name FROM film_actor JOIN actor USING (actor_id) "
            "ORDER BY film_id, actor_id"
        )
    )
    categories = lists(
        query("SELECT film_id, name FROM film_category JOIN category USING (category_id) ORDER BY film_id, category_id")
    )
    copies = lists(query("SELECT film_id, store_id, COUNT(*) FROM inventory GROUP BY film_id, store_id ORDER BY 1, 2"))
    places = {
        store: (city, country)
        for store, city, country in query(
            "SELECT store_id, city, country FROM store JOIN address USING (address_id) JOIN city USING (city_id) "
            "JOIN country USING (country_id)"
        )
    }
    found: dict[int, dict[str, Any]] = {}
    for film in query(
        "SELECT film_id, title, release_year, language_id, rental_duration, rental_rate, replacement_cost, length, "
        f"rating, special_features, {epoch} FROM film"
    ):
        key, title, year, language, days, rate, cost, length, rating, features, updated = film
        if language not in languages:
            continue  # a reference that leads nowhere blocks the document
        cast = actors.get(key, [])
        stores = copies.get(key, [])
        text = [
            title,
            texts[key] or "",
            *(f"{a} {b}" for _, a, b in cast),
            *(name for (name,) in categories.get(key, [])),
        ]
        document = {
            "film_id": key,
            "kind": "film",
            "title": title,
            "description": texts[key],
            "release_year": year,
            "language": languages[language],
            "rental_days": days,
            "rental_rate": float(rate),
            "price_micros": int(Decimal(str(rate)) * 1_000_000),
            "replacement_cost": str(cost),
            "length": length,
            "rating": "unrated" if rating is None else rating,
            "special_features": None if features is None else features.split(","),
            "updated": int(updated) * 1_000_000,
            "actor_ids": [actor for actor, _, _ in cast],
            "actors": [f"{a} {b}" for _, a, b in cast],
            "categories": [name for (name,) in categories.get(key, [])],
            "stores": [store for store, _ in stores],
            "copies": sum(count for _, count in stores),
            "copies_by_store": [f"{store}={count}" for store, count in stores],
            "cities": [places[store][0] for store, _ in stores],
            "countries": [places[store][1] for store, _ in stores],
            "terms": sorted({term for part in text for term in analyze(part)}),
        }
        found[key] = {name: value for name, value in document.items() if value is not None and value != []}
    return found


def pairs(rows: Sequence[Sequence[Any]]) -> list[tuple[Any, Any]]:
    """Return rows of two columns as pairs."""
    return [(a, b) for a, b in rows]


def lists(rows: Sequence[Sequence[Any]]) -> dict[int, list[tuple[Any, ...]]]:
    """Return rows by their first column, in their order."""
    grouped: dict[int, list[tuple[Any, ...]]] = {}
    for key, *rest in rows:
        grouped.setdefault(key, []).append(tuple(rest))
    return grouped
