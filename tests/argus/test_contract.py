"""The contract with a handler's author: declarations are kept, and faults in them are found at start."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

import argus
from argus import (
    DeclarationError,
    Handler,
    HandlerContext,
    Inputs,
    SourceUse,
    UndeclaredRead,
    UndeclaredWrite,
    Value,
    builtin_handlers,
    handler,
    load_registry,
)
from argus.testing import run_handler
from catalog import DependencyError, InvalidValue
from tests.argus.world import CATALOG, World, with_handlers


def _interests(root: str = "ad", watches: tuple[str, ...] = ("ad_group.targeting_terms",)) -> Handler:
    @handler(root=root, watches=watches, writes=("ad_document.interests",))
    def interests(row: Inputs, context: HandlerContext) -> Mapping[str, Value]:
        return {"ad_document.interests": [row.exists("ad_group")]}

    return interests


def test_the_exported_names_are_those_in_all() -> None:
    """The front door is complete, and names nothing twice (ruff holds its order)."""
    assert len(set(argus.__all__)) == len(argus.__all__)
    assert all(hasattr(argus, name) for name in argus.__all__)


def test_every_derived_column_has_its_built_in_handler() -> None:
    """Modules in argus.handlers are found by themselves and cover the catalogue."""
    registry = load_registry(CATALOG)
    derived = {c.handler for t in CATALOG.tables.values() for c in t.columns.values() if c.handler}
    assert set(registry.handlers) == derived
    assert list(registry.plans)[-1] == "ad"
    declaration = registry.handlers["targeting"].declaration
    assert declaration.file.endswith("targeting.py")
    assert declaration.line > 0


def test_reading_an_undeclared_column_is_an_error() -> None:
    """The message names the handler, the column and what to add."""

    @handler(root="ad", watches=("ad.status",), writes=("ad_document.interests",))
    def interests(row: Inputs, context: HandlerContext) -> Mapping[str, Value]:
        return {"ad_document.interests": [row["ad.id"]]}

    with pytest.raises(UndeclaredRead, match=r"'interests' reads 'ad.id' without declaring it; add it to `watches`"):
        run_handler(interests)


def test_asking_for_an_undeclared_row_or_source_is_an_error() -> None:
    """Existence of a row whose changes the handler does not watch cannot be asked for, nor an undeclared source."""

    @handler(root="ad", watches=("ad.status",), writes=("ad_document.interests",))
    def interests(row: Inputs, context: HandlerContext) -> Mapping[str, Value]:
        return {"ad_document.interests": [row.exists("campaign")]}

    @handler(root="ad", watches=("ad.status",), writes=("ad_document.quality",))
    def performance(row: Inputs, context: HandlerContext) -> Mapping[str, Value]:
        return {"ad_document.quality": context.source("performance")}

    with pytest.raises(UndeclaredRead, match="declares no column of it"):
        run_handler(interests)
    with pytest.raises(UndeclaredRead, match="SourceUse"):
        run_handler(performance)


def test_returning_an_undeclared_or_wrong_value_is_an_error() -> None:
    """Columns must be declared and values must have the catalogue's type."""

    @handler(root="ad", watches=("ad.status",), writes=("ad_document.interests",))
    def interests(row: Inputs, context: HandlerContext) -> Mapping[str, Value]:
        return {"ad_document.interests": [1], "ad_document.title": "x"}

    @handler(root="ad", watches=("ad.status",), writes=("ad_document.bid_micros",))
    def bid(row: Inputs, context: HandlerContext) -> Mapping[str, Value]:
        return {"ad_document.bid_micros": "much"}

    with pytest.raises(UndeclaredWrite, match=r"returns ad_document.title without declaring it"):
        run_handler(interests)
    with pytest.raises(InvalidValue, match=r"ad_document\.bid_micros"):
        run_handler(bid)


def test_a_test_cannot_give_what_the_pipeline_would_not() -> None:
    """Values for undeclared columns are refused, so that a handler's test does not lie."""
    with pytest.raises(DeclarationError, match=r"does not declare ad\.id"):
        run_handler(_interests(), {"ad.id": 1})


def test_a_comma_forgotten_in_a_declaration_is_found_at_import() -> None:
    """A string where a tuple belongs, nothing to watch, and a source key that is no input are refused at once."""
    with pytest.raises(DeclarationError, match="add a comma"):
        handler(root="ad", watches=("ad.id"), writes=("ad_document.title",))(_interests().function)  # type: ignore[arg-type]
    with pytest.raises(DeclarationError, match="at least one column"):
        handler(root="ad", watches=(), writes=("ad_document.title",))(_interests().function)
    with pytest.raises(DeclarationError, match=r"source 'x' needs \['ad.id'\]"):
        handler(
            root="ad",
            watches=("ad.status",),
            writes=("ad_document.title",),
            sources=(SourceUse("x", key="ad.id", version="ad.status"),),
        )(_interests().function)


def test_graph_faults_name_file_and_line() -> None:
    """Unknown columns, columns out of reach and missing handlers are all told before anything starts."""
    builtin = {h.name: h for h in builtin_handlers()}
    with pytest.raises(DependencyError, match=r"test_contract\.py:\d+\): 'ad_group\.nothing' is not a column"):
        with_handlers(_interests(watches=("ad_group.nothing",)))
    with pytest.raises(DependencyError, match="cannot be reached from 'pin'"):
        with_handlers(_interests(root="pin"))
    del builtin["bid"]
    with pytest.raises(DependencyError, match=r"ads\.yaml:\d+: ad_document\.bid_micros comes from handler 'bid'"):
        load_registry(CATALOG, builtin.values())


def test_two_handlers_in_a_cycle_are_refused() -> None:
    """The cycle is spelled out."""

    @handler(root="ad", watches=("ad_document.blocked_by",), writes=("ad_document.interests",))
    def interests(row: Inputs, context: HandlerContext) -> Mapping[str, Value]:
        return {}

    real = load_registry(CATALOG).handlers["status_rollup"]

    @handler(
        root="ad",
        watches=("ad_document.interests",),
        writes=real.declaration.writes,
    )
    def status_rollup(row: Inputs, context: HandlerContext) -> Mapping[str, Value]:
        return {}

    with pytest.raises(DependencyError, match="cycle: interests -> status_rollup -> interests"):
        with_handlers(interests, status_rollup)


def test_a_source_key_must_not_be_derived_by_the_same_root() -> None:
    """Sources are asked for the whole batch before any handler of the root runs."""

    @handler(
        root="ad",
        watches=("ad_document.bid_micros", "ad.performance_version"),
        writes=("ad_document.interests",),
        sources=(SourceUse("performance", key="ad_document.bid_micros", version="ad.performance_version"),),
    )
    def interests(row: Inputs, context: HandlerContext) -> Mapping[str, Value]:
        return {}

    with pytest.raises(DeclarationError, match="before any handler runs"):
        with_handlers(interests)


def test_a_source_that_is_not_configured_stops_the_start(world: World) -> None:
    """It would otherwise show only when the first document needs it."""
    with pytest.raises(DeclarationError, match="not configured: performance"):
        argus.ArgusCore(world.repo, world.registry, {})
