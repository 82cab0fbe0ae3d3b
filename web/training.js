// Losses, progress and the last sample of a training, in its node while it runs. nodes/live.py sends what is shown.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { addDisplay, addStyle, html, nodeOf, withAttributes } from "./shared.js";

const EVENT = "diffdirector.training";
const OUTPUT = "diffdirector_training";
const NODES = ["DiffDirectorTrainMotionDirector", "DiffDirectorTrainMotionModule"];
const LABELS = { temporal: "motion (temporal)", spatial: "looks (spatial)" };
const HEIGHTS = { nothing: 44, chart: 240, sample: 430 };
const MARGIN = { left: 44, right: 8, top: 6, bottom: 18 };

// the colours keep a contrast of 3:1 and differ for the colour-blind, on the host's dark and light inputs
const STYLE = `
.diffdirector-training {
  --motion: #1f5fbf; --looks: #b3450b; --held-out: #0f6b4a;
  box-sizing: border-box; min-height: var(--comfy-widget-min-height); padding: 6px 8px; gap: 4px;
  display: flex; flex-direction: column; border-radius: 8px; overflow: hidden;
  background: var(--comfy-input-bg); color: var(--input-text); font: 12px/1.4 Inter, Arial, sans-serif;
}
.dark-theme .diffdirector-training { --motion: #4d94ec; --looks: #ec7a43; --held-out: #2fb083; }
.diffdirector-training [data-series] { color: var(--motion); }
.diffdirector-training [data-series="spatial"] { color: var(--looks); }
.diffdirector-training [data-series="validation"] { color: var(--held-out); }
.diffdirector-training .legend { display: flex; flex-wrap: wrap; gap: 0 14px; }
.diffdirector-training .legend span::before {
  content: ""; display: inline-block; width: 14px; height: 3px; border-radius: 2px; margin-right: 5px;
  vertical-align: middle; background: currentColor;
}
.diffdirector-training .legend b { color: var(--input-text); font-weight: normal; }
.diffdirector-training .chart { flex: 1 1 110px; min-height: 110px; position: relative; }
.diffdirector-training svg { position: absolute; inset: 0; width: 100%; height: 100%; }
.diffdirector-training svg text { fill: var(--input-text); opacity: 0.75; font-size: 10px; }
.diffdirector-training svg line { stroke: var(--input-text); opacity: 0.15; }
.diffdirector-training path { fill: none; stroke: currentColor; stroke-linejoin: round; stroke-linecap: round; }
.diffdirector-training path.raw { opacity: 0.3; stroke-width: 1; }
.diffdirector-training path.smooth { stroke-width: 2; }
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
`;

class Display {
  constructor(node) {
    this.node = node;
    this.element = html("div", { class: "diffdirector-training" });
    this.legend = html("div", { class: "legend" });
    this.chart = html("div", { class: "chart" });
    this.status = html("div", { class: "status", role: "status" });
    this.image = html("img");
    this.caption = html("figcaption");
    this.figure = html("figure");
    this.figure.append(this.image, this.caption);
    this.image.onerror = () => this.arrange({ ...this.state, sample: null }); // the host empties its temp folder
    this.status.textContent = "The losses and a sample appear here.";
    addDisplay(node, "training", this.element);
    this.arrange({ series: {}, sample: null });
    new ResizeObserver(() => this.draw()).observe(this.chart);
  }

  show(state) {
    this.state = state;
    this.arrange(state);
    this.status.textContent = statusOf(state);
    this.legend.replaceChildren(...Object.entries(state.series).map(legendEntry));
    this.draw();
    if (!state.sample) return;
    const { filename, subfolder, type, step, prompt } = state.sample;
    const url = api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`);
    if (this.image.getAttribute("src") !== url) this.image.src = url; // the same again would start the clip anew
    this.image.alt = prompt;
    this.caption.textContent = this.caption.title = `after step ${step}: ${prompt}`;
  }

  stop(reason) {
    if (!this.state) return;
    const phase = this.state.step ? `${reason}, what was learnt is kept` : reason;
    this.show({ ...this.state, phase, rate: null, left: null });
  }

  // Only what there is to show takes room. The node grows when it has to, and else keeps the size the user gave it.
  arrange({ series, sample }) {
    const parts = Object.keys(series).length ? [this.legend, this.chart, this.status] : [this.status];
    const height = sample ? HEIGHTS.sample : parts.length > 1 ? HEIGHTS.chart : HEIGHTS.nothing;
    if (sample) parts.push(this.figure);
    if (parts.length === this.element.childElementCount) return;
    this.element.replaceChildren(...parts);
    this.element.style.setProperty("--comfy-widget-min-height", `${height}px`);
    const [width, least] = this.node.computeSize();
    this.node.setSize([Math.max(width, this.node.size[0]), Math.max(least, this.node.size[1])]);
    this.node.setDirtyCanvas(true, true);
  }

  draw() {
    const { clientWidth: width, clientHeight: height } = this.chart;
    if (this.state && width && height) this.chart.replaceChildren(chartOf(this.state.series, width, height));
  }
}

function chartOf(series, width, height) {
  const lines = Object.entries(series).map(([name, points]) => ({ name, points, smooth: smoothed(name, points) }));
  const steps = lines.flatMap(({ points }) => points.map(([step]) => step));
  const [first, last] = [Math.min(...steps), Math.max(...steps, Math.min(...steps) + 1)];
  const right = width - MARGIN.right;
  const bottom = height - MARGIN.bottom;
  const across = (step) => MARGIN.left + ((step - first) / (last - first)) * (right - MARGIN.left);
  const { ticks, share } = lossAxis(lines, (bottom - MARGIN.top) / 20);
  const down = (value) => bottom - Math.min(1.02, Math.max(-0.02, share(value))) * (bottom - MARGIN.top);

  const chart = svg("svg", { role: "img", "aria-label": `Losses from step ${first} to ${last}` });
  for (const value of ticks) {
    chart.append(svg("line", { x1: MARGIN.left, x2: right, y1: down(value), y2: down(value) }));
    chart.append(label(value, MARGIN.left - 5, down(value) + 3.5, "end"));
  }
  for (const step of linearTicks(first, last, (right - MARGIN.left) / 60).filter(Number.isInteger)) {
    chart.append(label(step, across(step), height - 4, across(step) > right - 16 ? "end" : "middle"));
  }
  const place = ([step, value]) => `${across(step).toFixed(1)} ${down(value).toFixed(1)}`;
  const line = (kind, name, points) =>
    svg("path", { class: kind, "data-series": name, d: `M${points.map(place).join("L")}` });
  chart.append(...lines.map(({ name, points }) => line("raw", name, points)));
  chart.append(...lines.map(({ name, smooth }) => line("smooth", name, smooth)));
  return chart;
}

// Which losses get a tick, and how far up (0..1) a loss is. Single outliers stay outside, lest they flatten the rest.
function lossAxis(lines, mostTicks) {
  const values = lines.flatMap(({ points }) => points.map(([, value]) => value)).sort((a, b) => a - b);
  const means = lines.flatMap(({ smooth }) => smooth.map(([, value]) => value));
  let low = Math.min(values[Math.floor(0.02 * values.length)], ...means);
  let high = Math.max(values[Math.ceil(0.98 * values.length) - 1], ...means);
  if (low > 0 && high > 5 * low) {
    return { ticks: logTicks(low, high, mostTicks), share: (value) => Math.log(value / low) / Math.log(high / low) };
  }
  if (low === high) [low, high] = [low - 0.1, high + 0.1];
  return { ticks: linearTicks(low, high, mostTicks), share: (value) => (value - low) / (high - low) };
}

// A mean over the neighbours, weighted by a bell curve: a diffusion loss says little from one step to the next. The
// validation loss needs none, it is of the same noise each time.
function smoothed(name, points) {
  if (name === "validation") return points;
  const reach = points.length / 25;
  return points.map(([step], at) => {
    let sum = 0;
    let weights = 0;
    points.forEach(([, value], i) => {
      const weight = Math.exp(-0.5 * ((i - at) / reach) ** 2);
      sum += weight * value;
      weights += weight;
    });
    return [step, sum / weights];
  });
}

function linearTicks(low, high, most) {
  const rough = (high - low) / Math.max(1, most);
  const power = 10 ** Math.floor(Math.log10(rough));
  const gap = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const count = Math.floor(high / gap) - Math.ceil(low / gap) + 1;
  return Array.from({ length: count }, (_, i) => Number(((Math.ceil(low / gap) + i) * gap).toPrecision(6)));
}

function logTicks(low, high, most) {
  const lowest = Math.floor(Math.log10(low));
  const powers = Array.from({ length: Math.ceil(Math.log10(high)) - lowest + 1 }, (_, i) => lowest + i);
  const within = (factors) =>
    powers
      .flatMap((power) => factors.map((factor) => Number(`${factor}e${power}`)))
      .filter((value) => value >= low && value <= high);
  return [[1, 2, 5], [1, 3], [1]].map(within).find((ticks) => ticks.length <= most) ?? [];
}

function statusOf({ phase, step, steps, rate, left, memory }) {
  const speed = rate && (rate >= 1 ? `${rate.toFixed(1)} it/s` : `${(1 / rate).toFixed(1)} s/it`);
  const parts = [
    phase,
    step && `step ${step}/${steps}`,
    speed,
    left && `${duration(left)} left`,
    memory && `${(memory / 1e9).toFixed(1)} GB`,
  ];
  return parts.filter(Boolean).join(" · ");
}

function duration(seconds) {
  const [days, hours, minutes] = [86400, 3600, 60].map((unit) => Math.floor(seconds / unit));
  if (days) return `${days} d ${hours % 24} h`;
  if (hours) return `${hours} h ${minutes % 60} min`;
  return minutes ? `${minutes} min ${Math.floor(seconds % 60)} s` : `${Math.ceil(seconds)} s`;
}

function legendEntry([name, points]) {
  const entry = html("span", { "data-series": name });
  const text = html("b");
  text.textContent = `${LABELS[name] ?? name} ${smoothed(name, points).at(-1)[1].toPrecision(3)}`;
  entry.append(text);
  return entry;
}

function label(value, x, y, anchor) {
  const text = svg("text", { x, y, "text-anchor": anchor });
  text.textContent = String(value);
  return text;
}

function svg(tag, attributes) {
  return withAttributes(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes);
}

const displays = new WeakMap();

const displayOf = (id) => displays.get(nodeOf(id));

function showOutput(display, output) {
  const text = output?.[OUTPUT]?.[0];
  if (text) display?.show(JSON.parse(text));
}

// After a reload the host brings the workflow back without its outputs; they are in the history of the server.
async function restore(display) {
  const answer = await api.fetchApi("/history?max_items=64");
  const runs = Object.values(await answer.json()).reverse();
  const latest = runs.find(({ prompt }) => prompt[3].extra_pnginfo?.workflow?.id === app.rootGraph.id);
  for (const [id, output] of Object.entries(latest?.outputs ?? {})) {
    if (displayOf(id) === display && !display.state) showOutput(display, output);
  }
}

app.registerExtension({
  name: "DiffDirector.Training",
  setup() {
    addStyle(STYLE);
    api.addEventListener(EVENT, ({ detail }) => displayOf(detail.node)?.show(detail));
    api.addEventListener("execution_interrupted", ({ detail }) => displayOf(detail.node_id)?.stop("cancelled"));
    api.addEventListener("execution_error", ({ detail }) => displayOf(detail.node_id)?.stop("stopped by an error"));
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
  loadedGraphNode(node) {
    if (displays.has(node)) restore(displays.get(node));
  },
  // when the user comes back to a workflow's tab
  onNodeOutputsUpdated(outputs) {
    for (const [id, output] of Object.entries(outputs)) showOutput(displayOf(id), output);
  },
});
