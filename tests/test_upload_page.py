"""Footage that a user gives to Video Dataset in the real front end: chosen with its button, dropped on it; both renderers."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, expect

from diffdirector.tests.demo.world import Scene, render, write_video
from diffdirector.tests.host.provision import ROOT, provision
from diffdirector.tests.host.server import Server
from diffdirector.trainers.sources import PICTURE_EXTENSIONS
from diffdirector.trainers.video import VIDEO_EXTENSIONS

pytestmark = [pytest.mark.slow, pytest.mark.browser]

NODE, LABEL = "DiffDirectorVideoDataset", "choose footage to upload"
SOURCE = "app.graph.nodes[0].widgets.find(widget => widget.name === 'source').value"
# Files as the browser hands them over when they are let go above the node, beside its text fields.
DROP = """files => {
    const [left, top] = app.canvas.ds.convertOffsetToCanvas([app.graph.nodes[0].pos[0] + 100, app.graph.nodes[0].pos[1] + 30]);
    const canvas = app.canvas.canvas.getBoundingClientRect();
    const [x, y] = [canvas.left + left, canvas.top + top];
    const data = new DataTransfer();
    for (const [name, content] of files) data.items.add(new File([Uint8Array.from(atob(content), c => c.charCodeAt(0))], name));
    const target = document.elementFromPoint(x, y);
    for (const type of ['dragenter', 'dragover', 'drop'])
        target.dispatchEvent(new DragEvent(type, {dataTransfer: data, clientX: x, clientY: y, bubbles: true, cancelable: true}));
}"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(provision(), tmp_path_factory.mktemp("upload-page")) as running:
        yield running


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two clips of 16 frames of 64x64, and a caption of the second."""
    folder = tmp_path_factory.mktemp("filmed")
    files = [folder / "first clip.mp4", folder / "second.mp4", folder / "second.txt"]
    for file, way in zip(files, ("right", "up"), strict=False):
        write_video(file, render(Scene("circle", "red", "white", way), 16))
    files[2].write_text("a red circle moving up on a white background", encoding="utf-8")
    return files


@pytest.fixture
def dataset(page: Page) -> Page:
    page.evaluate(
        """kind => {
            const node = LiteGraph.createNode(kind);
            app.graph.add(node);
            Object.assign(app.canvas.ds, {scale: 1, offset: [500 - node.pos[0], 160 - node.pos[1]]});
            for (const widget of node.widgets) if (['width', 'height'].includes(widget.name)) widget.value = 64;
        }""",
        NODE,
    )
    return page


def choose(page: Page, files: list[Path]) -> None:
    with page.expect_file_chooser() as chooser:
        if page.evaluate("LiteGraph.vueNodesMode"):
            page.get_by_role("button", name=LABEL).click()
        else:
            page.wait_for_function("app.graph.nodes[0].widgets.find(widget => widget.name === 'upload').last_y > 0")
            place = page.evaluate(
                """() => {
                    const [node] = app.graph.nodes, button = node.widgets.find(widget => widget.name === 'upload');
                    const canvas = app.canvas.canvas.getBoundingClientRect();
                    const [x, y] = app.canvas.ds.convertOffsetToCanvas([node.pos[0] + 60, node.pos[1] + button.last_y + 10]);
                    return [canvas.left + x, canvas.top + y];
                }"""
            )
            page.mouse.click(*place)
    chooser.value.set_files(files)


def clips_seen(page: Page, count: int) -> None:
    """The node shows a row for each clip once it has run."""
    page.get_by_test_id("queue-button").click()
    page.wait_for_function("count => app.graph.nodes[0].imgs?.[0]?.naturalHeight > 60 * count", arg=count)


def test_a_clip_that_is_chosen_is_what_the_node_reads(dataset: Page, footage: list[Path], server: Server) -> None:
    choose(dataset, footage[:1])
    dataset.wait_for_function(f"{SOURCE} !== 'videos'")
    name = dataset.evaluate(SOURCE)
    assert (server.base / "input" / name).read_bytes() == footage[0].read_bytes()
    clips_seen(dataset, 1)
    saved = dataset.evaluate("app.graph.serialize().nodes[0].widgets_values")
    assert saved[0] == name and LABEL not in saved and len(saved) == 15
    assert "upload" not in dataset.evaluate("app.graphToPrompt()")["output"]["1"]["inputs"]


def test_several_files_become_a_folder_of_their_own(dataset: Page, footage: list[Path], server: Server) -> None:
    choose(dataset, footage)
    dataset.wait_for_function("app.graph.nodes[0].widgets.at(-1).label.startsWith('choose')")
    dataset.wait_for_function(f"{SOURCE}.startsWith('footage-')")
    folder = server.base / "input" / dataset.evaluate(SOURCE)
    dataset.wait_for_function(
        "app.graph.nodes[0].widgets.find(widget => widget.name === 'upload').label.startsWith('choose')"
    )
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == {
        file.name: file.read_bytes() for file in footage
    }
    clips_seen(dataset, 2)


def test_files_are_dropped_on_the_node_and_others_are_not_taken(dataset: Page, footage: list[Path]) -> None:
    files = [[file.name, base64.b64encode(file.read_bytes()).decode()] for file in footage[:1]]
    dataset.evaluate(DROP, [["notes.doc", "AAAA"], ["alone.txt", "AAAA"]])
    dataset.wait_for_timeout(500)
    assert dataset.evaluate(SOURCE) == "videos"
    dataset.evaluate(DROP, files)
    dataset.wait_for_function(f"{SOURCE} !== 'videos'")
    assert dataset.evaluate(SOURCE).startswith("first clip")


def test_what_is_taken_is_what_the_dataset_reads() -> None:
    (endings,) = re.findall(r"FOOTAGE = /(.+)/i;", (ROOT / "web" / "upload.js").read_text(encoding="utf-8"))
    assert all(re.fullmatch(endings, ending) for ending in VIDEO_EXTENSIONS | PICTURE_EXTENSIONS)


def test_a_refused_upload_says_what_to_do(dataset: Page, footage: list[Path]) -> None:
    served = []

    def refuse_all_but_the_first(route: Route) -> None:
        served.append(route)
        route.fulfill(json={"name": "first clip.mp4"}) if len(served) == 1 else route.fulfill(status=413)

    dataset.route("**/upload/image", refuse_all_but_the_first)
    try:
        choose(dataset, [footage[1], footage[0]])
        toast = dataset.get_by_role("alert").filter(has_text="first clip.mp4: ").last
        expect(toast).to_contain_text("larger than ComfyUI's --max-upload-size")
        expect(toast).to_contain_text("Put it into ComfyUI's input folder yourself")
        assert dataset.evaluate(SOURCE) == "videos"
    finally:
        dataset.unroute("**/upload/image")
