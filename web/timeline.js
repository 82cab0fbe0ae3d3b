// The timeline of Prompt Travel: its keyframes over the frames of the clip, to be moved, added, deleted and worded.
import { app } from "../../scripts/app.js";
import { addStyle, html } from "./shared.js";
import { added, canAdd, deleted, inTime, lengthOf, moved, nearestFree, nextFree, reworded, stretched } from "./keyframe_text.js";
import { button, KeyframeEditor } from "./keyframe_editor.js";
import { frameTicks, labelPlaces } from "./timeline_layout.js";

const NODE = "DiffDirectorPromptTravel";
const HEIGHT = 176; // px
const EDGE = 7; // px of a handle, at both ends

const STYLE = `
.diffdirector-timeline .strip {
  position: relative; flex: none; height: 62px; padding: 0 9px; border-radius: 5px; cursor: copy; touch-action: none;
  background: color-mix(in srgb, var(--input-text) 7%, transparent);
}
.diffdirector-timeline .track { position: relative; height: 100%; }
.diffdirector-timeline .handle { top: 4px; height: 20px; margin-left: -7px; border-radius: 5px; }
.diffdirector-timeline .handle.fixed { cursor: pointer; border-style: dotted; }
.diffdirector-timeline .handle.range::before, .diffdirector-timeline .handle.range::after {
  content: ""; position: absolute; top: 0; bottom: 0; width: ${EDGE}px; cursor: ew-resize;
}
.diffdirector-timeline .handle.range::before { left: -2px; }
.diffdirector-timeline .handle.range::after { right: -2px; }
.diffdirector-timeline .label {
  position: absolute; top: 26px; margin-left: -7px; padding-right: 6px; box-sizing: border-box; font-size: 11px;
  overflow: hidden; text-overflow: ellipsis; white-space: nowrap; pointer-events: none;
}
.diffdirector-timeline .label.last { right: -7px; padding: 0; text-align: right; }
.diffdirector-timeline .label.selected { color: var(--accent); }
.diffdirector-timeline .tick {
  position: absolute; bottom: 1px; transform: translateX(-50%); font-size: 10px; opacity: 0.75; pointer-events: none;
}
.diffdirector-timeline textarea { flex: 1; min-height: 40px; }
`;

class Timeline extends KeyframeEditor {
  constructor(node) {
    super(node, { name: "timeline", of: "prompts", text: "prompts", settings: ["frames"], height: HEIGHT, maxHeight: HEIGHT });
    this.strip = html("div", { class: "strip", title: "Double-click adds a keyframe" });
    this.track = html("div", { class: "track" });
    this.strip.append(this.track);
    this.strip.addEventListener("dblclick", (event) => {
      if (this.text && !event.target.classList.contains("handle")) this.add(this.within(Math.floor(this.under(event))));
    });
    this.at = html("span", { class: "at" });
    this.hint = html("span", { class: "hint" });
    this.plus = button("Add a keyframe", "Add", () => this.add(this.middle()));
    this.minus = button("Delete this keyframe", "Delete", () => this.delete(this.selected));
    this.tools = html("div", { class: "tools" });
    this.tools.append(this.at, this.plus, this.minus, this.hint);
    this.field = html("textarea", { rows: 2, spellcheck: false, placeholder: "nothing, which is a prompt too" });
    this.field.addEventListener("input", () => this.word());
    this.field.addEventListener("change", () => this.write({})); // one step for all that was typed
    this.field.addEventListener("blur", () => (this.base = null));
    this.field.addEventListener("keydown", (event) => this.onFieldKey(event));
    this.editor.append(this.strip, this.tools, this.field);
    this.addToNode();
  }

  draw(text) {
    const { entries, frames } = text;
    this.track.querySelectorAll(".label, .tick").forEach((element) => element.remove());
    const handles = this.handles(this.track, entries.length);
    entries.forEach((entry, number) => this.drawHandle(handles[number], entry, number));
    for (const { entry, left, width, last } of labelPlaces(entries, frames)) {
      const label = html("span", { class: `label${last ? " last" : ""}${entry === this.entry ? " selected" : ""}` });
      label.style.width = `calc(${width}% - 2px)`;
      if (!last) label.style.left = `${left}%`;
      label.textContent = entry.value;
      this.track.append(label);
    }
    for (const frame of frameTicks(frames)) {
      const tick = html("span", { class: "tick" });
      tick.style.left = `${this.share(frame)}%`;
      tick.textContent = frame;
      this.track.append(tick);
    }
    this.showSelected();
    if (!this.wanted) return;
    const number = entries.findIndex((entry) => Math.abs(entry.start - this.wanted.frame) < 0.01);
    const { field } = this.wanted;
    this.wanted = null;
    handles[number]?.focus();
    if (field) this.goToField();
  }

  drawHandle(handle, entry, number, { start, end } = entry) {
    handle.style.left = `${this.share(start)}%`;
    handle.style.width = `calc(${this.share(end) - this.share(start)}% + 14px)`;
    handle.className = "handle";
    handle.classList.toggle("selected", number === this.selected);
    handle.classList.toggle("range", end > start);
    handle.classList.toggle("fixed", !entry.ends);
    handle.title = entry.value;
    handle.setAttribute("aria-label", `Keyframe ${number + 1} of ${this.text.entries.length}: ${entry.value}`);
    handle.setAttribute("aria-valuemin", 0);
    handle.setAttribute("aria-valuemax", this.text.frames - 1);
    handle.setAttribute("aria-valuenow", start);
    handle.setAttribute("aria-valuetext", framesOf({ start, end }));
  }

