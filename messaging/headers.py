"""Message headers: trace ids, lanes and the time at which each stage took a message and left it."""

from __future__ import annotations

import os
import time

from catalog import LaneName
from messaging.proto import adsindex_pb2 as pb
from messaging.topics import LANE_NUMBER, LANE_OF


def now_us() -> int:
    """Return microseconds since the epoch."""
    return time.time_ns() // 1000


def new_trace_id() -> str:
    """Return 16 random hex digits."""
    return os.urandom(8).hex()


def new_header(lane: LaneName, origin_us: int, trace_id: str | None = None) -> pb.Header:
    """Start the header of a message whose cause happened at `origin_us`."""
    header = pb.Header()  # field by field: protobuf takes more than twice as long for keyword arguments
    header.trace_id = trace_id or new_trace_id()
    header.lane = LANE_NUMBER[lane]
    header.origin_us = origin_us
    return header


def lane_of(header: pb.Header) -> LaneName:
    """Return the lane; a header without one counts as low, so that it can delay nobody."""
    return LANE_OF.get(header.lane, LaneName.LOW)


def leave(cause: pb.Header, stage: str, entered_us: int, left_us: int | None = None) -> pb.Header:
    """Return the header for a message that `stage` sends on because of `cause`: the same, with one hop more."""
    header = pb.Header()
    header.CopyFrom(cause)
    header.hops.add(stage=stage, entered_us=entered_us, left_us=left_us if left_us is not None else now_us())
    return header


def stage_latencies_us(header: pb.Header, arrived_us: int) -> dict[str, int]:
    """Return microseconds by stage (time inside it) and "queue:STAGE" (time waited before it), plus "total".

    `arrived_us` is when the last stage made the message effective. What a clock step makes negative counts as 0.
    """
    parts: dict[str, int] = {}
    previous = header.origin_us
    for hop in header.hops:
        for name, spent in (
            (f"queue:{hop.stage}", hop.entered_us - previous),
            (hop.stage, hop.left_us - hop.entered_us),
        ):
            parts[name] = parts.get(name, 0) + max(0, spent)  # derived columns pass a stage twice
        previous = hop.left_us
    parts["queue:serving"] = max(0, arrived_us - previous)
    parts["total"] = max(0, arrived_us - header.origin_us)
    return parts
