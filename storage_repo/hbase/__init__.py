"""The Storage Repo on HBase, with transactions by Apache Omid that Java clients take part in."""

from __future__ import annotations

from storage_repo.hbase._schema import Difference
from storage_repo.hbase._time import Timeline, WorldTime
from storage_repo.hbase.address import HbaseAddress
from storage_repo.hbase.repo import HbaseRepo, apply_schema, check_schema

__all__ = ["Difference", "HbaseAddress", "HbaseRepo", "Timeline", "WorldTime", "apply_schema", "check_schema"]
