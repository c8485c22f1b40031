"""What a user could pick instead, each run as a process of its own on the same ads DB and the same updates."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks._exceptions import BenchmarkFailed
from cli.runtime import ROOT

PATHWAY, DUCKDB = "pathway", "duckdb"
_TIMEOUT_S = 300.0

# ads DB table -> (prefix of its columns in the joined row, columns); the five tables of the join.
TABLES: dict[str, tuple[str, dict[str, type]]] = {
    "advertisers": ("advertiser", {"id": int, "name": str, "status": str, "billing_status": str, "country": str}),
    "campaigns": ("campaign", {"id": int, "advertiser_id": int, "name": str, "objective": str, "status": str}),
    "ad_groups": ("ad_group", {"id": int, "campaign_id": int, "name": str, "status": str, "bid_micros": int}),
    "ads": ("ad", {"id": int, "ad_group_id": int, "pin_id": str, "name": str, "status": str, "review_status": str}),
    "pins": (
        "pin",
        {
            "id": str, "title": str, "description": str, "link": str, "brand": str, "category_path": str,
            "status": str, "price_micros": int, "currency": str,
        },
    ),
}  # fmt: skip


def missing(peer: str) -> bool:
    """Return whether a peer cannot be imported here."""
    return importlib.util.find_spec(peer) is None


def run_peer(peer: str, ads_db: Path, *arguments: str) -> dict[str, Any]:
    """Run a peer's process and return its figures. Raises BenchmarkFailed with the end of its error output."""
    command = [sys.executable, "-m", f"benchmarks._peer_{peer}", str(ads_db), *arguments]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise BenchmarkFailed(f"{peer} did not end within {_TIMEOUT_S:.0f} s") from error
    if done.returncode:
        raise BenchmarkFailed(f"{peer} ended with {done.returncode}: {done.stderr[-800:]}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures
