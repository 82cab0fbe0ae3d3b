// Losses, progress and the last sample of a training, in its node while it runs. nodes/live.py sends what is shown.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { CHART_STYLE, LossChart } from "./chart.js";
import { keptOf, statusOf } from "./losses.js";
import { addDisplay, addStyle, html, leaveMouseToCanvas, takePlace } from "./shared.js";

const EVENT = "diffdirector.training";
const OUTPUT = "diffdirector_training";
const NODES = [
  "DiffDirectorTrainMotionDirector",
  "DiffDirectorTrainMotionModule",
  "DiffDirectorTrainSparseCtrl",
  "DiffDirectorTrainDomainAdapter",
  "DiffDirectorTrainMotionLora",
];
const HEIGHTS = { nothing: 44, phase: 84, chart: 270, sample: 460 };
const EMPTY = { series: {}, sample: null };

const STYLE = `
.diffdirector-training {
  box-sizing: border-box; min-height: calc(var(--comfy-widget-min-height) - 20px); padding: 6px 8px; gap: 4px;
  display: flex; flex-direction: column; border-radius: 8px; overflow: hidden;
  background: var(--comfy-input-bg); color: var(--input-text); font: 12px/1.4 Inter, Arial, sans-serif;
}
.diffdirector-training figure { flex: 1 1 150px; min-height: 0; margin: 0; display: flex; flex-direction: column; }
.diffdirector-training img { flex: 1; min-height: 0; object-fit: contain; }
.diffdirector-training figcaption, .diffdirector-training .status {
  flex: none; text-align: center; text-wrap: balance;
}
.diffdirector-training figcaption {
  display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 2; overflow: hidden;
}
.diffdirector-training .status { font-variant-numeric: tabular-nums; }
.diffdirector-training .status:only-child { margin: auto; opacity: 0.75; }
.diffdirector-training .end { display: flex; align-items: center; justify-content: center; gap: 8px; }
.diffdirector-training button {
  padding: 1px 12px; border: 1px solid #8888; border-radius: 6px; cursor: pointer;
  background: var(--comfy-menu-bg); color: inherit; font: inherit;
}
.diffdirector-training button:focus-visible { outline: 2px solid var(--input-text); }
.diffdirector-training button:disabled { opacity: 0.5; cursor: default; }
`;

class Display {
  constructor(node) {
    this.node = node;
    this.element = html("div", { class: "diffdirector-training" });
    this.losses = new LossChart();
    this.status = html("div", { class: "status", role: "status" });
    this.end = html("div", { class: "end" });
    this.cancel = html("button", { type: "button" });
    this.cancel.textContent = "Cancel";
    this.cancel.onclick = () => this.interrupt();
    this.kept = html("span");
    this.end.append(this.cancel, this.kept);
    this.image = html("img");
    this.caption = html("figcaption");
    this.figure = html("figure");
    this.figure.append(this.image, this.caption);
    this.image.onerror = () => this.arrange({ ...this.state, sample: null }); // the host empties its temp folder
    for (const part of [this.losses.element, this.figure]) leaveMouseToCanvas(part);
    addDisplay(node, "training", this.element, { hideOnZoom: false });
    this.show(EMPTY);
  }

