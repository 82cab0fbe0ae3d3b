"""The nodes, the shipped workflow, the help pages and the messages, as a user meets them in the real front end."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from diffdirector.tests.host import other_pack
from diffdirector.tests.host.browser import FrontEnd, click_for, open_front_end, search_at
from diffdirector.tests.host.checkpoints import CHECKPOINT, MOTION_MODEL, link_models
from diffdirector.tests.host.provision import provision
from diffdirector.tests.host.server import PACK_NAME, Server
from diffdirector.tests.host.workflow import load_workflow

pytestmark = [pytest.mark.slow, pytest.mark.browser]

TEMPLATE = "text-to-animation"
LOADER, APPLY = "DiffDirectorLoadMotionModel", "DiffDirectorApplyMotionModel"
NODES = {
    LOADER: "Load Motion Model",
    APPLY: "Apply Motion Model",
    "DiffDirectorMotionLora": "Motion LoRA",
    "DiffDirectorDomainAdapter": "Domain Adapter",
    "DiffDirectorContextWindows": "Context Windows",
    "DiffDirectorVideoDataset": "Video Dataset",
    "DiffDirectorTrainMotionDirector": "Train MotionDirector",
    "DiffDirectorMotionDirectorSettings": "MotionDirector Settings",
    "DiffDirectorMotionStrength": "Motion Strength",
    "DiffDirectorPromptTravel": "Prompt Travel",
    "DiffDirectorCurve": "Curve",
    "DiffDirectorCurveFromList": "Curve From List",
    "DiffDirectorFreeInit": "FreeInit",
    "DiffDirectorClipNoise": "Clip Noise",
    "DiffDirectorFewSteps": "Few-Step Settings",
    "DiffDirectorLoadFootage": "Load Footage",
    "DiffDirectorAnchorFrames": "Anchor Frames",
    "DiffDirectorLoopClip": "Loop Clip",
    "DiffDirectorSaveAnimation": "Save Animation",
    "DiffDirectorClipGrid": "Clip Grid",
    "DiffDirectorListFromText": "List from Text",
    "DiffDirectorLoadSparseCtrl": "Load SparseCtrl",
    "DiffDirectorApplySparseCtrl": "Apply SparseCtrl",
    "DiffDirectorScribblePreprocessor": "Scribble Preprocessor",
    "DiffDirectorPIA": "PIA (Image to Animation)",
    "DiffDirectorEvolvedLoader": "AnimateDiff Loader (Gen1)",
    "DiffDirectorEvolvedApply": "Apply AnimateDiff Model (Gen2)",
    "DiffDirectorEvolvedSampling": "Use Evolved Sampling (Gen2)",
    "DiffDirectorEvolvedContextOptions": "Context Options",
    "DiffDirectorEvolvedMultival": "Multival",
    "DiffDirectorEvolvedViewOptions": "View Options",
    "DiffDirectorEvolvedKeyframe": "AnimateDiff Keyframe",
    "DiffDirectorEvolvedSampleSettings": "Sample Settings",
    "DiffDirectorEvolvedIterations": "Iteration Options",
    "DiffDirectorAdvancedSparseLoader": "Load SparseCtrl Model",
    "DiffDirectorAdvancedSparseMethod": "SparseCtrl Method",
    "DiffDirectorAdvancedSparsePictures": "RGB SparseCtrl",
    "DiffDirectorAdvancedApply": "Apply Advanced ControlNet",
    "DiffDirectorTrainSparseCtrl": "Train SparseCtrl",
    "DiffDirectorTrainDomainAdapter": "Train Domain Adapter",
    "DiffDirectorTrainMotionLora": "Train Motion LoRA",
}
# Their text fields lie over the canvas, which knows nothing of a mouse above them.
WITH_TEXT_FIELDS = (
    "DiffDirectorVideoDataset",
    "DiffDirectorTrainMotionDirector",
    "DiffDirectorPromptTravel",
    "DiffDirectorCurve",
    "DiffDirectorClipGrid",
    "DiffDirectorListFromText",
    "DiffDirectorTrainDomainAdapter",
    "DiffDirectorTrainMotionLora",
    "DiffDirectorTrainSparseCtrl",
)
# For the page: a node by its type, a widget by its name, where a point of a node is on the screen, and a count of what
# the host tells the front end about a run.
HELPERS = """
window.nodeOf = type => app.graph.nodes.find(node => node.type === type);
window.widgetOf = (type, name) => nodeOf(type).widgets.find(widget => widget.name === name);
window.onScreen = (node, x, y) => {
    const [left, top] = app.canvas.ds.convertOffsetToCanvas([node.pos[0] + x, node.pos[1] + y]);
    const canvas = app.canvas.canvas.getBoundingClientRect();
    return [canvas.left + left, canvas.top + top];
};
window.events = {progress: 0, execution_success: 0, execution_error: 0};
for (const kind in events) app.api.addEventListener(kind, () => events[kind]++);
"""

# Where a node's slot is on the screen: its type, "input" or "output", the slot's name.
SLOT = """([kind, side, name]) => {
    const node = nodeOf(kind);
    const index = node[side + 's'].findIndex(slot => slot.name === name);
    const [x, y] = side === 'input' ? node.getInputPos(index) : node.getOutputPos(index);
    return onScreen(node, x - node.pos[0], y - node.pos[1]);
}"""

# Where the middle of a node's widget is on the screen: the node's type, the widget's name.
WIDGET = "([kind, name]) => onScreen(nodeOf(kind), nodeOf(kind).size[0] / 2, widgetOf(kind, name).last_y + 10)"

# A clip in the node of a type. The page may hold another one too: a clip that loads after its node has gone.
PLAYS = """kind => {
    const clip = nodeOf(kind).videoContainer?.querySelector('video');
    return clip?.videoWidth === 64 && clip.checkVisibility();
}"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    base = tmp_path_factory.mktemp("front-end")
    link_models(base)
    other_pack.install_other_pack(base)
    with Server(provision(), base) as running:
        yield running


