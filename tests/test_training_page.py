"""A training as its user sees it in the real front end, with both ways that the front end draws nodes."""

from __future__ import annotations

import io
import re
import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Locator, Page, expect
from safetensors import safe_open

from diffdirector.tests.demo.world import write_dataset
from diffdirector.tests.host.browser import FrontEnd
from diffdirector.tests.host.checkpoints import CHECKPOINT, MOTION_MODEL, link_models
from diffdirector.tests.host.prompts import node
from diffdirector.tests.host.provision import provision
from diffdirector.tests.host.server import Server

pytestmark = [pytest.mark.slow, pytest.mark.browser]

TRAIN = "DiffDirectorTrainMotionDirector"
DISPLAY = ".diffdirector-training"
STATUS, CHART, CANCEL = (f"{DISPLAY} {part}" for part in (".status", ".chart", "button"))
EMPTY = "The losses and a sample appear here."
SECONDS = 1000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    base = tmp_path_factory.mktemp("training-page")
    link_models(base)
    write_dataset(base / "input" / "filmed", seed=4, n=1, frames=8)
    with Server(provision(), base) as running:
        yield running


def open_training(page: Page, name: str, steps: int) -> str:
    """A workflow that trains; it has a name of its own, so that nothing is resumed. Returns that name."""
    name = f"{name}-{uuid.uuid4().hex}"
    prompt = {
        "1": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "2": node("DiffDirectorLoadMotionModel", motion_model_name=MOTION_MODEL),
        "3": node("DiffDirectorVideoDataset", source="filmed", frames=8, width=64, height=64),
        "4": node(
            TRAIN, model=["1", 0], clip=["1", 1], vae=["1", 2], motion_model=["2", 0], dataset=["3", 0], name=name,
            steps=steps, rank=4, sample_prompt="", settings=["5", 0],
        ),
        "5": node("DiffDirectorMotionDirectorSettings", spatial_probability=1.0, gradient_checkpointing=False),
    }  # fmt: skip
    page.evaluate("prompt => app.loadApiJson(prompt, 'train')", prompt)
    page.evaluate("app.loadGraphData(app.graph.serialize())")  # as a user's own workflow: with an id
    show_node(page)
    expect(page.locator(STATUS)).to_have_text(EMPTY)
    return name


def show_node(page: Page) -> None:
    """The training node at its real size; nodes that are far away show no charts."""
    page.evaluate(
        """() => {
            const [x, y] = app.graph.getNodeById(4).pos;
            Object.assign(app.canvas.ds, {scale: 1, offset: [400 - x, 120 - y]});
            app.canvas.setDirty(true, true);
        }"""
    )
    page.wait_for_timeout(500)


def in_words(page: Page) -> str:
    return page.locator(CHART).get_attribute("aria-label") or ""


def pixels_in_colour(page: Page, series: str) -> int:
    """Of a screenshot of the chart, those in the colour that the legend gives a loss."""
    legend = page.locator(f"{DISPLAY} .legend [data-series={series}]")
    colour = [int(part) for part in re.findall(r"\d+", legend.evaluate("entry => getComputedStyle(entry).color"))]
    picture = np.asarray(Image.open(io.BytesIO(page.locator(CHART).screenshot())).convert("RGB")).astype(int)
    return int((np.abs(picture - colour).max(axis=-1) < 24).sum())


