"""Steps 8-10 of the diagnosis: what serving was sent, what it has, and whom it would show it to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from catalog import Catalog, ValueType
from catalog.documents import decode_document
from catalog.targeting import ANY, EXCLUDE
from catalog.values import datetime_of
from debug_ui._chain import Candidate, Fact, Finding, Search, Stop, counted, refresh_command, sql
from debug_ui._serving import judge
from debug_ui.views import ServingView
from manas import ManasError, is_funded
from messaging.api import Log, Record
from messaging.proto import adsindex_pb2 as pb
from messaging.topics import BUDGETS, DELTAS

SLOTS = 10
"""Ads that one page of results has room for."""
REQUESTS_TRIED = 20
"""Different requests tried before a campaign counts as eligible for none, or as outbid."""
_CHUNK = 500
_CLOCK_SLACK_US = 5_000_000
"""A delta is published after its commit; the slack is for a clock that was set back in between."""


def published(search: Search) -> Finding:
    """Step 8: the version of the document that the Repo holds was published, as a delta or with the base."""
    served, unreachable = _served(search)
    log = search.backends.log
    missing: list[tuple[Candidate, Record | None, ServingView | None]] = []
    healthy: list[Candidate] = []
    facts: list[Fact] = []
    for candidate in search.candidates:
        ad_id, body = candidate.ad_id, search.bodies[candidate.ad_id]
        has = judge(search.backends.catalog, served[ad_id], body.commit_ts, body.value) if ad_id in served else None
        if has is not None and (has.same_bytes or (has.version or 0) >= body.commit_ts):
            where = f"serving, {has.layer}"
            facts.append(Fact(f"version of document {ad_id}", has.version, where))
            healthy.append(candidate)
            continue
        record = _newest_delta(log, ad_id, body.committed_at_us - _CLOCK_SLACK_US)
        if record is not None and _delta(record).version >= body.commit_ts:
            where = f"log, {DELTAS}[{record.partition}]@{record.offset}"
            facts.append(Fact(f"version of document {ad_id}", _delta(record).version, where, record.appended_us))
            healthy.append(candidate)
        else:
            missing.append((candidate, record, has))
    if not healthy:
        candidate, record, has = missing[0]
        body = search.bodies[candidate.ad_id]
        raise Stop(
            f"the document of ad {candidate.ad_id} was not published: the Repo has version {body.commit_ts}, "
            + (f"serving has {has.version}" if has is not None and has.version else "serving has none"),
            [
                Fact("document version", body.commit_ts, "Repo, servable:body", body.committed_at_us),
                Fact(
                    "newest delta since then",
                    _delta(record).version if record is not None else None,
                    f"log, {DELTAS}",
                ),
                Fact("serving", has.verdict if has is not None else unreachable, "Manas"),
            ],
            "The current document exists, but never left the Repo, so serving cannot know of it.",
            [
                "see that argus runs (it publishes what it has committed): ./adsindex status",
                f"publish it again: {refresh_command(candidate.ad_id)}",
            ],
        )
    search.note([f"document of ad {c.ad_id} was not published" for c, _, _ in missing])
    search.candidates = healthy
    return Finding(True, f"the Repo's version of {counted(len(healthy), 'document')} was published", facts[:5])


def served(search: Search) -> Finding:
    """Step 9: Manas has that very document, in its base or as a delta."""
    documents, unreachable = _served(search)
    if unreachable:
        raise Stop(
            "serving does not answer",
            [Fact("error", unreachable, "Manas")],
            "No ad can be shown while Manas is away.",
            ["start it with ./adsindex up, and look into logs/manas-0.log"],
        )
    healthy: list[Candidate] = []
    wrong: list[tuple[Candidate, ServingView]] = []
    layers: dict[str, int] = {}
    for candidate in search.candidates:
        body = search.bodies[candidate.ad_id]
        view = judge(search.backends.catalog, documents[candidate.ad_id], body.commit_ts, body.value)
        if view.same_bytes:
            healthy.append(candidate)
            layers[view.layer] = layers.get(view.layer, 0) + 1
        else:
            wrong.append((candidate, view))
    if not healthy:
        candidate, view = wrong[0]
        body = search.bodies[candidate.ad_id]
        record = _newest_delta(search.backends.log, candidate.ad_id, body.committed_at_us - _CLOCK_SLACK_US)
        facts = [
            Fact("document version", body.commit_ts, "Repo, servable:body", body.committed_at_us),
            Fact("serving has", view.verdict, f"Manas, {view.layer}"),
        ]
        if record is not None:
            delta = _delta(record)
            what = "withdrawal" if delta.deleted else "delta"
            facts.append(
                Fact(
                    f"newest {what}",
                    delta.version,
                    f"log, {DELTAS}[{record.partition}]@{record.offset}",
                    record.appended_us,
                )
            )
        raise Stop(
            f"Manas does not have the document of ad {candidate.ad_id}: {view.verdict}",
            facts,
            "The document was published, but serving has not taken it in, or has withdrawn it since.",
            [
                "see that manas runs and follows the deltas: ./adsindex status",
                f"publish it again: {refresh_command(candidate.ad_id)}",
            ],
        )
    search.note([f"ad {c.ad_id}: {v.verdict}" for c, v in wrong])
    search.candidates = healthy
    where = " and ".join(f"{count} in the {layer}" for layer, count in layers.items())
    facts = [
        Fact(f"document {c.ad_id}", documents[c.ad_id].version, f"Manas, {documents[c.ad_id].layer}")
        for c in healthy[:5]
    ]
    return Finding(True, f"Manas has the current version: {where}", facts)


def eligible(search: Search) -> Finding:
    """Step 10: a request made from the targeting of one of the ads finds it."""
    contradictions: list[tuple[Candidate, list[str]]] = []
    requests: dict[str, tuple[dict[str, Any], Candidate]] = {}
    for candidate in search.candidates:
        request, faults = request_of(search.backends.catalog, fields_of(search, candidate))
        if faults:
            contradictions.append((candidate, faults))
            continue
        search.requests[candidate.ad_id] = request
        requests.setdefault(str(request), (request, candidate))
    if not requests:
        candidate, faults = contradictions[0]
        raise Stop(
            f"the targeting of ad {candidate.ad_id} contradicts itself: {'; '.join(faults)}",
            [
                Fact("targeting terms", fields_of(search, candidate).get(_targeting_field(search)), "served document"),
                *_spec_facts(search, candidate),
            ],
            "Nobody can ever see the ad, because whoever is included is excluded as well.",
            [
                "leave out the exclusion, or widen what is included: "
                + sql(f"UPDATE targeting_specs SET spec = '<JSON>' WHERE ad_group_id = {candidate.group['id']}")
            ],
        )
    search.note([f"ad {c.ad_id} fits no request: {'; '.join(faults)}" for c, faults in contradictions])
    refused: list[tuple[Candidate, dict[str, Any], dict[str, Any]]] = []
    for request, candidate in list(requests.values())[:REQUESTS_TRIED]:
        explained = explain(search, request, candidate)
        if all(step["passes"] for step in explained["steps"] if step["clause"] != "rank"):
            facts = [
                Fact("request", request, f"made from the targeting of ad {candidate.ad_id}"),
                Fact(f"ad {candidate.ad_id}", explained["why"], "Manas, explain"),
            ]
            search.requests = {candidate.ad_id: request, **search.requests}
            return Finding(True, f"the request that ad {candidate.ad_id} targets finds it", facts)
        refused.append((candidate, request, explained))
    candidate, request, explained = refused[0]
    failed = next(s for s in explained["steps"] if not s["passes"])
    facts = [
        Fact("request", request, f"made from the targeting of ad {candidate.ad_id}"),
        Fact(failed["clause"], failed["evidence"], "Manas, explain"),
        *_spec_facts(search, candidate),
    ]
    meaning, fix = "Serving has the ad, but its own conditions keep it out of every answer.", ["see the evidence"]
    if failed["clause"] == "budget":
        state = search.backends.serving.budget(search.campaign_id)
        facts.append(Fact("budget state in serving", is_funded(state)[1], "Manas, budgets"))
        facts.append(Fact("newest budget state", _newest_budget(search), f"log, {BUDGETS}"))
        meaning = (
            "The ads DB says that there is budget left, but serving does not know it, and holds the campaign back."
        )
        statement = f"UPDATE budgets SET campaign_id = campaign_id WHERE campaign_id = {search.campaign_id}"
        fix = ["see that gateway and manas run: ./adsindex status", f"send the budget again: {sql(statement)}"]
    elif failed["clause"] == "schedule":
        meaning = "By its document the ad is not in schedule at this moment, though the ads DB says that it is."
        fix = [f"run the handlers again: {refresh_command(candidate.ad_id)}"]
    raise Stop(
        f"ad {candidate.ad_id} is not found by the request that it targets: {failed['clause']}: {failed['evidence']}",
        facts,
        meaning,
        fix,
    )


def request_of(catalog: Catalog, fields: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return a request that a document's targeting accepts, or the dimensions in which none can be."""
    terms = fields.get(catalog.serving.targeting or "") or []
    request: dict[str, Any] = {}
    faults = []
    for dimension in (d for d in catalog.dimensions.values() if d.flat):
        prefix, exclusion = f"{dimension.name}=", f"{EXCLUDE}{dimension.name}="
        accepts = [t.removeprefix(prefix) for t in terms if t.startswith(prefix)]
        excluded = [t.removeprefix(exclusion) for t in terms if t.startswith(exclusion)]
        if ANY in accepts:
            continue  # A request that says nothing about the dimension fits, whatever is excluded.
        allowed = [value for value in accepts if value not in excluded]
        if not accepts:
            faults.append(f"{dimension.name}: accepts nothing")
        elif not allowed:
            faults.append(f"{dimension.name}: includes only {', '.join(accepts)}, and excludes {', '.join(excluded)}")
        else:
            value: Any = int(allowed[0]) if dimension.type is ValueType.INT else allowed[0]
            request[dimension.name] = [value] if dimension.multi else value
    return request, faults