  show(state) {
    this.state = state;
    takePlace(this.node, this.element, "training");
    this.arrange(state);
    this.status.textContent = state === EMPTY ? "The losses and a sample appear here." : statusOf(state);
    this.cancel.disabled = !state.running || state.prompt === this.interrupted;
    this.kept.textContent = state.running ? keptOf(state) : "";
    this.losses.show(state.series);
    if (!state.sample) return;
    const { filename, subfolder, type, step, prompt } = state.sample;
    const url = api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`);
    if (this.image.getAttribute("src") !== url) this.image.src = url; // the same again would start the clip anew
    this.image.alt = prompt;
    this.caption.textContent = this.caption.title = `after step ${step}: ${prompt}`;
  }

  interrupt() {
    this.interrupted = this.state.prompt;
    this.cancel.disabled = true;
    api.interrupt(this.state.prompt);
  }

  // Only what there is to show takes room. The node grows when it has to, and else keeps the size the user gave it.
  arrange({ series, sample, running }) {
    const some = Object.keys(series).length > 0;
    const parts = [some && this.losses.element, this.status, (some || running) && this.end, sample && this.figure];
    const height = sample ? HEIGHTS.sample : some ? HEIGHTS.chart : running ? HEIGHTS.phase : HEIGHTS.nothing;
    const shown = parts.filter(Boolean);
    if (shown.length === this.element.childElementCount && shown.every((part) => part.parentNode)) return;
    const focused = document.activeElement;
    this.element.replaceChildren(...shown);
    if (this.element.contains(focused)) focused.focus();
    this.element.style.setProperty("--comfy-widget-min-height", `${height}px`);
    const [width, least] = this.node.computeSize();
    this.node.setSize([Math.max(width, this.node.size[0]), Math.max(least, this.node.size[1])]);
    this.node.setDirtyCanvas(true, true);
  }
}

const displays = new WeakMap(); // by their nodes
const states = new Map(); // what was seen of trainings on this page, by keyOf: it outlives the nodes, which undo makes anew
const asked = new Set(); // workflows whose trainings before this page have been looked for

const keyOf = ({ node }) => `${app.rootGraph.id}:${node.id}`;

function openDisplays() {
  const nodes = [app.rootGraph, ...app.rootGraph.subgraphs.values()].flatMap((graph) => graph.nodes);
  return nodes.map((node) => displays.get(node)).filter(Boolean);
}

// id: "12:3" is node 3 in the subgraph of node 12, when the run began. A node keeps its number, which no other has.
function displayOf(id) {
  const number = String(id).split(":").pop();
  return openDisplays().find(({ node }) => String(node.id) === number);
}

function remember(display, state) {
  if (!display) return;
  states.set(keyOf(display), state);
  display.show(state);
}

function showAll() {
  for (const display of openDisplays()) display.show(states.get(keyOf(display)) ?? EMPTY);
}

// What ended without an output. prompt: without one, all that ran.
function stop(why, kept, prompt) {
  const ended = [...states].filter(([, state]) => state.running && state.prompt === (prompt ?? state.prompt));
  for (const [key, state] of ended) {
    const phase = state.step ? `${why}, ${kept}` : why;
    states.set(key, { ...state, phase, rate: null, left: null, running: false, stopped: true });
  }
  if (ended.length) showAll();
}

function showOutput(display, output) {
  const text = output?.[OUTPUT]?.[0];
  if (text) remember(display, JSON.parse(text));
}

// Runs that ended with an output. What was seen to run since, or to stop, is newer.
function showEarlier(outputs) {
  for (const [id, output] of Object.entries(outputs)) {
    const display = displayOf(id);
    const seen = display && states.get(keyOf(display));
    if (!seen?.running && !seen?.stopped) showOutput(display, output);
  }
}

// After a reload the host brings the workflow back without its outputs; they are in the history of the server.
async function restore() {
  const workflow = app.rootGraph.id;
  if (asked.has(workflow) || !openDisplays().length) return;
  asked.add(workflow);
  const answer = await api.fetchApi("/history?max_items=64");
  const ofWorkflow = ({ prompt }) => prompt[3].extra_pnginfo?.workflow?.id === workflow;
  const runs = Object.values(await answer.json()).filter(ofWorkflow);
  if (app.rootGraph.id !== workflow) asked.delete(workflow);
  else for (const { outputs } of runs) showEarlier(outputs);
}

app.registerExtension({
  name: "DiffDirector.Training",
  setup() {
    addStyle(CHART_STYLE + STYLE);
    api.addEventListener(EVENT, ({ detail }) => {
      const open = [app.rootGraph.id, null].includes(detail.workflow); // a script's run has no workflow
      if (open) remember(displayOf(detail.node), { ...detail, running: true });
    });
    const [interrupted, error] = ["cancelled", "stopped by an error"].map(
      (why) => (event) => stop(why, "what was learnt is kept", event.detail.prompt_id),
    );
    api.addEventListener("execution_interrupted", interrupted);
    api.addEventListener("execution_error", error);
    api.addEventListener("status", ({ detail }) => {
      if (detail?.exec_info.queue_remaining === 0) stop("the server was stopped", "the last save is kept");
    });
    app.canvas.canvas.addEventListener("subgraph-converted", showAll);
    const theme = new MutationObserver(() => openDisplays().forEach(({ losses }) => losses.redraw()));
    theme.observe(document.documentElement, { attributeFilter: ["class", "style"] });
  },
  nodeCreated(node) {
    if (!NODES.includes(node.comfyClass)) return;
    const display = new Display(node);
    displays.set(node, display);
    const before = node.onExecuted;
    node.onExecuted = function (output) {
      before?.call(this, output);
      showOutput(display, output);
    };
  },
  afterConfigureGraph() {
    showAll();
    restore();
  },
  // when the user comes back to a workflow's tab
  onNodeOutputsUpdated: showEarlier,
});
