"""The shipped workflows as files: how they lie on the canvas, and what they say about the models that they need."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from diffdirector.tests.demo import stack
from diffdirector.tests.host.layout import Box, lying_over
from diffdirector.tests.host.provision import ROOT
from diffdirector.tests.host.shipped import WORKFLOWS
from diffdirector.tests.host.workflow import load_workflow

TITLE_BAR = 30  # it lies above a node's pos; a group's is inside its bounding
NOTE = "MarkdownNote"
FOLDERS = {
    "CheckpointLoaderSimple": "checkpoints",
    "LoraLoaderModelOnly": "loras",
    "DiffDirectorLoadMotionModel": "animatediff_models",
    "DiffDirectorMotionLora": "animatediff_motion_lora",
    "DiffDirectorDomainAdapter": "loras",
    "DiffDirectorLoadSparseCtrl": "controlnet",
}
# Made by whoever uses them, with `make demo` or with Train MotionDirector.
OWN = {stack.CHECKPOINT, stack.MOTION_MODEL, "my-motion.safetensors"}


def node_box(node: dict[str, Any]) -> Box:
    (x, y), (width, height) = node["pos"], node["size"]
    return Box(x, y - TITLE_BAR, x + width, y + height)


def group_box(group: dict[str, Any]) -> Box:
    return Box.of(group["bounding"])


@pytest.fixture(params=WORKFLOWS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def workflow(name: str) -> dict[str, Any]:
    return load_workflow(name)


def test_nothing_lies_over_anything_else(workflow: dict[str, Any]) -> None:
    nodes = [(f"{node['id']} {node['type']}", node_box(node)) for node in workflow["nodes"]]
    groups = [(group["title"], group_box(group)) for group in workflow["groups"]]
    assert lying_over(nodes, groups) == []


def test_every_node_is_in_a_group_with_a_title(workflow: dict[str, Any]) -> None:
    assert all(group["title"] for group in workflow["groups"])
    frames = [group_box(group) for group in workflow["groups"]]
    outside = [node for node in workflow["nodes"] if not any(frame.contains(node_box(node)) for frame in frames)]
    assert [node["type"] for node in outside if node["type"] != NOTE] == []


def test_links_lead_to_the_right_or_down(workflow: dict[str, Any]) -> None:
    """Into a column further to the right, or to a node below in the same column."""
    boxes = {node["id"]: node_box(node) for node in workflow["nodes"]}
    back = []
    for _, source, _, target, _, kind in workflow["links"]:
        start, end = boxes[source], boxes[target]
        below = end.left == start.left and end.top >= start.bottom
        if not (start.right <= end.left or below):
            back.append((source, target, kind))
    assert back == []


def test_links_and_slots_name_each_other(workflow: dict[str, Any]) -> None:
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for number, source, output, target, slot, kind in workflow["links"]:
        start, end = nodes[source]["outputs"][output], nodes[target]["inputs"][slot]
        assert number in start["links"] and end["link"] == number
        assert start["type"] == end["type"] == kind
    slots = [slot["link"] for node in nodes.values() for slot in node["inputs"] if slot["link"] is not None]
    assert sorted(slots) == sorted(link[0] for link in workflow["links"])
    assert workflow["last_node_id"] == max(nodes) and workflow["last_link_id"] == max(slots)


def test_the_front_end_can_say_where_missing_models_are_from(workflow: dict[str, Any]) -> None:
    for node in workflow["nodes"]:
        if node["type"] not in FOLDERS:
            assert "models" not in node["properties"]
            continue
        file = node["widgets_values"][0]
        models = node["properties"].get("models")
        if file in OWN:
            assert models is None
            continue
        assert models and len(models) == 1, f"{node['type']} needs {file}, and does not say where it is from"
        assert models[0] == {"name": file, "url": models[0]["url"], "directory": FOLDERS[node["type"]]}
        assert models[0]["url"].startswith("https://huggingface.co/")
        assert models[0]["url"].split("/", 5)[5] == f"resolve/main/{file}"


def test_the_note_names_every_file_its_page_and_its_folder(workflow: dict[str, Any]) -> None:
    (note,) = (node for node in workflow["nodes"] if node["type"] == NOTE)
    assert note["title"] == "Read me"
    (text,) = note["widgets_values"]
    assert text.startswith("## ") and "`" not in text
    for node in workflow["nodes"]:
        for model in node["properties"].get("models", []):
            page = model["url"].split("/resolve/")[0]
            (line,) = (line for line in text.splitlines() if f"[{model['name']}]({page})" in line)
            assert line.endswith(f"\N{RIGHTWARDS ARROW} **models/{model['directory']}**")


def test_the_thumbnail_is_small_and_square(name: str) -> None:
    path = ROOT / "workflows" / f"{name}.jpg"
    with Image.open(path) as picture:
        assert (picture.format, picture.size) == ("JPEG", (512, 512))
    assert path.stat().st_size < 80_000


def test_the_readme_lists_it(name: str) -> None:
    assert f"\n| *{name}* | " in (ROOT / "README.md").read_text()


def test_no_two_have_the_same_id() -> None:
    ids = [load_workflow(name)["id"] for name in WORKFLOWS]
    assert ids and len(set(ids)) == len(ids)
