"""The page of workflows in a real browser: a run is followed, started and cancelled by its forms."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Page

from batch_workflows.runs import RunStore
from batch_workflows.schedules import ScheduleStore
from tests.debug_ui.pipeline import Pipeline
from tests.debug_ui.test_browser import address, browser, page
from tests.debug_ui.test_workflows import going_on

pytestmark = pytest.mark.browser
__all__ = ["address", "browser", "page"]


def test_a_person_follows_starts_and_cancels_runs(pipeline: Pipeline, address: str, page: Page, tmp_path: Path) -> None:
    """From the menu to a run that goes on with its bar; it is cancelled; another is started, and waits."""
    going_on(pipeline)
    page.goto(address)
    page.get_by_role("link", name="Workflows").click()
    assert page.get_by_role("img", name="45 percent done").is_visible()
    page.screenshot(path=tmp_path / "workflows.png", full_page=True)
    page.get_by_role("link", name="test-count-1").first.click()
    assert "450 of 1,000 units" in page.locator("main").inner_text()
    page.screenshot(path=tmp_path / "run.png", full_page=True)
    page.get_by_role("link", name="cancel it").click()
    page.get_by_label("who you are").fill("on-call")
    page.get_by_label("why").fill("it is in the way")
    page.get_by_role("button", name="Cancel the run").click()
    page.get_by_text("by on-call: it is in the way").wait_for()
    assert RunStore(pipeline.backends.repo).get("test-count-1").cancel == "by on-call: it is in the way"
    page.get_by_role("link", name="workflows", exact=True).click()
    form = page.locator("#start")
    form.get_by_label("workflow", exact=True).select_option("collect-garbage")
    form.get_by_label("who you are").fill("me")
    form.get_by_label("why", exact=True).fill("to free space")
    form.get_by_role("button", name="Start").click()
    assert "It waits for the service" in page.locator("main").inner_text()
    page.screenshot(path=tmp_path / "waits.png", full_page=True)
    page.emulate_media(color_scheme="dark")
    page.goto(f"{address}/workflows")
    page.screenshot(path=tmp_path / "workflows_dark.png", full_page=True)


def test_a_person_sets_pauses_enables_and_removes_a_schedule(
    pipeline: Pipeline, address: str, page: Page, tmp_path: Path
) -> None:
    """From the list of workflows to its schedule; each button does what it says, and is refused without a name."""
    store = ScheduleStore(pipeline.backends.repo)
    page.goto(f"{address}/workflows")
    page.get_by_role("row", name="sync compare").get_by_role("link", name="set a schedule").click()
    form = page.locator("#set")
    form.get_by_label("every so often").fill("6h")
    form.get_by_role("button", name="Set it").click()
    assert store.all() == [], "the browser asks for the name first"
    form.get_by_label("who you are").fill("on-call")
    form.get_by_label("why").fill("to know what is unsynced")
    form.get_by_label("parameters as JSON, empty for none").fill('{"repair": false}')
    form.get_by_role("button", name="Set it").click()
    page.get_by_text("by on-call: to know what is unsynced").wait_for()
    assert [(str(s), s.parameters) for s in store.all()] == [("every 6h", {"repair": False})]
    page.screenshot(path=tmp_path / "schedule.png", full_page=True)
    for button, then in (("Pause", "Enable"), ("Enable", "Pause")):
        change = page.locator("#change")
        change.get_by_label("who you are").fill("on-call")
        change.get_by_label("why").fill("the disk is full")
        change.get_by_role("button", name=button).click()
        page.get_by_role("button", name=then).wait_for()
        assert bool(store.all()[0].paused) == (button == "Pause")
        page.screenshot(path=tmp_path / f"schedule_{button.lower()}.png", full_page=True)
    page.get_by_role("link", name="workflows", exact=True).click()
    page.screenshot(path=tmp_path / "workflows.png", full_page=True)
    page.get_by_role("link", name="every 6h").click()
    page.locator("#change").get_by_label("who you are").fill("on-call")
    page.locator("#change").get_by_label("why").fill("enough")
    page.get_by_role("button", name="Remove").click()
    page.get_by_text("runs when it is asked for").wait_for()
    assert store.all() == []
    page.emulate_media(color_scheme="dark")
    page.screenshot(path=tmp_path / "schedule_dark.png", full_page=True)
