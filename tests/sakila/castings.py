"""The roles of film_actor, whose key has two columns, as documents; for every backend alike."""

from __future__ import annotations

from pathlib import Path

from catalog.documents import decode_document
from cli.inprocess import InProcess
from debug_ui._source import search_names
from debug_ui.inspect import inspect_entity
from tests.sakila.expected import Query

CATALOG: Path = Path(__file__).with_name("castings.yaml")
ROLES = (
    "SELECT actor_id, film_id, first_name, last_name, title FROM film_actor JOIN actor USING (actor_id) "
    "JOIN film USING (film_id)"
)


def check(pipeline: InProcess, query: Query) -> int:
    """Compare the served roles with SQL's; return their number."""
    wanted = {
        f"{actor},{film}": {"actor_id": actor, "film_id": film, "role": f"{first} {last} in {title}"}
        for actor, film, first, last, title in query(ROLES)
    }
    hits = pipeline.backends.serving.search({}, 0)["hits"]
    found = pipeline.backends.serving.get([str(hit["ad_id"]) for hit in hits])
    assert {served.document_id: decode_document(served.body) for served in found} == wanted
    assert all(hit["score"] == 1.0 for hit in hits), "with neither bid nor score every document has 1"
    return len(wanted)


def follow(pipeline: InProcess, query: Query) -> None:
    """Insert, move and delete rows by either part of the key, and rename what they join."""
    assert check(pipeline, query) == 5462
    entity = inspect_entity(pipeline.backends, "casting", "1,23")
    assert [row.values["film_id"] for row in entity.source] == [23]
    assert not entity.differences
    found = search_names(pipeline.backends.ads_db, pipeline.catalog, "1,23")
    assert [(link.kind, link.id) for link in found] == [("casting", "1,23")]
    for statements in (
        "INSERT INTO film_actor (actor_id, film_id) VALUES (2, 1)",
        "UPDATE film_actor SET film_id = 2 WHERE actor_id = 2 AND film_id = 1",
        "UPDATE film_actor SET actor_id = 4 WHERE actor_id = 2 AND film_id = 2",
        "UPDATE actor SET last_name = 'GUINNESS' WHERE actor_id = 1",
        "DELETE FROM film_actor WHERE film_id = 3",
    ):
        pipeline.backends.ads_db.execute(statements)
        pipeline.until_idle(120)
        check(pipeline, query)
