"""Steps 6-7 of the diagnosis: whether the Repo holds what the ads DB says, and what was derived from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from argus import Registry, load_registry
from catalog import Catalog
from catalog.model import DELETED, DOCUMENT_BODY, RUN, SOURCE_VERSION
from catalog.values import decode
from debug_ui._chain import Candidate, Fact, Finding, Search, Stop, counted, literal, refresh_command, sql, when
from debug_ui._source import Raw, compare, select_rows
from debug_ui.dead_letters import list_dead_letters
from debug_ui.health import pipeline_lags
from debug_ui.inspect import document_view, handler_problems, newest_value
from debug_ui.switches import ADS_DB_PLACE, holding_switches
from debug_ui.views import Difference, HandlerProblem
from storage_repo import CellVersion, Row, RowId

UPDATE_PLACES = (ADS_DB_PLACE, "updates.high", "updates.medium", "updates.low")
ARGUS_PLACES = ("Repo change feed", "notifications.high", "notifications.medium", "notifications.low")


@dataclass(slots=True)
class _Behind:
    """An entity whose row in the Repo is not what the ads DB says."""

    table: str
    row: str
    differences: list[Difference]
    cells: Row = field(default_factory=dict)

    def __str__(self) -> str:
        name = f"{self.table.replace('_', ' ')} {self.row}"
        if not self.cells:
            return f"{name} is not in the Repo"
        shown = ", ".join(f"{d.column} is {d.repo_value!r} instead of {d.source_value!r}" for d in self.differences[:3])
        return f"{name}: {shown}"


_registries: dict[str, Registry] = {}


def registry_of(catalog: Catalog) -> Registry:
    """Return handlers and plans of a catalogue; checked once per process and catalogue."""
    if catalog.fingerprint not in _registries:
        _registries[catalog.fingerprint] = load_registry(catalog)
    return _registries[catalog.fingerprint]


def repo_is_current(search: Search) -> Finding:
    """Step 6: advertiser, campaign, ad group, ad, pin and image of at least one ad are in the Repo as in the ads DB."""
    rows = {candidate.ad_id: rows_of(search, candidate) for candidate in search.candidates}
    wanted = list(dict.fromkeys(row for of_ad in rows.values() for row in of_ad))
    raws = _raw_entities(search, wanted)
    stored = search.backends.repo.snapshot().get_many(wanted)
    behind: dict[RowId, _Behind] = {}
    beside: list[str] = []
    for row_id in wanted:
        serious, harmless = _differences(search, row_id, raws[row_id], stored[row_id])
        if serious:
            behind[row_id] = _Behind(*row_id, serious, stored[row_id])
        elif harmless:
            beside.append(f"Repo behind, without effect on serving: {_Behind(*row_id, harmless, stored[row_id])}")
    affected = {ad_id: [behind[r] for r in of_ad if r in behind] for ad_id, of_ad in rows.items()}
    healthy = [c for c in search.candidates if not affected[c.ad_id]]
    if not healthy:
        first = min(behind.values(), key=lambda b: [*search.backends.catalog.tables].index(b.table))
        raise Stop(
            f"the Repo does not have what the ads DB says: {first}",
            [*_difference_facts(search, list(behind.values())[:3]), *_why_behind(search, first)],
            "The advertiser's change has not arrived in the index, so serving still goes by the old state.",
            _repair(search, first),
        )
    search.note([f"ad {ad_id} waits: {found[0]}" for ad_id, found in affected.items() if found])
    search.note(beside)
    search.candidates = healthy
    versions = {table: decode(stored[(table, row)].get(SOURCE_VERSION)) for table, row in rows[healthy[0].ad_id]}
    facts = [
        Fact(f"{table} source version", version, "Repo, meta:source_version") for table, version in versions.items()
    ]
    return Finding(
        True, f"the Repo has the ads DB's values of {counted(len(healthy), 'ad')}, and of all they join with", facts
    )


def rows_of(search: Search, candidate: Candidate) -> list[RowId]:
    """Return the Repo rows that an ad's document is made of."""
    rows: list[RowId] = [
        ("advertiser", str(search.campaign["advertiser_id"])),
        ("campaign", search.campaign_id),
        ("ad_group", str(candidate.group["id"])),
        ("ad", candidate.ad_id),
    ]
    if candidate.ad["pin_id"]:
        rows.append(("pin", str(candidate.ad["pin_id"])))
        if image := search.images.get(candidate.ad["pin_id"]):
            rows.append(("image", image))
    return rows


