"""The console in a real browser (Chromium): each page, hostile text, changes, accessibility, a narrow screen.

Skipped where no Chromium is installed: on Debian, `apt-get install chromium`.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from console_world import ORDER, World, console_world
from support import pass_time, settled, until
from test_console_command import console

from waooaw_celery import MessageBus, MessageStatus

CHROMIUM = os.environ.get("WAOOAW_TEST_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: on Debian, apt-get install chromium"),
    pytest.mark.timeout(180),
]

#: The paths of all pages, for ``str.format`` with the facts of the world.
PATHS = (
    "/",
    "/agents",
    "/agents/{0.agent}",
    "/messages",
    "/messages/{0.handled}",
    "/messages/{0.failed}",
    "/conversations/{0.request}",
    "/dead-letters",
    "/dead-letters/{0.letter}",
    "/workflows",
    "/workflows/{0.workflow}",
    "/topics",
    "/limits",
    "/retention",
    "/ledger",
    "/changes",
)


@pytest.fixture(scope="module")
def world(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("console")
    with console_world(redis_url, f"sqlite:///{folder / 'ledger.sqlite'}", folder) as found:
        yield found


@pytest.fixture(scope="module")
def address(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with console(tmp_path_factory.mktemp("served"), world.env, "--allow-changes") as (_, url):
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def problems() -> list[str]:
    """Errors of scripts and violations of the Content-Security-Policy that the browser reported."""
    return []


@pytest.fixture
def page(browser: Any, problems: list[str]) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1200, "height": 850}, timezone_id="Europe/Berlin")
    found = context.new_page()
    found.set_default_timeout(20_000)
    found.on("pageerror", lambda error: problems.append(str(error)))
    found.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
    yield found
    context.close()


@pytest.mark.parametrize("path", PATHS)
def test_no_page_runs_what_a_message_has(
    page: Any, address: str, world: World, problems: list[str], path: str
) -> None:
    """No script of a payload runs, and none of the page's own is refused by its policy."""
    answer = page.goto(address + path.format(world))
    assert answer.status == 200
    assert page.evaluate("window.hacked") is None
    assert page.locator("img").count() == 0
    assert page.locator("h1").count() == 1
    assert problems == []


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_is_accessible(browser: Any, address: str, world: World, scheme: str) -> None:
    """axe-core finds no violation of WCAG 2.2 A and AA, contrast included, and no page is wider than a phone."""
    from axe_playwright_python.sync_playwright import Axe

    context = browser.new_context(color_scheme=scheme, viewport={"width": 1200, "height": 850}, bypass_csp=True)
    page, axe, found = context.new_page(), Axe(), []
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
    for path in PATHS:
        page.set_viewport_size({"width": 1200, "height": 850})
        page.goto(address + path.format(world))
        for summary in page.locator("main details > summary").all()[:6]:  # forms count too
            summary.click()
        result = axe.run(page, options={"runOnly": {"type": "tag", "values": tags}})
        for violation in result.response["violations"]:
            found.append(f"{path}: {violation['id']}: {violation['nodes'][0]['html'][:200]}")
        page.set_viewport_size({"width": 360, "height": 740})
        width = page.evaluate("document.documentElement.scrollWidth")
        if width > 360:
            found.append(f"{path}: {width} px wide on a screen of 360 px")
    context.close()
    assert found == []


def test_the_overview_is_live_and_can_be_paused(
    page: Any, address: str, world: World, problems: list[str]
) -> None:
    """It shows what happens without a reload; paused, it stays as it is."""
    page.goto(address)
    page.evaluate("document.querySelector('#live').firstElementChild.setAttribute('data-old', '1')")
    until(lambda: page.locator("[data-old]").count() == 0, "an event that replaces it")
    page.get_by_role("button", name="Pause").click()
    page.evaluate("document.querySelector('#live').firstElementChild.setAttribute('data-old', '2')")
    pass_time(5)  # two events
    assert page.locator("[data-old]").count() == 1
    page.get_by_role("button", name="Go on").click()
    until(lambda: page.locator("[data-old]").count() == 0, "the next event")
    assert problems == []


def test_a_live_page_that_gets_no_more_events_says_so(page: Any, world: World, tmp_path: Path) -> None:
    """Old figures must not look like new ones. Once the console answers again, the note goes away."""
    with console(tmp_path, world.env) as (_, url):
        page.goto(url)
        note = page.get_by_text("This page is not current")
        assert not note.is_visible()
    until(note.is_visible, "the note")
    with console(tmp_path, world.env, "--port", url.rpartition(":")[2]):
        until(lambda: not note.is_visible(), "the note to go")