  showSelected() {
    const { entry } = this;
    this.at.textContent = framesOf(entry);
    this.field.setAttribute("aria-label", `Prompt at ${framesOf(entry)}`);
    if (document.activeElement !== this.field) this.field.value = entry.value;
    this.plus.disabled = !canAdd(this.text);
    this.minus.disabled = !this.canDelete(entry);
    this.hint.textContent = entry.ends ? "drag moves · Shift+drag holds" : "a list: one prompt for each frame";
    this.track.querySelectorAll(":scope > .handle").forEach((handle, number) => {
      handle.classList.toggle("selected", number === this.selected);
    });
  }

  // Percent of the track's width: the middle of a frame's column.
  share(frame) {
    return (100 * (frame + 0.5)) / this.text.frames;
  }

  // In frames from the left edge of the first one's column.
  under(event) {
    const { left, width } = this.track.getBoundingClientRect();
    return ((event.clientX - left) / width) * this.text.frames;
  }

  within(frame) {
    return Math.min(Math.max(frame, 0), this.text.frames - 1);
  }

  // Halfway to the next keyframe.
  middle() {
    const after = inTime(this.text.entries).find((entry) => entry.start > this.entry.end);
    return Math.ceil((this.entry.end + (after?.start ?? this.text.frames - 1)) / 2);
  }

  onFocus(number) {
    if (!this.text || this.selected === number) return;
    this.selected = number;
    this.draw(this.text);
  }

  onHandleKey(event, number) {
    const arrow = (direction) => (event.shiftKey ? this.hold(number, direction) : this.step(number, direction));
    this.onKey(event, {
      ArrowLeft: () => arrow(-1),
      ArrowRight: () => arrow(1),
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
    if (event.key === "Escape" || (event.key === "Enter" && !event.shiftKey && !event.ctrlKey && !event.metaKey)) {
      event.preventDefault();
      this.track.querySelectorAll(":scope > .handle")[this.selected]?.focus();
    }
    if (!event.ctrlKey && !event.metaKey) event.stopPropagation();
  }

  step(number, direction) {
    this.edit((text) => {
      const entry = text.entries[number];
      const start = entry?.ends ? nextFree(text, entry, direction) : null;
      return start === null ? null : moved(text, entry, start, start + lengthOf(entry));
    });
  }

  hold(number, direction) {
    this.edit((text) => {
      const entry = text.entries[number];
      if (!entry?.ends) return null;
      return moved(text, entry, entry.start, stretched(text, entry, "end", Math.round(entry.end) + direction));
    });
  }

  drag(event, number, handle) {
    const text = this.text;
    const entry = text.entries[number];
    let to = null;
    const box = handle.getBoundingClientRect();
    const scale = box.width / handle.offsetWidth;
    const range = entry.end > entry.start;
    const atEnd = event.shiftKey || (range && box.right - event.clientX < EDGE * scale);
    const atStart = range && event.clientX - box.left < EDGE * scale;
    const grabbed = this.under(event);
    const move = (pointer) => {
      if (!entry.ends) return;
      const way = this.under(pointer) - grabbed;
      const frame = this.within(Math.round((atEnd ? entry.end : entry.start) + way));
      if (Math.abs(way) < 0.5) to = null;
      else if (atEnd) to = { start: entry.start, end: stretched(text, entry, "end", frame) };
      else if (atStart) to = { start: stretched(text, entry, "start", frame), end: entry.end };
      else {
        const start = nearestFree(text, entry, frame, lengthOf(entry));
        to = start === null ? null : { start, end: start + lengthOf(entry) };
      }
      this.drawHandle(handle, entry, number, to ?? entry);
      handle.classList.add("moving");
      this.at.textContent = framesOf(to ?? entry);
    };
    const drop = () => {
      if (to) this.edit((now) => (now.entries[number]?.ends ? moved(now, now.entries[number], to.start, to.end) : null));
    };
    return { move, drop };
  }

  add(frame) {
    if (!this.text || !canAdd(this.text)) return;
    this.edit((text) => {
      const free = nearestFree(text, null, frame);
      if (free === null) return null;
      const before = inTime(text.entries).findLast((entry) => entry.start <= free) ?? inTime(text.entries)[0];
      this.wanted = { frame: free, field: true };
      this.selected = text.entries.length; // until it is there
      return added(text, free, before.value);
    });
  }

  canDelete(entry) {
    return Boolean(entry?.ends) && this.text.entries.length > 1;
  }

  delete(number) {
    this.edit((text) => {
      if (!this.canDelete(text.entries[number])) return null;
      const left = text.entries.filter((_, other) => other !== number);
      this.wanted = { frame: left[Math.min(number, left.length - 1)].start };
      return deleted(text, text.entries[number]);
    });
  }

  // The field's text, at each letter; what was read before the first of them says where.
  word() {
    const number = this.selected;
    const put = (base) => {
      this.base = base;
      const text = reworded(base, base.entries[number], this.field.value);
      if (text !== this.written) this.put({ prompts: text });
      return null;
    };
    if (this.base) put(this.base);
    else this.edit(put);
  }
}

function framesOf({ start, end }) {
  const rounded = (place) => Number(place.toFixed(1));
  return end > start ? `frames ${rounded(start)}-${rounded(end)}` : `frame ${rounded(start)}`;
}

app.registerExtension({
  name: "DiffDirector.Timeline",
  setup() {
    addStyle(STYLE);
  },
  nodeCreated(node) {
    if (node.comfyClass === NODE) new Timeline(node);
  },
});
