"""A plausible generated sample of ads, for a first look and for tests of size: the same seed gives the same rows."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy.exc import DBAPIError

from argus.sources.performance import PerformanceDb, PerformanceRow
from batch_workflows import _sample_words as words
from batch_workflows._performance_signals import announce_performance
from gateway import AdsDb, AdsDbUnavailable
from messaging import Log
from messaging.topics import ensure_topics

__all__ = ["SampleReport", "generate_sample"]

_CENT = 10_000
"""Micros; bids and prices are whole cents."""

FIRST_AD = 1_000_001
INSERTED = {
    "advertisers": "id, name, status, billing_status, country, currency",
    "campaigns": "id, advertiser_id, name, objective, status, starts_at, ends_at",
    "budgets": "campaign_id, daily_micros, lifetime_micros, spent_today_micros, spent_total_micros, currency",
    "ad_groups": "id, campaign_id, name, status, bid_micros, starts_at, ends_at",
    "targeting_specs": "ad_group_id, spec",
    "ads": "id, ad_group_id, pin_id, name, status, review_status",
    "pins": "id, title, description, link, brand, category_path, status, price_micros, list_price_micros, currency, "
    "image_id",
    "images": "id, url, width, height, status",
}
"""Table of the ads DB -> the columns that are generated, in the order of `Sample.rows`."""

_log = structlog.get_logger()


@dataclass(slots=True)
class SampleReport:
    """Rows per ads DB table that were generated; all empty when the ads DB had rows already."""

    rows: dict[str, int] = field(default_factory=dict)
    performance: int = 0
    seconds: float = 0.0


def generate_sample(
    ads_db: AdsDb, performance_db_path: Path, log: Log, ads: int, seed: int, *, today: datetime | None = None
) -> SampleReport:
    """Fill an empty ads DB with `ads` ads and all that belongs to them; do nothing if it has rows.

    The rows depend on `ads`, `seed` and the day (`today`, default now): schedules begin and end around it. All rows go
    in by one transaction, so a run that is killed before it leaves an empty database. Killed after it, the signals of
    the ads' performance may be missing: `up` makes up for them at every start (`announce_left_over`).
    Raises AdsDbUnavailable, SourceUnavailable, LogError.
    """
    report = SampleReport()
    started = time.monotonic()
    if ads < 1 or not ads_db.is_empty():
        return report
    day = (today or datetime.now(UTC)).replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
    sample = Sample(random.Random(seed), day)
    sample.fill(ads)
    ensure_topics(log)
    with closing(PerformanceDb(performance_db_path)) as performance:
        performance.upsert(sample.performance)
        try:
            with ads_db.engine.begin() as connection:
                mark = "?" if connection.dialect.paramstyle == "qmark" else "%s"
                for table, columns in INSERTED.items():
                    marks = ", ".join([mark] * len(columns.split(",")))
                    rows = sample.rows[table]
                    connection.exec_driver_sql(f"INSERT INTO {table} ({columns}) VALUES ({marks})", rows)
                    report.rows[table] = len(rows)
        except DBAPIError as error:
            raise AdsDbUnavailable(f"ads DB {ads_db.name}: {error.orig}; nothing was written, try again") from error
        announce_performance(performance, log)
    report.performance = len(sample.performance)
    report.seconds = time.monotonic() - started
    _log.info("sample", seed=seed, rows=report.rows, seconds=round(report.seconds, 3))
    return report


@dataclass(slots=True)
class Sample:
    """Rows as they are generated; `fill` makes all."""

    random: random.Random
    day: datetime
    first: int = 0
    """Added to every number that names a row: parts of one large sample do not meet if each has its share of ads."""
    rows: dict[str, list[tuple[Any, ...]]] = field(default_factory=lambda: {table: [] for table in INSERTED})
    performance: list[PerformanceRow] = field(default_factory=list)

    def fill(self, ads: int) -> None:
        """Generate advertisers with campaigns, ad groups and ads until there are enough ads."""
        weights = [market[4] for market in words.MARKETS]
        left = ads
        while left:
            market = self.random.choices(words.MARKETS, weights)[0]
            advertiser = self._advertiser(market)
            for _ in range(min(left, self._count(1.8))):
                if not left:
                    break
                campaign = self._campaign(advertiser, market)
                for _ in range(self._count(2.5)):
                    group, bid = self._ad_group(campaign, market)
                    for _ in range(min(left, self._count(3.0))):
                        self._ad(group, bid, market)
                        left -= 1
                    if not left:
                        break

    def _count(self, mean: float) -> int:
        """At least one, with a long tail."""
        return 1 + min(40, int(self.random.expovariate(1 / mean)))

    def _chance(self, share: float) -> bool:
        return self.random.random() < share

    def _money(self, median_dollars: float, spread: float, per_dollar: float) -> int:
        micros = self.random.lognormvariate(0, spread) * median_dollars * per_dollar * 1_000_000
        return max(_CENT, round(micros / _CENT) * _CENT)

    def _time(self, days: float) -> str:
        """A time as SQLAlchemy stores it on SQLite, some days from today."""
        return (self.day + timedelta(minutes=round(days * 1440))).strftime("%Y-%m-%d %H:%M:%S.%f")

    def _advertiser(self, market: tuple[str, str, float, str, int]) -> int:
        rows = self.rows["advertisers"]
        advertiser = self.first + len(rows) + 1
        name = f"{self.random.choice(words.BRANDS)} {market[0]} {advertiser}"
        billing = "PAYMENT_FAILED" if self._chance(0.01) else "OK"
        rows.append((advertiser, name, "PAUSED" if self._chance(0.01) else "ACTIVE", billing, market[0], market[1]))
        return advertiser

    def _campaign(self, advertiser: int, market: tuple[str, str, float, str, int]) -> int:
        rows = self.rows["campaigns"]
        campaign = 1_001 + self.first + len(rows)
        objective = self.random.choice(("AWARENESS", "CONSIDERATION", "CONVERSIONS", "CONVERSIONS", "CATALOG_SALES"))
        starts, ends = self._schedule()
        status = "PAUSED" if self._chance(0.03) else "ACTIVE"
        rows.append((campaign, advertiser, f"{objective.title()} {campaign}", objective, status, starts, ends))
        daily = self._money(80, 0.9, market[2])
        lifetime = daily * self.random.randint(20, 90) if self._chance(0.3) else 0
        used = 1.0 if self._chance(0.02) else self.random.betavariate(2, 4)
        spent_today = int(daily * used)
        spent_total = spent_today + daily * self.random.randint(0, 15)
        self.rows["budgets"].append((campaign, daily, lifetime, spent_today, spent_total, market[1]))
        return campaign

    def _schedule(self) -> tuple[str | None, str | None]:
        kind = self.random.random()
        if kind < 0.05:  # over
            return self._time(-self.random.uniform(40, 200)), self._time(-self.random.uniform(1, 30))
        if kind < 0.10:  # yet to come
            return self._time(self.random.uniform(1, 30)), self._time(self.random.uniform(40, 90))
        starts = self._time(-self.random.uniform(1, 200)) if self._chance(0.8) else None
        return starts, self._time(self.random.uniform(2, 120)) if self._chance(0.4) else None

    def _ad_group(self, campaign: int, market: tuple[str, str, float, str, int]) -> tuple[int, int]:
        rows = self.rows["ad_groups"]
        group = 100_001 + self.first + len(rows)
        starts, ends = self._schedule() if self._chance(0.15) else (None, None)
        status = "PAUSED" if self._chance(0.02) else "ACTIVE"
        bid = self._money(0.8, 0.6, market[2])
        rows.append((group, campaign, f"Ad group {group}", status, bid, starts, ends))
        self.rows["targeting_specs"].append((group, json.dumps(self._targeting(market), sort_keys=True)))
        return group, bid

    def _targeting(self, market: tuple[str, str, float, str, int]) -> dict[str, Any]:
        spec: dict[str, Any] = {}
        if self._chance(0.8):
            first = self.random.randrange(len(words.AGES))
            spec["age"] = list(words.AGES[first : first + self.random.randint(1, 4)])
        if self._chance(0.35):
            spec["gender"] = [self.random.choice(words.GENDERS)]
        if self._chance(0.75):
            spec["interests"] = sorted(set(self._interests(self.random.randint(1, 4))))
        if self._chance(0.7):
            others = self.random.sample([m[0] for m in words.MARKETS], self.random.randint(0, 3))
            spec["country"] = sorted({market[0], *others})
        if self._chance(0.25):
            spec["language"] = sorted({market[3], "en"})
        if self._chance(0.3):
            spec["device"] = sorted(self.random.sample(words.DEVICES, self.random.randint(1, 2)))
        exclude: dict[str, Any] = {}
        if "country" not in spec and self._chance(0.4):
            exclude["country"] = [self.random.choice([m[0] for m in words.MARKETS if m[0] != market[0]])]
        if "device" not in spec and self._chance(0.08):
            exclude["device"] = [self.random.choice(words.DEVICES)]
        if self._chance(0.1) and (unwanted := set(self._interests(2)) - set(spec.get("interests", ()))):
            exclude["interests"] = sorted(unwanted)
        return {**spec, "exclude": exclude} if exclude else spec

    def _interests(self, count: int) -> Iterator[int]:
        for _ in range(count):
            yield 1 + int(words.INTERESTS * self.random.random() ** 2)

    def _ad(self, group: int, bid: int, market: tuple[str, str, float, str, int]) -> None:
        rows = self.rows["ads"]
        ad = FIRST_AD + self.first + len(rows)
        pins = self.rows["pins"]
        # Some creatives are used by several ads, so that a pin's change fans out.
        pin = pins[-self.random.randint(1, min(50, len(pins)))][0] if pins and self._chance(0.2) else self._pin(market)
        status = "PAUSED" if self._chance(0.02) else "ACTIVE"
        review = "REJECTED" if self._chance(0.01) else "PENDING" if self._chance(0.02) else "APPROVED"
        rows.append((ad, group, pin, f"Ad {ad}", status, review))
        if self._chance(0.9):
            impressions = int(self.random.lognormvariate(8, 1.5))
            clicks = int(impressions * self.random.betavariate(1.2, 60))
            conversions = int(clicks * self.random.betavariate(1.5, 12))
            approved = int(conversions * self.random.random())
            self.performance.append(PerformanceRow(ad, impressions, clicks, conversions, approved, clicks * bid))

    def _pin(self, market: tuple[str, str, float, str, int]) -> str:
        pins = self.rows["pins"]
        number = self.first + len(pins) + 1
        pin, image = f"pin-{number:07d}", f"img-{number:07d}"
        choose = self.random.choice
        path, dollars, names = choose(words.PRODUCTS)
        brand, name = choose(words.BRANDS), choose(names)
        title = f"{brand} {choose(words.ADJECTIVES)} {name}, {choose(words.COLOURS)}"
        description = " ".join((f"{title}.", *self.random.sample(words.PHRASES[market[3]], 2)))
        price = self._money(dollars, 0.5, market[2])
        list_price = round(price * self.random.uniform(1.05, 1.8) / _CENT) * _CENT if self._chance(0.4) else None
        status = "REMOVED" if self._chance(0.005) else "ACTIVE"
        link = f"https://shop.example/{market[0].lower()}/{pin}"
        pins.append((pin, title, description, link, brand, path, status, price, list_price, market[1], image))
        url = f"https://images.example/{image}.jpg"
        self.rows["images"].append((image, url, choose((600, 750, 1000)), choose((800, 1000, 1500)), "ACTIVE"))
        return pin
