// The editor of Curve: the curve over the frames, or over the parts of a clip or a sampling, with points to drag and presets.
import { app } from "../../scripts/app.js";
import { addStyle, follow, html } from "./shared.js";
import { added, canAdd, deleted, inTime, nearestFree, redrawn } from "./keyframe_text.js";
import { button, KeyframeEditor } from "./keyframe_editor.js";
import { placedAt, pointsOf, PRESETS, rounded, steppedTo, stepOf, valueAt, valueRange } from "./curve_points.js";
import uPlot from "./lib/uplot/uPlot.esm.js";

const NODE = "DiffDirectorCurve";
const HEIGHT = 230; // px
const STILL = 3; // px that a mouse goes without meaning it
const FONT = "10px Inter, Arial, sans-serif";

const STYLE = `
.diffdirector-curve { transition: color 1ms; }
.diffdirector-curve .plot { flex: 1; min-height: 0; position: relative; overflow: hidden; }
.diffdirector-curve .uplot { position: absolute; }
.diffdirector-curve .u-over { cursor: copy; touch-action: none; }
.diffdirector-curve .handle { width: 13px; height: 13px; margin: -6.5px; border-radius: 50%; }
.diffdirector-curve .handle.fixed { cursor: ns-resize; }
.diffdirector-curve input { width: 64px; user-select: text; }
.diffdirector-curve select { flex: 0 1 90px; }
`;

class CurveEditor extends KeyframeEditor {
  constructor(node) {
    super(node, { name: "curve", of: "numbers", text: "curve", settings: ["interpolation", "frames"], height: HEIGHT });
    this.box = html("div", { class: "plot", title: "Double-click adds a point" });
    this.box.addEventListener("dblclick", (event) => this.onDoubleClick(event));
    this.at = html("span", { class: "at" });
    this.field = html("input", { type: "text", inputmode: "decimal", spellcheck: false });
    this.field.addEventListener("change", () => this.number());
    this.field.addEventListener("keydown", (event) => this.onFieldKey(event));
    this.presets = html("select", { "aria-label": "Presets", title: "Another curve in place of this one" });
    this.presets.append(new Option("Presets", ""), ...Object.keys(PRESETS).map((name) => new Option(name)));
    this.presets.addEventListener("change", () => this.choose());
    this.plus = button("Add a point", "Add", () => this.addInTheMiddle());
    this.minus = button("Delete this point", "Delete", () => this.delete(this.selected));
    this.tools = html("div", { class: "tools" });
    this.tools.append(this.at, this.field, this.plus, this.minus, this.presets);
    this.editor.append(this.box, this.tools);
    this.addToNode();
    new ResizeObserver(() => this.text && this.draw(this.text)).observe(this.box);
    this.element.addEventListener("transitionend", () => this.plot?.redraw(false)); // another theme
    follow(node, "onRemoved", () => this.forgetPlot());
  }

  draw(text) {
    this.points = pointsOf(text.entries);
    this.point = Math.min(this.point ?? 0, this.points.length - 1);
    this.range = valueRange(text.line[1]);
    this.drawLine(text);
    if (!this.plot) return;
    const handles = this.handles(this.plot.over, this.points.length);
    this.points.forEach((point, number) => this.drawHandle(handles[number], point, number));
    this.showSelected();
    if (this.wanted == null) return;
    const number = this.points.findIndex(({ at }) => Math.abs(at - this.wanted) < 0.01);
    this.wanted = null;
    handles[number]?.focus();
  }

  drawLine({ frames, percent, line }) {
    const [width, height] = [this.box.clientWidth, this.box.clientHeight];
    if (!width || !height) return;
    Object.assign(this, { last: Math.max(frames - 1, 1), percent });
    this.plot ??= this.newPlot(width, height);
    if (this.plot.width !== width || this.plot.height !== height) this.plot.setSize({ width, height });
    this.plot.setData(line);
  }

