"""What an operator may set of a server: `key=value` pairs of the stage."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from manas._exceptions import ManasError
from manas._folder import FoldLimits
from manas.shards import WHOLE, Shard

_MOST_DOCUMENTS = 10_000_000
MAX_SHARDS = 64
"""On one machine; each of them is a process with a server of its own."""
_DEADLINE_SECONDS, _LONGEST_SECONDS = 5.0, 600.0
_FILL = 4
"""Deltas that may be in memory, in multiples of what starts a folding."""


class InvalidSetting(ManasError):
    """Raised at start for a setting that cannot be used; names it and what would be valid."""


@dataclass(frozen=True, slots=True)
class ServingSettings:
    """How one server process serves."""

    fold: FoldLimits | None = field(default_factory=FoldLimits)
    """None: nothing is folded, and the delta grows."""
    base_fallback: bool = False
    """With a damaged base: serve from the newest whole one before it, and say so, instead of refusing to answer."""
    shard: Shard = WHOLE
    port: int = 0
    """0: a free one."""
    shared_port: bool = False
    """Other processes of this machine listen on `port` as well; the kernel shares connections out (SO_REUSEPORT)."""

    @classmethod
    def parse(cls, settings: Mapping[str, str]) -> ServingSettings:
        """Read `fold_documents`, `base_fallback`, `shard`, `port`, `shared_port`; others are not looked at.

        Raises InvalidSetting.
        """
        fold = FoldLimits()
        if "fold_documents" in settings:
            count = _whole("fold_documents", settings["fold_documents"], 1, _MOST_DOCUMENTS)
            fold = FoldLimits(documents=count, most_documents=_FILL * count)
        port = _whole("port", settings.get("port", "0"), 0, 65_535)
        shared = _flag("shared_port", settings.get("shared_port", "false"))
        if shared and not port:
            raise InvalidSetting("shared_port: processes can only share a port that is named; set port as well")
        fallback = _flag("base_fallback", settings.get("base_fallback", "false"))
        try:
            shard = Shard.parse(settings["shard"]) if "shard" in settings else WHOLE
        except ValueError as error:
            raise InvalidSetting(f"shard: {error}") from None
        return cls(fold, fallback, shard, port, shared)


@dataclass(frozen=True, slots=True)
class BrokerSettings:
    """How a broker asks its shards."""

    shards: int
    deadline_s: float = _DEADLINE_SECONDS
    """For a shard's answer where the caller does not say: far beyond what one takes, so that only one that hangs is
    given up. Serving teams say 50 ms or so with each request."""
    port: int = 0
    """0: a free one."""

    @classmethod
    def parse(cls, settings: Mapping[str, str]) -> BrokerSettings:
        """Read `shards`, `shard_deadline_s`, `port`; others are not looked at. Raises InvalidSetting."""
        count = _whole("shards", settings.get("shards", ""), 1, MAX_SHARDS)
        text = settings.get("shard_deadline_s", str(_DEADLINE_SECONDS))
        if not re.fullmatch(r"\d+(\.\d+)?", text) or not 0 < float(text) <= _LONGEST_SECONDS:
            raise InvalidSetting(f"shard_deadline_s: seconds above 0, at most {_LONGEST_SECONDS:g}, got {text!r}")
        return cls(count, float(text), _whole("port", settings.get("port", "0"), 0, 65_535))


def _whole(name: str, text: str, low: int, high: int) -> int:
    if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
        raise InvalidSetting(f"{name}: a whole number from {low} to {high}, got {text!r}")
    return int(text)


def _flag(name: str, text: str) -> bool:
    if text not in ("true", "false"):
        raise InvalidSetting(f"{name}: true or false, got {text!r}")
    return text == "true"