def _raw_entities(search: Search, wanted: Sequence[RowId]) -> dict[RowId, Raw]:
    """Read the ads DB rows of all entities, one query per ads DB table."""
    raws: dict[RowId, Raw] = {row_id: {} for row_id in wanted}
    for name in dict.fromkeys(table for table, _ in wanted):
        table = search.table(name)
        ids = {row: int(row) if table.key_type.value == "int" else row for t, row in wanted if t == name}
        for source_table, key in (table.source.tables() if table.source else {}).items():
            found = {str(r[key]): r for r in select_rows(search.backends.ads_db, source_table, key, [*ids.values()])}
            for row in ids:
                raws[(name, row)][source_table] = found.get(row, {})
    return raws


def _differences(search: Search, row_id: RowId, raw: Raw, cells: Row) -> tuple[list[Difference], list[Difference]]:
    """Return the differences that decide what is served, and the others."""
    table = search.table(row_id[0])
    values: dict[str, Any] = (
        {} if DELETED in cells else {c.name: _decoded(cells.get(c.cell)) for c in table.columns.values()}
    )
    found = compare(table, raw, values)
    # Budget state is watched by no handler: serving holds it itself, so a late one harms no document.
    concerned = registry_of(search.backends.catalog).graph.watched_cells().get(table.name, frozenset())
    serious = [d for d in found if table.columns[d.column].cell in concerned]
    if SOURCE_VERSION not in cells and not serious:
        serious = found or [Difference(column="(row)", source_column="", source_value="exists", repo_value=None)]
    return serious, [d for d in found if d not in serious]


def _decoded(data: bytes | None) -> Any:
    try:
        return decode(data)
    except msgspec.DecodeError:
        return data


def _difference_facts(search: Search, behind: Sequence[_Behind]) -> list[Fact]:
    facts = []
    for entity in behind:
        for difference in entity.differences[:3]:
            place = f"{entity.table} {entity.row}"
            facts.append(Fact(difference.source_column or "row", difference.source_value, f"ads DB, {place}"))
            facts.append(Fact(f"{entity.table}.{difference.column}", difference.repo_value, f"Repo, {place}"))
            if difference.invalid:
                facts.append(Fact("why it cannot be stored", difference.invalid, "catalogue"))
        version = decode(entity.cells.get(SOURCE_VERSION))
        facts.append(Fact("source version", version, f"Repo, {entity.table} {entity.row}, meta:source_version"))
    return facts


def _lag_facts(search: Search, places: Sequence[str]) -> list[Fact]:
    found = [lag for lag in pipeline_lags(search.backends) if lag.place in places]
    switches = holding_switches(search.backends.log, [lag.place for lag in found if lag.waiting])
    return [
        *(Fact(f"switch {s.name}", s.value, f"set by {s.who}: {s.why}", s.at_us) for s in switches),
        *(
            Fact(f"waiting in {lag.place}", lag.waiting, f"position {lag.position} of {lag.end}, group {lag.group}")
            for lag in found
        ),
    ]


def _letter_facts(search: Search, table: str, row: str) -> list[Fact]:
    letters = list_dead_letters(search.backends.log, table=table, row=row, limit=2)
    return [
        Fact(f"dead letter {x.reason}", x.error, f"dead letters, {x.partition}/{x.offset}, by {x.stage}", x.at_us)
        for x in letters
    ]


def _why_behind(search: Search, entity: _Behind) -> list[Fact]:
    return _letter_facts(search, entity.table, entity.row) + _lag_facts(search, UPDATE_PLACES)