@pytest.fixture(scope="module")
def opened(server: Server) -> Iterator[FrontEnd]:
    with open_front_end(server.url, {"LiteGraph.Node.TooltipDelay": 0, "Comfy.VueNodes.Enabled": False}) as front:
        front.page.evaluate(HELPERS)
        yield front


@pytest.fixture
def workflow(page: Page) -> Page:
    """The shipped workflow with the small models chosen in its loaders, ready for a short run."""
    page.evaluate("graph => app.loadGraphData(graph)", load_workflow(TEMPLATE))
    choose(page, "CheckpointLoaderSimple", "ckpt_name", CHECKPOINT)
    choose(page, LOADER, "motion_model_name", MOTION_MODEL)
    set_widgets(page, "EmptyLatentImage", width=64, height=64, batch_size=8)
    set_widgets(page, "KSampler", steps=2)
    return page


def choose(page: Page, kind: str, name: str, value: str) -> None:
    """Choose a value in a node's list with the mouse."""
    widget = [kind, name]
    page.wait_for_function("([kind, name]) => widgetOf(kind, name).last_y > 0", arg=widget)  # drawn
    entry = page.locator(".litemenu-entry").get_by_text(value, exact=True)
    click_for(entry, lambda: page.evaluate(WIDGET, widget))
    entry.click()
    assert page.evaluate("([kind, name]) => widgetOf(kind, name).value", widget) == value


def drag(page: Page, start: Sequence[float], end: Sequence[float]) -> None:
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move(*end, steps=8)
    page.mouse.up()


def set_widgets(page: Page, kind: str, **values: Any) -> None:
    page.evaluate(
        "([kind, values]) => { for (const name in values) widgetOf(kind, name).value = values[name] }", [kind, values]
    )


def run(page: Page) -> dict[str, int]:
    """Press Run and wait for the end; returns how often each event came."""
    page.evaluate("for (const kind in events) events[kind] = 0")
    page.get_by_test_id("queue-button").click()
    page.wait_for_function("events.execution_success || events.execution_error")
    return page.evaluate("events")


def test_nodes_are_registered_under_their_names(page: Page) -> None:
    titles = page.evaluate(
        "ids => Object.fromEntries(ids.map(id => [id, LiteGraph.registered_node_types[id]?.title]))", list(NODES)
    )
    assert titles == NODES


@pytest.mark.parametrize("kind", [kind for kind in NODES if kind not in WITH_TEXT_FIELDS])
def test_every_input_shows_a_tooltip(page: Page, kind: str) -> None:
    inputs = page.evaluate(
        """kind => {
            const node = LiteGraph.createNode(kind);
            app.graph.add(node);
            Object.assign(app.canvas.ds, {scale: 1, offset: [500, 300]});
            app.canvas.draw(true, true);
            return node.inputs.filter(input => input.name !== 'upload').map(input => {  // the host's button, as its list
                const [x, y] = node.getInputPos(node.inputs.indexOf(input));
                return [input.name, onScreen(node, x - node.pos[0] + (input.widget ? 80 : 0), y - node.pos[1])];
            });
        }""",
        kind,
    )
    tooltip, shown = page.locator(".node-tooltip"), {}
    for name, point in inputs:
        page.mouse.move(1200, 900)
        expect(tooltip).to_be_hidden()
        page.mouse.move(*point)
        expect(tooltip).to_be_visible()
        shown[name] = tooltip.inner_text()
    assert all(shown.values()) and len(set(shown.values())) == len(inputs), shown


