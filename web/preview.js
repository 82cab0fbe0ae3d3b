// A sampler's preview that moves (nodes/preview.py), played in nodes that are drawn on the canvas. Vue nodes play it by themselves.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { addDisplay, addStyle, html, leaveMouseToCanvas, nodeOf } from "./shared.js";

const NAME = "$$canvas-image-preview"; // the host's own, which it leaves out of a node that has one of this name
const HEIGHT = 220; // as the host's

const STYLE = `
.diffdirector-preview { --comfy-widget-min-height: ${HEIGHT}px; }
.diffdirector-preview img { width: 100%; height: 100%; object-fit: contain; }
`;

const players = new WeakMap();

function play(node, clip) {
  if (!players.has(node)) {
    remove(node, node.widgets?.find((widget) => widget.name === NAME));
    const element = html("div", { class: "diffdirector-preview" });
    const image = html("img", { alt: "the clip so far" });
    image.onload = () => URL.revokeObjectURL(image.src);
    element.append(image);
    leaveMouseToCanvas(element);
    const options = { canvasOnly: true, hideOnZoom: false };
    players.set(node, { image, widget: addDisplay(node, NAME, element, options) });
  }
  players.get(node).image.src = URL.createObjectURL(clip);
}

function stop(node) {
  if (node) remove(node, players.get(node)?.widget);
  players.delete(node);
}

function remove(node, widget) {
  if (!node.widgets?.includes(widget)) return; // the host takes it away by its name, too
  widget.onRemove?.();
  node.widgets.splice(node.widgets.indexOf(widget), 1);
}

app.registerExtension({
  name: "DiffDirector.Preview",
  setup() {
    addStyle(STYLE);
    api.addEventListener("b_preview_with_metadata", ({ detail }) => {
      const node = nodeOf(detail.displayNodeId);
      if (node && detail.blob.type === "image/webp" && !LiteGraph.vueNodesMode) play(node, detail.blob);
      else stop(node); // the host shows its still
    });
    api.addEventListener("executed", ({ detail }) => {
      if (detail.output?.images) stop(nodeOf(detail.display_node ?? detail.node));
    });
  },
});
