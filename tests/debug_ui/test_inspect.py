"""What is said of an entity is what the ads DB, the Repo and serving hold."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from debug_ui import UnknownEntity, UnknownKind, inspect_entity, pipeline_status, render_status, render_text
from debug_ui.inspect import table_of
from tests.debug_ui.pipeline import Pipeline


def test_columns_carry_version_and_writer(pipeline: Pipeline) -> None:
    """A column shows its value, the commit that wrote it, and who that was."""
    view = inspect_entity(pipeline.backends, "ad group", "10")
    columns = {c.name: c for c in view.columns}
    bid, terms = columns["bid_micros"].current, columns["targeting_terms"].current
    assert bid is not None and terms is not None and bid.writer is not None and terms.writer is not None
    assert (bid.value, bid.writer.stage, terms.writer.stage) == (1000000, "updater", "argus")
    assert bid.commit_ts < terms.commit_ts <= view.repo_ts
    assert terms.writer.code_version == "test"
    assert [row.table for row in view.source] == ["ad_groups", "targeting_specs"]
    assert view.differences == () and view.source_version is not None


def test_history_is_newest_first(pipeline: Pipeline) -> None:
    """With history, all versions of a column are there, deletions included."""
    for value in ("2000000", "NULL", "3000000"):
        pipeline.sql(f"UPDATE ad_groups SET bid_micros = {value} WHERE id = 10")
        pipeline.run()
    view = inspect_entity(pipeline.backends, "ad_group", "10", history=True)
    history = next(c for c in view.columns if c.name == "bid_micros").history
    assert [(v.value, v.deleted) for v in history] == [
        (3000000, False),
        (None, True),
        (2000000, False),
        (1000000, False),
    ]
    assert [v.commit_ts for v in history] == sorted((v.commit_ts for v in history), reverse=True)


def test_ad_has_document_serving_and_timeline(pipeline: Pipeline) -> None:
    """An ad shows its document, that serving has the same bytes, and every stage of its last update in order."""
    view = inspect_entity(pipeline.backends, "ad", "100")
    assert view.document is not None and view.document.present
    assert view.document.fields["title"] == "Sturdy shoes number 100"
    assert len(view.document.fields["embedding"]) == 64  # type: ignore[arg-type]
    assert view.serving is not None and view.serving.layer == "delta" and view.serving.same_bytes
    assert view.timeline is not None
    assert [h.stage for h in view.timeline.hops] == ["gateway", "updater", "wal_proxy", "argus"]
    assert view.timeline.answerable_us is not None
    parts = sum(us for _, _, _, _, us in view.timeline.bars)
    assert parts == view.timeline.total_us


def test_relations_lead_up_and_down(pipeline: Pipeline) -> None:
    """Parents come from references, children from index tables, with names and counts."""
    view = inspect_entity(pipeline.backends, "campaign", "2")
    assert [(r.kind, link.id, link.name) for r in view.parents for link in r.links] == [("advertiser", "2", "Rival")]
    assert [(r.kind, r.count, r.links[0].name) for r in view.children] == [("ad_group", 1, "Group 2")]
    pin = inspect_entity(pipeline.backends, "pin", "pin-100")
    assert [(r.kind, r.links[0].id) for r in pin.children] == [("ad", "100")]


def test_difference_between_source_and_repo_is_shown(pipeline: Pipeline) -> None:
    """A change that has not arrived is named column by column."""
    pipeline.sql("UPDATE campaigns SET name = 'Renamed' WHERE id = 1")
    (difference,) = inspect_entity(pipeline.backends, "campaign", "1").differences
    assert (difference.source_column, difference.source_value, difference.repo_value) == (
        "campaigns.name",
        "Renamed",
        "Campaign 1",
    )


def test_withdrawn_document(pipeline: Pipeline) -> None:
    """A paused ad has no document, the reason is said, and serving has withdrawn it."""
    pipeline.sql("UPDATE ads SET status = 'PAUSED' WHERE id = 100")
    pipeline.run()
    view = inspect_entity(pipeline.backends, "document", "100")
    assert view.document is not None and not view.document.present
    assert view.document.blocked == ("ad 100 has status PAUSED, not ACTIVE",)
    assert view.serving is not None and view.serving.layer == "deleted"


def test_deleted_entity_keeps_its_past(pipeline: Pipeline) -> None:
    """An entity deleted at the source can still be opened, and is said to be deleted."""
    pipeline.sql("DELETE FROM ads WHERE id = 101")
    pipeline.run()
    view = inspect_entity(pipeline.backends, "ad", "101", history=True)
    assert view.deleted_at_source and view.status == "not in the ads DB"
    assert next(c for c in view.columns if c.name == "name").history[1].value == "Ad 101"


def test_handler_error_is_shown_with_its_dead_letter(pipeline: Pipeline) -> None:
    """What a handler refused is said on the row, in its words, beside the dead letter."""
    pipeline.sql("UPDATE targeting_specs SET spec = '[]' WHERE ad_group_id = 10")
    pipeline.run()
    view = inspect_entity(pipeline.backends, "ad_group", "10")
    assert [(p.handler, p.reason) for p in view.problems] == [("targeting", "bad_targeting")]
    assert [letter.reason for letter in view.dead_letters] == ["bad_targeting"]


@pytest.mark.parametrize("kind", ["ad_group", "ad group", "ad-group", "adgroup", "Ad_Groups", "ad_groups"])
def test_kinds_as_people_type_them(pipeline: Pipeline, kind: str) -> None:
    """Spaces, dashes, capitals and plurals of a kind are understood."""
    assert table_of(pipeline.backends.catalog, kind).name == "ad_group"


def test_unknown_kind_and_id(pipeline: Pipeline) -> None:
    """Unknown kinds and ids are errors that say what there is."""
    with pytest.raises(UnknownKind, match="advertiser, campaign, ad_group"):
        inspect_entity(pipeline.backends, "banana", "1")
    for entity_id in ("999", "", "\x00", "9" * 18):
        with pytest.raises(UnknownEntity):
            inspect_entity(pipeline.backends, "ad", entity_id)


def test_invalid_source_text_can_be_shown(pipeline: Pipeline) -> None:
    """Invalid UTF-8 and a huge text in the ads DB are shown as far as can be, and hurt nothing else."""
    pipeline.sql(
        "UPDATE pins SET title = CAST(x'ff41' AS TEXT), description = hex(zeroblob(2000000)) WHERE id = 'pin-100'"
    )
    pipeline.run()
    view = inspect_entity(pipeline.backends, "pin", "pin-100")
    assert {d.column for d in view.differences} == {"title", "description"}
    assert len(view.model_dump_json()) < 100_000


def test_text_for_the_terminal(pipeline: Pipeline) -> None:
    """The views render as text with names, values and writers."""
    console = Console(width=150, record=True, file=io.StringIO())
    console.print(render_text(inspect_entity(pipeline.backends, "advertiser", "1", history=True)))
    console.print(render_status(pipeline_status(pipeline.backends)))
    text = console.export_text()
    assert "Acme & <Sons>" in text and "updater/ads_db" in text and "documents served: 6" in text