  newPlot(width, height) {
    const style = getComputedStyle(this.element);
    const colour = (share) => () => `color-mix(in srgb, ${style.color} ${share}%, transparent)`;
    const axis = { font: FONT, stroke: colour(75), grid: { stroke: colour(12), width: 1 }, ticks: { show: false } };
    return new uPlot(
      {
        width,
        height,
        padding: [8, 12, 0, 0],
        legend: { show: false },
        cursor: { show: false },
        scales: { x: { time: false, range: () => [0, this.last] }, y: { range: () => this.range } },
        axes: [
          { ...axis, size: 26, gap: 9, space: 34, incrs: [1, 2, 5, 10, 20, 25, 50, 100, 200, 500, 1000, 2000],
            values: (_, ticks) => ticks.map((tick) => `${tick}${this.percent ? "%" : ""}`) },
          { ...axis, size: 38, gap: 4, space: 24 },
        ], // prettier-ignore
        series: [{}, { stroke: () => style.getPropertyValue("--accent"), width: 2, pxAlign: 0, points: { show: false } }],
      },
      [[], []],
      this.box,
    );
  }

  forgetPlot() {
    this.plot?.destroy();
    this.plot = null;
  }

  drawDraft(found) {
    if (found.line) this.drawLine(found);
  }

  drawHandle(handle, { number, at, value }, point) {
    const { ends } = this.text.entries[number];
    const [low, high] = this.range;
    handle.style.left = `${(100 * at) / this.last}%`;
    handle.style.top = `${(100 * (high - value)) / (high - low)}%`;
    handle.classList.toggle("fixed", !ends);
    handle.classList.toggle("selected", point === this.point);
    handle.setAttribute("aria-label", `Point ${point + 1} of ${this.points.length}`);
    handle.setAttribute("aria-valuemin", 0);
    handle.setAttribute("aria-valuemax", this.last);
    handle.setAttribute("aria-valuenow", at);
    handle.setAttribute("aria-valuetext", `${this.placeOf(at)}: ${value}`);
  }

  showSelected() {
    const { number, at, value } = this.points[this.point];
    this.selected = number;
    this.at.textContent = this.placeOf(at);
    this.field.setAttribute("aria-label", `Value at ${this.placeOf(at)}`);
    if (document.activeElement !== this.field) this.field.value = value;
    this.plus.disabled = !canAdd(this.text);
    this.minus.disabled = !this.canDelete(this.text, number);
    this.plot.over.querySelectorAll(":scope > .handle").forEach((handle, point) => {
      handle.classList.toggle("selected", point === this.point);
    });
  }

  placeOf(at) {
    const rounded = Number(at.toFixed(1));
    return this.percent ? `${rounded}%` : `frame ${rounded}`;
  }

  // Where in the plot the mouse is: a frame or a percentage, and a value.
  under(event) {
    const { left, top, width, height } = this.plot.over.getBoundingClientRect();
    const within = (share) => Math.min(Math.max(share, 0), 1);
    const [low, high] = this.range;
    return {
      at: within((event.clientX - left) / width) * (this.text.frames - 1),
      value: high - within((event.clientY - top) / height) * (high - low),
    };
  }

  onFocus(point) {
    if (!this.text || this.point === point) return;
    this.point = point;
    this.showSelected();
  }

  onDoubleClick(event) {
    if (!this.text || event.target !== this.plot.over) return;
    const { at, value } = this.under(event);
    this.add(Math.round(at), rounded(value, this.range));
  }

  onHandleKey(event, point) {
    const across = (direction) => this.change(point, event.shiftKey, (text, entry, end) => [steppedTo(text, entry, end, direction)]);
    const up = (direction) => this.change(point, false, (_, { start, end, value }) => [[start, end], Number(value) + direction * stepOf(this.range)]);
    const { number } = this.points[point];
    this.onKey(event, {
      ArrowLeft: () => across(-1),
      ArrowRight: () => across(1),
      ArrowUp: () => up(1),
      ArrowDown: () => up(-1),
      Delete: () => this.delete(number),
      Backspace: () => this.delete(number),
      Enter: () => this.goToField(),
    });
  }

  goToField() {
    this.field.focus();
    this.field.select();
  }

