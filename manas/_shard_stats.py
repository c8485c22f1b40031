"""The stats of shards as those of one index: what people and the supervisor ask of a server, asked of a broker."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

Stats = Mapping[str, Any]
_WORST_FIRST = ("corrupt", "verifying", "verified")


def merged_stats(shards: Mapping[str, Stats], missing: Mapping[str, str]) -> dict[str, Any]:
    """Return the shards' stats in the form of one index's, with `shards` as they are and `missing_shards`.

    Positions are those that all shards have reached; there are none while a shard is missing, as nobody knows its own.
    """
    found = list(shards.values())
    merged: dict[str, Any] = {
        "documents": sum(stats["documents"] for stats in found),
        "positions": {} if missing else _reached([stats.get("positions", {}) for stats in found]),
        "shards": dict(shards),
        "missing_shards": dict(missing),
    }
    if not found:
        return merged
    first = found[0]
    problems = {f"shard {name}: {stats['problem']}": None for name, stats in shards.items() if stats.get("problem")}
    return merged | {
        "base": _base([stats["base"] for stats in found]),
        "delta": _sums([stats["delta"] for stats in found]),
        "budgets": first["budgets"],
        "outcomes": _sums([stats["outcomes"] for stats in found]),
        "last_applied_us": max(stats["last_applied_us"] for stats in found),
        "catalog": first["catalog"],
        "gaps": list(dict.fromkeys(gap for stats in found for gap in stats.get("gaps", []))),
        "problem": "; ".join(problems),
        "loading": any(stats.get("loading") for stats in found),
        "verification": _verification([stats["verification"] for stats in found if "verification" in stats]),
    }


def _reached(positions: Sequence[Mapping[str, Mapping[Any, int]]]) -> dict[str, dict[str, int]]:
    """Return topic -> partition -> the smallest offset; partitions are text, as JSON has made some of them.

    A partition that a shard has no position of, as one that is starting, has been reached by nobody.
    """
    texts = [{topic: {str(p): o for p, o in parts.items()} for topic, parts in shard.items()} for shard in positions]
    topics = set[str]().union(*texts)
    return {
        topic: {
            partition: min(shard.get(topic, {}).get(partition, 0) for shard in texts)
            for partition in sorted(set[str]().union(*(shard.get(topic, {}) for shard in texts)))
        }
        for topic in sorted(topics)
    }


def _base(bases: Sequence[Stats | None]) -> dict[str, Any] | None:
    """Return the oldest base that a shard answers from, with the documents of all."""
    there = [base for base in bases if base is not None]
    if len(there) < len(bases) or not there:
        return None
    oldest = min(there, key=lambda base: str(base["version"]))
    by_field = {
        field: _sums([base["postings_by_field"].get(field, {}) for base in there])
        for field in oldest["postings_by_field"]
    }
    return {
        **oldest,
        "documents": sum(base["documents"] for base in there),
        "postings": _sums([base["postings"] for base in there]),
        "postings_by_field": by_field,
    }


def _sums(parts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    total = Counter[str]()
    for part in parts:
        total.update(part)
    return dict(total)


def _verification(parts: Sequence[Stats]) -> dict[str, Any]:
    states = {part["state"] for part in parts}
    state = next((state for state in _WORST_FIRST if state in states), "")
    return {"state": state, "bytes": sum(p["bytes"] for p in parts), "pending": sum(p["pending"] for p in parts)}
