"""What nodes show of themselves in the real front end, with both ways that it draws nodes: the plan of windows, a clip in the making."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from diffdirector.tests.host.browser import FrontEnd
from diffdirector.tests.host.checkpoints import link_models
from diffdirector.tests.host.prompts import animation
from diffdirector.tests.host.provision import provision
from diffdirector.tests.host.server import Server

pytestmark = [pytest.mark.slow, pytest.mark.browser]

WINDOWS = "DiffDirectorContextWindows"
PLAN, SAYS = ".diffdirector-plan", ".diffdirector-plan [role=status]"
STATIC = "48 frames: 4 windows of 16 at every step"
# What the sampler's node shows: the source of its picture, in whichever way the node is drawn.
PREVIEW = """() => (document.querySelector('.diffdirector-preview img')
    ?? document.querySelector('[data-node-id] img[alt="Live sampling preview"]'))"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    base = tmp_path_factory.mktemp("displays-page")
    link_models(base)
    with Server(provision(), base, "--cpu", "--preview-method", "latent2rgb") as running:
        yield running


def show(page: Page, kind: str) -> None:
    """A node at its real size."""
    page.evaluate(
        """kind => {
            const [x, y] = app.graph.nodes.find(node => node.type === kind).pos;
            Object.assign(app.canvas.ds, {scale: 1, offset: [500 - x, 160 - y]});
            app.canvas.setDirty(true, true);
        }""",
        kind,
    )


def set_widget(page: Page, name: str, value: object) -> None:
    """As both ways of drawing nodes do when the user has chosen a value."""
    page.evaluate(
        """([name, value]) => {
            const widget = app.graph.nodes[0].widgets.find(widget => widget.name === name);
            widget.value = value;
            widget.callback(value);
        }""",
        [name, value],
    )


@pytest.fixture
def windows(page: Page) -> Page:
    page.evaluate("kind => { app.graph.add(LiteGraph.createNode(kind)) }", WINDOWS)
    show(page, WINDOWS)
    expect(page.locator(SAYS)).to_have_text(STATIC)
    return page


def drawing(page: Page) -> str:
    page.wait_for_function("document.querySelector('.diffdirector-plan img').naturalWidth === 576")
    return page.locator(f"{PLAN} img").get_attribute("src") or ""


def test_the_plan_is_in_the_node_and_follows_its_widgets(windows: Page) -> None:
    first = drawing(windows)
    expect(windows.locator(f"{PLAN} img")).to_be_visible()
    box = windows.locator(f"{PLAN} img").bounding_box()
    assert box and box["width"] > 150 and box["height"] > 40
    panel = windows.locator(PLAN).bounding_box()
    top, height = windows.evaluate(
        """() => {
            const node = app.graph.nodes[0];
            const canvas = app.canvas.canvas.getBoundingClientRect();
            return [canvas.top + node.pos[1] + app.canvas.ds.offset[1], node.size[1]];
        }"""
    )
    assert panel and panel["height"] == 200 and top < panel["y"] and panel["y"] + 200 < top + height + 1
    windows.evaluate("app.graph.nodes[0].setSize([420, 700])")
    set_widget(windows, "overlap", 8)
    expect(windows.locator(SAYS)).to_have_text("48 frames: 5 windows of 16 at every step")
    assert drawing(windows) != first
    set_widget(windows, "overlap", 4)
    set_widget(windows, "schedule", "standard_uniform")
    expect(windows.locator(SAYS)).to_have_text(re.compile(r"4 to 5 windows of 16 that move"))
    set_widget(windows, "schedule", "batched")
    expect(windows.locator(SAYS)).to_contain_text("3 windows")
    assert windows.evaluate("[...app.graph.nodes[0].size]") == [420, 700]


def test_a_widget_is_changed_with_the_mouse(opened: FrontEnd, windows: Page) -> None:
    windows.wait_for_timeout(300)
    if windows.evaluate("LiteGraph.vueNodesMode"):
        field = windows.locator("[data-node-id] input[aria-label*='overlap' i], [data-node-id] input").nth(1)
        field.fill("8")
        field.press("Enter")
    else:
        point = windows.evaluate(
            """() => {
                const node = app.graph.nodes[0];
                const widget = node.widgets.find(widget => widget.name === 'overlap');
                const [left, top] = app.canvas.ds.convertOffsetToCanvas([node.pos[0] + node.size[0] - 20, node.pos[1] + widget.last_y + 10]);
                const canvas = app.canvas.canvas.getBoundingClientRect();
                return [canvas.left + left, canvas.top + top];
            }"""
        )
        for _ in range(4):
            windows.mouse.click(*point)
            windows.wait_for_timeout(50)
    expect(windows.locator(SAYS)).to_have_text("48 frames: 5 windows of 16 at every step")


