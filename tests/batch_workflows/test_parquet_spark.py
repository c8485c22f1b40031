"""Spark reads what a snapshot writes: all days together, with columns that came and went."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.batch_workflows.parquet_support import catalogue, fill, open_with
from tests.batch_workflows.run_support import run
from tests.batch_workflows.spark_support import require_spark


@pytest.mark.spark
def test_spark_reads_all_days_by_name(tmp_path: Path) -> None:
    """With mergeSchema every day has its rows, a column is null on the days that lack it, and times are times."""
    require_spark()
    from pyspark.sql import SparkSession

    for number, types in enumerate(({"quality": "float", "seen_at": "time"}, {"labels": "list<string>"}), 1):
        home = open_with(tmp_path / f"home{number}", catalogue(tmp_path, **types))
        fill(home, 40, number)
        run(home, "snapshot", to=str(tmp_path / "snapshots"), day=f"2026-03-0{number}")
        home.repo.close()
    spark = (
        SparkSession.builder.master("local[1]").appName("adsindex-test").config("spark.ui.enabled", "false")
        .config("spark.driver.bindAddress", "127.0.0.1").config("spark.driver.host", "127.0.0.1")
        .config("spark.sql.session.timeZone", "UTC").getOrCreate()
    )  # fmt: skip
    try:
        frame = spark.read.option("mergeSchema", "true").parquet(str(tmp_path / "snapshots" / "ad"))
        frame.createOrReplaceTempView("ad")
        rows = spark.sql(
            "SELECT CAST(day AS STRING), count(*), count(quality) > 0, count(seen_at) > 0, count(labels) > 0, "
            "count(_cells) FROM ad GROUP BY day ORDER BY day"
        ).collect()
        assert [tuple(row) for row in rows] == [
            ("2026-03-01", 40, True, True, False, 40), ("2026-03-02", 40, False, False, True, 40),
        ]  # fmt: skip
        assert dict(frame.dtypes)["seen_at"] == "timestamp" and dict(frame.dtypes)["labels"] == "array<string>"
    finally:
        spark.stop()
