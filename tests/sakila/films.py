"""The films as serving has them, beside what SQL says; live changes and whom they concern; for every backend alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catalog.documents import decode_document
from cli.inprocess import InProcess
from messaging.proto import adsindex_pb2 as pb
from messaging.topics import DEAD_LETTERS, DELTAS
from tests.sakila import expected
from tests.support import ROOT

CATALOG: Path = ROOT / "examples" / "sakila" / "sakila.yaml"


@dataclass(frozen=True, slots=True)
class LiveChange:
    """Statements on the source, and the SELECT (before them) of the films that they concern."""

    name: str
    statements: str
    concerned: str
    fields: frozenset[str]
    """Which fields of those documents differ afterwards; empty: the documents come or go."""


LIVE_CHANGES = (
    LiveChange(
        "an actor is renamed",
        "UPDATE actor SET last_name = 'GUINNESS' WHERE actor_id = 1",
        "SELECT film_id FROM film_actor WHERE actor_id = 1",
        frozenset({"actors", "terms"}),
    ),
    LiveChange(
        "an actor joins a film",
        "INSERT INTO film_actor (actor_id, film_id) VALUES (2, 1)",
        "SELECT 1",
        frozenset({"actors", "actor_ids", "terms"}),
    ),
    LiveChange(
        "an actor leaves a film",
        "DELETE FROM film_actor WHERE actor_id = 1 AND film_id = 1",
        "SELECT 1",
        frozenset({"actors", "actor_ids", "terms"}),
    ),
    LiveChange(
        "a role moves from one film to another",
        "UPDATE film_actor SET film_id = 2 WHERE actor_id = 2 AND film_id = 1",
        "SELECT 1 UNION SELECT 2",
        frozenset({"actors", "actor_ids", "terms"}),
    ),
    LiveChange(
        "a copy moves to the other store",
        "UPDATE inventory SET store_id = 2 WHERE inventory_id = 16",
        "SELECT film_id FROM inventory WHERE inventory_id = 16",
        frozenset({"copies_by_store"}),
    ),
    LiveChange(
        "all copies of a film move to a store that has none of it",
        "UPDATE inventory SET store_id = 1 WHERE film_id = 2",
        "SELECT 2",
        frozenset({"copies_by_store", "stores", "cities", "countries"}),
    ),
    LiveChange(
        "a film changes category",
        "UPDATE film_category SET category_id = 3 WHERE film_id = 5",
        "SELECT 5",
        frozenset({"categories", "terms"}),
    ),
    LiveChange(
        "a category is renamed",
        "UPDATE category SET name = 'Westerns' WHERE category_id = 15",
        "SELECT film_id FROM film_category WHERE category_id = 15",
        frozenset({"categories", "terms"}),
    ),
    LiveChange(
        "a city, four joins away, is renamed",
        "UPDATE city SET city = 'Lethbridge (Alberta)' WHERE city_id = 300",
        "SELECT DISTINCT film_id FROM inventory WHERE store_id = 1",
        frozenset({"cities"}),
    ),
    LiveChange(
        "the text of a film changes, by a trigger, in its satellite",
        "UPDATE film SET description = 'A Zymurgist in Space' WHERE film_id = 7",
        "SELECT 7",
        frozenset({"description", "terms", "updated"}),
    ),
    LiveChange(
        "an ENUM becomes null, and the declared default is served",
        "UPDATE film SET rating = NULL WHERE film_id = 9",
        "SELECT 9",
        frozenset({"rating", "updated"}),
    ),
    LiveChange(
        "a film is deleted with all that hangs on it",
        "DELETE FROM film_actor WHERE film_id = 14; DELETE FROM film_category WHERE film_id = 14; "
        "DELETE FROM inventory WHERE film_id = 14; DELETE FROM film WHERE film_id = 14",
        "SELECT 14",
        frozenset(),
    ),
    LiveChange(
        "a film comes back",
        "INSERT INTO film (film_id, title, language_id, rental_rate, replacement_cost, last_update) "
        "VALUES (14, 'ALICE FANTASIA AGAIN', 2, 0.99, 23.99, '2026-01-01 00:00:00'); "
        "INSERT INTO film_actor (actor_id, film_id) VALUES (7, 14), (3, 14)",
        "SELECT 14",
        frozenset(),
    ),
)


class Films:
    """The served films of a running pipeline and the source's SELECTs."""

    def __init__(self, pipeline: InProcess, query: expected.Query, epoch: str) -> None:
        self.pipeline, self.query, self.epoch = pipeline, query, epoch

    def served(self) -> dict[int, dict[str, Any]]:
        """Return every document that serving has."""
        hits = self.pipeline.backends.serving.search({}, 0)["hits"]
        found = self.pipeline.backends.serving.get([str(hit["ad_id"]) for hit in hits])
        return {int(served.document_id): decode_document(served.body) for served in found}

    def check(self) -> int:
        """Compare all documents with SQL's, and return their number."""
        wanted, served = expected.documents(self.query, self.epoch), self.served()
        assert served.keys() == wanted.keys()
        for key, document in wanted.items():
            assert served[key] == document, f"film {key}"
        return len(served)

    def dead_letters(self) -> list[str]:
        """Return what any stage refused."""
        log = self.pipeline.backends.log
        return [pb.DeadLetter.FromString(r.value).error for r in log.read(DEAD_LETTERS, 0, 0, 100)]

    def published(self, since: Mapping[int, int]) -> set[int]:
        """Return the films of the deltas at or after these offsets."""
        log = self.pipeline.backends.log
        return {
            int(pb.DocumentDelta.FromString(record.value).document_id)
            for partition, offset in since.items()
            for record in log.read(DELTAS, partition, offset, 100_000)
        }

    def follow(self, change: LiveChange) -> None:
        """Make a change, and check that exactly the concerned documents changed, in the fields that it is about."""
        concerned = {int(key) for (key,) in self.query(change.concerned)}
        assert concerned, "the change would concern nobody"
        before, ends = self.served(), self.pipeline.backends.log.end_offsets(DELTAS)
        self.pipeline.backends.ads_db.execute(change.statements)
        self.pipeline.until_idle(120)
        assert self.published(ends) == concerned
        self.check()
        after = self.served()
        for key in concerned if change.fields else ():
            differing = {
                name for name in before[key].keys() | after[key].keys() if before[key].get(name) != after[key].get(name)
            }
            assert differing and differing <= change.fields, f"film {key}: {differing}"
        assert not self.dead_letters()


