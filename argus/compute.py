"""Documents without the pipeline: the same handlers over a snapshot, from the source columns up, writing nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

from argus._fetch import fetch
from argus._registry import Plan, Registry
from argus._rows import EntityRow, Rows, members
from argus._run import NONE_PAUSED, Failure, Paused, RunResult, execute, look_up
from argus.core import Sources
from storage_repo import RowId, Snapshot

_SLICE = 1024
"""Documents fetched at once; a pin that several of them join is derived once."""


def compute_documents(
    snapshot: Snapshot, registry: Registry, sources: Sources, rows: Iterable[str], paused: Paused = NONE_PAUSED
) -> Iterator[tuple[str, bytes | None, list[str]]]:
    """Yield (ad id, body or None, why it is blocked) for root rows, in their order; see `compute_runs`."""
    for result in compute_runs(snapshot, registry, sources, rows, paused):
        yield result.key, result.body, result.blocked


def compute_runs(
    snapshot: Snapshot,
    registry: Registry,
    sources: Sources,
    rows: Iterable[str],
    paused: Paused = NONE_PAUSED,
    root: str = "",
) -> Iterator[RunResult]:
    """Yield what a run of each root row would come to, in their order: its document, the stored one, its failures.

    `root` is the documents' root, unless another table with handlers of its own is named.

    What the pipeline keeps of derived columns is not trusted: the handlers of joined rows (pins, ad groups) are run
    again too. So this tells what the documents ought to be; it is the code that the pipeline runs. Where a source does
    not answer or a handler fails or is paused, the previous outputs count, as in the pipeline; failures at joined rows
    are told with every document that joins them (`joined_failures`).
    """
    plan, waiting = registry.plans[root] if root else registry.document, iter(rows)
    columns = _columns(registry, plan)
    while keys := list(dict.fromkeys(islice(waiting, _SLICE))):
        joined = fetch(snapshot, registry.catalog, plan, keys, columns=columns)
        overlay: dict[RowId, dict[str, bytes | None]] = {}
        failed: dict[RowId, list[Failure]] = {}
        for parents in registry.plans.values():  # those that are joined by others come first
            if parents.root in plan.routes:
                _derive(snapshot, registry, sources, parents, joined, overlay, failed, paused)
        answers = look_up(plan, joined, sources, registry.catalog, paused=paused)
        for key in keys:
            result = execute(registry, plan, key, joined[key], answers, paused)
            if failed:
                result.joined_failures = [
                    failure
                    for joined_rows in joined[key].values()
                    for row in members(joined_rows)
                    if row.key is not None
                    for failure in failed.get((row.table, row.key), ())
                ]
            yield result


def _columns(registry: Registry, plan: Plan) -> dict[str, tuple[str, ...]]:
    """Return what to read: with a joined row also what its own handlers read and wrote, if they join nothing."""
    wanted = {table: dict.fromkeys(cells) for table, cells in plan.columns.items()}
    for parents in registry.plans.values():
        if parents.root in plan.routes and not parents.levels:
            wanted.setdefault(parents.root, {}).update(dict.fromkeys(parents.columns[parents.root]))
    return {table: tuple(cells) for table, cells in wanted.items()}


def _derive(
    snapshot: Snapshot,
    registry: Registry,
    sources: Sources,
    plan: Plan,
    documents: Mapping[str, Rows],
    overlay: dict[RowId, dict[str, bytes | None]],
    failed: dict[RowId, list[Failure]],
    paused: Paused,
) -> None:
    """Run the handlers of the rows of `plan.root` that the documents join, and lay what changes over them."""
    targets = {row.key: row for rows in documents.values() for row in members(rows[plan.root]) if row.absence is None}
    joined: Mapping[str, Rows]
    if plan.levels:
        joined = fetch(snapshot, registry.catalog, plan, [key for key in targets if key is not None], overlay)
    else:
        joined = {key: {plan.root: EntityRow(plan.root, key, row.stored)} for key, row in targets.items() if key}
    answers = look_up(plan, joined, sources, registry.catalog, paused=paused)
    for key, rows in joined.items():
        result = execute(registry, plan, key, rows, answers, paused)
        overlay[plan.root, key] = {cell: data for (_, cell), data in result.changes.items()}
        if result.failures:
            failed[plan.root, key] = result.failures
        for cell, data in overlay[plan.root, key].items():
            targets[key].set(cell, data)  # one row object, shared by all documents of the slice that join it
