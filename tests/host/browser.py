"""The real front end in a real Chromium, and what went wrong on its page."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from playwright.sync_api import ConsoleMessage, Locator, Page, Response, TimeoutError, expect, sync_playwright

from .provision import find_chromium
from .server import PACK_NAME

_FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]  # fmt: skip


@dataclass
class FrontEnd:
    """An open page. problems: its uncaught errors, and the console errors and failed requests that name our pack."""

    page: Page
    problems: list[str] = field(default_factory=list)

    @contextmanager
    def empty_graph(self) -> Iterator[Page]:
        """The page with an empty graph, before a server that keeps no results; nothing may have gone wrong on it by the end."""
        self.page.mouse.up()  # what a failed test has left
        close_dialogs(self.page)
        self.page.evaluate("app.api.fetchApi('/free', {method: 'POST', body: JSON.stringify({free_memory: true})})")
        self.page.evaluate("app.extensionManager.command.execute('Comfy.NewBlankWorkflow')")
        self.page.wait_for_function("app.graph.nodes.length === 0")
        yield self.page
        problems, self.problems = self.problems, []
        assert problems == []

    def note_console(self, message: ConsoleMessage) -> None:
        said = f"{message.text} ({message.location.get('url', '')})"
        ours = (
            PACK_NAME.lower() in re.sub(r"https://\S+", "", said).lower()
        )  # the front end asks the registry about packs
        if message.type == "error" and ours:
            self.problems.append(f"console: {said}")

    def note_response(self, response: Response) -> None:
        if response.status >= 400 and PACK_NAME.lower() in response.url.lower():
            self.problems.append(f"{response.status}: {response.url}")


@contextmanager
def open_front_end(url: str, settings: dict[str, object] | None = None) -> Iterator[FrontEnd]:
    """The front end that the server at url serves, ready for a user's clicks, with these settings of its own."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=_FLAGS)
        page = browser.new_page(viewport={"width": 1920, "height": 1080}, locale="en-US")
        page.set_default_timeout(120_000)  # other tests run beside it
        expect.set_options(timeout=30_000)
        front = FrontEnd(page)
        page.on("pageerror", lambda error: front.problems.append(f"page: {error}"))
        page.on("console", front.note_console)
        page.on("response", front.note_response)
        # A user who has seen the tutorial; for a new one, the template browser opens some time later.
        page.request.post(f"{url}/api/settings", data={"Comfy.TutorialCompleted": True} | (settings or {}))
        page.goto(url)
        page.wait_for_function("window.app?.graph")
        page.get_by_test_id("queue-button").wait_for()
        close_dialogs(page)  # release notes and the like
        try:
            yield front
        finally:
            browser.close()


def close_dialogs(page: Page) -> None:
    while page.get_by_role("dialog").count():
        page.keyboard.press("Escape")
        page.get_by_role("dialog").first.wait_for(state="hidden")


def click_for(opened: Locator, point: Callable[[], Sequence[float]], clicks: int = 1) -> None:
    """Click at a place until what this opens is there: a page that is too busy moves meanwhile, or sees two clicks as two
    single ones."""
    for _ in range(4):
        x, y = point()
        opened.page.mouse.click(x, y, click_count=clicks)
        with suppress(TimeoutError):
            opened.first.wait_for(timeout=5000)
            return
    expect(opened.first).to_be_visible()


def search_at(page: Page, place: tuple[int, int]) -> None:
    """Open the search for nodes with a double click."""
    click_for(page.get_by_role("dialog"), lambda: place, clicks=2)