def test_nodes_are_found_by_the_words_of_their_users(page: Page) -> None:
    search_at(page, (1000, 600))
    field = page.get_by_role("dialog").locator("input[type=text], input:not([type])").first
    results = page.get_by_test_id("result-item")
    for words, name in {
        "animatediff": NODES[APPLY],
        "mm_sd": NODES[LOADER],
        "camera motion": "Motion LoRA",
        "v3_sd15_adapter": "Domain Adapter",
    }.items():
        field.fill("qqqqqq")
        expect(results).to_have_count(0)
        field.fill(words)
        expect(results.filter(has_text=name)).not_to_have_count(0)
    page.keyboard.press("Escape")


def test_nodes_are_added_moved_and_linked_with_the_mouse(page: Page) -> None:
    page.evaluate("Object.assign(app.canvas.ds, {scale: 1, offset: [0, 0]})")
    for kind, place in {LOADER: (700, 500), APPLY: (1150, 500)}.items():
        search_at(page, place)
        page.keyboard.type(NODES[kind])
        page.get_by_test_id("result-item").filter(has_text=NODES[kind]).first.click()
        page.wait_for_function("kind => nodeOf(kind)", arg=kind)
        expect(page.get_by_role("dialog")).to_have_count(0)
        page.mouse.move(*place, steps=4)  # it hangs on the cursor until it is put down
        page.mouse.click(*place)
        page.wait_for_function("kind => !nodeOf(kind).flags.ghost", arg=kind)
    title = page.evaluate("kind => onScreen(nodeOf(kind), 60, -10)", LOADER)
    before = page.evaluate("kind => [...nodeOf(kind).pos]", LOADER)
    drag(page, title, (title[0] - 150, title[1] + 80))
    after = page.evaluate("kind => [...nodeOf(kind).pos]", LOADER)
    assert [round(new - old, -1) for new, old in zip(after, before, strict=True)] == [-150, 80]

    output = page.evaluate(SLOT, [LOADER, "output", "motion_model"])
    wrong, right = (page.evaluate(SLOT, [APPLY, "input", name]) for name in ("model", "motion_model"))
    drag(page, output, wrong)
    assert page.evaluate("app.graph.links.size") == 0
    page.keyboard.press("Escape")
    drag(page, output, right)
    (link,) = page.evaluate("[...app.graph.links.values()].map(link => [link.type, link.origin_id, link.target_id])")
    assert link == ["MOTION_MODEL", *page.evaluate("kinds => kinds.map(kind => nodeOf(kind).id)", [LOADER, APPLY])]


def test_few_step_settings_are_linked_to_the_samplers_widgets(page: Page) -> None:
    page.evaluate(
        """() => {
            Object.assign(app.canvas.ds, {scale: 1, offset: [0, 0]});
            for (const [kind, place] of [['DiffDirectorFewSteps', [300, 300]], ['KSampler', [900, 300]]]) {
                const node = LiteGraph.createNode(kind);
                node.pos = place;
                app.graph.add(node);
            }
            app.canvas.draw(true, true);
        }"""
    )
    for name in ("steps", "cfg", "sampler_name", "scheduler"):
        output = page.evaluate(SLOT, ["DiffDirectorFewSteps", "output", name])
        drag(page, output, page.evaluate(SLOT, ["KSampler", "input", name]))
    links = page.evaluate("nodeOf('KSampler').inputs.filter(input => input.link !== null).map(input => input.name)")
    assert links == ["steps", "cfg", "sampler_name", "scheduler"]


@pytest.mark.parametrize("kind", NODES)
def test_help_page_exists(server: Server, kind: str) -> None:
    with urllib.request.urlopen(f"{server.url}/extensions/{PACK_NAME}/docs/{kind}.md") as response:
        assert response.status == 200 and len(response.read()) > 200


def test_template_opens_from_the_template_browser(page: Page) -> None:
    page.get_by_role("button", name="Templates").first.click()
    browser = page.get_by_role("dialog")
    browser.get_by_text(PACK_NAME, exact=True).click()
    card = browser.get_by_test_id(f"template-workflow-{TEMPLATE}")
    with page.expect_response(f"**/{TEMPLATE}.jpg") as thumbnail:
        card.scroll_into_view_if_needed()  # pictures are fetched when they are seen
    assert thumbnail.value.status == 200
    expect(card).to_contain_text(TEMPLATE)
    card.click()
    expect(browser).to_have_count(0)
    types = [node["type"] for node in load_workflow(TEMPLATE)["nodes"]]
    page.wait_for_function("count => app.graph.nodes.length === count", arg=len(types))
    assert page.evaluate("app.graph.nodes.map(node => node.type)") == types
    assert page.evaluate("app.graph.nodes.filter(node => !(node.type in LiteGraph.registered_node_types))") == []

    page.get_by_test_id("error-overlay-see-errors").click()  # the files are not there yet: the host names them
    for text in ("v1-5-pruned-emaonly-fp16.safetensors", "mm_sd_v15_v2.ckpt", "animatediff_models"):
        expect(page.get_by_test_id("properties-panel")).to_contain_text(text)