def test_the_losses_grow_while_it_runs_and_are_there_again_after_a_reload(page: Page) -> None:
    open_training(page, "seen", steps=8)
    before = page.evaluate("app.graph.serialize()")
    status, cancel = page.locator(STATUS), page.locator(CANCEL)
    page.get_by_test_id("queue-button").click()
    expect(status).to_contain_text(re.compile("encoding clips|preparing"), timeout=120 * SECONDS)
    expect(status).to_contain_text(
        re.compile(r"step [2-7]/8 · [\d.]+ (it/s|s/it) · (\d+ min )?\d+ s left · \d.\d GB"), timeout=120 * SECONDS
    )
    early = in_words(page)
    assert all(pixels_in_colour(page, series) > 50 for series in ("temporal", "spatial"))

    page.reload()  # halfway: the next message shows everything again
    expect(status).to_contain_text(re.compile("step [2-8]/8"), timeout=120 * SECONDS)
    expect(status).to_contain_text(re.compile("finished · step 8/8"), timeout=120 * SECONDS)
    expect(cancel).to_be_disabled()
    final = in_words(page)
    assert re.fullmatch(
        r"Losses from step 1 to 8: looks \(spatial\) [\d.]+, at the end [\d.]+; motion \(temporal\) [\d.]+, at the end [\d.]+",
        final,
    )
    assert early != final
    show_node(page)
    assert all(pixels_in_colour(page, series) > 50 for series in ("temporal", "spatial"))
    assert page.evaluate("app.rootGraph.getNodeById(4).widgets.at(-1).name") == "training"

    page.reload()  # at the end: from the server's history
    expect(status).to_contain_text(re.compile("finished · step 8/8"), timeout=20 * SECONDS)
    assert in_words(page) == final
    after = page.evaluate("app.graph.serialize()")
    values = [len(node.get("widgets_values") or []) for node in before["nodes"]]
    assert [len(node.get("widgets_values") or []) for node in after["nodes"]] == values
    assert "finished" not in str(after)
    assert "training" not in page.evaluate("app.graphToPrompt()")["output"]["4"]["inputs"]


def test_cancel_keeps_what_was_learnt_and_says_so(page: Page, server: Server) -> None:
    name = open_training(page, "cancelled", steps=500)
    status, cancel = page.locator(STATUS).first, page.locator(CANCEL)
    expect(cancel).to_have_count(0)
    page.evaluate("app.canvas.copyToClipboard([app.graph.getNodeById(4)]); app.canvas.pasteFromClipboard()")
    page.get_by_test_id("queue-button").click()
    expect(status).to_contain_text(re.compile(r"step ([3-9]|\d\d+)/500"), timeout=120 * SECONDS)
    expect(cancel).to_be_enabled()  # one alone: the copy trains nothing
    expect(page.locator(".end span")).to_have_text(re.compile(r"keeps all \d+ steps"))
    cancel.click()
    expect(cancel).to_be_disabled()
    expect(status).to_contain_text("cancelled, what was learnt is kept", timeout=30 * SECONDS)
    steps = steps_in(status)
    assert trained_steps(server, name) == steps and f"from step 1 to {steps}" in in_words(page)

    undo(page)
    show_node(page)
    expect(status).to_contain_text(f"cancelled, what was learnt is kept · step {steps}/500")
    expect(page.locator(STATUS).nth(1)).to_have_text(EMPTY)

    page.get_by_test_id("queue-button").click()
    expect(status).to_contain_text(re.compile(rf"^step (?!{steps}/)\d+/500"), timeout=120 * SECONDS)
    cancel.focus()
    expect(cancel).to_be_focused()
    page.keyboard.press("Enter")
    expect(status).to_contain_text("cancelled, what was learnt is kept", timeout=30 * SECONDS)
    assert trained_steps(server, name) == steps_in(status) > steps


def undo(page: Page) -> None:
    """Do something and undo it, which makes all nodes anew."""
    page.evaluate("app.graph.getNodeById(4).title = 'of another name'")
    page.mouse.click(1700, 950)
    page.keyboard.press("Control+z")
    page.wait_for_function("app.graph.getNodeById(4).title !== 'of another name'")


def steps_in(status: Locator) -> int:
    found = re.search(r"step (\d+)/", status.inner_text())
    assert found
    return int(found[1])


def trained_steps(server: Server, name: str) -> int:
    with safe_open(server.base / "models" / "animatediff_motion_lora" / f"{name}.safetensors", "pt") as file:
        return int(file.metadata()["trained_steps"])


def message(**changes: Any) -> dict[str, Any]:
    """What nodes/live.py sends, for a node that is not run here."""
    sent = {
        "node": "1", "prompt": "a run", "workflow": None, "phase": "", "step": 120, "steps": 300, "rate": 2.1, "left": 85.2, "memory": 3.2e9, "sample": None,
        "series": {"loss": [[step, 1 / step] for step in range(1, 121)], "validation": [[50, 0.5], [100, 0.25]]},
    }  # fmt: skip
    return sent | changes


def show(page: Page, **changes: Any) -> None:
    page.evaluate("sent => app.api.dispatchCustomEvent('diffdirector.training', sent)", message(**changes))


