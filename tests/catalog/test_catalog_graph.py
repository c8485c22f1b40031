"""Handlers against the catalogue: order, watched cells, and every fault of a declaration."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from catalog import Catalog, DependencyError, HandlerDeclaration, build_graph, load_catalog
from catalog.graph import DependencyGraph

TEXT = """
version: 1
name: small
dimensions: {}
tables:
  parent:
    owner: me
    key: int
    source: {table: parents, key: id}
    columns:
      name: {type: string, from: parents.name}
      upper: {type: string, from: handler:upper}
  stranger:
    owner: me
    source: {table: strangers, key: id}
    columns: {name: {type: string, from: strangers.name}}
  child:
    owner: me
    key: int
    source: {table: children, key: id}
    references: {parent: parent_id}
    columns:
      parent_id: {type: int, from: children.parent_id}
      bid: {type: int, from: children.bid}
  document:
    owner: me
    root: child
    columns:
      title: {type: string, from: handler:title}
      bid: {type: int, from: handler:bid}
      starts: {type: time, from: handler:bid}
fields:
  title: {from: document.title}
  bid: {from: document.bid, index: numeric}
  starts: {from: document.starts, index: numeric}
  parent: {from: child.parent_id, index: term}
serving: {bid: bid, starts: starts, ends: starts, budget_key: parent}
"""

UPPER = HandlerDeclaration("upper", "parent", ("parent.name",), (), ("parent.upper",), "handlers.py", 10)
TITLE = HandlerDeclaration("title", "child", ("parent.upper",), ("document.bid",), ("document.title",))
BID = HandlerDeclaration("bid", "child", ("child.bid", "child.bid"), (), ("document.bid", "document.starts"))
ALL = [TITLE, UPPER, BID]


@pytest.fixture
def small(tmp_path: Path) -> Catalog:
    """A catalogue of four tables and three handlers."""
    file = tmp_path / "small.yaml"
    file.write_text(TEXT)
    return load_catalog(file)


def test_handlers_come_in_dependency_order(small: Catalog) -> None:
    """A handler follows those whose columns it reads, in whatever order they were declared."""
    for order in (ALL, ALL[::-1], [BID, TITLE, UPPER]):
        graph = build_graph(small, order)
        names = [h.name for h in graph.handlers]
        assert names.index("title") > names.index("upper")
        assert names.index("title") > names.index("bid")
        assert {h.name for h in graph.by_root("child")} == {"title", "bid"}
        assert set(graph.roots()) == {"child", "parent"}


def test_watchers_and_watched_cells(small: Catalog) -> None:
    """Watched are the columns of handlers and fields, and references that joins follow, but no document's own."""
    graph: DependencyGraph = build_graph(small, ALL)
    assert graph.watchers["child.bid"] == ("bid",)
    assert "document.bid" not in graph.watchers
    assert graph.watched_cells() == {
        "parent": {"content:name", "derived:upper"},
        "child": {"content:bid", "content:parent_id"},
    }


def test_a_reference_that_no_handler_watches_is_watched_all_the_same() -> None:
    """pin.image_id is no field, but a pin that points to another image joins with other values."""
    catalog = load_catalog()
    without_handlers = DependencyGraph(catalog, ())
    assert "content:image_id" in without_handlers.watched_cells()["pin"]


@pytest.mark.parametrize(
    "handlers, text",
    [
        pytest.param([replace(TITLE, reads=("document.prize",)), UPPER, BID], "'document.prize' is not", id="column"),
        pytest.param([replace(TITLE, watches=("nobody.x",)), UPPER, BID], "'nobody.x' is not a column", id="table"),
        pytest.param([replace(TITLE, root="nobody"), UPPER, BID], "root 'nobody' is not a table", id="root"),
        pytest.param([replace(TITLE, reads=("stranger.name",)), UPPER, BID], "cannot be reached", id="out of reach"),
        pytest.param([TITLE, replace(UPPER, reads=("child.bid",)), BID], "cannot be reached", id="against the joins"),
        pytest.param([TITLE, UPPER], "comes from handler 'bid', but no handler", id="missing handler"),
        pytest.param([*ALL, replace(TITLE, name="title2")], "has two writers: handler 'title'", id="two writers"),
        pytest.param([*ALL, UPPER], "two handlers are named 'upper'", id="two of one name"),
        pytest.param(
            [*ALL, replace(BID, name="x", writes=("child.bid",))], "takes from 'children.bid'", id="undeclared"
        ),
        pytest.param([replace(TITLE, writes=("document.title", "parent.name")), UPPER, BID], "only to", id="parent"),
        pytest.param([TITLE, UPPER, replace(BID, reads=("document.title",))], "title -> bid -> title", id="cycle"),
        pytest.param([TITLE, UPPER, replace(BID, reads=("document.bid",))], "bid -> bid", id="cycle of one"),
    ],
)
def test_a_declaration_that_does_not_fit_is_refused(
    small: Catalog, handlers: list[HandlerDeclaration], text: str
) -> None:
    """Every fault is an error at start that names the handler or the column."""
    with pytest.raises(DependencyError) as caught:
        build_graph(small, handlers)
    assert text in str(caught.value)


def test_faults_name_file_and_line_and_come_together(small: Catalog) -> None:
    """Several faults are reported at once, with the places of handler and column."""
    with pytest.raises(DependencyError) as caught:
        build_graph(small, [replace(UPPER, watches=("parent.nome",))])
    text = str(caught.value)
    assert "handlers.py:10" in text
    column = small.column("document.title")
    assert f"{small.file}:{column.line}: document.title" in text
    assert TEXT.splitlines()[column.line - 1].strip().startswith("title:")
    assert len(text.splitlines()) == 5