def test_a_workflow_of_animatediff_evolved_opens_with_our_nodes_for_what_is_not_installed(page: Page) -> None:
    saved = load_workflow(TEMPLATE)
    by_type = {node["type"]: node for node in saved["nodes"]}
    saved["nodes"].remove(by_type[LOADER])
    saved["links"] = [link for link in saved["links"] if link[1] != by_type[LOADER]["id"]]
    theirs = by_type[APPLY]
    theirs["type"] = "ADE_AnimateDiffLoaderGen1"
    theirs["widgets_values"] = [MOTION_MODEL, "linear (HotshotXL/default)"]
    theirs["inputs"] = [slot for slot in theirs["inputs"] if slot["name"] in ("model", "motion_lora")]
    by_type["EmptyLatentImage"]["type"] = other_pack.NODE
    page.evaluate("graph => app.loadGraphData(graph)", saved)
    page.get_by_test_id("error-overlay-see-errors").click()
    page.get_by_role("button", name="Replace All").click()
    page.wait_for_function("nodeOf('DiffDirectorEvolvedLoader')")
    assert page.evaluate("app.graph.nodes.filter(node => !(node.type in LiteGraph.registered_node_types))") == []
    assert page.evaluate("kind => app.graph.nodes.filter(node => node.type === kind).length", other_pack.NODE) == 1
    values = page.evaluate("nodeOf('DiffDirectorEvolvedLoader').widgets.map(widget => [widget.name, widget.value])")
    assert values[:2] == [["model_name", MOTION_MODEL], ["beta_schedule", "linear (HotshotXL/default)"]]
    choose(page, "CheckpointLoaderSimple", "ckpt_name", CHECKPOINT)
    set_widgets(page, other_pack.NODE, width=64, height=64, batch_size=5)
    set_widgets(page, "KSampler", steps=1)
    assert run(page)["execution_success"] == 1


def test_run_button_runs_the_workflow_and_shows_the_clip(workflow: Page) -> None:
    events = run(workflow)
    assert events["execution_success"] == 1 and events["progress"] >= 2
    workflow.wait_for_function("nodeOf('SaveAnimatedWEBP').imgs?.[0]?.naturalWidth === 64")
    workflow.wait_for_function(PLAYS, arg="SaveVideo")


@pytest.mark.parametrize("kind", ["mp4", "webm", "webp", "gif"])
def test_a_saved_animation_plays_in_its_node(workflow: Page, kind: str) -> None:
    workflow.evaluate(
        """kind => {
            for (const type of ['SaveVideo', 'SaveAnimatedWEBP']) app.graph.remove(nodeOf(type));
            const node = LiteGraph.createNode('DiffDirectorSaveAnimation');
            app.graph.add(node);
            nodeOf('VAEDecode').connect(0, node, 0);
            widgetOf(node.type, 'format').value = kind;
        }""",
        kind,
    )
    assert run(workflow)["execution_success"] == 1
    if kind in ("mp4", "webm"):
        workflow.wait_for_function(PLAYS, arg="DiffDirectorSaveAnimation")
    else:  # in an img element, which plays; a canvas would show the first frame
        workflow.wait_for_function(
            "[...document.images].some(image => image.naturalWidth === 64 && image.checkVisibility())"
        )


def test_warning_about_few_frames_is_shown_on_the_node(workflow: Page) -> None:
    set_widgets(workflow, "EmptyLatentImage", batch_size=4)
    assert run(workflow)["execution_success"] == 1
    warning = workflow.get_by_text(re.compile("4 frame"))
    expect(warning).to_be_visible()
    box = warning.bounding_box()
    left, top, right, bottom = workflow.evaluate(
        "kind => [onScreen(nodeOf(kind), 0, 0), onScreen(nodeOf(kind), ...nodeOf(kind).size)].flat()", APPLY
    )
    assert box and left < box["x"] and box["x"] + box["width"] < right and top < box["y"] < bottom


def test_too_many_frames_are_refused_before_sampling(workflow: Page) -> None:
    set_widgets(workflow, "EmptyLatentImage", batch_size=40)
    events = run(workflow)
    assert events["execution_error"] == 1 and events["progress"] == 0
    workflow.get_by_test_id("error-overlay-see-errors").click()  # among those of the template's missing files
    for text in ("KSampler", "moves at most 32 frames"):
        expect(workflow.get_by_test_id("properties-panel")).to_contain_text(text)
