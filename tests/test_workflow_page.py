"""Every shipped workflow in the real front end, with both ways that it draws nodes: opened, looked at, and run with small models."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Page

from diffdirector.tests.host.layout import faults, fit
from diffdirector.tests.host.provision import ROOT, provision
from diffdirector.tests.host.server import Server
from diffdirector.tests.host.shipped import FEW_STEPS, FRAMES, SIZE, SMALL, TRAINING, WORKFLOWS, decoded, write_files
from diffdirector.tests.host.workflow import load_workflow, to_prompt

pytestmark = [pytest.mark.slow, pytest.mark.browser]

SCREENSHOTS = ROOT / "output" / "screenshots"
SAVERS = ("DiffDirectorSaveAnimation", "SaveAnimatedWEBP", "SaveVideo")
PREVIEW, DATASET = "Preview of the motion", SMALL["DiffDirectorVideoDataset"]
# What a run tells the page, from now on.
RECORD = """() => {
    window.ran = {ended: null, outputs: {}, steps: {}};
    if (window.recording) return;
    window.recording = true;
    app.api.addEventListener('executed', ({detail}) => (ran.outputs[detail.node] = detail.output));
    app.api.addEventListener('progress', ({detail}) => (ran.steps[detail.node] = [detail.value, detail.max]));
    for (const kind of ['execution_success', 'execution_error'])
        app.api.addEventListener(kind, ({detail}) => (ran.ended = [kind, detail.exception_message]));
}"""
SET = """values => {
    for (const node of app.graph.nodes)
        for (const widget of node.widgets ?? [])
            if (widget.name in (values[node.type] ?? {})) widget.value = values[node.type][widget.name];
}"""
# Whether a saved file is seen: in the node's canvas, or in an element.
SEEN = """([id, file, size]) => [...(app.graph.getNodeById(id).imgs ?? []), ...document.querySelectorAll('video, img')]
    .some(seen => (seen.currentSrc || seen.src).includes(file) && (seen.videoWidth || seen.naturalWidth) === size)"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    base = tmp_path_factory.mktemp("workflow-page")
    write_files(base)
    with Server(provision(), base) as running:
        yield running


@pytest.fixture(scope="module")
def definitions(server: Server) -> dict[str, Any]:
    return server.get("/object_info")


def open_graph(page: Page, graph: dict[str, Any]) -> None:
    page.evaluate("graph => app.loadGraphData(graph)", graph)
    page.wait_for_function("count => app.graph.nodes.length === count", arg=len(graph["nodes"]))
    assert page.evaluate("app.graph.nodes.filter(node => !(node.type in LiteGraph.registered_node_types))") == []


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_shipped_workflow_opens_and_is_tidy(page: Page, definitions: dict[str, Any], name: str) -> None:
    """As it is met by a user who has none of its files yet, for which nodes grow."""
    saved = load_workflow(name)
    open_graph(page, saved)
    fit(page)
    assert faults(page) == []
    exported = json.loads(page.evaluate("async () => JSON.stringify(await app.graphToPrompt())"))
    assert exported["output"] == to_prompt(saved, definitions)
    if not page.evaluate("LiteGraph.vueNodesMode"):  # else the nodes that grew have other sizes
        del exported["workflow"]["extra"]["ds"]
        assert exported["workflow"] == saved


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_shipped_workflow_runs_and_shows_its_clip(page: Page, server: Server, name: str) -> None:
    way = "vue" if page.evaluate("LiteGraph.vueNodesMode") else "canvas"
    page.evaluate("graph => app.loadGraphData(graph)", load_workflow(name))
    page.evaluate(SET, SMALL | {TRAINING: SMALL[TRAINING] | {"name": uuid.uuid4().hex}})
    open_graph(page, page.evaluate("app.graph.serialize()"))  # without the files that are not there
    page.evaluate(RECORD)
    page.get_by_test_id("queue-button").click()
    page.wait_for_function("ran.ended", timeout=600_000)  # a training, on a busy machine
    ran = page.evaluate("ran")
    assert ran["ended"][0] == "execution_success", ran["ended"]

    nodes = page.evaluate("app.graph.nodes.map(node => [String(node.id), node.type, node.title])")
    for number, kind, title in nodes:
        if kind == "KSampler":
            assert ran["steps"][number] == [{"freeinit": 6}.get(name, FEW_STEPS.get(name, 2))] * 2
        if kind not in SAVERS:
            continue
        (file,) = ran["outputs"][number]["images"]
        frames = decoded(server.file(file), file["filename"])
        count, size = (DATASET["frames"], DATASET["width"]) if title == PREVIEW else (FRAMES, SIZE)
        assert frames.shape == (count, size, size, 3)
        assert all(np.abs(after - before).max() > 0 for before, after in zip(frames, frames[1:], strict=False))
        page.wait_for_function(SEEN, arg=[number, file["filename"], size])

    fit(page)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}-{way}.png")
    if TRAINING not in [kind for _, kind, _ in nodes]:  # a training's nodes grow with what they have to show
        assert faults(page) == []
