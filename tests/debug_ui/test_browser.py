"""The pages in a real browser, served by the real stage: clicked through, without errors, on paper and by night."""

from __future__ import annotations

import shutil
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from debug_ui import stage
from messaging.metrics import StageMetrics
from messaging.stage import StageContext
from tests.debug_ui.pipeline import Pipeline
from tests.debug_ui.test_pages import broken_letter
from tests.support import IN_CI

pytestmark = pytest.mark.browser


@pytest.fixture
def address(pipeline: Pipeline) -> Iterator[str]:
    """The address of the stage, run as the supervisor runs it, but in a thread."""
    ready, ports = threading.Event(), []
    backends = pipeline.backends

    def on_ready(port: int) -> None:
        ports.append(port)
        ready.set()

    context = StageContext(
        name="debug_ui",
        worker=0,
        home=backends.home,
        catalog=backends.catalog,
        log=backends.log,
        metrics=StageMetrics(backends.home.metrics, "debug_ui-0"),
        stop=threading.Event(),
        ready=on_ready,
        settings={"port": "0"},
    )
    thread = threading.Thread(target=stage.run, args=(context, lambda: backends), daemon=True)
    thread.start()
    assert ready.wait(120)
    yield f"http://127.0.0.1:{ports[0]}"
    context.stop.set()
    thread.join(120)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium; without it the test is skipped loudly, and in CI it fails."""
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        text = "no Chromium on the PATH; install the package chromium to test the pages in a browser"
        if IN_CI:
            pytest.fail(text)
        warnings.warn(text, stacklevel=1)
        pytest.skip(text)
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=executable, args=[*arguments, "--no-first-run"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page that remembers every error and every request that leaves this machine."""
    opened = browser.new_page(viewport={"width": 1240, "height": 900})
    faults: list[str] = []
    opened.on("console", lambda message: faults.append(message.text) if message.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: faults.append(str(error)))
    # A refresh that is under way when the person clicks is aborted: that is no fault.
    opened.on("requestfailed", lambda r: faults.append(f"failed: {r.url}") if r.failure != "net::ERR_ABORTED" else None)
    opened.on("request", lambda r: faults.append(f"foreign: {r.url}") if "//127.0.0.1:" not in r.url else None)
    yield opened
    opened.close()
    assert faults == []


def test_a_person_finds_the_cause(pipeline: Pipeline, address: str, page: Page, tmp_path: Path) -> None:
    """From the first page by name to the campaign, its cause, its ad group and ad, and what serving has."""
    pipeline.sql("UPDATE ad_groups SET bid_micros = NULL WHERE id = 10")
    pipeline.run()
    page.goto(address)
    page.get_by_label("Name, title or id").fill("campaign")
    page.locator("main").get_by_role("button", name="Find").click()
    page.screenshot(path=tmp_path / "home.png", full_page=True)
    page.get_by_role("link", name="1", exact=True).click()
    diagnosis = page.locator("#diagnosis")
    assert "cause: ad groups" in diagnosis.inner_text()
    assert "UPDATE ad_groups SET bid_micros" in diagnosis.inner_text()
    page.screenshot(path=tmp_path / "campaign.png", full_page=True)
    page.locator("main").get_by_role("link", name="ad group 10").click()
    assert page.get_by_role("heading", name="Group 1").is_visible()
    page.screenshot(path=tmp_path / "ad_group.png", full_page=True)
    page.locator("main").get_by_role("link", name="ad 100", exact=True).click()
    assert "ad group 10 has no bid above 0" in page.locator("main").inner_text()
    page.screenshot(path=tmp_path / "ad.png", full_page=True)


def test_healthy_ad_with_timeline(pipeline: Pipeline, address: str, page: Page, tmp_path: Path) -> None:
    """A served ad shows its timeline, its document and its history, by day and by night."""
    pipeline.sql("UPDATE ad_groups SET bid_micros = 1500000 WHERE id = 20")
    pipeline.run()
    page.goto(f"{address}/entity/ad/200")
    assert "byte for byte" in page.locator("main").inner_text()
    assert page.locator("#timeline svg rect").count() == 9
    page.screenshot(path=tmp_path / "healthy_ad.png", full_page=True)
    page.emulate_media(color_scheme="dark")
    page.screenshot(path=tmp_path / "healthy_ad_dark.png", full_page=True)
    page.goto(f"{address}/entity/ad_group/20")
    page.locator("summary", has_text="1 older").first.click()
    assert "1.00 (1000000)" in page.locator("main").inner_text()


def test_search_in_the_browser(address: str, page: Page, tmp_path: Path) -> None:
    """The form searches, explains an ad, and takes JSON."""
    page.goto(f"{address}/search")
    page.get_by_label("age", exact=True).fill("30-34")
    page.get_by_label("gender").fill("M")
    page.get_by_label("interests").fill("16")
    page.get_by_label("results").fill("4")
    page.get_by_label("explain ad").fill("301")
    page.locator("main").get_by_role("button", name="Search").click()
    assert page.get_by_role("heading", name="4 of 6 ads that fit").is_visible()
    assert "not in the answer" in page.locator("#explain").inner_text()
    page.screenshot(path=tmp_path / "search.png", full_page=True)
    page.goto(f"{address}/search")
    page.locator("summary", has_text="as JSON").click()
    page.get_by_label("Request as JSON").fill('{"age": "30-34", "gender": "M", "interests": [20], "text": "shoes"}')
    page.locator("main").get_by_role("button", name="Search").click()
    assert page.get_by_role("heading", name="6 of 6 ads that fit").is_visible()


def test_health_and_dead_letters(pipeline: Pipeline, address: str, page: Page, tmp_path: Path) -> None:
    """Health refreshes by itself, leads to the dead letters, and one of them is replayed by its button."""
    broken_letter(pipeline)
    page.goto(f"{address}/health?refresh=1")
    seen = page.locator("p.sub").inner_text()
    page.wait_for_function("seen => document.querySelector('p.sub').innerText !== seen", arg=seen)
    page.goto(f"{address}/health?refresh=0")
    page.screenshot(path=tmp_path / "health.png", full_page=True)
    page.get_by_role("link", name="dead-lettered by updater").click()
    page.screenshot(path=tmp_path / "dead_letters.png", full_page=True)
    page.get_by_role("link", name="open").click()
    page.get_by_role("button", name="Replay").click()
    assert "was published to updates.high" in page.locator(".banner.ok").inner_text()
    page.screenshot(path=tmp_path / "dead_letter.png", full_page=True)
    page.locator("nav").get_by_role("link", name="Dependencies").click()
    page.screenshot(path=tmp_path / "dependencies.png", full_page=True)
    page.set_viewport_size({"width": 390, "height": 800})
    page.goto(f"{address}/entity/campaign/2")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.screenshot(path=tmp_path / "phone.png", full_page=True)


def test_stage_answers_only_loopback_names(address: str) -> None:
    """The stage itself refuses a foreign Host header."""
    assert httpx.get(address, headers={"host": "evil.example"}).status_code == 421
    assert httpx.get(f"{address}/api/status").json()["documents"] == 6