def _repair(search: Search, entity: _Behind) -> list[str]:
    table = search.table(entity.table)
    invalid = [d for d in entity.differences if d.invalid]
    source = table.source
    if source is None:
        return []
    key = literal(int(entity.row) if table.key_type.value == "int" else entity.row)
    if invalid:
        source_table, _, column = invalid[0].source_column.partition(".")
        statement = (
            f"UPDATE {source_table} SET {column} = <a valid value> WHERE {source.tables()[source_table]} = {key}"
        )
        return [sql(statement)]
    waiting = [lag for lag in pipeline_lags(search.backends) if lag.place in UPDATE_PLACES and lag.waiting]
    if switches := holding_switches(search.backends.log, [lag.place for lag in waiting]):
        return [f"let it go on: {switch.release}" for switch in switches]
    if waiting:
        stage = "gateway" if waiting[0].place == UPDATE_PLACES[0] else "updater"
        return [
            f"see that the {stage} runs: ./adsindex status; start the pipeline with ./adsindex up",
            f"if it runs, it is behind by {waiting[0].waiting}: wait, or look for its errors in logs/{stage}-0.log",
        ]
    return [
        "nothing waits, so the update was dropped or refused; send the entity through the pipeline again: "
        + sql(f"UPDATE {source.table} SET {source.key} = {source.key} WHERE {source.key} = {key}")
    ]


@dataclass(slots=True)
class _Build:
    """What the Repo says about the making of one ad's document."""

    problem: str
    """Why there is no current document; "" if there is one."""
    kind: str
    """lag, error or blocked."""
    facts: list[Fact]
    handler_problems: list[HandlerProblem]


def documents_built(search: Search) -> Finding:
    """Step 7: the document of at least one ad was built from the newest inputs, without an error that blocks it."""
    histories = _Histories(search)
    builds = {c.ad_id: _build_of(search, c, histories) for c in search.candidates}
    table = search.backends.catalog.document_table
    healthy = [c for c in search.candidates if not builds[c.ad_id].problem]
    if not healthy:
        candidate = search.candidates[0]
        ad_id, build = candidate.ad_id, builds[candidate.ad_id]
        lag = build.kind == "lag"
        raise Stop(
            f"the document of ad {ad_id} is not up to date: {build.problem}"
            if lag
            else f"no document could be built for ad {ad_id}: {build.problem}",
            [
                *build.facts,
                *_letter_facts(search, table, ad_id),
                *_letter_facts(search, "ad", ad_id),
                *_lag_facts(search, ARGUS_PLACES),
            ],
            "What was changed has reached the Repo, but not the document made from it."
            if lag
            else "Without a document there is nothing that serving could show.",
            _build_fix(search, build, candidate),
        )
    search.note([f"ad {i} has no current document: {b.problem}" for i, b in builds.items() if b.problem])
    partial = [
        f"handler {p.handler} gives nothing: {p.sentence}" for c in healthy for p in builds[c.ad_id].handler_problems
    ]
    search.note(list(dict.fromkeys(partial)))
    search.candidates = healthy
    for candidate in healthy:
        search.bodies[candidate.ad_id] = histories[(table, candidate.ad_id)][DOCUMENT_BODY][0]
    shown = healthy[0].ad_id
    body = search.bodies[shown]
    writer = body.origin.stage if body.origin else "an unknown writer"
    facts = [
        Fact("document version", body.commit_ts, f"Repo, {table} {shown}, {DOCUMENT_BODY}", body.committed_at_us),
        Fact("committed", when(body.committed_at_us), f"Repo, by {writer}"),
    ]
    return Finding(True, f"{counted(len(healthy), 'document')} built from the newest inputs", facts)


class _Histories(dict[RowId, dict[str, list[CellVersion]]]):
    """Histories of rows, each read once: the ads of a campaign share most of what they join with."""

    def __init__(self, search: Search) -> None:
        super().__init__()
        self._repo = search.backends.repo

    def __missing__(self, row_id: RowId) -> dict[str, list[CellVersion]]:
        self[row_id] = self._repo.history(*row_id)
        return self[row_id]


