"""The editors of keyframes in the real front end, with both ways that it draws nodes: Prompt Travel's timeline, Curve's curve."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Locator, Page, expect

from diffdirector.tests.host.browser import FrontEnd
from diffdirector.tests.host.provision import provision
from diffdirector.tests.host.server import Server

pytestmark = [pytest.mark.slow, pytest.mark.browser]

TRAVEL, CURVE = "DiffDirectorPromptTravel", "DiffDirectorCurve"
TEXT = '# seasons\nhead: photo,\n0: spring # fresh\n8-11 = "summer"\n-1: winter'
EDITOR, HANDLES = ".diffdirector-keyframes", ".diffdirector-keyframes .handle"
SAYS = f"{EDITOR} [role=status]"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(provision(), tmp_path_factory.mktemp("editors-page"), "--cpu") as running:
        yield running


def open_node(page: Page, kind: str, text: str, handles: int, scale: float = 1) -> Page:
    """A node of its default size with this text, as if just typed, and the undo of the host at rest."""
    page.evaluate(
        """([kind, text, scale]) => {
            const node = LiteGraph.createNode(kind);
            app.graph.add(node);
            Object.assign(app.canvas.ds, {scale, offset: [700 / scale - node.pos[0], 200 / scale - node.pos[1]]});
            app.canvas.setDirty(true, true);
            window.textWidget = () => app.graph.nodes[0].widgets.find(({name}) => name === 'prompts' || name === 'curve');
            window.write = text => { textWidget().value = text; textWidget().callback(text) };
            write(text);
        }""",
        [kind, text, scale],
    )
    expect(page.locator(HANDLES)).to_have_count(handles)
    at_rest(page, scale)
    page.evaluate("app.canvas.emitBeforeChange(); app.canvas.emitAfterChange()")
    return page


def at_rest(page: Page, scale: float) -> None:
    """Laid out by the host, in its own time."""
    expect(page.locator(EDITOR)).to_be_visible()
    page.wait_for_function(
        """([editor, scale]) => new Promise(resolve => {
            const element = document.querySelector(editor);
            const first = element.getBoundingClientRect();
            setTimeout(() => {
                const {x, y, width} = element.getBoundingClientRect();
                resolve(x === first.x && y === first.y && Math.abs(width / element.offsetWidth - scale) < 0.02);
            }, 100);
        })""",
        arg=[EDITOR, scale],
    )


@pytest.fixture
def travel(page: Page) -> Page:
    return open_node(page, TRAVEL, TEXT, 3)


@pytest.fixture
def curve(page: Page) -> Page:
    return open_node(page, CURVE, "# a pulse\n0: 0\n4: 1 # top\n-1: 0", 3)


def written(page: Page) -> str:
    return page.evaluate("textWidget().value")


def expect_text(page: Page, text: str) -> None:
    page.wait_for_function("text => textWidget().value === text", arg=text)
    page.wait_for_function(f"!document.querySelector('{EDITOR} .moving')")
    shown = page.locator(f"textarea:not({EDITOR} textarea)").first
    expect(shown).to_have_value(text)  # the field of the node


def middle(of: Locator) -> tuple[float, float]:
    box = of.bounding_box()
    assert box
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def drag(page: Page, of: Locator, x: float, y: float = 0) -> None:
    start = middle(of)
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move(start[0] + x, start[1] + y, steps=5)
    page.mouse.up()


def frames_wide(page: Page, frames: float) -> float:
    """So many frames of 16, in px of the screen."""
    box = page.locator(f"{EDITOR} .track").bounding_box()
    assert box
    return frames * box["width"] / 16


def undo(page: Page) -> None:
    page.keyboard.press("Control+z")


def test_the_text_makes_the_timeline(travel: Page) -> None:
    labels = [handle.get_attribute("aria-label") for handle in travel.locator(HANDLES).all()]
    assert labels == ["Keyframe 1 of 3: spring", "Keyframe 2 of 3: summer", "Keyframe 3 of 3: winter"]
    said = [handle.get_attribute("aria-valuetext") for handle in travel.locator(HANDLES).all()]
    assert said == ["frame 0", "frames 8-11", "frame 15"]
    boxes = [handle.bounding_box() for handle in travel.locator(HANDLES).all()]
    assert all(boxes) and boxes[1]["width"] == pytest.approx(frames_wide(travel, 3) + 14, abs=1)
    travel.locator(f"textarea:not({EDITOR} textarea)").first.fill("50%: only")
    expect(travel.locator(HANDLES)).to_have_count(1)
    expect(travel.locator(HANDLES)).to_have_attribute("aria-valuetext", "frame 7.5")
    travel.evaluate("write('0: a\\n20: b')")
    expect(travel.locator(SAYS)).to_have_text(
        'Line 2, column 1: expected a frame of the clip (0 to 15, or -1 for the last), found "20".'
    )
    expect(travel.locator(f"{EDITOR} .strip")).to_be_hidden()
    travel.evaluate(
        "() => { const frames = app.graph.nodes[0].widgets.find(({name}) => name === 'frames'); frames.value = 24; frames.callback(24) }"
    )
    expect(travel.locator(HANDLES)).to_have_count(2)
    expect(travel.locator(SAYS)).to_be_hidden()


@pytest.mark.parametrize("scale", [1, 0.7, 1.6])
def test_a_keyframe_is_dragged_to_another_frame_at_any_zoom(page: Page, scale: float) -> None:
    open_node(page, TRAVEL, TEXT, 3, scale)
    first, held, last = page.locator(HANDLES).all()
    drag(page, held, frames_wide(page, -3))
    expect_text(page, TEXT.replace("8-11", "5-8"))
    drag(page, last, frames_wide(page, -2))
    expect_text(page, TEXT.replace("8-11", "5-8").replace("-1:", "-3:"))
    drag(page, first, frames_wide(page, 6))  # a place that is taken
    expect_text(page, TEXT.replace("8-11", "5-8").replace("-1:", "-3:").replace("0:", "4:"))
    expect(page.locator(HANDLES).nth(0)).to_have_attribute("aria-valuenow", "4")


def test_the_end_of_a_range_is_dragged(travel: Page) -> None:
    box = travel.locator(HANDLES).nth(1).bounding_box()
    assert box
    travel.mouse.move(box["x"] + box["width"] - 3, box["y"] + 8)
    travel.mouse.down()
    travel.mouse.move(box["x"] + box["width"] - 3 + frames_wide(travel, 2), box["y"] + 8, steps=4)
    travel.mouse.up()
    expect_text(travel, TEXT.replace("8-11", "8-13"))
    travel.keyboard.down("Shift")
    drag(travel, travel.locator(HANDLES).first, frames_wide(travel, 2))
    travel.keyboard.up("Shift")
    expect_text(travel, TEXT.replace("8-11", "8-13").replace("0:", "0-2:"))


def test_a_keyframe_is_added_worded_and_deleted(travel: Page) -> None:
    box = travel.locator(f"{EDITOR} .track").bounding_box()
    assert box
    travel.mouse.dblclick(box["x"] + frames_wide(travel, 4.5), box["y"] + 10)
    expect_text(travel, TEXT.replace("# fresh", "# fresh\n4: spring"))
    field = travel.locator(f"{EDITOR} textarea")
    expect(field).to_be_focused()
    travel.keyboard.type("May, 5: a.m. # of the year")
    expect_text(travel, TEXT.replace("# fresh", '# fresh\n4: "May, 5: a.m. # of the year"'))
    travel.keyboard.press("Enter")
    expect(travel.locator(HANDLES).nth(1)).to_be_focused()
    expect(travel.locator(HANDLES).nth(1)).to_have_attribute(
        "aria-label", "Keyframe 2 of 4: May, 5: a.m. # of the year"
    )
    travel.evaluate("app.canvas.select(app.graph.nodes[0])")
    travel.keyboard.press("Delete")
    expect_text(travel, TEXT)
    travel.locator(HANDLES).nth(1).focus()
    travel.get_by_role("button", name="Delete this keyframe").click()
    expect_text(travel, TEXT.replace('8-11 = "summer"\n', ""))
    travel.get_by_role("button", name="Add a keyframe").click()
    expect(travel.locator(HANDLES)).to_have_count(3)
    assert travel.evaluate("app.graph.nodes.length") == 1


def test_keys_move_hold_and_open(travel: Page) -> None:
    travel.locator(HANDLES).first.focus()
    travel.keyboard.press("Tab")
    expect(travel.locator(HANDLES).nth(1)).to_be_focused()
    for _ in range(2):
        travel.keyboard.press("ArrowLeft")
    travel.keyboard.press("Shift+ArrowRight")
    expect_text(travel, TEXT.replace("8-11", "6-10"))
    expect(travel.locator(HANDLES).nth(1)).to_be_focused()
    travel.keyboard.press("Enter")
    expect(travel.locator(f"{EDITOR} textarea")).to_be_focused()
    expect(travel.locator(f"{EDITOR} textarea")).to_have_value("summer")


def test_one_drag_is_one_step_of_undo(travel: Page) -> None:
    drag(travel, travel.locator(HANDLES).nth(1), frames_wide(travel, -2))
    expect_text(travel, TEXT.replace("8-11", "6-9"))
    travel.keyboard.press("ArrowLeft")
    expect_text(travel, TEXT.replace("8-11", "5-8"))
    for text in (TEXT.replace("8-11", "6-9"), TEXT):
        undo(travel)
        expect_text(travel, text)
    expect(travel.locator(HANDLES).nth(1)).to_have_attribute("aria-valuetext", "frames 8-11")
    travel.keyboard.press("Control+y")
    expect_text(travel, TEXT.replace("8-11", "6-9"))


def test_it_is_all_there_after_saving_loading_and_pasting(travel: Page) -> None:
    drag(travel, travel.locator(HANDLES).nth(1), frames_wide(travel, -2))
    edited = TEXT.replace("8-11", "6-9")
    expect_text(travel, edited)
    saved = travel.evaluate("app.graph.serialize()")
    assert [node["widgets_values"] for node in saved["nodes"]] == [[edited, 16, "", "", "linear"]]
    assert "timeline" not in str(travel.evaluate("app.graphToPrompt()")["output"])
    travel.evaluate("write('0: nothing')")
    expect(travel.locator(HANDLES)).to_have_count(1)
    travel.evaluate("saved => app.loadGraphData(saved)", saved)
    expect(travel.locator(HANDLES)).to_have_count(3)
    expect(travel.locator(HANDLES).nth(1)).to_have_attribute("aria-valuetext", "frames 6-9")
    travel.evaluate(
        "app.canvas.select(app.graph.nodes[0]); app.canvas.copyToClipboard(); app.canvas.pasteFromClipboard()"
    )
    expect(travel.locator(HANDLES)).to_have_count(6)
    assert travel.evaluate("app.graph.nodes.map(node => node.widgets[0].value)") == [edited, edited]


def test_a_text_from_another_node_is_edited_there(travel: Page) -> None:
    travel.evaluate(
        """() => {
            const text = LiteGraph.createNode('PrimitiveStringMultiline');
            app.graph.add(text);
            const node = app.graph.nodes[0];
            text.connect(0, node, node.inputs.findIndex(input => input.name === 'prompts'));
        }"""
    )
    expect(travel.locator(SAYS)).to_have_text("The timeline is known when it runs: prompts from another node")
    expect(travel.locator(f"{EDITOR} .strip")).to_be_hidden()
    travel.evaluate(
        "() => { const node = app.graph.nodes[0]; node.disconnectInput(node.inputs.findIndex(input => input.link != null)) }"
    )
    expect(travel.locator(f"{EDITOR} .strip")).to_be_visible()


def test_in_a_subgraph_it_works_as_outside(travel: Page) -> None:
    travel.evaluate("""async () => {
        const {subgraph} = app.graph.convertToSubgraph(new Set([app.graph.nodes[0]]));
        app.canvas.setGraph(subgraph);
        window.textWidget = () => app.canvas.graph.nodes[0].widgets.find(({name}) => name === 'prompts');
        const [node] = subgraph.nodes;
        Object.assign(app.canvas.ds, {scale: 1, offset: [700 - node.pos[0], 200 - node.pos[1]]});
        app.canvas.setDirty(true, true);
    }""")
    expect(travel.locator(HANDLES)).to_have_count(3)
    at_rest(travel, 1)
    drag(travel, travel.locator(HANDLES).nth(1), frames_wide(travel, -2))
    travel.wait_for_function("text => textWidget().value === text", arg=TEXT.replace("8-11", "6-9"))
    travel.evaluate("app.canvas.setGraph(app.rootGraph)")


def plot_px(page: Page, frames: float) -> float:
    """So many of the 15 steps between 16 frames, in px of the screen."""
    box = page.locator(f"{EDITOR} .u-over").bounding_box()
    assert box
    return frames * box["width"] / 15


def test_points_are_dragged_both_ways_and_the_line_follows(curve: Page) -> None:
    top = curve.locator(HANDLES).nth(1)
    x, y = middle(top)
    zero = middle(curve.locator(HANDLES).first)[1]
    curve.mouse.move(x, y)
    curve.mouse.down()
    before = curve.locator(f"{EDITOR} canvas").screenshot()
    curve.mouse.move(x + plot_px(curve, 3), (y + zero) / 2, steps=5)
    curve.wait_for_timeout(150)
    assert curve.locator(f"{EDITOR} canvas").screenshot() != before
    assert written(curve) == "# a pulse\n0: 0\n4: 1 # top\n-1: 0"
    curve.mouse.up()
    curve.wait_for_function(r"/^# a pulse\n0: 0\n7: 0\.(49|5|51) # top\n-1: 0$/.test(textWidget().value)")
    undo(curve)
    expect_text(curve, "# a pulse\n0: 0\n4: 1 # top\n-1: 0")


@pytest.mark.parametrize("scale", [0.7, 1.6])
def test_points_are_dragged_at_any_zoom(page: Page, scale: float) -> None:
    open_node(page, CURVE, "0: 0, 4: 1, 15: 0", 3, scale)
    drag(page, page.locator(HANDLES).nth(1), plot_px(page, 5))
    expect_text(page, "0: 0, 9: 1, 15: 0")


def test_points_are_added_deleted_and_moved_with_keys(curve: Page) -> None:
    over = curve.locator(f"{EDITOR} .u-over").bounding_box()
    assert over
    curve.mouse.dblclick(over["x"] + plot_px(curve, 10), over["y"] + over["height"] * 0.12 / 1.12)
    curve.wait_for_function(r"/^# a pulse\n0: 0\n4: 1 # top\n10: (0\.99|1|1\.01)\n-1: 0$/.test(textWidget().value)")
    expect(curve.locator(HANDLES).nth(2)).to_be_focused()
    curve.keyboard.press("ArrowRight")
    curve.keyboard.press("Enter")
    curve.keyboard.type("0.25")
    curve.keyboard.press("Enter")
    expect_text(curve, "# a pulse\n0: 0\n4: 1 # top\n11: 0.25\n-1: 0")
    curve.keyboard.press("ArrowUp")
    expect_text(curve, "# a pulse\n0: 0\n4: 1 # top\n11: 0.3\n-1: 0")
    expect(curve.locator(HANDLES).nth(2)).to_be_focused()
    curve.keyboard.press("Delete")
    expect_text(curve, "# a pulse\n0: 0\n4: 1 # top\n-1: 0")


def test_a_preset_is_a_text_and_one_step_of_undo(curve: Page) -> None:
    curve.locator(f"{EDITOR} select").select_option("Smooth pulse")
    expect_text(curve, "0%: 0\n50%: 1\n100%: 0")
    assert curve.evaluate("app.graph.nodes[0].widgets.find(({name}) => name === 'interpolation').value") == "ease"
    expect(curve.locator(HANDLES).nth(1)).to_have_attribute("aria-valuetext", "50%: 1")
    undo(curve)
    expect_text(curve, "# a pulse\n0: 0\n4: 1 # top\n-1: 0")
    expect(curve.locator(HANDLES).nth(1)).to_have_attribute("aria-valuetext", "frame 4: 1")
    assert curve.evaluate("app.graph.nodes[0].widgets.find(({name}) => name === 'interpolation').value") == "linear"


def test_a_list_keeps_its_places(curve: Page) -> None:
    curve.evaluate("write('1, 0.5, 0.2 # three')")
    expect(curve.locator(f"{HANDLES}.fixed")).to_have_count(3)
    drag(curve, curve.locator(HANDLES).nth(1), 40, 20)
    curve.wait_for_function("/^1, 0\\.[34]\\d*, 0\\.2 # three$/.test(textWidget().value)")
    expect(curve.get_by_role("button", name="Add a point")).to_be_disabled()
    expect(curve.get_by_role("button", name="Delete this point")).to_be_disabled()


def test_nothing_is_asked_while_nothing_changes(opened: FrontEnd, travel: Page) -> None:
    asked: list[str] = []
    travel.on("request", lambda request: asked.append(request.url) if "/diffdirector/" in request.url else None)
    travel.wait_for_timeout(600)
    assert asked == []
    travel.evaluate("for (let i = 0; i < 50; i++) write(`0: ${i}`)")
    expect(travel.locator(HANDLES)).to_have_count(1)
    expect(travel.locator(HANDLES)).to_have_attribute("aria-label", "Keyframe 1 of 1: 49")
    assert 1 <= len(asked) <= 2 and opened.problems == []
