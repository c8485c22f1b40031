"""Telling the pipeline that historical performance changed: one content signal per ad, at least once."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import structlog

from argus import SourceUnavailable
from argus.sources.performance import PerformanceDb
from catalog import LaneName
from catalog.values import encode
from messaging import Log, OutRecord
from messaging.headers import new_header, now_us
from messaging.proto import adsindex_pb2 as pb
from messaging.topics import SIGNALS, ensure_topics

SIGNAL = "performance"
_BATCH = 5_000  # one durable step of about a megabyte
_log = structlog.get_logger()


def announce_performance(database: PerformanceDb, log: Log) -> int:
    """Publish a signal for every change that has none yet, and mark it; return how many.

    Killed in between, it signals again what it had not marked: that costs a run and changes nothing.
    """
    announced = 0
    while versions := database.unannounced(_BATCH):
        origin_us = now_us()
        log.publish([_record(ad_id, version, origin_us) for ad_id, version in versions.items()])
        database.announced(versions)
        announced += len(versions)
    return announced


def announce_left_over(file: Path, log: Log) -> int:
    """Signal what a killed import or sample stored without signalling it; return how many.

    Nothing to do without a database. One that cannot be read is logged, and left to the handlers to complain of:
    whoever starts the service by this starts it all the same.
    """
    if not file.exists():
        return 0
    ensure_topics(log)
    with closing(PerformanceDb(file)) as database:
        try:
            announced = announce_performance(database, log)
        except SourceUnavailable as error:
            _log.warning("performance_not_announced", error=str(error))
            return 0
    if announced:
        _log.info("performance_announced", signals=announced)
    return announced


def _record(ad_id: int, version: int, origin_us: int) -> OutRecord:
    update = pb.EntityUpdate(
        header=new_header(LaneName.MEDIUM, origin_us),
        table="ad",
        row=str(ad_id),
        source=SIGNAL,
        source_version=version,
        columns=[pb.Column(name="performance_version", value=encode(version))],
    )
    return OutRecord(SIGNALS, f"ad/{ad_id}", update.SerializeToString())