def _served(search: Search) -> tuple[dict[str, pb.ServedDocument], str]:
    ids = [c.ad_id for c in search.candidates]
    try:
        return dict(zip(ids, search.backends.serving.get(ids), strict=True)), ""
    except ManasError as error:
        return {}, str(error)


def _delta(record: Record) -> pb.DocumentDelta:
    return pb.DocumentDelta.FromString(record.value)


def _newest_delta(log: Log, document_id: str, since_us: int) -> Record | None:
    """Return the newest delta of a document that was appended since a time, from the log itself."""
    return _newest_record(
        log, DELTAS, since_us, lambda value: pb.DocumentDelta.FromString(value).document_id == document_id
    )


def _newest_budget(search: Search) -> str:
    def wanted(value: bytes) -> bool:
        return pb.BudgetState.FromString(value).campaign_id == search.campaign_id

    record = _newest_record(search.backends.log, BUDGETS, 0, wanted)
    if record is None:
        return "none was ever published"
    return f"version {pb.BudgetState.FromString(record.value).version} at offset {record.offset}"


def _newest_record(log: Log, topic: str, since_us: int, wanted: Callable[[bytes], bool]) -> Record | None:
    best: Record | None = None
    if topic not in log.topics():
        return None
    starts = log.start_offsets(topic)
    for partition, end in log.end_offsets(topic).items():
        found, high = None, end
        while found is None and high > starts.get(partition, 0):
            low = max(starts.get(partition, 0), high - _CHUNK)
            records = [r for r in log.read(topic, partition, low, high - low) if r.offset < high]
            found = next((r for r in reversed(records) if wanted(r.value)), None)
            if not records or records[0].appended_us < since_us:
                break
            high = low
        if found is not None and (best is None or found.appended_us > best.appended_us):
            best = found
    return best


def fields_of(search: Search, candidate: Candidate) -> dict[str, Any]:
    """Return the fields of an ad's document."""
    try:
        return decode_document(search.bodies[candidate.ad_id].value or b"\x80")
    except msgspec.DecodeError:
        return {}


def _targeting_field(search: Search) -> str:
    return search.backends.catalog.serving.targeting or ""


def _spec_facts(search: Search, candidate: Candidate) -> list[Fact]:
    spec = search.row("targeting_specs", "ad_group_id", candidate.group["id"])
    return [
        search.source(
            "targeting_specs.spec", spec.get("spec"), "targeting_specs", f"ad_group_id={candidate.group['id']}"
        )
    ]


def at(search: Search, request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the request as of the moment that is judged."""
    return {**request, "at": datetime_of(search.at_us).isoformat()}


def explain(search: Search, request: Mapping[str, Any], candidate: Candidate) -> dict[str, Any]:
    """Return an ad's way through a request, as Manas tells it."""
    found: dict[str, Any] = search.backends.serving.explain(at(search, request), SLOTS, candidate.ad_id)["ad"]
    return found