def check_searches(films: Films) -> None:
    """Search by words, gathered values and ranges, and compare with SQL."""
    search = films.pipeline.backends.serving.search

    def found(request: Mapping[str, Any]) -> set[int]:
        return {int(hit["ad_id"]) for hit in search(request, 0)["hits"]}

    def sql(text: str) -> set[int]:
        rows = {int(key) for (key,) in films.query(text)}
        assert rows
        return rows

    def term(field: str, value: Any) -> dict[str, Any]:
        return {"term": {"field": field, "value": value}}

    assert found({"text": "dinosaurs penelope"}) == sql(
        "SELECT film_id FROM film_actor JOIN actor USING (actor_id) WHERE first_name = 'PENELOPE'"
    )
    assert found({"filter": term("actors", "ZERO CAGE")}) == sql("SELECT film_id FROM film_actor WHERE actor_id = 11")
    assert found({"filter": {"and": [term("categories", "Sci-Fi"), {"not": term("stores", 2)}]}}) == sql(
        "SELECT film_id FROM film_category JOIN category USING (category_id) WHERE name = 'Sci-Fi' "
        "AND film_id NOT IN (SELECT film_id FROM inventory WHERE store_id = 2)"
    )
    assert found({"filter": {"range": {"field": "copies", "gte": 8}}, "price": {"max": 1}}) == sql(
        "SELECT film_id FROM film WHERE rental_rate < 1 AND (SELECT COUNT(*) FROM inventory "
        "WHERE inventory.film_id = film.film_id) >= 8"
    )
    assert found({"filter": term("special_features", "Deleted Scenes")}) == sql(
        "SELECT film_id FROM film WHERE special_features LIKE '%Deleted Scenes%'"
    )
    best = search({"filter": term("rating", "PG")}, 5)["hits"]
    assert {round(hit["score"], 2) for hit in best} == {4.99}, "the declared score ranks"
