"""Why is this ad in the answer, or why not? Clause by clause, with the ad's own values as evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from catalog.documents import decode_document
from catalog.targeting import EXCLUDE
from catalog.values import datetime_of
from manas import _explain_special
from manas._clauses import (
    And,
    Clause,
    Funded,
    HasVector,
    InSchedule,
    Inside,
    Is,
    Meets,
    Near,
    Not,
    Or,
    Range,
    Runs,
    Targets,
    Term,
)
from manas._layer import LayerView
from manas._ranking import Ranked, Scores
from manas._request import Query
from manas._view import View
from manas.budgets import BudgetTable, is_capped, is_funded


def explain_ad(
    view: View, budgets: BudgetTable, query: Query, ad_id: str, everything: Ranked, hits: Sequence[str], k: int
) -> dict[str, Any]:
    """Return the steps of one ad through a query: each with whether it passes and why.

    `everything` is the ranking without diversity, full unless it is marked as not complete; `hits` are the ids of the
    answer.
    """
    steps = [_existence(view, ad_id)]
    place = view.find(ad_id)
    if place is not None:
        layer, internal = place
        values = decode_document(layer.layer.body(internal))
        for condition in query.conditions:
            passes = layer.holds(condition.clause, internal)
            step = {"clause": condition.name, "passes": passes, "words": condition.words}
            step["evidence"] = _evidence(condition.clause, values, view, budgets)
            if condition.name == "frequency":
                step["evidence"] = _frequency(values, view, budgets, query)[1]
            elif isinstance(condition.clause, Meets):
                step |= _explain_special.predicate_tree(condition.clause, values, view.schema)
            elif condition.name == "filter":
                step["tree"] = _tree(condition.clause, layer, internal, values)
            steps.append(step)
        if query.seen and all(step["clause"] != "frequency" for step in steps):
            capped, evidence = _frequency(values, view, budgets, query)
            words = "is of none that the user has seen as often as its cap allows"
            steps.append({"clause": "frequency", "passes": not capped, "words": words, "evidence": evidence})
    keys = list(map(str, everything.keys.tolist()))
    most, whole = query.max_per_group, everything.complete
    return conclude(ad_id, steps, keys, everything.scores, hits, k, most, whole=whole)


LAST_STEPS = ("rank", "rerank")
"""What `conclude` adds to the steps of an ad that fits."""


def conclude(
    ad_id: str,
    steps: list[dict[str, Any]],
    keys: Sequence[str],
    scores: Sequence[float] | Scores,
    hits: Sequence[str],
    k: int,
    most: int | None,
    *,
    whole: bool = True,
) -> dict[str, Any]:
    """Return an ad's way through a query whose conditions are judged: where it ranks, if it fits, and why it is out.

    `keys` and `scores` are the ranking without diversity; `most` is how many ads may share a group. Where the ranking
    is not `whole`, because a deadline or a missing shard cut it short, nothing is said of the ad's rank.
    """
    score: float | None = None
    rank: int | None = None
    if all(step["passes"] for step in steps):
        if not whole:
            steps.append(_unranked(ad_id in hits, k))
        elif ad_id in keys:
            rank = keys.index(ad_id) + 1
            score = float(scores[rank - 1])
            steps.append(_ranking(rank, score, ad_id in hits, k, most))
        else:
            steps.append(_left_out(len(keys)))
    failed = next((s for s in steps if not s["passes"]), None)
    why = "it is in the answer" if failed is None else f"{failed['clause']}: {failed['evidence']}"
    return {"ad_id": ad_id, "in_answer": ad_id in hits, "why": why, "rank": rank, "score": score, "steps": steps}


def _frequency(values: Mapping[str, Any], view: View, budgets: BudgetTable, query: Query) -> tuple[bool, str]:
    name = view.schema.catalog.serving.budget_key or ""
    key = str(values.get(name))
    capped, why = is_capped(budgets.get(key), query.seen.get(key, {}))
    return capped, f"{name} {key}: {why}"


def _existence(view: View, ad_id: str) -> dict[str, Any]:
    entry = view.entry(ad_id)
    place = view.find(ad_id)
    if place is not None:
        layer, internal = place
        evidence = f"served from the {layer.layer.name} at version {layer.layer.version(internal)}"
    elif entry is not None:
        evidence = f"deleted from serving by the delta of version {entry.version}"
    else:
        evidence = "neither base nor delta has a document of this id"
    return {"clause": "exists", "passes": place is not None, "words": "has a servable document", "evidence": evidence}


def _unranked(included: bool, k: int) -> dict[str, Any]:
    evidence = "its rank is not known: a deadline or a missing shard came before all that fits was ranked"
    return {"clause": "rank", "passes": included, "words": _first(k), "evidence": evidence}


def _first(k: int) -> str:
    return f"is among the first {k or 'of all'}"


def _left_out(candidates: int) -> dict[str, Any]:
    words = "is among the candidates of the second phase"
    evidence = f"its light score is not among the best {candidates}; a larger rerank looks at more"
    return {"clause": "rerank", "passes": False, "words": words, "evidence": evidence}


def _ranking(rank: int, score: float, included: bool, k: int, most: int | None) -> dict[str, Any]:
    evidence = f"rank {rank} with score {score:.6g}"
    if not included and k and rank > k:
        evidence += f", below the first {k}"
    elif not included and most is not None:
        evidence += f", but {most} better ads share its advertiser"
    elif not included:
        evidence += ", but the approximate search did not find it"
    return {"clause": "rank", "passes": included, "words": _first(k), "evidence": evidence}


def _evidence(clause: Clause, values: Mapping[str, Any], view: View, budgets: BudgetTable) -> str:
    serving = view.schema.catalog.serving
    match clause:
        case InSchedule(starts, ends):
            shown = [_moment(values.get(f)) for f in (starts, ends)]
            return f"runs from {shown[0]} to {shown[1]}"
        case Funded():
            key = values.get(serving.budget_key or "")
            return f"{serving.budget_key} {key}: {is_funded(budgets.get(str(key)))[1]}"
        case Targets(field, dimension):
            prefixes = (f"{dimension}=", f"{EXCLUDE}{dimension}=")
            own = [t for t in values.get(field) or () if t.startswith(prefixes)]
            return f"the ad says {', '.join(own)}" if own else f"the ad says nothing about {dimension}"
        case Term(field) | Range(field):
            return f"{field} is {_shown(values.get(field))}"
        case HasVector(field):
            return f"{field} is {'there' if field in values else 'missing'}"
        case Meets() | Inside() | Near() | Runs():
            return _explain_special.evidence(clause, values, view.schema)
        case Not(Is(document_id)):
            return f"asked for ads similar to {document_id}"
        case And(parts) | Or(parts):
            return "; ".join(dict.fromkeys(_evidence(p, values, view, budgets) for p in parts))
        case Not(part):
            return _evidence(part, values, view, budgets)
        case Is(document_id):
            return f"asked for {document_id}"


def _tree(clause: Clause, view: LayerView, internal: int, values: Mapping[str, Any]) -> dict[str, Any]:
    node: dict[str, Any] = {"passes": view.holds(clause, internal)}
    match clause:
        case And(parts) | Or(parts):
            node["kind"] = "and" if isinstance(clause, And) else "or"
            node["parts"] = [_tree(p, view, internal, values) for p in parts]
        case Not(part):
            node["kind"], node["parts"] = "not", [_tree(part, view, internal, values)]
        case Term(field, term):
            node |= {"kind": "term", "field": field, "wanted": term, "has": _shown(values.get(field))}
        case Range(field, low, high):
            node |= {"kind": "range", "field": field, "wanted": [low, high], "has": _shown(values.get(field))}
        case Near(field, lat, lon, metres):
            node |= {"kind": "near", "field": field, "wanted": [lat, lon, metres], "has": _shown(values.get(field))}
    return node


def _moment(micros: int | None) -> str:
    try:
        return "open" if micros is None else str(datetime_of(micros))
    except OverflowError:  # beyond the years that datetime knows
        return f"{micros} microseconds"


def _shown(value: Any) -> str:
    return "missing" if value is None else repr(value)[:200]
