"""How a graph lies on the page's canvas: what the front end has drawn, in whichever way it draws nodes, not what a file says."""

from __future__ import annotations

from itertools import combinations
from typing import Any, NamedTuple

from playwright.sync_api import Page

# The whole graph on the screen, below the tabs and beside the side bar.
_FIT = """() => {
    const boxes = [...app.graph.nodes, ...app.graph.groups].map(item => item.boundingRect);
    const [left, top] = [0, 1].map(side => Math.min(...boxes.map(box => box[side])));
    const [right, bottom] = [0, 1].map(side => Math.max(...boxes.map(box => box[side] + box[side + 2])));
    const [width, height] = [app.canvas.canvas.clientWidth - 160, app.canvas.canvas.clientHeight - 160];
    const scale = Math.min(1, width / (right - left), height / (bottom - top));
    Object.assign(app.canvas.ds, {scale, offset: [90 / scale - left, 120 / scale - top]});
    app.canvas.setDirty(true, true);
}"""
# True once nothing has changed its size for some frames; Vue nodes are measured after they are drawn.
_STILL = """() => new Promise(done => {
    const sizes = () => JSON.stringify(app.graph.nodes.map(node => [...node.boundingRect]));
    let [last, frames] = [sizes(), 0];
    const look = () => {
        frames = sizes() === last ? frames + 1 : 0;
        last = sizes();
        frames === 12 ? done() : requestAnimationFrame(look);
    };
    look();
})"""

# Boxes are [left, top, width, height] on the graph. Links are drawn once more on a canvas of their own, a quarter as large,
# to see which nodes they pass behind: all but the edge of a node, where its own links begin.
_DRAWN = """() => {
    const area = app.canvas.canvas.getBoundingClientRect();
    const boxOf = node => {
        if (!LiteGraph.vueNodesMode) return [...node.boundingRect];
        const drawn = document.querySelector(`[data-node-id="${node.id}"]`).getBoundingClientRect();
        const [left, top] = app.canvas.ds.convertCanvasToOffset([drawn.left - area.left, drawn.top - area.top]);
        return [left, top, drawn.width / app.canvas.ds.scale, drawn.height / app.canvas.ds.scale];
    };
    const nodes = app.graph.nodes.map(node => [`${node.id} ${node.title}`, boxOf(node)]);
    const groups = app.graph.groups.map(group => [group.title, [...group.boundingRect]]);

    const EDGE = 16, SMALL = 0.25;
    const boxes = [...nodes, ...groups].map(([name, box]) => box);
    const [left, top] = [0, 1].map(side => Math.min(...boxes.map(box => box[side])) - 200);
    const [right, bottom] = [0, 1].map(side => Math.max(...boxes.map(box => box[side] + box[side + 2])) + 200);
    const [width, height] = [right - left, bottom - top].map(length => Math.ceil(length * SMALL));
    const ink = new OffscreenCanvas(width, height).getContext("2d", {willReadFrequently: true});
    ink.setTransform(SMALL, 0, 0, SMALL, -left * SMALL, -top * SMALL);
    const behind = [];
    for (const link of app.canvas.renderedPaths) {
        ink.clearRect(left, top, right - left, bottom - top);
        ink.lineWidth = 2;
        ink.stroke(link.path);
        const {data} = ink.getImageData(0, 0, width, height);
        for (const [name, [x, y, w, h]] of nodes) {
            const [x0, y0] = [x + EDGE - left, y + EDGE - top].map(value => Math.ceil(value * SMALL));
            const [x1, y1] = [x + w - EDGE - left, y + h - EDGE - top].map(value => Math.floor(value * SMALL));
            let seen = 0;
            for (let row = y0; row < y1; row++) {
                for (let column = x0; column < x1; column++) seen ||= data[4 * (row * width + column) + 3];
            }
            if (seen) behind.push([`${link.type ?? "reroute"} ${link.id}`, name]);
        }
    }
    return {nodes, groups, behind, links: app.canvas.renderedPaths.size};
}"""


class Box(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float

    @classmethod
    def of(cls, box: list[float]) -> Box:
        """From [left, top, width, height]."""
        left, top, width, height = box
        return cls(left, top, left + width, top + height)

    def overlaps(self, other: Box) -> bool:
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )

    def contains(self, other: Box) -> bool:
        return (
            self.left <= other.left
            and self.top <= other.top
            and other.right <= self.right
            and other.bottom <= self.bottom
        )


def fit(page: Page) -> None:
    """Show the whole graph, and wait until every node has been drawn."""
    for _ in range(2):  # the nodes that are seen now may have other sizes than those that were saved
        page.evaluate(_FIT)
        page.evaluate(_STILL)


Named = list[tuple[str, Box]]


def lying_over(nodes: Named, groups: Named) -> list[tuple[str, str]]:
    """Nodes and groups that lie over another one, and nodes that lie across the edge of a group."""
    found = [
        (a, b) for boxes in (nodes, groups) for (a, box), (b, other) in combinations(boxes, 2) if box.overlaps(other)
    ]
    return found + [
        (n, g) for n, box in nodes for g, frame in groups if frame.overlaps(box) and not frame.contains(box)
    ]


def faults(page: Page) -> list[Any]:
    """What a person would see of an untidy graph: things that lie over others, and links that pass behind nodes."""
    drawn = page.evaluate(_DRAWN)
    nodes, groups = ([(name, Box.of(box)) for name, box in drawn[kind]] for kind in ("nodes", "groups"))
    return lying_over(nodes, groups) + [f"{link} passes behind {node}" for link, node in drawn["behind"]]