def _build_of(search: Search, candidate: Candidate, histories: _Histories) -> _Build:
    catalog, ad_id = search.backends.catalog, candidate.ad_id
    output = (catalog.document_table, ad_id)
    cells = histories[output]
    view = document_view(catalog, ad_id, cells)
    rows = dict(rows_of(search, candidate))
    found = [(row_id, p) for row_id in (output, *rows.items()) for p in handler_problems(histories[row_id])]
    facts = [
        Fact(f"{p.handler}: {p.reason}", p.sentence, f"Repo, {table} {row}, meta:error.{p.handler}", p.committed_at_us)
        for (table, row), p in found
    ]
    if stale := _stale_inputs(search, rows, histories):
        return _Build("its inputs are newer than the last run of the handlers", "lag", [*stale, *facts], [])
    if view.present:
        return _Build("", "", facts, [p for _, p in found])
    if view.blocked:
        facts.insert(0, Fact("blocked by", list(view.blocked), f"Repo, {output[0]} {ad_id}, meta:blocked"))
    if found:
        (table, row), problem = found[0]
        said = f"handler {problem.handler} refused {table.replace('_', ' ')} {row}: {problem.sentence}"
        return _Build(said, "error", facts, [])
    if view.blocked:
        return _Build(f"blocked, {view.blocked[0]}", "blocked", facts, [])
    nothing = "the handlers ran, and left neither a document nor a reason" if cells else "no handler has run for it yet"
    return _Build(nothing, "lag", facts, [])


def _stale_inputs(search: Search, rows: Mapping[str, str], histories: _Histories) -> list[Fact]:
    """Return the first input that is newer than the run which should have seen it, for any root the ad joins with."""
    catalog = search.backends.catalog
    for plan in registry_of(catalog).plans.values():
        if plan.root not in rows:
            continue
        output = (plan.output_table, rows[plan.root])
        ran = newest_value(histories[output], RUN)
        snapshot = int(ran[0]) if isinstance(ran, list) and ran else 0
        own = histories[output][RUN][0].commit_ts if histories[output].get(RUN) else 0
        for table, columns in plan.triggers.items():
            if table not in rows:
                continue
            for name in sorted(columns):
                cell = catalog.tables[table].columns[name].cell
                versions = histories[(table, rows[table])].get(cell)
                if versions and versions[0].commit_ts > snapshot and versions[0].commit_ts != own:
                    where = f"Repo, {table} {rows[table]}, {cell}"
                    return [
                        Fact("newest input", versions[0].commit_ts, where, versions[0].committed_at_us),
                        Fact(
                            f"{plan.root} handlers ran at snapshot", snapshot, f"Repo, {output[0]} {output[1]}, {RUN}"
                        ),
                    ]
    return []


def _build_fix(search: Search, build: _Build, candidate: Candidate) -> list[str]:
    again = f"run the handlers again: {refresh_command(candidate.ad_id)}"
    if build.kind == "lag":
        waiting = [lag for lag in pipeline_lags(search.backends) if lag.place in ARGUS_PLACES and lag.waiting]
        if switches := holding_switches(search.backends.log, [lag.place for lag in waiting]):
            return [f"let it go on: {switch.release}" for switch in switches]
        if waiting:
            stage = "wal_proxy" if waiting[0].place == ARGUS_PLACES[0] else "argus"
            return [f"see that {stage} runs: ./adsindex status; start the pipeline with ./adsindex up"]
        return [f"nothing waits, so a notification was lost; {again}"]
    if any(fact.what.startswith("targeting:") for fact in build.facts):
        group = candidate.group["id"]
        statement = f"UPDATE targeting_specs SET spec = '<valid JSON>' WHERE ad_group_id = {group}"
        return [f"correct the targeting spec: {sql(statement)}"]
    return ["correct what the evidence names in the ads DB; the handlers then run by themselves", again]