  onFieldKey(event) {
    if (event.key === "Escape") this.field.value = this.points[this.point].value;
    if (event.key === "Escape" || event.key === "Enter") {
      event.preventDefault();
      this.plot.over.querySelectorAll(":scope > .handle")[this.point]?.focus();
    }
    if (!event.ctrlKey && !event.metaKey) event.stopPropagation();
  }

  // to: from a text, an entry and the end that a point is, to where the entry starts and ends then, and its number
  change(point, holds, to) {
    const { number, end } = this.points[point];
    this.edit((text) => {
      const entry = text.entries[number];
      if (!entry) return null;
      const [[start, stop], value] = to(text, entry, holds && end === "both" ? "end" : end);
      return redrawn(text, entry, start, stop, value === undefined ? Number(entry.value) : rounded(value, this.range));
    });
  }

  drag(event, point, handle) {
    const { text } = this;
    const { number, end } = this.points[point];
    const entry = text.entries[number];
    const part = event.shiftKey && end === "both" ? "end" : end;
    const box = handle.getBoundingClientRect();
    const offset = { x: (box.left + box.right) / 2 - event.clientX, y: (box.top + box.bottom) / 2 - event.clientY };
    let to = null;
    const move = (pointer) => {
      const { at, value } = this.under({ clientX: pointer.clientX + offset.x, clientY: pointer.clientY + offset.y });
      const across = Math.abs(pointer.clientX - event.clientX) > STILL;
      const up = Math.abs(pointer.clientY - event.clientY) > STILL;
      const [start, stop] = across ? placedAt(text, entry, part, Math.round(at)) : [entry.start, entry.end];
      to = [start, stop, up ? rounded(value, this.range) : Number(entry.value)];
      this.drawHandle(handle, { number, at: part === "end" ? stop : start, value: to[2] }, point);
      this.at.textContent = this.placeOf(part === "end" ? stop : start);
      this.field.value = to[2];
      this.preview(redrawn(text, entry, ...to));
    };
    const drop = () => {
      if (to) this.edit((now) => (now.entries[number] ? redrawn(now, now.entries[number], ...to) : null));
    };
    return { move, drop };
  }

  add(place, value) {
    if (!this.text || !canAdd(this.text)) return;
    this.edit((text) => {
      this.wanted = nearestFree(text, null, place);
      return this.wanted === null ? null : added(text, this.wanted, value);
    });
  }

  // Halfway to the next one.
  addInTheMiddle() {
    const { at } = this.points[this.point];
    const after = inTime(this.text.entries).find((entry) => entry.start > at);
    const place = Math.ceil((at + (after?.start ?? this.text.frames - 1)) / 2);
    this.add(place, rounded(valueAt(this.text.line, place), this.range));
  }

  canDelete({ entries }, number) {
    return Boolean(entries[number]?.ends) && entries.length > 1;
  }

  delete(number) {
    this.edit((text) => {
      if (!this.canDelete(text, number)) return null;
      const left = text.entries.filter((_, other) => other !== number);
      this.wanted = left[Math.min(number, left.length - 1)].start;
      return deleted(text, text.entries[number]);
    });
  }

  // What is typed into the field.
  number() {
    const value = Number(this.field.value.replace(",", ".") || NaN);
    if (!Number.isFinite(value)) return this.showSelected();
    const { number } = this.points[this.point];
    this.edit((text) => {
      const entry = text.entries[number];
      return entry ? redrawn(text, entry, entry.start, entry.end, value) : null;
    });
  }

  choose() {
    const [curve, interpolation] = PRESETS[this.presets.value];
    this.presets.value = "";
    this.point = 0;
    this.write({ curve, interpolation });
  }
}

app.registerExtension({
  name: "DiffDirector.Curve",
  setup() {
    const sheet = new URL("./lib/uplot/uPlot.min.css", import.meta.url);
    document.head.append(html("link", { rel: "stylesheet", href: sheet }));
    addStyle(STYLE);
  },
  nodeCreated(node) {
    if (node.comfyClass === NODE) new CurveEditor(node);
  },
});
