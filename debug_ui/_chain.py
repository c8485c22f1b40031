"""What the steps of the diagnosis share: the search for the cause, its facts so far, and how a step answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from catalog import Table
from catalog.portable import Portable
from catalog.values import datetime_of, micros_of
from debug_ui._source import raw_rows, select_rows
from debug_ui.backends import Backends
from messaging.headers import now_us
from storage_repo import CellVersion

ADS_JUDGED = 200
"""Ads followed through Repo and serving: a campaign of 100,000 ads is judged by its first ones, and a note says so."""
NOTES_PER_KIND = 10


@dataclass(frozen=True, slots=True)
class Fact:
    """One value read."""

    what: str
    value: Any
    where: str
    at_us: int = field(default_factory=now_us)


@dataclass(frozen=True, slots=True)
class Finding:
    """A step's answer."""

    ok: bool | None
    summary: str
    evidence: Sequence[Fact] = ()
    meaning: str = ""
    fix: Sequence[str] = ()


class Stop(Portable):
    """Ends a step early with its finding; never leaves the diagnosis."""

    def __init__(
        self, summary: str, evidence: Iterable[Fact], meaning: str, fix: Iterable[str], ok: bool | None = False
    ) -> None:
        self.finding = Finding(ok, summary, tuple(evidence), meaning, tuple(fix))
        super().__init__(summary)


def sql(statement: str) -> str:
    """Return the command that runs a statement on the ads DB."""
    return f'./adsindex sql "{statement}"'


def refresh_command(ad_id: str) -> str:
    """Return the command that runs an ad's handlers again."""
    return f"./adsindex workflow run refresh --table ad --ids {ad_id}"


def counted(number: int, noun: str) -> str:
    """Return "1 ad", "2 ads"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def literal(value: Any) -> str:
    """Return a value as an SQL literal."""
    if isinstance(value, int):
        return str(value)
    return "'" + str(value).replace("'", "''") + "'"


def time_us(value: Any) -> int | None:
    """Return a time of the ads DB as microseconds; None for null, and for what is no time.

    The pipeline stores such a value as null too; the step about the Repo names it with its dead letter.
    """
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, datetime):
        return micros_of(value)
    try:
        return micros_of(datetime.fromisoformat(str(value)))
    except ValueError:
        return None


def whole(value: Any) -> int:
    """Return a number of the ads DB; 0 for null, and for what is no whole number (see `time_us`)."""
    return value if isinstance(value, int) else 0


def when(us: int | None) -> str:
    """Return a time to the second for a sentence."""
    return datetime_of(us).strftime("%Y-%m-%d %H:%M:%S UTC") if us is not None else "never"


def schedule_fault(row: dict[str, Any], at_us: int) -> str:
    """Return why a row with starts_at and ends_at is not in schedule at a moment, "" if it is."""
    starts, ends = time_us(row.get("starts_at")), time_us(row.get("ends_at"))
    if starts is not None and at_us < starts:
        return f"starts only at {when(starts)}"
    if ends is not None and at_us >= ends:
        return f"ended at {when(ends)}"
    return ""


@dataclass(slots=True)
class Candidate:
    """An ad that may spend, as the ads DB has it."""

    ad: dict[str, Any]
    group: dict[str, Any]

    @property
    def ad_id(self) -> str:
        """The ad's id, which is its document's too."""
        return str(self.ad["id"])


@dataclass(slots=True)
class Search:
    """The search for the cause: what has been asked about, and the facts that steps leave for later ones."""

    backends: Backends
    kind: str
    entity_id: str
    at_us: int
    campaign_id: str
    notes: list[str] = field(default_factory=list)
    campaign: dict[str, Any] = field(default_factory=dict)
    advertiser: dict[str, Any] = field(default_factory=dict)
    groups: list[dict[str, Any]] = field(default_factory=list)
    candidates: list[Candidate] = field(default_factory=list)
    images: dict[str, str] = field(default_factory=dict)
    """Pin -> its image, of the candidates' pins that have one."""
    bodies: dict[str, CellVersion] = field(default_factory=dict)
    """Ad -> newest version of its document's body in the Repo."""
    requests: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Ad -> a request that its targeting accepts."""

    @classmethod
    def begin(cls, backends: Backends, kind: str, entity_id: str, at_us: int) -> Search:
        """Start with the campaign that the entity belongs to, as far as the ads DB knows."""
        search = cls(backends, kind, entity_id, at_us, entity_id)
        if kind == "ad":
            ad = search.row("ads", "id", entity_id)
            group = search.row("ad_groups", "id", ad["ad_group_id"]) if ad else {}
            search.campaign_id = str(group["campaign_id"]) if group else ""
        if search.campaign_id:
            search.campaign = search.row("campaigns", "id", search.campaign_id)
        if search.campaign:
            search.advertiser = search.row("advertisers", "id", search.campaign["advertiser_id"])
        return search

    def known(self) -> bool:
        """Return whether the ads DB or the Repo has ever heard of the entity."""
        table = self.backends.catalog.tables[self.kind]
        source = raw_rows(self.backends.ads_db, table, self.entity_id)
        return any(source.values()) or bool(self.backends.repo.history(self.kind, self.entity_id))

    def table(self, name: str) -> Table:
        """Return a table of the catalogue."""
        return self.backends.catalog.tables[name]

    def row(self, table: str, key_column: str, key: Any) -> dict[str, Any]:
        """Return one row of the ads DB, {} if there is none."""
        found = self.rows(table, key_column, [int(key) if str(key).isdigit() and table != "pins" else key])
        return found[0] if found else {}

    def rows(self, table: str, key_column: str, keys: Sequence[Any], limit: int | None = None) -> list[dict[str, Any]]:
        """Return rows of the ads DB by one column."""
        return select_rows(self.backends.ads_db, table, key_column, keys, limit=limit)

    def source(self, what: str, value: Any, table: str, key: Any) -> Fact:
        """Return a fact read from the ads DB just now."""
        return Fact(what, value, f"ads DB, {table} {key}")

    def note(self, affected: Sequence[str]) -> None:
        """Keep a few of many alike notes and count the others."""
        self.notes += affected[:NOTES_PER_KIND]
        if len(affected) > NOTES_PER_KIND:
            self.notes.append(f"… and {len(affected) - NOTES_PER_KIND} more of this kind")
