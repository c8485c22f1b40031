"""When did this transaction happen, and has anybody been quicker? Apache Omid's protocol, ids and layout in HBase."""

from __future__ import annotations

from storage_repo.omid._errors import CommitUnknown, TsoClosed, TsoError, TsoIncompatible, TsoUnavailable
from storage_repo.omid.outcomes import Aborted, CommitRequest, Committed, Outcome
from storage_repo.omid.tso_client import TsoClient, TsoSettings

__all__ = [
    "Aborted",
    "CommitRequest",
    "CommitUnknown",
    "Committed",
    "Outcome",
    "TsoClient",
    "TsoClosed",
    "TsoError",
    "TsoIncompatible",
    "TsoSettings",
    "TsoUnavailable",
]
