"""Telling the pipeline that historical performance changed: one content signal per ad, at least once."""

from __future__ import annotations

from argus.sources.performance import PerformanceDb
from catalog import LaneName
from catalog.values import encode
from messaging import Log, OutRecord
from messaging.headers import new_header, now_us
from messaging.proto import adsindex_pb2 as pb
from messaging.topics import SIGNALS

SIGNAL = "performance"
_BATCH = 5_000  # one durable step of about a megabyte


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
