"""The form of a benchmark's result, the machine it ran on, and how a person sees it."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

_SYNCS = 50
"""Enough for a median; a slow disk needs half a second for them."""


@dataclass(slots=True)
class Report:
    """Results as they come, and what a reader must know to judge them."""

    results: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(
        self,
        case: str,
        metric: str,
        ours: float | None,
        peer_name: str | None = None,
        peer: float | None = None,
        *,
        more_is_better: bool = False,
    ) -> None:
        """Add one figure; the ratio says by how much ours is better than the peer's."""
        ratio = None
        if ours and peer:
            ratio = ours / peer if more_is_better else peer / ours
        self.results.append(
            {
                "case": case,
                "metric": metric,
                "ours": _rounded(ours),
                "peer_name": peer_name,
                "peer": _rounded(peer),
                "ratio": _rounded(ratio),
            }
        )

    def note(self, text: str) -> None:
        """Add a remark once."""
        if text not in self.notes:
            self.notes.append(text)

    def to_json(self, benchmark: str, machine: Mapping[str, Any]) -> dict[str, Any]:
        """Return the whole result."""
        return {"benchmark": benchmark, "machine": dict(machine), "results": self.results, "notes": self.notes}


def machine_of(directory: Path) -> dict[str, Any]:
    """Describe this machine, how long a durable write takes in `directory`, and how busy it is with other work."""
    return {
        "cpu": _cpu_model(),
        "cores": psutil.cpu_count() or 0,
        "memory_gib": round(psutil.virtual_memory().total / (1 << 30), 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "sync_4k_ms": round(_sync_ms(directory), 3),
        "load_before": round(psutil.getloadavg()[0], 2),
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _sync_ms(directory: Path) -> float:
    took = []
    path = directory / "sync-probe"
    with path.open("wb") as file:
        for _ in range(_SYNCS):
            file.write(b"\1" * 4096)
            file.flush()
            started = time.perf_counter()
            os.fsync(file.fileno())
            took.append((time.perf_counter() - started) * 1e3)
    path.unlink()
    return statistics.median(took)


def _rounded(value: float | None) -> float | None:
    """Four significant digits: more would pretend to be repeatable."""
    return None if value is None else float(f"{value:.4g}")


def markdown_benchmark(result: Mapping[str, Any]) -> str:
    """Return a result as a Markdown block, for a README."""
    machine = result["machine"]
    lines = [
        f"{machine['cores']} cores ({machine['cpu']}), {machine['memory_gib']} GiB, Python {machine['python']}, "
        f"a synced 4 KiB write {machine['sync_4k_ms']} ms, load average before the start {machine['load_before']}.",
        "",
        "| case | metric | ours | peer | peer's | ratio |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in result["results"]:
        ours, theirs, ratio = ("–" if row[key] is None else f"{row[key]:,g}" for key in ("ours", "peer", "ratio"))
        lines.append(f"| {row['case']} | {row['metric']} | {ours} | {row['peer_name'] or '–'} | {theirs} | {ratio} |")
    return "\n".join([*lines, "", *(f"* {note}" for note in result["notes"])])


def render_benchmark(result: Mapping[str, Any]) -> RenderableType:
    """Return a result as tables for a terminal."""
    machine = result["machine"]
    head = Text(
        f"{result['benchmark']} on {machine['cores']} x {machine['cpu']}, {machine['memory_gib']} GiB, "
        f"Python {machine['python']}, a synced 4 KiB write takes {machine['sync_4k_ms']} ms, "
        f"load before {machine['load_before']}"
    )
    table = Table("case", "metric", "peer", caption="ratio > 1: ours is better")
    for name in ("ours", "theirs", "ratio"):
        table.add_column(name, justify="right")
    last = None
    for row in result["results"]:
        if last not in (None, row["case"]):
            table.add_section()
        figures = ("" if row[key] is None else f"{row[key]:,g}" for key in ("ours", "peer", "ratio"))
        table.add_row("" if last == row["case"] else row["case"], row["metric"], row["peer_name"] or "", *figures)
        last = row["case"]
    return Group(head, table, *(Text(f"- {note}") for note in result["notes"]))
