"""Why isn't this campaign spending? An ordered chain of questions that stops at the first cause.

Facts 1-5 come from the ads DB (the truth), 6-7 from the Repo, 8-11 from serving. Where only some ads are affected,
the chain goes on with the healthy ones, and the others become notes.
"""

from __future__ import annotations

from collections.abc import Callable

from debug_ui._chain import Finding, Search, Stop
from debug_ui._chain_auction import able_to_win
from debug_ui._chain_repo import documents_built, repo_is_current
from debug_ui._chain_serving import eligible, published, served
from debug_ui._chain_source import ad_groups_run, ads_run, advertiser_runs, budget_left, campaign_runs
from debug_ui._exceptions import BadInput, UnknownEntity
from debug_ui._source import key_value, raw_rows
from debug_ui._values import jsonable
from debug_ui.backends import Backends
from debug_ui.views import View
from messaging.headers import now_us


class Evidence(View):
    """One value that was read, where, and when."""

    what: str
    value: object
    where: str
    at_us: int


class Step(View):
    """One question of the chain. `ok` is None where an earlier fault left nothing to judge."""

    name: str
    question: str
    ok: bool | None
    summary: str
    evidence: tuple[Evidence, ...] = ()
    meaning: str = ""
    """What a fault means for the advertiser; empty when ok."""
    fix: tuple[str, ...] = ()
    """Commands and statements that remove the cause, to be run in order."""


class Diagnosis(View):
    """The chain up to the first cause."""

    kind: str
    id: str
    name: str
    at_us: int
    """The moment that schedules are judged by."""
    healthy: bool
    cause: str | None
    """Name of the step that failed."""
    summary: str
    steps: tuple[Step, ...]
    not_reached: tuple[str, ...]
    notes: tuple[str, ...]
    """Ads, ad groups and facts beside the cause that somebody should know of."""


CHAIN: tuple[tuple[str, str, Callable[[Search], Finding]], ...] = (
    ("advertiser", "Does the advertiser exist, active and billable?", advertiser_runs),
    ("campaign", "Is the campaign active and in schedule?", campaign_runs),
    ("budget", "Is there budget left?", budget_left),
    ("ad_groups", "Is an ad group active, in date and with a bid?", ad_groups_run),
    ("ads", "Is an ad active and approved, with a valid creative?", ads_run),
    ("repo", "Does the Storage Repo have what the ads DB says?", repo_is_current),
    ("document", "Was a document built without error?", documents_built),
    ("published", "Was the Repo's version published?", published),
    ("serving", "Is it in the base index or a delta of Manas?", served),
    ("eligible", "Does at least some request fit its targeting?", eligible),
    ("auction", "Can it win against the bids around it?", able_to_win),
)
"""(name, question, judge) in order of the life of an update: what is upstream explains what is downstream."""

_ADS_TABLES = ("advertiser", "campaign", "ad_group", "ad")
"""Without them there is no such chain."""

STEPS = tuple(name for name, _, _ in CHAIN)


def diagnose_campaign(backends: Backends, campaign_id: str | int, at: int | None = None) -> Diagnosis:
    """Walk the chain for a campaign; `at` (microseconds since the epoch) is the moment to judge schedules by.

    Raises BadInput for an id that cannot be one, UnknownEntity if no part of the pipeline has heard of the campaign.
    """
    return _diagnose(backends, "campaign", str(campaign_id).strip(), at)


def diagnose_ad(backends: Backends, ad_id: str | int, at: int | None = None) -> Diagnosis:
    """Walk the same chain for one ad. Raises BadInput, UnknownEntity."""
    return _diagnose(backends, "ad", str(ad_id).strip(), at)


def _diagnose(backends: Backends, kind: str, entity_id: str, at: int | None) -> Diagnosis:
    if missing := [name for name in _ADS_TABLES if name not in backends.catalog.tables]:
        raise BadInput(
            f"why walks from advertiser to auction, and {backends.catalog.file} has no table {', '.join(missing)}; "
            f"see a document's life by `show {backends.catalog.root} ID --history`, and what keeps it out of an "
            "answer by `search --request … --explain --ad ID`"
        )
    table = backends.catalog.tables[kind]
    key_value(table, entity_id)
    search = Search.begin(backends, kind, entity_id, at if at is not None else now_us())
    if not search.known():
        raise UnknownEntity(kind, entity_id)
    steps: list[Step] = []
    cause: Step | None = None
    for name, question, judge in CHAIN:
        try:
            finding = judge(search)
        except Stop as stop:
            finding = stop.finding
        steps.append(
            Step(
                name=name,
                question=question,
                ok=finding.ok,
                summary=finding.summary,
                evidence=tuple(
                    Evidence(what=e.what, value=jsonable(e.value), where=e.where, at_us=e.at_us)
                    for e in finding.evidence
                ),
                meaning=finding.meaning,
                fix=tuple(finding.fix),
            )
        )
        if finding.ok is False:
            cause = steps[-1]
            break
    main = raw_rows(backends.ads_db, table, entity_id).get(table.source.table if table.source else "", {})
    return Diagnosis(
        kind=kind,
        id=entity_id,
        name=str(main.get("name") or ""),
        at_us=search.at_us,
        healthy=cause is None,
        cause=cause.name if cause is not None else None,
        summary=cause.summary if cause is not None else steps[-1].summary,
        steps=tuple(steps),
        not_reached=STEPS[len(steps) :],
        notes=tuple(search.notes),
    )
