"""A training as its user sees it in the real front end, with both ways that the front end draws nodes."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Locator, Page, expect
from safetensors import safe_open

from diffdirector.tests.demo.world import write_dataset
from diffdirector.tests.host.checkpoints import CHECKPOINT, MOTION_MODEL, link_models
from diffdirector.tests.host.prompts import node
from diffdirector.tests.host.provision import provision
from diffdirector.tests.host.server import Server

pytestmark = pytest.mark.slow

TRAIN = "DiffDirectorTrainMotionDirector"
DISPLAY, STATUS = ".diffdirector-training", ".diffdirector-training .status"
SECONDS = 1000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    base = tmp_path_factory.mktemp("training-page")
    link_models(base)
    write_dataset(base / "input" / "filmed", seed=4, n=1, frames=8)
    with Server(provision(), base) as running:
        yield running


def open_training(page: Page, name: str, steps: int) -> None:
    """A workflow that trains; it has a name of its own, so that nothing is resumed."""
    name = f"{name}-{page.evaluate('app.extensionManager.setting.get(`Comfy.VueNodes.Enabled`)')}".lower()
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
    expect(page.locator(STATUS)).to_have_text("The losses and a sample appear here.")


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


def drawn(page: Page) -> dict[str, str]:
    """The smoothed line of each loss."""
    paths = page.locator(f"{DISPLAY} path.smooth").all()
    return {path.get_attribute("data-series") or "": path.get_attribute("d") or "" for path in paths}


def pixels_in_colour(chart: Locator, series: str) -> int:
    """Of a screenshot of the chart, those in the colour that the legend gives a loss."""
    legend = chart.page.locator(f"{DISPLAY} .legend [data-series={series}]")
    colour = [int(part) for part in re.findall(r"\d+", legend.evaluate("entry => getComputedStyle(entry).color"))]
    picture = np.asarray(Image.open(io.BytesIO(chart.screenshot())).convert("RGB")).astype(int)
    return int((np.abs(picture - colour).max(axis=-1) < 24).sum())


def test_the_losses_grow_while_it_runs_and_are_there_again_after_a_reload(page: Page) -> None:
    open_training(page, "seen", steps=8)
    before = page.evaluate("app.graph.serialize()")
    status, chart = page.locator(STATUS), page.locator(f"{DISPLAY} .chart")
    page.get_by_test_id("queue-button").click()
    expect(status).to_contain_text(re.compile("encoding clips|preparing"), timeout=120 * SECONDS)
    expect(status).to_contain_text(
        re.compile(r"step [2-7]/8 · [\d.]+ (it/s|s/it) · (\d+ min )?\d+ s left · \d.\d GB"), timeout=120 * SECONDS
    )
    early = drawn(page)
    assert set(early) == {"spatial", "temporal"} and all(pixels_in_colour(chart, series) > 50 for series in early)

    page.reload()  # halfway: the next message shows everything again
    expect(status).to_contain_text(re.compile("finished · step 8/8"), timeout=120 * SECONDS)
    final = drawn(page)
    assert set(final) == set(early) and final != early
    assert all(line.count("L") == 7 for line in final.values())
    show_node(page)
    assert all(pixels_in_colour(chart, series) > 50 for series in final)
    assert page.evaluate("app.rootGraph.getNodeById(4).widgets.at(-1).name") == "training"

    page.reload()  # at the end: from the server's history
    expect(status).to_contain_text(re.compile("finished · step 8/8"), timeout=20 * SECONDS)
    assert drawn(page) == final
    after = page.evaluate("app.graph.serialize()")
    values = [len(node.get("widgets_values") or []) for node in before["nodes"]]
    assert [len(node.get("widgets_values") or []) for node in after["nodes"]] == values
    assert "finished" not in str(after)
    assert "training" not in page.evaluate("app.graphToPrompt()")["output"]["4"]["inputs"]


def test_cancel_keeps_what_was_learnt_and_says_so(page: Page, server: Server) -> None:
    open_training(page, "cancelled", steps=500)
    status = page.locator(STATUS)
    page.get_by_test_id("queue-button").click()
    expect(status).to_contain_text(re.compile("step [3-9]/500"), timeout=120 * SECONDS)
    page.get_by_role("button", name=re.compile("cancel current run", re.I)).first.click()
    expect(status).to_contain_text("cancelled, what was learnt is kept", timeout=30 * SECONDS)
    shown = re.search(r"step (\d+)/500", status.inner_text())
    (path,) = Path(server.base, "models", "animatediff_motion_lora").glob(
        f"cancelled-{page.evaluate('app.extensionManager.setting.get(`Comfy.VueNodes.Enabled`)')}.safetensors".lower()
    )
    with safe_open(path, "pt") as file:
        assert shown and file.metadata()["trained_steps"] == shown[1]
    assert set(drawn(page)) == {"spatial", "temporal"}


def message(**changes: Any) -> dict[str, Any]:
    """What nodes/live.py sends, for a node that is not run here."""
    sent = {
        "node": "1", "phase": "", "step": 120, "steps": 300, "rate": 2.1, "left": 85.2, "memory": 3.2e9, "sample": None,
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


def test_a_node_in_a_subgraph_is_found(page: Page) -> None:
    page.evaluate(
        """() => {
            const node = LiteGraph.createNode('DiffDirectorTrainMotionModule');
            app.graph.add(node);
            app.graph.convertToSubgraph(new Set([node]));
        }"""
    )
    outer, inner = page.evaluate("[app.graph.nodes[0].id, app.graph.nodes[0].subgraph.nodes[0].id]")
    page.evaluate("app.canvas.openSubgraph(app.graph.nodes[0].subgraph, app.graph.nodes[0])")
    show(page, node=f"{outer}:{inner}")
    expect(page.locator(STATUS)).to_contain_text("step 120/300")
    page.evaluate("app.canvas.setGraph(app.rootGraph)")


def test_a_message_for_a_node_that_is_not_open_does_no_harm(page: Page) -> None:
    show(page, node="77")
    show(page, node="7:7")
    expect(page.locator(DISPLAY)).to_have_count(0)