def test_the_sample_loops_below_the_losses(page: Page, server: Server) -> None:
    page.evaluate("app.graph.add(LiteGraph.createNode('DiffDirectorTrainMotionModule'))")
    node_id = page.evaluate("String(app.graph.nodes[0].id)")
    height = page.evaluate("app.graph.nodes[0].size[1]")
    folder = server.base / "temp" / "DiffDirector"
    folder.mkdir(parents=True, exist_ok=True)
    first, *rest = (Image.new("RGB", (48, 48), (level, 0, 0)) for level in range(0, 250, 30))
    first.save(folder / "sample.webp", save_all=True, append_images=rest, duration=125, loop=0)
    show(page, node=node_id)
    expect(page.locator(STATUS)).to_have_text("step 120/300 · 2.1 it/s · 1 min 25 s left · 3.2 GB")
    expect(page.locator(f"{DISPLAY} .legend [data-series=validation]")).to_have_text("validation 0.250")
    expect(page.locator(f"{DISPLAY} img")).to_have_count(0)

    sample = {
        "filename": "sample.webp",
        "subfolder": "DiffDirector",
        "type": "temp",
        "step": 100,
        "prompt": "a <b>ball</b>",
    }
    show(page, node=node_id, sample=sample)
    page.wait_for_function("document.querySelector('.diffdirector-training img')?.naturalWidth === 48")
    expect(page.locator(f"{DISPLAY} figcaption")).to_have_text("after step 100: a <b>ball</b>")
    expect(page.locator(f"{DISPLAY} img")).to_be_visible()
    assert page.evaluate("app.graph.nodes[0].size[1]") > height + 200
    inside = page.locator(f"{DISPLAY} img").bounding_box()
    assert inside and inside["height"] > 50

    show(page, node=node_id, rate=0.25, left=3 * 3600 + 120)
    expect(page.locator(STATUS)).to_have_text("step 120/300 · 4.0 s/it · 3 h 2 min left · 3.2 GB")


@pytest.fixture
def pair(page: Page) -> Page:
    """Two training nodes, 1 and 2, and losses in the first."""
    page.evaluate(
        """() => {
            for (const left of [0, 500]) {
                const node = LiteGraph.createNode('DiffDirectorTrainMotionModule');
                node.pos = [left, 0];
                app.graph.add(node);
            }
        }"""
    )
    zoom_to(page, 1)
    show(page, node="1")
    expect(page.locator(STATUS).first).to_contain_text("step 120/300")
    return page


def zoom_to(page: Page, scale: float) -> None:
    """With the chart of node 1 in the middle of the window."""
    page.evaluate(
        """scale => {
            Object.assign(app.canvas.ds, {scale, offset: [800 / scale, 500 / scale - 550]});
            app.canvas.setDirty(true, true);
        }""",
        scale,
    )
    page.wait_for_timeout(400)


def test_trainings_do_not_mix(pair: Page) -> None:
    first, second = pair.locator(STATUS).all()
    expect(second).to_have_text(EMPTY)
    show(pair, node="2", step=7, prompt="a later run")
    expect(second).to_contain_text("step 7/300")
    expect(first).to_contain_text("step 120/300")
    show(pair, node="2", step=9, workflow="that of another tab")
    show(pair, node="77", step=9)
    show(pair, node="7:7", step=9)
    expect(second).to_contain_text("step 7/300")
    pair.evaluate("app.api.dispatchCustomEvent('execution_interrupted', {prompt_id: 'a later run', node_id: '2'})")
    expect(second).to_contain_text("cancelled, what was learnt is kept · step 7/300")
    expect(first).to_contain_text(re.compile("^step 120/300"))
    assert [button.is_enabled() for button in pair.locator(CANCEL).all()] == [True, False]
    pair.evaluate("app.api.dispatchCustomEvent('status', {exec_info: {queue_remaining: 0}})")
    expect(first).to_contain_text("the server was stopped, the last save is kept · step 120/300")
    expect(pair.locator(CANCEL).first).to_be_disabled()


