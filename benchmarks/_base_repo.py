"""A generated Repo of any size, written directly: entity cells as the Updater leaves them, derived ones as Argus."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from argus import compute_runs, load_registry
from argus.stage import open_sources
from batch_workflows import _sample_words as words
from catalog import Catalog
from catalog.model import SOURCE_VERSION
from catalog.values import check, encode
from messaging.home import Home
from storage_repo import Origin, Repo

_ROWS_PER_COMMIT = 1_000
_CHUNK = 1_024
_ADS_PER_GROUP, _GROUPS_PER_CAMPAIGN, _CAMPAIGNS_PER_ADVERTISER = 5, 4, 4
_SHARED_CREATIVES = 5
"""Every so manieth ad shows the pin of the one before."""

Entity = tuple[str, str, dict[str, Any]]


def fill(home: Home, catalog: Catalog, repo: Repo, ads: int, seed: int) -> None:
    """Write `ads` ads with all that they join, and the documents that the handlers make of them."""
    entities = _entities(ads, random.Random(seed))
    version = 0
    while chunk := list(islice(entities, _ROWS_PER_COMMIT)):
        transaction = repo.begin(Origin("bench"))
        for table, row, columns in chunk:
            version += 1
            transaction.put(table, row, SOURCE_VERSION, encode(version))
            for name, value in columns.items():
                column = catalog.column(f"{table}.{name}")
                if (checked := check(column, value)) is not None:
                    transaction.put(table, row, column.cell, encode(checked))
        transaction.commit()
    _derive(home, catalog, repo)


def _derive(home: Home, catalog: Catalog, repo: Repo) -> None:
    registry, sources = load_registry(catalog), open_sources(home)
    for root in (*(plan.root for plan in registry.plans.values() if not plan.is_document), catalog.root):
        table = registry.plans[root].output_table
        snapshot = repo.snapshot()
        rows = (row for row, _ in snapshot.scan(root, columns=[SOURCE_VERSION]))
        while chunk := list(islice(rows, _CHUNK)):
            transaction = repo.begin(Origin("bench"))
            for result in compute_runs(snapshot, registry, sources, chunk, root=root):
                for (of_table, cell), data in result.changes.items():
                    if data is not None and of_table == table:
                        transaction.put(table, result.key, cell, data)
            transaction.commit()
    for source in sources.values():
        source.close()


def _entities(ads: int, chance: random.Random) -> Iterator[Entity]:
    groups = ads // _ADS_PER_GROUP + 1
    campaigns = groups // _GROUPS_PER_CAMPAIGN + 1
    advertisers = campaigns // _CAMPAIGNS_PER_ADVERTISER + 1
    markets = [chance.choice(words.MARKETS) for _ in range(advertisers)]
    for number in range(1, advertisers + 1):
        market = markets[number - 1]
        yield "advertiser", str(number), {
            "name": f"{chance.choice(words.BRANDS)} {number}", "status": "ACTIVE", "billing_status": "OK",
            "country": market[0], "currency": market[1],
        }  # fmt: skip
    for number in range(1, campaigns + 1):
        yield "campaign", str(number), {
            "advertiser_id": 1 + number % advertisers, "name": f"Campaign {number}", "objective": "CONVERSIONS",
            "status": "ACTIVE", "starts_at": 1_000_000,
        }  # fmt: skip
    for number in range(1, groups + 1):
        targeting = {"age": sorted(chance.sample(words.AGES, 2)), "interests": sorted(_interests(chance))}
        yield "ad_group", str(number), {
            "campaign_id": 1 + number % campaigns, "name": f"Group {number}", "status": "ACTIVE",
            "bid_micros": 10_000 * chance.randint(1, 500), "targeting_spec": json.dumps(targeting, sort_keys=True),
        }  # fmt: skip
    pin = ""
    for number in range(1, ads + 1):
        if number % _SHARED_CREATIVES or not pin:
            pin = f"pin-{number:07d}"
            yield from _pin(pin, chance)
        yield "ad", str(1_000_000 + number), {
            "id": 1_000_000 + number, "ad_group_id": 1 + number % groups, "pin_id": pin, "name": f"Ad {number}",
            "status": "PAUSED" if chance.random() < 0.02 else "ACTIVE", "review_status": "APPROVED",
        }  # fmt: skip


def _pin(pin: str, chance: random.Random) -> Iterable[Entity]:
    path, dollars, names = chance.choice(words.PRODUCTS)
    brand = chance.choice(words.BRANDS)
    title = f"{brand} {chance.choice(words.ADJECTIVES)} {chance.choice(names)}, {chance.choice(words.COLOURS)}"
    yield "image", f"img-{pin}", {"url": f"https://images.example/{pin}.jpg", "width": 600, "height": 800,
                                  "status": "ACTIVE"}  # fmt: skip
    yield "pin", pin, {
        "id": pin, "title": title, "description": " ".join((title, *chance.sample(words.PHRASES["en"], 2))),
        "brand": brand, "category_path": path, "status": "ACTIVE", "price_micros": int(dollars * 1_000_000),
        "currency": "USD", "link": f"https://shop.example/{pin}", "image_id": f"img-{pin}",
    }  # fmt: skip


def _interests(chance: random.Random) -> set[int]:
    return {1 + int(words.INTERESTS * chance.random() ** 2) for _ in range(3)}
