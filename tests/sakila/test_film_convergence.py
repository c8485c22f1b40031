"""Documents that join lists of rows converge as all others do, whatever the order of updates, runs, commits, deaths."""

from __future__ import annotations

import random as randomness
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from argus import Hint, compute_documents, load_registry
from catalog import load_catalog
from catalog.documents import decode_document
from catalog.model import DOCUMENT_BLOCKED, DOCUMENT_BODY
from catalog.values import decode, encode, refusal, refused
from messaging.proto import adsindex_pb2 as pb
from tests.argus.test_convergence import STEPS, Worker
from tests.argus.world import World
from tests.sakila.films import CATALOG

FILMS, ACTORS = (1, 2, 3), (1, 2, 3, 4)
REGISTRY = load_registry(load_catalog(CATALOG))


def film(world: World, key: int, actors: list[int], stores: list[int], **columns: Any) -> None:
    """Store a film with its lists."""
    plain = {"film_id": key, "title": f"Film {key}", "language_id": 1, "rental_rate": 0.99, "rating": "G"}
    lists = {"actor_ids": actors or None, "store_ids": stores or None, "category_ids": [1]}
    world.put("film", key, **{**plain, **lists, **columns})


def place(world: World, store: int, city: int) -> None:
    """Store a shop with an address of its own in a city."""
    world.put("store", store, address_id=store)
    world.put("address", store, city_id=city)


def begin(world: World) -> None:
    """Store what every film joins; two actors, a film and a shop have not arrived yet."""
    world.put("language", 1, name="English")
    world.put("category", 1, name="Drama")
    world.put("country", 1, name="Canada")
    world.put("city", 1, name="Lethbridge", country_id=1)
    world.put("actor", 1, first_name="PENELOPE", last_name="GUINESS")
    world.put("actor", 2, first_name="NICK", last_name="WAHLBERG")
    place(world, 1, 1)
    film(world, 1, [1, 2, 3], [1, 1, 2])
    film(world, 2, [2], [])


