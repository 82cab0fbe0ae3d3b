// Clips that the host plays in our nodes (nodes/looping.py, Save Animation): large enough to see on the canvas, where it gives them
// the height of a text line. Vue nodes make room by themselves.
import { app } from "../../scripts/app.js";
import { follow } from "./shared.js";

const NODES = ["DiffDirectorLoopClip", "DiffDirectorClipGrid", "DiffDirectorScribblePreprocessor", "DiffDirectorSaveAnimation"];
const HOSTS = "$$comfy_animation_preview"; // the name of its widget
const HEIGHT = 220; // px, as its previews of samplers

app.registerExtension({
  name: "DiffDirector.Looping",
  nodeCreated(node) {
    if (!NODES.includes(node.comfyClass)) return;
    follow(node, "addDOMWidget", () => {
      const clip = node.widgets.at(-1);
      if (clip.name !== HOSTS) return;
      clip.element.style.setProperty("--comfy-widget-min-height", `${HEIGHT}px`);
      node.setSize([node.size[0], Math.max(node.size[1], node.computeSize()[1])]);
    });
  },
});