def test_many_changes_are_few_questions(windows: Page) -> None:
    asked: list[str] = []
    windows.on("request", lambda request: asked.append(request.url) if "/diffdirector/plan" in request.url else None)
    windows.evaluate(
        """() => {
            const widget = app.graph.nodes[0].widgets.find(widget => widget.name === 'overlap');
            for (let value = 0; value < 100; value++) widget.callback(widget.value = value % 16);
            widget.callback(widget.value = 8);
        }"""
    )
    expect(windows.locator(SAYS)).to_have_text("48 frames: 5 windows of 16 at every step")
    windows.wait_for_timeout(300)
    assert 1 <= len(asked) <= 2


def test_settings_without_a_plan_say_why(opened: FrontEnd, windows: Page) -> None:
    set_widget(windows, "overlap", 16)
    expect(windows.locator(SAYS)).to_have_text("overlap: expected less than context_length (16), found 16.")
    expect(windows.locator(f"{PLAN} img")).to_be_hidden()
    set_widget(windows, "overlap", 4)
    expect(windows.locator(SAYS)).to_have_text(STATIC)
    expect(windows.locator(f"{PLAN} img")).to_be_visible()
    assert opened.problems and all("400" in problem and "diffdirector/plan" in problem for problem in opened.problems)
    opened.problems.clear()  # what the browser itself notes of a 400


def test_the_plan_of_a_saved_workflow_is_drawn_and_not_saved(windows: Page) -> None:
    set_widget(windows, "overlap", 8)
    expect(windows.locator(SAYS)).to_contain_text("5 windows")
    saved = windows.evaluate("app.graph.serialize()")
    (values,) = [node["widgets_values"] for node in saved["nodes"]]
    assert values == [16, 8, 1, "standard_static", "pyramid", False, False, 48, False, 1]
    assert "plan" not in windows.evaluate("app.graphToPrompt()")["output"]["1"]["inputs"]
    set_widget(windows, "overlap", 2)
    windows.evaluate("saved => app.loadGraphData(saved)", saved)
    expect(windows.locator(SAYS)).to_have_text("48 frames: 5 windows of 16 at every step")
    assert windows.evaluate("app.graph.nodes[0].widgets.find(widget => widget.name === 'overlap').value") == 8


def test_a_value_from_another_node_is_not_guessed(windows: Page) -> None:
    windows.evaluate(
        """() => {
            const number = LiteGraph.createNode('PrimitiveInt');
            app.graph.add(number);
            const node = app.graph.nodes[0];
            number.connect(0, node, node.inputs.findIndex(input => input.name === 'context_length'));
        }"""
    )
    expect(windows.locator(SAYS)).to_have_text("The plan is known when it runs: context_length from another node")
    expect(windows.locator(f"{PLAN} img")).to_be_hidden()
    windows.evaluate(
        "() => { const node = app.graph.nodes[0]; node.disconnectInput(node.inputs.findIndex(input => input.link != null)) }"
    )
    expect(windows.locator(SAYS)).to_have_text(STATIC)


def run(page: Page, prompt: dict, seen: str = "KSampler") -> None:
    """Press Run, with a node of this kind in sight; returns at once. window.ended says how it ended."""
    page.evaluate("prompt => app.loadApiJson(prompt, 'preview')", prompt)
    show(page, seen)
    page.evaluate(
        """find => {
            window.ended = null;
            for (const kind of ['execution_success', 'execution_error', 'execution_interrupted'])
                app.api.addEventListener(kind, () => (window.ended = kind), {once: true});
            window.types = [];
            app.api.addEventListener('b_preview_with_metadata', ({detail}) => window.types.push(detail.blob.type));
        }""",
        PREVIEW,
    )
    page.get_by_test_id("queue-button").click()


# Frames that the picture's file has, and the size at which it is seen.
FRAMES_SHOWN = f"""async () => {{
    const image = ({PREVIEW})();
    if (!image?.naturalWidth) return null;
    const decoder = new ImageDecoder({{type: 'image/webp', data: window.lastClip}});
    await decoder.tracks.ready;
    return [decoder.tracks.selectedTrack.frameCount, image.getBoundingClientRect().height];
}}"""


def keep_clips(page: Page) -> None:
    page.evaluate(
        "app.api.addEventListener('b_preview_with_metadata', async ({detail}) => { window.lastClip = await detail.blob.arrayBuffer() })"
    )


