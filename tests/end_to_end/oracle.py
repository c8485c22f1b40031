"""What the CSV files say, computed from them alone: no code of the project is used here."""

from __future__ import annotations

import csv
from collections import defaultdict
from decimal import Decimal
from pathlib import Path
from typing import Any

Combination = tuple[str, str, str]


def read(file: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    with file.open(encoding="utf-8-sig", newline="") as handle:
        return list(csv.DictReader(handle))


class RealAds:
    """1,143 ads of an advertiser, ad i paired with product i of 999."""

    def __init__(self, data: Path) -> None:
        self.ads_csv = data / "kag_facebook_ads" / "KAG_conversion_data.csv"
        self.products_csv = data / "flipkart_products" / "flipkart_999_full.csv"
        self.ads = read(self.ads_csv)
        self.products = read(self.products_csv)
        self.targeting: dict[str, Combination] = {a["ad_id"]: (a["age"], a["gender"], a["interest"]) for a in self.ads}

    def combinations(self) -> list[Combination]:
        """Return every (age, gender, interest) that occurs."""
        return sorted(set(self.targeting.values()))

    def by_combination(self, targeting: dict[str, Combination] | None = None) -> dict[Combination, set[str]]:
        """Return combination -> ids of the ads that demand it."""
        found: dict[Combination, set[str]] = defaultdict(set)
        for ad, combination in (targeting or self.targeting).items():
            found[combination].add(ad)
        return found

    def product_of(self, position: int) -> dict[str, str]:
        """Return the product of the ad at a position."""
        return self.products[position % len(self.products)]


def request_of(combination: Combination) -> dict[str, Any]:
    """Return the request of a person of that age and gender with that interest."""
    age, gender, interest = combination
    return {"age": age, "gender": gender, "interests": [int(interest)]}


def micros(text: str) -> int | None:
    """Return an amount of money in millionths; None for an empty cell."""
    return int((Decimal(text) * 1_000_000).quantize(Decimal(1))) if text.strip() else None


def top_category(product: dict[str, str]) -> str:
    """Return the first part of a product's category path."""
    return product["product_category_tree"].strip('[]" ').split(">>")[0].strip()
