"""The real exports, recounted from the files by code that shares nothing with the project."""

from __future__ import annotations

import csv
import json
import sqlite3
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from tests.batch_workflows.import_support import Importer


@pytest.fixture
def loaded(tmp_path: Path, data: Path) -> Iterator[tuple[Importer, list[dict[str, str]], list[dict[str, str]]]]:
    """Both exports loaded, with their rows as a dictionary reader gives them."""
    files = data / "kag_facebook_ads/KAG_conversion_data.csv", data / "flipkart_products/flipkart_999_full.csv"
    importer = Importer(tmp_path)
    for file, mapping in zip(files, ("kag_facebook_ads", "flipkart_products"), strict=True):
        assert importer.load(file, mapping).rows_bad == 0
    ads, products = (list(csv.DictReader(file.open(encoding="utf-8-sig", newline=""))) for file in files)
    yield importer, ads, products
    for file, mapping in zip(files, ("kag_facebook_ads", "flipkart_products"), strict=True):
        before = importer.db.last_change()
        importer.load(file, mapping)
        assert importer.db.last_change() == before, "loading again changed something"
    importer.close()


def test_ads(loaded: tuple[Importer, list[dict[str, str]], list[dict[str, str]]]) -> None:
    """All 1,143 ads are there with their own ids, parents, targeting and figures."""
    importer, ads, _ = loaded
    assert len(ads) == 1143
    joined = (
        "SELECT a.id, g.id, c.id, t.spec, c.advertiser_id, b.daily_micros > b.spent_today_micros FROM ads a "
        "JOIN ad_groups g ON g.id = a.ad_group_id JOIN campaigns c ON c.id = g.campaign_id "
        "JOIN targeting_specs t ON t.ad_group_id = g.id JOIN budgets b ON b.campaign_id = c.id "
        "JOIN advertisers v ON v.id = c.advertiser_id"
    )
    got = {row[0]: (row[1], row[2], json.loads(row[3]), row[4], row[5]) for row in importer.rows(joined)}
    assert got == {
        int(row["ad_id"]): (
            int(row["fb_campaign_id"]),
            int(row["xyz_campaign_id"]),
            {"age": [row["age"]], "gender": [row["gender"]], "interests": [int(row["interest"])]},
            1,
            1,
        )
        for row in ads
    }
    with sqlite3.connect(importer.home.performance_db) as connection:
        names = "ad_id, impressions, clicks, conversions, approved_conversions, spend_micros"
        figures = {row[0]: row[1:] for row in connection.execute(f"SELECT {names} FROM performance")}
    connection.close()
    assert figures == {
        int(row["ad_id"]): (
            *(int(row[n]) for n in ("Impressions", "Clicks", "Total_Conversion", "Approved_Conversion")),
            round(Decimal(row["Spent"]) * 1_000_000),
        )
        for row in ads
    }
    assert sum(f[0] for f in figures.values()) == 213_434_828
    assert {int(signal.row) for signal in importer.signals()} == set(figures)


def test_products_and_pairs(loaded: tuple[Importer, list[dict[str, str]], list[dict[str, str]]]) -> None:
    """All 999 products are pins with their texts, prices and first image, and ad i shows product i modulo 999."""
    importer, ads, products = loaded
    assert len(products) == 999
    joined = (
        "SELECT p.id, title, description, link, brand, category_path, price_micros, list_price_micros, currency, i.url "
        "FROM pins p LEFT JOIN images i ON i.id = p.image_id"
    )
    assert {row[0]: row[1:] for row in importer.rows(joined)} == {
        row["uniq_id"]: (
            row["product_name"],
            row["description"] or None,
            row["product_url"],
            row["brand"] or None,
            json.loads(row["product_category_tree"])[0],
            int(row["discounted_price"]) * 1_000_000 if row["discounted_price"] else None,
            int(row["retail_price"]) * 1_000_000 if row["retail_price"] else None,
            "INR",
            json.loads(row["image"])[0],
        )
        for row in products
    }
    assert dict(importer.rows("SELECT id, pin_id FROM ads")) == {
        int(ad["ad_id"]): products[i % 999]["uniq_id"] for i, ad in enumerate(ads)
    }