def test_without_scripts_no_button_does_nothing(browser: Any, address: str, world: World) -> None:
    """What needs a script is shown by the script."""
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    for path in ("/", "/dead-letters"):
        page.goto(address + path)
        assert page.locator("h1").is_visible()
        assert page.locator("[hidden]:visible").count() == 0, path
    context.close()


def test_times_are_in_the_zone_of_the_reader(page: Any, address: str, world: World) -> None:
    """And in UTC at a click, also after the next page."""
    page.goto(f"{address}/messages/{world.handled}")
    shown = page.locator("time").first
    until(lambda: not shown.inner_text().endswith("UTC"), "local times")
    assert shown.get_attribute("title").endswith(" UTC")
    page.get_by_role("button", name="Europe/Berlin").click()
    assert shown.inner_text().endswith(" UTC")
    page.goto(f"{address}/messages")
    assert page.locator("td time").first.inner_text().endswith(" UTC")


def test_which_agent_is_slow(page: Any, address: str, world: World) -> None:
    """Two clicks: Agents, then the order `slowest`; its 95th percentile is in the first row."""
    MessageBus(world.app).send_to("shop", world.agent, {})  # in the last minute

    def has_speed() -> bool:
        page.goto(f"{address}/agents")
        return "ms" in page.locator("tbody tr").first.inner_text()

    until(has_speed, "the report of the worker", 60)
    page.goto(address)
    page.get_by_role("link", name="Agents", exact=True).click()
    page.get_by_role("link", name="slowest").click()
    first = page.locator("tbody tr").first
    assert world.agent in first.inner_text()
    assert re.search(r"\d ms|\d s", first.locator("td").nth(4).inner_text())


def test_what_happened_to_an_order(page: Any, address: str, world: World) -> None:
    """One search: the order's id leads to its conversation; a second click to the message with all its facts."""
    page.goto(address)
    page.get_by_role("searchbox").fill(ORDER)
    page.keyboard.press("Enter")
    page.wait_for_url("**/conversations/**")
    page.get_by_role("link", name=world.handled).first.click()
    page.wait_for_url("**/messages/**")
    assert "handled" in page.locator("main").inner_text()


def test_why_a_message_died_and_sending_it_again(page: Any, address: str, world: World) -> None:
    """Three clicks: Dead letters shows the reason, its message, and there: send it again, with a reason."""
    app = world.app
    message_id = MessageBus(app).send_to("shop", world.agent, {"fail": "no stock"}).message_id
    assert settled(app, message_id) is MessageStatus.FAILED
    until(lambda: app.dead_letters.list(message_id=message_id), "the dead letter")
    page.goto(address)
    page.get_by_role("link", name="Dead letters").click()
    assert "no stock" in page.locator("main").inner_text()
    page.get_by_role("link", name=message_id).click()
    page.locator("summary", has_text="Send it again").click()
    page.get_by_label("Reason, for the record").first.fill("stock is back")
    page.get_by_role("button", name="Send it again").click()
    page.wait_for_selector("[role=status]")
    assert "1 dead letter was sent again" in page.locator("[role=status]").inner_text()
    page.get_by_role("link", name="Changes").click()
    assert "stock is back" in page.locator("main").inner_text()


def test_many_dead_letters_are_selected_at_once(page: Any, address: str, world: World) -> None:
    """By the box above the table; what is discarded is gone."""
    app = world.app
    ids = [MessageBus(app).send_to("shop", world.agent, {"fail": "many"}).message_id for _ in range(3)]
    for message_id in ids:
        settled(app, message_id)
    until(lambda: len(app.dead_letters.list(reason="many")) == 3, "three dead letters")
    page.goto(f"{address}/dead-letters?reason=many")
    page.get_by_label("Select all").check()
    assert page.locator("input[name=id]:checked").count() == 3
    page.get_by_label("Reason, for the record").fill("seen")
    page.get_by_role("button", name="Discard").click()
    page.wait_for_selector("[role=status]")
    assert app.dead_letters.list(reason="many") == []


def test_the_keyboard_reaches_everything(page: Any, address: str) -> None:
    """The first Tab reaches the link to the content, and each link, field and button gets the focus in turn."""
    page.goto(f"{address}/messages")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    wanted = page.locator("main :is(a, button, input, select, summary):visible").count()
    seen = set()
    for _ in range(wanted + 30):
        page.keyboard.press("Tab")
        place = page.evaluate(
            "[...document.querySelectorAll('main :is(a, button, input, select, summary)')]"
            ".indexOf(document.activeElement)"
        )
        if place >= 0:
            seen.add(place)
    assert len(seen) >= wanted - 1
