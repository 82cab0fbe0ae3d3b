"""`make help-pictures`: the picture of every help page, of the real front end: web/docs/images/<node id>.webp."""

from __future__ import annotations

import argparse
import io
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from playwright.sync_api import Page, TimeoutError
from safetensors.torch import load_file

from diffdirector.tests.demo import stack, world

from .browser import open_front_end
from .help_graphs import ADAPTER, CHECKPOINT, CLIP, MOTION_MODEL, PAN, PHOTO, PIA, PICTURES, SPARSECTRL, ZOOM, Picture
from .inprocess import boot
from .provision import ROOT, provision
from .server import Server

IMAGES = ROOT / "web" / "docs" / "images"
WIDTH, HEIGHT, TOP, LEFT = 800, 960, 120, 420  # where nothing of the front end lies over the graph
FILES = {  # what the nodes list; only the demo's models are read
    "checkpoints": [CHECKPOINT], "animatediff_models": [MOTION_MODEL, PIA], "loras": [ADAPTER],
    "controlnet": [SPARSECTRL], "animatediff_motion_lora": [ZOOM, PAN],
}  # fmt: skip

BUILD = """([kind, picture]) => {
    const add = (type, values) => {
        const node = LiteGraph.createNode(type);
        app.graph.add(node);
        const lines = 14 * Math.max(0, ...Object.values(values).map(value => String(value).split('\\n').length - 2));
        const room = lines + (node.widgets?.some(widget => widget.name === 'training') ? 380 : 0);
        node.setSize([Math.min(node.size[0], 300), Math.min(node.size[1], node.computeSize()[1] + room)]);  // text fields are large
        for (const name in values) {
            const widget = node.widgets.find(widget => widget.name === name);
            widget.value = values[name];
            widget.callback?.(values[name]);
        }
        return node;
    };
    const link = (from, to, names) => {
        for (const [output, input] of Object.entries(names))
            if (!from.connect(from.outputs.findIndex(slot => slot.name === output), to, to.inputs.findIndex(slot => slot.name === input)))
                throw new Error(`${from.type}.${output} does not go into ${to.type}.${input}`);
    };
    const [values, sources, targets] = picture;
    const node = add(kind, values);
    window.columns = [[], [node], []];
    for (const [type, values, names] of sources) { const from = add(type, values); link(from, node, names); columns[0].push(from); }
    for (const [type, values, names] of targets) { const to = add(type, values); link(node, to, names); columns[2].push(to); }
}"""
# Columns side by side, the nodes of one below each other, as large as fits; returns the size that they take.
ARRANGE = """([width, most, left, top]) => {
    let x = 0, height = 0;
    for (const column of columns.filter(column => column.length)) {
        let y = LiteGraph.NODE_TITLE_HEIGHT;
        for (const node of column) { node.pos = [x, y]; y += node.size[1] + LiteGraph.NODE_TITLE_HEIGHT + 16; }
        height = Math.max(height, y - LiteGraph.NODE_TITLE_HEIGHT - 16);
        x += Math.max(...column.map(node => node.size[0])) + 60;
    }
    const scale = Math.min(1, (width - 40) / (x - 60), (most - 50) / height);
    const canvas = app.canvas.canvas.getBoundingClientRect();
    Object.assign(app.canvas.ds, {scale, offset: [(left - canvas.left + 20) / scale, (top - canvas.top + 30) / scale]});
    app.canvas.deselectAll();
    app.canvas.draw(true, true);
    return [Math.ceil((x - 60) * scale) + 40, Math.ceil(height * scale) + 50];
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("nodes", nargs="*", default=list(PICTURES), help="ids, without the prefix DiffDirector")
    ids = [name if name in PICTURES else f"DiffDirector{name}" for name in parser.parse_args().nodes]
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        boot(["--cpu"], base)
        write_files(base)
        with (
            Server(provision(), base) as server,
            open_front_end(server.url, {"Comfy.VueNodes.Enabled": False}) as front,
        ):
            for node_id in ids:
                with front.empty_graph() as page:
                    picture = taken(page, node_id, PICTURES[node_id])
                picture.save(IMAGES / f"{node_id}.webp", quality=82, method=6)
                print(f"{node_id}: {picture.size}, {(IMAGES / f'{node_id}.webp').stat().st_size} bytes", flush=True)


def taken(page: Page, node_id: str, what: Picture) -> Image.Image:
    page.evaluate(BUILD, [node_id, what[:3]])
    if what.run:
        run(page, what.run)
    page.wait_for_timeout(1000)  # previews and pictures arrive after the run, and nodes grow with them
    width, height = page.evaluate(ARRANGE, [WIDTH, HEIGHT, LEFT, TOP])
    page.mouse.move(LEFT + 2, TOP + 2)
    page.wait_for_timeout(700)
    shot = page.screenshot(clip={"x": LEFT, "y": TOP, "width": width, "height": height})
    if what.run:
        page.evaluate("app.api.interrupt()")
        page.wait_for_function("finished")
    return Image.open(io.BytesIO(shot)).convert("RGB")


def run(page: Page, seconds: float) -> None:
    """The node and what it needs, for so long at most; what takes it only where the node itself shows nothing."""
    page.evaluate(
        """() => {
            window.finished = 0;
            window.failed = null;
            for (const kind of ['execution_success', 'execution_error', 'execution_interrupted'])
                app.api.addEventListener(kind, () => finished++, {once: true});
            app.api.addEventListener('execution_error', ({detail}) => (failed = detail.exception_message), {once: true});
            const shows = nodes => nodes.filter(node => node.constructor.nodeData.output_node);
            const [shown] = [shows(columns[1]), shows(columns[2])].filter(nodes => nodes.length);
            return app.queuePrompt(0, 1, shown.map(node => String(node.id)));
        }"""
    )
    with suppress(TimeoutError):
        page.wait_for_function("finished", timeout=1000 * seconds)
    assert page.evaluate("failed") is None, page.evaluate("failed")


def write_files(base: Path) -> None:
    stack.link_models(base)
    demo: dict[str, Any] = {"checkpoints": stack.CHECKPOINT, "animatediff_models": stack.MOTION_MODEL}
    for folder, names in FILES.items():
        (base / "models" / folder).mkdir(parents=True, exist_ok=True)
        for name in names:
            if name == MOTION_MODEL:  # its ending is that of another format
                torch.save(load_file(stack.MOTION), base / "models" / folder / name)
                continue
            link = base / "models" / folder / name
            link.symlink_to(base / "models" / folder / demo[folder]) if folder in demo else link.touch()
    (base / "input").mkdir()
    scene = world.Scene("circle", "red", "white", "right")
    world.write_video(base / "input" / CLIP, world.render(scene, 16))
    still = (world.render_still(world.Scene("triangle", "green", "white", "up"), size=256).movedim(0, -1) * 255).byte()
    Image.fromarray(still.numpy()).save(base / "input" / PHOTO)
