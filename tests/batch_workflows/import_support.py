"""What the import's tests share: a home with a captured ads DB, and CSV files made of rows."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from batch_workflows.ads_import import ImportReport, load_csv
from catalog import load_catalog
from gateway import AdsDb
from messaging import open_embedded_log
from messaging.home import Home
from messaging.proto import adsindex_pb2 as pb
from messaging.topics import SIGNALS

KAG_HEADER = [
    "ad_id", "xyz_campaign_id", "fb_campaign_id", "age", "gender", "interest", "Impressions", "Clicks", "Spent",
    "Total_Conversion", "Approved_Conversion",
]  # fmt: skip
DATA_TABLES = (
    "advertisers", "campaigns", "budgets", "ad_groups", "targeting_specs", "ads", "pins", "images", "_import_rows",
)  # fmt: skip


def kag_row(ad: int, group: int = 20, campaign: int = 900, **changes: str) -> list[str]:
    """Return a good row of the ads export with some cells changed."""
    row = dict(
        zip(
            KAG_HEADER,
            (str(ad), str(campaign), str(group), *["30-34", "M", "16", "100", "2", "1.5", "1", "0"]),
            strict=True,
        )
    )
    return list({**row, **changes}.values())


def csv_text(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return CSV text with a header."""
    stream = io.StringIO()
    csv.writer(stream).writerows([header, *rows])
    return stream.getvalue()


class Importer:
    """A home to load into, on which change capture is installed."""

    def __init__(self, root: Path) -> None:
        self.home = Home.open(root / "home")
        self.root = root
        self.db = AdsDb.open(self.home.ads_db)
        self.db.ensure_capture(load_catalog())
        self.log = open_embedded_log(self.home.log, self.home.wake)

    def load(self, file: Path | str | bytes, mapping: Path | str = "kag_facebook_ads") -> ImportReport:
        """Load a file, or text or bytes as a file."""
        if not isinstance(file, Path):
            path = self.root / "export.csv"
            path.write_bytes(file if isinstance(file, bytes) else file.encode())
            file = path
        return load_csv(file, mapping, self.db, self.home.performance_db, self.log)

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """Return the rows of a query."""
        return self.db.execute(sql)[0].rows

    def one(self, sql: str) -> Any:
        """Return the first value of a query."""
        return self.rows(sql)[0][0]

    def everything(self) -> dict[str, list[tuple[Any, ...]]]:
        """Return all rows of all tables, sorted."""
        return {table: sorted(self.rows(f"SELECT * FROM {table}"), key=repr) for table in DATA_TABLES}

    def signals(self) -> list[pb.EntityUpdate]:
        """Return all content signals published."""
        return [
            pb.EntityUpdate.FromString(record.value)
            for partition in self.log.end_offsets(SIGNALS)
            for record in self.log.read(SIGNALS, partition, 0, 1_000_000)
        ]

    def close(self) -> None:
        """Close database and log."""
        self.db.close()
        self.log.close()


def signal_version(update: pb.EntityUpdate) -> int:
    """Return the version that a performance signal carries."""
    (column,) = update.columns
    assert column.name == "performance_version"
    return int(msgspec.msgpack.decode(column.value))
