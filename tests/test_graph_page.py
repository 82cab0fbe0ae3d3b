"""What people do with nodes in the real front end, with both ways that it draws them: save, copy, undo, put into subgraphs."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from playwright.sync_api import Page, TimeoutError, expect

from diffdirector.tests.host.layout import fit
from diffdirector.tests.host.provision import provision
from diffdirector.tests.host.server import Server
from diffdirector.tests.host.shipped import SIZE, SMALL, write_files
from diffdirector.tests.host.workflow import load_workflow
from diffdirector.tests.test_nodes import CONTRACT

pytestmark = [pytest.mark.slow, pytest.mark.browser]

# Every node once, with links wherever a socket fits an earlier node's, and with numbers and texts that are not the defaults.
EVERYTHING = """kinds => {
    kinds.forEach((kind, index) => {
        const node = LiteGraph.createNode(kind);
        node.pos = [(index % 8) * 480, Math.floor(index / 8) * 1100];
        app.graph.add(node);
        node.setSize([node.size[0] + 37, node.size[1] + 23]);
    });
    const nodes = [...app.graph.nodes];
    for (const node of nodes) {
        node.inputs.forEach((input, slot) => {
            const source = nodes.slice(0, nodes.indexOf(node)).find(other => other.outputs.some(({type}) => type === input.type));
            if (source && !input.widget) source.connect(source.outputs.findIndex(({type}) => type === input.type), node, slot);
        });
        for (const widget of node.widgets ?? []) {
            if (widget.type === 'number') widget.value = Math.min(widget.options.max, widget.value + (widget.options.step2 ?? 1));
            else if (['text', 'customtext'].includes(widget.type)) widget.value = `0: ${node.type} ${widget.name}`;
        }
    }
}"""
# What must not get lost of each node: its values by their names, where its links come from, its size.
CONTENT = """() => app.graph.nodes.map(node => ({
    type: node.type,
    size: [...node.size].map(Math.round),
    values: (node.widgets ?? []).filter(({serialize}) => serialize !== false).map(({name, value}) => [name, value]),
    links: node.inputs.filter(({link}) => link != null).map(({name, link}) => {
        const {origin_id, origin_slot} = app.graph.links.get(link);
        return [name, app.graph.getNodeById(origin_id).type, origin_slot];
    }),
}))"""
Content = list[dict[str, Any]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    base = tmp_path_factory.mktemp("graph-page")
    write_files(base)
    with Server(provision(), base) as running:
        yield running


@pytest.fixture
def everything(page: Page) -> Content:
    """What is in the graph that holds each of our nodes once."""
    page.evaluate(EVERYTHING, list(CONTRACT))
    fit(page)
    content = page.evaluate(CONTENT)
    assert len(content) == len(CONTRACT) and sum(len(node["links"]) for node in content) > len(CONTRACT) / 2
    return content


def sorted_content(content: Content) -> list[str]:
    return sorted(map(json.dumps, content))


def command(page: Page, name: str) -> None:
    page.evaluate("name => app.extensionManager.command.execute(name)", name)


def select(page: Page, condition: str = "true") -> None:
    """The nodes of the graph for which a condition on `node` holds, and the keyboard for the canvas."""
    page.evaluate(f"app.canvas.selectItems(app.graph.nodes.filter(node => {condition}))")
    page.evaluate("document.activeElement?.blur()")


def press_for(page: Page, keys: str, done: str) -> None:
    """Press keys, again where the page was too busy to take them; not where it is still at what they ask for."""
    before = page.evaluate("app.graph.nodes.length")
    for _ in range(3):
        page.keyboard.press(keys)
        with suppress(TimeoutError):
            page.wait_for_function(done, timeout=15_000)
            return
        if page.evaluate("app.graph.nodes.length") != before:
            break
    page.wait_for_function(done)


def test_a_saved_graph_is_there_again_after_a_reload(page: Page, server: Server, everything: Content) -> None:
    name = f"everything-{uuid.uuid4().hex}"
    page.evaluate("document.activeElement?.blur()")
    page.keyboard.press("Control+s")
    field = page.get_by_role("dialog").locator("input").first
    field.fill(name)
    field.press("Enter")
    expect(page.get_by_role("dialog")).to_have_count(0)
    path = server.base / "user" / "default" / "workflows" / f"{name}.json"
    page.wait_for_function("name => app.extensionManager.workflow.activeWorkflow.path.includes(name)", arg=name)
    assert [node["type"] for node in json.loads(path.read_text())["nodes"]] == [node["type"] for node in everything]

    page.reload()
    page.wait_for_function("count => window.app?.graph?.nodes.length === count", arg=len(everything))
    fit(page)
    assert page.evaluate(CONTENT) == everything


def test_copies_have_the_values_and_links_and_undo_takes_them_away(page: Page, everything: Content) -> None:
    page.mouse.move(900, 600)
    select(page)
    page.evaluate("localStorage.removeItem('litegrapheditor_clipboard')")
    press_for(page, "Control+c", "localStorage.getItem('litegrapheditor_clipboard')")
    page.wait_for_timeout(500)  # the browser's own clipboard follows
    press_for(page, "Control+v", f"app.graph.nodes.length === {2 * len(everything)}")
    fit(page)
    both = page.evaluate(CONTENT)
    assert sorted_content(both) == sorted_content(everything + everything)
    press_for(page, "Control+z", f"app.graph.nodes.length === {len(everything)}")
    assert sorted_content(page.evaluate(CONTENT)) == sorted_content(everything)
    press_for(page, "Control+y", f"app.graph.nodes.length === {2 * len(everything)}")
    assert sorted_content(page.evaluate(CONTENT)) == sorted_content(both)


def test_a_workflow_in_a_subgraph_runs(page: Page) -> None:
    page.evaluate("graph => app.loadGraphData(graph)", load_workflow("video-to-video"))
    page.evaluate(
        """values => {
            for (const node of app.graph.nodes)
                for (const widget of node.widgets ?? [])
                    if (widget.name in (values[node.type] ?? {})) widget.value = values[node.type][widget.name];
            window.ended = null;
            for (const kind of ['execution_success', 'execution_error'])
                app.api.addEventListener(kind, () => (window.ended = kind), {once: true});
        }""",
        SMALL,
    )
    fit(page)
    select(page, "!['MarkdownNote', 'DiffDirectorSaveAnimation'].includes(node.type)")
    command(page, "Comfy.Graph.ConvertToSubgraph")
    page.wait_for_function("app.graph.nodes.length === 3")
    page.get_by_test_id("queue-button").click()
    page.wait_for_function("window.ended")
    assert page.evaluate("window.ended") == "execution_success"
    page.wait_for_function(
        "size => [...document.querySelectorAll('video')].some(clip => clip.videoWidth === size)", arg=SIZE
    )