def change(world: World, kind: int, variant: int) -> None:
    """Make one of many changes to the source."""
    chosen = randomness.Random(variant)
    match kind:
        case 0 | 1:
            world.put("actor", ACTORS[variant % 4], first_name=f"NAME{variant}", last_name="X" if variant % 3 else None)
        case 2 | 3:
            actors = sorted(chosen.sample(ACTORS, chosen.randint(0, 4)))
            film(world, FILMS[variant % 3], actors, sorted(chosen.choices((1, 2), k=variant)))
        case 4:
            world.put("city", 1 + variant % 2, name=f"City {variant}", country_id=1)
        case 5:
            place(world, 1 + variant % 2, 1 + variant // 4)
        case 6:
            world.put("category", 1, name=f"Kind {variant}")
        case 7:
            world.delete(*(("film", 1), ("actor", 2), ("store", 1), ("city", 1), ("film", 2))[variant % 5])
        case 8:
            world.put("language", 1, name="French" if variant % 2 else "English")
        case _:
            world.put("country", 1, name=f"Country {variant}")


def bodies(world: World) -> dict[str, bytes | None]:
    """Return the stored documents."""
    snapshot = world.repo.snapshot()
    return {str(key): snapshot.get("film_document", str(key)).get(DOCUMENT_BODY) for key in FILMS}


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(STEPS, st.randoms(use_true_random=False))
def test_any_interleaving_of_two_workers_converges(steps: list[tuple[str, int, int]], random: object) -> None:
    """Renamed and moved members, lists that grow and shrink, lost races and deaths end in a clean computation's bytes.

    What was published last of each document is what is stored.
    """
    with tempfile.TemporaryDirectory() as directory:
        world = World(Path(directory), REGISTRY)
        try:
            _interleave(world, steps, random)
        finally:
            world.close()


def _interleave(world: World, steps: list[tuple[str, int, int]], random: object) -> None:
    begin(world)
    workers = [Worker(world, world.core()), Worker(world, world.core())]
    served: dict[str, pb.DocumentDelta] = {}
    waiting = world.hints()

    def publish(worker: Worker) -> None:
        while worker.computed:
            worker.commit()
        _, outcome = worker.reset()
        for delta in outcome.deltas:
            if delta.document_id not in served or delta.version > served[delta.document_id].version:
                served[delta.document_id] = delta
        waiting.extend(Hint(n) for n in outcome.notifications)

    for name, which, amount in steps:
        waiting += world.hints()
        random.shuffle(waiting)  # type: ignore[attr-defined]
        worker = workers[which % 2]
        if name == "change":
            change(world, which, amount)
        elif name == "read" and not worker.hints and waiting:
            worker.read(waiting[: amount + 1])
            del waiting[: amount + 1]
        elif name == "commit" and worker.computed:
            worker.commit()
        elif name == "publish":
            publish(worker)
        elif name == "die":
            hints, _ = worker.reset()
            waiting += [Hint(hint.notification, redelivered=True) for hint in hints]
    for worker in workers:
        publish(worker)
    waiting += world.hints()
    while waiting:
        workers[0].read(waiting[:])
        waiting.clear()
        publish(workers[0])
        waiting += world.hints()
    computed = compute_documents(world.repo.snapshot(), world.registry, {}, [str(key) for key in FILMS])
    expected = {key: body for key, body, _ in computed}
    assert bodies(world) == expected
    assert {key: d.body if not d.deleted else None for key, d in served.items()} == {
        key: body for key, body in expected.items() if key in served
    }
    assert {key for key, body in expected.items() if body is not None} <= served.keys()


def test_members_that_are_missing_block_nothing_and_join_when_they_come(tmp_path: Path) -> None:
    """A film shows the actors that have arrived, in the order of its list, and one more the moment that he arrives."""
    world = World(tmp_path, REGISTRY)
    try:
        begin(world)
        world.settle()
        first = decode_document(bodies(world)["1"] or b"")
        assert first["actors"] == ["PENELOPE GUINESS", "NICK WAHLBERG"]
        assert (first["stores"], first["copies_by_store"], first["cities"]) == ([1, 2], ["1=2", "2=1"], ["Lethbridge"])
        world.put("actor", 3, first_name="ED", last_name=None)
        world.delete("actor", 1)
        world.settle()
        assert decode_document(bodies(world)["1"] or b"")["actors"] == ["NICK WAHLBERG", "ED "]
    finally:
        world.close()


def test_index_rows_follow_the_lists(tmp_path: Path) -> None:
    """Each value of a list has one index row, repeated values too; they go with the value, and with the film."""
    world = World(tmp_path, REGISTRY)

    def index(name: str) -> list[str]:
        return [row.replace("\x1f", ">") for row, _ in world.repo.snapshot().scan(name)]

    try:
        film(world, 1, [1, 2], [1, 1, 2])
        film(world, 2, [2], [2])
        assert index("film_by_actor") == ["1>1", "2>1", "2>2"]
        assert index("film_by_store") == ["1>1", "2>1", "2>2"]
        film(world, 1, [2, 3], [2])
        assert index("film_by_actor") == ["2>1", "2>2", "3>1"]
        assert index("film_by_store") == ["2>1", "2>2"]
        world.delete("film", 1)
        assert index("film_by_actor") == ["2>2"]
    finally:
        world.close()


def refuse(world: World, table: str, key: int, column: str, value: bytes) -> list[str]:
    """Send the entity as it is, but for one column's raw bytes; return the reasons of dead letters."""
    world.version += 1
    update = pb.EntityUpdate(table=table, row=str(key), source="ads_db", source_version=world.version)
    stored = world.repo.snapshot().get(table, str(key))
    for declared in world.catalog.tables[table].columns.values():
        if declared.source_table is not None:
            data = value if declared.name == column else stored.get(declared.cell, b"")
            update.columns.add(name=declared.name, value=data)
    return [letter.reason for letter in world.updater.apply([update]).dead_letters]


def test_a_refused_list_of_references_leads_nowhere_and_blocks_until_it_is_mended(tmp_path: Path) -> None:
    """A list that cannot be understood is not an empty one: its index rows go, and the film says why it is away."""
    world = World(tmp_path, REGISTRY)
    try:
        begin(world)
        world.settle()
        assert bodies(world)["1"] is not None
        for data, reason in ((refused("bad_type"), "bad_type"), (encode([1, "x"]), "bad_type")):
            refuse(world, "film", 1, "actor_ids", data)
            snapshot = world.repo.snapshot()
            cell = world.catalog.column("film.actor_ids").cell
            assert refusal(snapshot.get("film", "1")[cell]) == reason
            assert [row for row, _ in snapshot.scan("film_by_actor")] == ["2\x1f2"]
            world.settle()
            assert bodies(world)["1"] is None
            (blocked, *_) = decode(world.repo.snapshot().get("film_document", "1")[DOCUMENT_BLOCKED])
            assert blocked.startswith(f"film 1: actor_ids is not valid ({reason})")
        film(world, 1, [1], [1])
        world.settle()
        assert decode_document(bodies(world)["1"] or b"")["actors"] == ["PENELOPE GUINESS"]
        assert [row for row, _ in world.repo.snapshot().scan("film_by_actor")] == ["1\x1f1", "2\x1f2"]
    finally:
        world.close()


def test_a_refused_control_column_of_one_of_many_joined_rows_blocks(tmp_path: Path) -> None:
    """Of a member of a list, too, what puts conditions is not null when it was refused; plain content is."""
    text, old = CATALOG.read_text(encoding="utf-8"), "name: {type: string, from: category.name}"
    assert text.count(old) == 1
    file = tmp_path / "films.yaml"
    file.write_text(text.replace(old, old.replace("string,", "string, family: control,")), encoding="utf-8")
    world = World(tmp_path, load_registry(load_catalog(file)))
    try:
        begin(world)
        world.put("category", 2, name="Noir")
        film(world, 1, [1, 2], [1], category_ids=[1, 2])
        world.settle()
        assert decode_document(bodies(world)["1"] or b"")["categories"] == ["Drama", "Noir"]
        assert refuse(world, "category", 2, "name", encode(b"\xff")) == ["invalid_utf8"]
        world.settle()
        assert bodies(world)["1"] is None
        assert bodies(world)["2"] is not None
        blocked = decode(world.repo.snapshot().get("film_document", "1")[DOCUMENT_BLOCKED])
        assert [cause[:43] for cause in blocked] == ["category 2: name is not valid (invalid_utf8"]
        world.put("category", 2, name="Film noir")
        refuse(world, "actor", 2, "first_name", refused("bad_type"))
        world.settle()
        document = decode_document(bodies(world)["1"] or b"")
        assert (document["categories"], document["actors"]) == (
            ["Drama", "Film noir"],
            ["PENELOPE GUINESS", " WAHLBERG"],
        )
    finally:
        world.close()