def test_in_a_subgraph_it_goes_on(pair: Page) -> None:
    pair.evaluate("app.graph.convertToSubgraph(new Set([app.graph.getNodeById(1)]))")
    pair.evaluate(
        "() => { const node = app.graph.nodes.find(node => node.subgraph); app.canvas.openSubgraph(node.subgraph, node) }"
    )
    zoom_to(pair, 1)
    status = pair.locator(STATUS).filter(visible=True)
    expect(status).to_contain_text("step 120/300")
    for step, node_id in enumerate(["1", "3:1"], 121):  # where it was when the run began
        show(pair, node=node_id, step=step)
        expect(status).to_contain_text(f"step {step}/300")
    pair.evaluate("app.canvas.setGraph(app.rootGraph)")
    expect(pair.locator(STATUS).filter(visible=True)).to_have_text(EMPTY)


@pytest.mark.parametrize("scale", [0.5, 1, 1.5])
def test_values_under_the_cursor(pair: Page, scale: float) -> None:
    """At both ends and in the middle, where validation has its values; drawn, then moved under the mouse by the host."""
    zoom_to(pair, scale)
    area = pair.locator(f"{CHART} .u-over")
    legend = pair.locator(f"{DISPLAY} .legend")
    for share, text, validation in [(0.002, "step 1", 0.5), (0.5, r"step (60|61)", 0.5), (0.998, "step 120", 0.25)]:
        pair.mouse.move(5, 500)
        box = area.bounding_box()
        assert box
        pair.mouse.move(box["x"] + share * box["width"], box["y"] + box["height"] / 2)
        expect(pair.locator(f"{CHART} .at")).to_have_text(re.compile(f"^{text}$"))
        expect(legend).to_contain_text(f"validation {validation:.3f}")
    pair.mouse.move(5, 500)
    expect(pair.locator(f"{CHART} .at")).to_have_text("")
    expect(legend).to_contain_text("validation 0.250")


def test_the_chart_follows_the_theme(pair: Page) -> None:
    def colours() -> set[str]:
        return {str(pixels_in_colour(pair, series) > 50) for series in ("loss", "validation")}

    def palette(name: str) -> None:
        pair.evaluate("name => app.extensionManager.setting.set('Comfy.ColorPalette', name)", name)
        pair.wait_for_timeout(300)

    try:
        for name in ("light", "dark"):
            palette(name)
            assert colours() == {"True"}, name
    finally:
        palette("dark")


def test_the_panel_stays_in_its_node_and_the_size_is_the_users(pair: Page) -> None:
    def boxes() -> tuple[Any, list[float]]:
        pair.evaluate("app.canvas.setDirty(true, true)")
        pair.wait_for_timeout(400)
        panel = pair.locator(DISPLAY).first.bounding_box()
        bounds = pair.evaluate(
            """() => {
                const [left, top] = app.graph.getNodeById(1).pos, [width, height] = app.graph.getNodeById(1).size;
                const canvas = app.canvas.canvas.getBoundingClientRect();
                const [x, y] = app.canvas.ds.convertOffsetToCanvas([left, top]);
                return [canvas.left + x, canvas.top + y, canvas.left + x + width, canvas.top + y + height];
            }"""
        )
        assert panel
        return panel, bounds

    for _ in range(2):  # grown by itself, and as small as it gets
        panel, (left, top, right, bottom) = boxes()
        assert left < panel["x"] and panel["x"] + panel["width"] < right
        assert top < panel["y"] and panel["y"] + panel["height"] < bottom
        pair.evaluate("() => { const node = app.graph.getNodeById(1); node.setSize(node.computeSize()) }")
    small = pair.locator(f"{CHART} canvas").bounding_box()
    pair.evaluate("app.graph.getNodeById(1).setSize([700, 1400])")
    panel, (left, top, right, bottom) = boxes()
    large = pair.locator(f"{CHART} canvas").bounding_box()
    assert small and large and large["width"] > small["width"] + 200 and large["height"] > small["height"] + 150
    assert panel["y"] + panel["height"] < bottom
    show(pair, node="1", step=121)
    assert pair.evaluate("[...app.graph.getNodeById(1).size]") == [700, 1400]


def test_nothing_polls(opened: FrontEnd, pair: Page) -> None:
    asked: list[str] = []
    opened.page.on("request", lambda request: asked.append(request.url))
    pair.wait_for_timeout(1500)
    assert asked == []
