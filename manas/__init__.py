"""Which ads fit this request?"""

from manas._base import Base, base_manifest, shard_of
from manas._exceptions import (
    CatalogMismatch,
    FoldFailed,
    IndexIncomplete,
    InvalidDocument,
    InvalidRequest,
    ManasError,
    ManasUnavailable,
    NotServing,
    SegmentCorrupt,
    SegmentError,
    SegmentFormat,
    SegmentMissing,
    UnusableCatalog,
)
from manas._leftovers import sweep_bases
from manas._manifest import MANIFEST, FileEntry, Manifest, file_entry, parse_manifest, seal_manifest
from manas._vector_files import VectorBuild
from manas._vector_plan import Way
from manas._vector_ranking import PlannerLimits
from manas._view import Outcome
from manas._writer import SegmentWriter
from manas.api import Answer, Hit, SearchBackend
from manas.bases import BaseInfo, current_base, is_version, list_bases, new_version, prune_bases, publish, rollback
from manas.broker import Broker
from manas.budgets import is_funded
from manas.client import ManasClient
from manas.index import Index
from manas.local import open_local_index
from manas.segment import Segment

__all__ = [
    "MANIFEST",
    "Answer",
    "Base",
    "BaseInfo",
    "Broker",
    "CatalogMismatch",
    "FileEntry",
    "FoldFailed",
    "Hit",
    "Index",
    "IndexIncomplete",
    "InvalidDocument",
    "InvalidRequest",
    "ManasClient",
    "ManasError",
    "ManasUnavailable",
    "Manifest",
    "NotServing",
    "Outcome",
    "PlannerLimits",
    "SearchBackend",
    "Segment",
    "SegmentCorrupt",
    "SegmentError",
    "SegmentFormat",
    "SegmentMissing",
    "SegmentWriter",
    "UnusableCatalog",
    "VectorBuild",
    "Way",
    "base_manifest",
    "current_base",
    "file_entry",
    "is_funded",
    "is_version",
    "list_bases",
    "new_version",
    "open_local_index",
    "parse_manifest",
    "prune_bases",
    "publish",
    "rollback",
    "seal_manifest",
    "shard_of",
    "sweep_bases",
]
