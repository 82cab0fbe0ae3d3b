// What the extensions of this folder have in common. The host loads every file of it as an extension: this one does nothing.
import { app } from "../../scripts/app.js";

export function html(tag, attributes = {}) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

export function addStyle(text) {
  const style = html("style");
  style.textContent = text;
  document.head.append(style);
}

// Something to look at in a node; it is part of neither the prompt nor the workflow.
export function addDisplay(node, name, element, options = {}) {
  const widget = node.addDOMWidget(name, `diffdirector_${name}`, element, { serialize: false, ...options });
  widget.serialize = false; // the option keeps it out of the prompt, this out of the workflow
  return widget;
}

// A Vue node keeps the display of the node that had its id before, which the host's undo has replaced by this one.
export function takePlace(node, element, name) {
  if (element.isConnected || node.graph !== app.canvas.graph) return;
  document.querySelector(`[data-node-id="${node.id}"] .diffdirector-${name}`)?.replaceWith(element);
}

// To the canvas what is done with the mouse above an element that is only looked at, or some of it. Vue nodes see to it themselves.
export function leaveMouseToCanvas(element, types = ["wheel", "pointerdown", "pointermove", "pointerup", "contextmenu"]) {
  for (const type of types) {
    element.addEventListener(type, (event) => {
      if (LiteGraph.vueNodesMode) return;
      event.preventDefault();
      event.stopPropagation();
      app.canvas.canvas.dispatchEvent(new event.constructor(event.type, event));
    });
  }
}

// Calls after() each time that the host calls this method of an object.
export function follow(object, method, after) {
  const before = object[method];
  object[method] = function (...values) {
    const result = before?.apply(this, values);
    after();
    return result;
  };
}

// id: to the server "12:3" is node 3 in the subgraph of node 12; the front end also writes "<uuid of the subgraph>:3"
export function nodeOf(id) {
  const path = String(id).split(":");
  const last = path.pop();
  const inside = (graph, part) => app.rootGraph.subgraphs.get(part) ?? graph?.getNodeById(part)?.subgraph;
  return path.reduce(inside, app.rootGraph)?.getNodeById(last);
}