def test_a_clip_moves_in_its_sampler_while_it_is_sampled(page: Page) -> None:
    keep_clips(page)
    run(page, animation(frames=12, steps=14, size=64))
    page.wait_for_function(f"() => ({PREVIEW})()?.naturalWidth === 256")
    assert page.evaluate("window.ended") is None
    frames, height = page.evaluate(FRAMES_SHOWN)
    assert frames == 12 and height > 100
    image = page.evaluate_handle(PREVIEW).as_element()
    assert image
    looks = set()
    for _ in range(6):
        looks.add(image.screenshot())
        page.wait_for_timeout(130)
    assert len(looks) >= 3
    page.wait_for_function("window.ended === 'execution_success'", timeout=120_000)
    assert set(page.evaluate("window.types")) == {"image/webp"}
    assert "preview" not in str(page.evaluate("app.graph.serialize()"))


def test_cancelled_it_ends_and_a_still_takes_its_place_again(page: Page) -> None:
    run(page, animation(frames=12, steps=500, size=64))
    page.wait_for_function(f"() => ({PREVIEW})()?.naturalWidth === 256")
    page.get_by_role("button", name=re.compile("cancel current run", re.I)).first.click()
    page.wait_for_function("window.ended === 'execution_interrupted'")

    sampler = "app.graph.nodes.find(node => node.type === 'KSampler')"
    page.evaluate(
        f"""() => {{
            const [sampler, checkpoint] = ['KSampler', 'CheckpointLoaderSimple'].map(type => app.graph.nodes.find(node => node.type === type));
            checkpoint.connect(0, sampler, 0);
            {sampler}.widgets.find(widget => widget.name === 'steps').value = 2;
            window.ended = null;
            window.types = [];
            app.api.addEventListener('execution_success', () => (window.ended = 'success'), {{once: true}});
        }}"""
    )
    page.get_by_test_id("queue-button").click()
    page.wait_for_function("window.ended === 'success'")
    assert set(page.evaluate("window.types")) == {"image/jpeg"}
    expect(page.locator(".diffdirector-preview")).to_have_count(0)
    if not page.evaluate("LiteGraph.vueNodesMode"):
        page.wait_for_function(f"{sampler}.imgs?.[0]?.naturalWidth === 512")
        names = page.evaluate(f"{sampler}.widgets.map(widget => widget.name)")
        assert names.count("$$canvas-image-preview") == 1


def test_nodes_that_give_frames_play_them(page: Page) -> None:
    """Black, then white, and back: seen in Loop Clip, and in Save Animation, for whose WEBP the canvas has the same place."""
    prompt = {
        "black": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 3, "color": 0}},
        "white": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 3, "color": 0xFFFFFF}},
        "both": {"class_type": "ImageBatch", "inputs": {"image1": ["black", 0], "image2": ["white", 0]}},
        "loop": {"class_type": "DiffDirectorLoopClip", "inputs": {"images": ["both", 0], "method": "ping-pong", "frames": 4}},
        "save": {
            "class_type": "DiffDirectorSaveAnimation",
            "inputs": {"images": ["loop", 0], "filename_prefix": "loop", "frame_rate": 8, "format": "webp"},
        },
    }  # fmt: skip
    run(page, prompt, "DiffDirectorLoopClip")
    page.wait_for_function("window.ended === 'execution_success'")
    for kind in ("DiffDirectorLoopClip", "DiffDirectorSaveAnimation"):
        show(page, kind)
        number = page.evaluate("kind => app.graph.nodes.find(node => node.type === kind).id", kind)
        shown = page.wait_for_function(
            """id => {
                const image = LiteGraph.vueNodesMode ? document.querySelector(`[data-node-id="${id}"] img`) : app.graph.getNodeById(id).imgs?.[0];
                return image?.naturalWidth && image.isConnected && image;
            }""",
            arg=number,
        ).as_element()
        assert shown
        box = shown.bounding_box()
        assert box and box["height"] >= 150 and box["width"] >= 150
        looks = set()
        for _ in range(12):
            looks.add(shown.screenshot())
            page.wait_for_timeout(130)
        assert len(looks) >= 2
        bottom = page.evaluate(
            """id => {
                const {pos, size} = app.graph.getNodeById(id);
                return app.canvas.canvas.getBoundingClientRect().top + app.canvas.ds.offset[1] + pos[1] + size[1];
            }""",
            number,
        )
        assert page.evaluate("LiteGraph.vueNodesMode") or box["y"] + box["height"] < bottom + 1
