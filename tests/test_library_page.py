"""Every node as it is found in the real front end: in its library, by a double click on the canvas, and its help beside it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, TimeoutError, expect

from diffdirector.tests.host.browser import FrontEnd, search_at
from diffdirector.tests.host.provision import provision
from diffdirector.tests.host.server import Server

pytestmark = [pytest.mark.slow, pytest.mark.browser]

LIBRARY = "app.extensionManager.command.execute('Workspace.ToggleSidebarTab.node-library')"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(provision(), tmp_path_factory.mktemp("library-page")) as running:
        yield running


@pytest.fixture(scope="module")
def nodes(server: Server) -> dict[str, str]:
    """The names of our nodes that are found, by their types: those that stand for other packs' are not."""
    ours = {kind: node for kind, node in server.get("/object_info").items() if kind.startswith("DiffDirector")}
    found = {kind: node["display_name"] for kind, node in ours.items() if not node["deprecated"]}
    assert len(found) > 30 and len(found) == len(set(found.values()))
    return found


def test_every_node_is_dragged_out_of_the_library(page: Page, nodes: dict[str, str]) -> None:
    page.evaluate(LIBRARY)
    field, canvas = page.locator("[class*=sidebar] input").first, page.locator("#graph-canvas")
    for kind, name in nodes.items():
        field.fill(name)
        item = page.get_by_role("treeitem").filter(has=page.get_by_text(name, exact=True)).last
        for _ in range(5):  # the list may be drawn anew beneath the mouse
            page.evaluate("app.graph.clear()")
            with contextlib.suppress(TimeoutError):
                item.drag_to(canvas, target_position={"x": 1000, "y": 400}, timeout=5000)
                page.wait_for_function("app.graph.nodes.length", timeout=3000)
            if page.evaluate("app.graph.nodes.map(node => node.type)") == [kind]:
                break
        assert page.evaluate("app.graph.nodes.map(node => node.type)") == [kind]
        assert page.evaluate("[...app.canvas.ds.convertOffsetToCanvas(app.graph.nodes[0].pos)]") == [1000, 400]
    page.evaluate(LIBRARY)


def test_every_node_is_found_by_double_click(page: Page, nodes: dict[str, str]) -> None:
    dialog = page.get_by_role("dialog")
    for kind in nodes:
        search_at(page, (1000, 600))
        dialog.locator("input[type=text], input:not([type])").first.fill(nodes[kind])
        page.get_by_test_id("result-item").filter(has=page.get_by_text(nodes[kind], exact=True)).first.click()
        expect(dialog).to_have_count(0)
        page.mouse.move(1000, 600, steps=4)  # it hangs on the cursor until it is put down
        page.mouse.click(1000, 600)
        page.wait_for_function(
            "kind => app.graph.nodes.some(node => node.type === kind && !node.flags.ghost)", arg=kind
        )
        page.evaluate("app.graph.clear()")


def test_the_picture_of_a_help_page_is_seen_in_the_panel(opened: FrontEnd, page: Page) -> None:
    page.evaluate(
        """() => {
            app.graph.add(LiteGraph.createNode('DiffDirectorLoopClip'));
            Object.assign(app.canvas.ds, {scale: 1, offset: [600, 400]});
            app.canvas.selectItems([...app.graph.nodes]);
        }"""
    )
    page.get_by_test_id("info-button").click()
    expect(page.get_by_text("To have the clip sampled as a loop")).to_be_visible()
    picture = page.get_by_alt_text("Loop Clip in a graph")
    expect(picture).to_be_visible()
    assert picture.evaluate("async picture => { await picture.decode(); return picture.naturalWidth }") == 800
    box = picture.bounding_box()
    assert box and box["width"] > 200
    # the host asks for a page in the user's language first
    assert opened.problems and all("/docs/DiffDirectorLoopClip/en.md" in problem for problem in opened.problems)
    opened.problems.clear()
