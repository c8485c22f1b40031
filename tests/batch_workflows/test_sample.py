"""The generated sample: whole, plausible, the same for the same seed, and only into an empty ads DB."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest

from batch_workflows import _sample_words as words
from batch_workflows import announce_left_over
from batch_workflows.sample import generate_sample
from catalog import ValueType, load_catalog
from gateway import Materializer
from gateway._rows import SqliteRowSource
from gateway.feed import SqliteChangeFeed
from tests.batch_workflows.import_support import Importer

DAY = datetime(2026, 3, 1)


def generate(importer: Importer, ads: int, seed: int) -> int:
    """Generate and return the number of rows."""
    report = generate_sample(importer.db, importer.home.performance_db, importer.log, ads, seed, today=DAY)
    return sum(report.rows.values())


def tables(importer: Importer) -> dict[str, list[tuple[object, ...]]]:
    """Return all rows of the ads DB."""
    names = ["advertisers", "campaigns", "budgets", "ad_groups", "targeting_specs", "ads", "pins", "images"]
    return {name: importer.rows(f"SELECT * FROM {name} ORDER BY 1") for name in names}


def test_same_seed_same_rows(tmp_path: Path) -> None:
    """The seed decides every row, and another seed gives others."""
    made = []
    for i, seed in enumerate((1, 1, 2)):
        importer = Importer(tmp_path / str(i))
        generate(importer, 300, seed)
        made.append(tables(importer))
        importer.close()
    assert made[0] == made[1]
    assert made[0] != made[2]


def test_sample_is_whole_and_valid(tmp_path: Path) -> None:
    """There are exactly as many ads as asked for, nothing is an orphan, every value is what the catalogue allows."""
    importer = Importer(tmp_path)
    rows = generate(importer, 3_000, 5)
    assert importer.one("SELECT count(*) FROM ads") == 3_000
    assert importer.db.last_change() == rows
    orphans = (
        "SELECT count(*) FROM ads a LEFT JOIN ad_groups g ON g.id = a.ad_group_id LEFT JOIN campaigns c "
        "ON c.id = g.campaign_id LEFT JOIN budgets b ON b.campaign_id = c.id LEFT JOIN advertisers v "
        "ON v.id = c.advertiser_id LEFT JOIN pins p ON p.id = a.pin_id LEFT JOIN images i ON i.id = p.image_id "
        "WHERE v.id IS NULL OR b.campaign_id IS NULL OR i.id IS NULL"
    )
    assert importer.one(orphans) == 0
    running = (
        "SELECT count(*) FROM campaigns WHERE status = 'ACTIVE' AND coalesce(starts_at, '0') <= '2026-03-01' "
        "AND coalesce(ends_at, '9') > '2026-03-01'"
    )
    assert 0.7 < importer.one(running) / importer.one("SELECT count(*) FROM campaigns") < 0.98
    catalog = load_catalog()
    feed, source = SqliteChangeFeed(importer.db, catalog), SqliteRowSource(importer.db, catalog)
    result = Materializer(catalog).materialize(feed.read(0, rows), source)
    assert not result.dead_letters
    assert not any(update.deleted for update in result.updates)
    assert len(importer.signals()) > 2_500
    feed.close()
    source.close()
    importer.close()


def test_targeting_in_all_dimensions(tmp_path: Path) -> None:
    """Specs use every dimension, with exclusions, and never accept what they exclude."""
    importer = Importer(tmp_path)
    generate(importer, 3_000, 5)
    dimensions = load_catalog().dimensions
    used: set[str] = set()
    excluded: set[str] = set()
    for (text,) in importer.rows("SELECT spec FROM targeting_specs"):
        spec = json.loads(text)
        exclude = spec.pop("exclude", {})
        for name, values in (*spec.items(), *exclude.items()):
            kind = int if dimensions[name].type is ValueType.INT else str
            assert values
            assert all(isinstance(value, kind) for value in values)
        assert not any(set(spec.get(name, ())) & set(values) for name, values in exclude.items())
        used |= set(spec)
        excluded |= set(exclude)
    assert used == set(dimensions)
    assert excluded == {"country", "device", "interests"}
    importer.close()


def test_every_currency_of_the_sample_has_an_exchange_rate() -> None:
    """No advertiser of the sample is refused for a currency that the catalogue does not declare."""
    rates = load_catalog().exchange_rates
    assert rates is not None
    assert {market[1] for market in words.MARKETS} <= rates.rates.keys()


def test_signals_lost_by_a_kill_are_made_up_at_the_next_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows are in, and the process dies before it signals their performance; `up` announces it at its start, and
    again costs nothing."""
    importer = Importer(tmp_path)

    def die(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("batch_workflows.sample.announce_performance", die)
    with pytest.raises(KeyboardInterrupt):
        generate(importer, 50, 1)
    assert importer.one("SELECT count(*) FROM ads") == 50
    assert generate(importer, 50, 1) == 0
    assert importer.signals() == []
    missing = announce_left_over(importer.home.performance_db, importer.log)
    assert missing == len(importer.signals()) > 30
    assert announce_left_over(importer.home.performance_db, importer.log) == 0
    importer.close()


def test_a_broken_or_missing_performance_database_keeps_nobody_from_starting(tmp_path: Path) -> None:
    """There is nothing to announce then; the handlers tell of the source."""
    importer = Importer(tmp_path)
    assert announce_left_over(importer.home.performance_db, importer.log) == 0
    assert not importer.home.performance_db.exists()
    importer.home.performance_db.write_bytes(b"no database" * 100)
    assert announce_left_over(importer.home.performance_db, importer.log) == 0
    importer.close()


def test_only_into_an_empty_database(tmp_path: Path) -> None:
    """A database with a single row of its own gets nothing."""
    importer = Importer(tmp_path)
    importer.db.execute("INSERT INTO images (id, url) VALUES ('i', 'u')")
    assert generate(importer, 10, 1) == 0
    assert importer.one("SELECT count(*) FROM ads") == 0
    importer.close()
