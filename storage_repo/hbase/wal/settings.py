"""Settings of the WAL proxy."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field

PEER_ID = "adsindex"


class WalProxySettings(BaseModel):
    """How a WAL proxy appears to HBase, and how patient it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    peer_id: str = Field(default=PEER_ID, pattern=r"^[A-Za-z0-9_]{1,60}$")
    """Of the replication peer. Proxies with one id share the load; two installations on one HBase need two ids."""
    host: str = "127.0.0.1"
    """Under which the region servers reach this process."""
    bind: str = "127.0.0.1"
    """Where it listens; HBase's RPC has no authentication here, so never on an open network."""
    port: int = Field(default=0, ge=0, le=65535)
    """0 takes a free one."""
    grace_s: float = Field(default=5.0, gt=0)
    """How long a transaction's shadow cells may be late before its outcome is looked up. Ours take some ms."""
    max_age_s: float = Field(default=3600.0, gt=0)
    """From which age on a transaction that is neither committed nor invalidated counts as aborted, provided that the
    TSO lets it commit no more (it is below Omid's low watermark): twelve times the age at which our own are refused.
    A Java client may commit for as long as the TSO lets it, so it is looked up for as long."""
    collected_rows_per_s: float = Field(default=500.0, ge=0)
    """How many rows one proxy of all reads to drop old versions; 0: none does. At 500 a million rows take half an hour,
    and one connection of the Thrift server a tenth of its time."""

    @classmethod
    def of(cls, options: Mapping[str, str]) -> WalProxySettings:
        """Read a stage's settings: those named walproxy_NAME. Raises pydantic.ValidationError."""
        prefix = "walproxy_"
        found = {name.removeprefix(prefix): value for name, value in options.items() if name.startswith(prefix)}
        return cls.model_validate(found)
