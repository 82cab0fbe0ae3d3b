// What the editors of keyframes have in common. The text widget is their only state: an edit writes it, and each change of it
// is read anew, by the server's one parser. The host loads every file of this folder as an extension: this one adds their style.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { addDisplay, addStyle, follow, html, leaveMouseToCanvas, takePlace } from "./shared.js";

const PAUSE = 80; // ms without a change before the server is asked
const TEXT = 60; // px for the text, which is written and read here
const MOST = 300; // entries
const AROUND = 20; // px that the host leaves free around it on the canvas

addStyle(`
.diffdirector-keyframes {
  --accent: #1f5fbf; --on-accent: #fff; --line: color-mix(in srgb, var(--input-text) 25%, transparent);
  box-sizing: border-box; padding: 8px; display: flex; flex-direction: column; border-radius: 8px; overflow: hidden;
  background: var(--comfy-input-bg); color: var(--input-text); font: 12px/1.4 Inter, Arial, sans-serif; user-select: none;
}
.dark-theme .diffdirector-keyframes { --accent: #4d94ec; --on-accent: #10151d; }
.diffdirector-keyframes .editor { flex: 1; min-height: 0; display: flex; flex-direction: column; gap: 6px; }
.diffdirector-keyframes [role="status"] { margin: auto; text-align: center; text-wrap: balance; user-select: text; }
.diffdirector-keyframes.wrong [role="status"] { color: color-mix(in srgb, var(--error-text) 65%, var(--input-text)); }
.diffdirector-keyframes.known [role="status"], .diffdirector-keyframes:is(.wrong, .unknown) .editor { display: none; }
.diffdirector-keyframes .tools { flex: none; display: flex; gap: 4px; align-items: center; }
.diffdirector-keyframes .at { flex: none; min-width: 58px; font-variant-numeric: tabular-nums; }
.diffdirector-keyframes :is(button, select, input, textarea) {
  box-sizing: border-box; min-width: 0; margin: 0; padding: 3px 7px; font: inherit; color: inherit; background: transparent;
  border: 1px solid var(--line); border-radius: 5px;
}
.diffdirector-keyframes option { color: var(--input-text); background: var(--comfy-input-bg); }
.diffdirector-keyframes textarea { width: 100%; resize: none; user-select: text; }
.diffdirector-keyframes :is(button, select) { cursor: pointer; }
.diffdirector-keyframes :is(button, select):hover:enabled { border-color: var(--input-text); }
.diffdirector-keyframes :disabled { opacity: 0.4; cursor: default; }
.diffdirector-keyframes :focus-visible { outline: 2px solid var(--accent); outline-offset: 1px; }
.diffdirector-keyframes .hint { margin-left: auto; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; font-size: 10px; opacity: 0.7; }
.diffdirector-keyframes .handle {
  position: absolute; box-sizing: border-box; border: 2px solid var(--accent); background: var(--comfy-input-bg);
  cursor: grab; touch-action: none;
}
.diffdirector-keyframes .handle.selected { background: var(--accent); }
.diffdirector-keyframes .handle.moving { cursor: grabbing; }
`);

// A subclass has draw(text) for a text that could be read, say(...) said what it is otherwise.
export class KeyframeEditor {
  constructor(node, { name, of, text, settings, height, maxHeight }) {
    Object.assign(this, { node, of, name, height, names: [text, ...settings], selected: 0, edits: [] });
    this.widgets = Object.fromEntries(this.names.map((each) => [each, node.widgets.find((widget) => widget.name === each)]));
    this.textWidget = this.widgets[text];
    this.element = html("div", { class: `diffdirector-keyframes diffdirector-${name} unknown` });
    this.element.style.cssText = `--comfy-widget-min-height: ${height + AROUND}px; min-height: ${height}px;`;
    if (maxHeight) this.element.style.setProperty("--comfy-widget-max-height", `${maxHeight + AROUND}px`);
    this.editor = html("div", { class: "editor", role: "group", "aria-label": name });
    this.status = html("div", { role: "status" });
    this.element.append(this.editor, this.status);
    this.element.addEventListener("pointerdown", (event) => event.stopPropagation());
    leaveMouseToCanvas(this.element, ["wheel"]);
    for (const widget of Object.values(this.widgets)) follow(widget, "callback", () => this.update());
    for (const method of ["onAdded", "onConfigure", "onConnectionsChange"]) follow(node, method, () => this.update());
  }

  // After the subclass has filled the editor.
  addToNode() {
    const [width, height] = this.node.size;
    addDisplay(this.node, `${this.name}_editor`, this.element);
    this.node.setSize([width, height + TEXT + this.height + AROUND]);
  }

  get written() {
    return String(this.textWidget.value).replaceAll("\r\n", "\n");
  }

  get entry() {
    return this.text?.entries[this.selected];
  }

  update() {
    this.stale = true;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.ask(), PAUSE);
  }

  // change: from the text that was read to what is written then, or null for nothing. Where that has changed it waits until it is read.
  edit(change) {
    if (this.text && !this.stale && !this.edits.length) return this.writeText(change(this.text));
    this.edits.push(change);
    this.ask();
  }

  // As one step of the host's undo.
  write(values) {
    app.canvas.emitBeforeChange();
    this.put(values);
    app.canvas.emitAfterChange();
  }

  put(values) {
    for (const [name, value] of Object.entries(values)) {
      this.widgets[name].value = value;
      this.widgets[name].callback?.(value);
    }
    this.ask();
  }

  writeText(text) {
    if (text !== null && text !== this.written) this.write({ [this.textWidget.name]: text });
  }

  // What a text that is not written yet would be, or null.
  preview(text) {
    this.draft = text;
    this.ask();
  }

  // One question at a time; what changed in the meantime is asked for afterwards.
  async ask() {
    clearTimeout(this.timer);
    if (!this.node.graph) return;
    if (this.asking) return (this.again = true);
    const linked = this.node.inputs.filter((input) => input.link != null && this.names.includes(input.widget?.name));
    if (linked.length) {
      const names = linked.map((input) => input.name).join(", ");
      return this.say("unknown", `The ${this.name} is known when it runs: ${names} from another node`);
    }
    this.asking = true;
    try {
      const written = this.draft ?? this.written;
      const settings = Object.fromEntries(Object.entries(this.widgets).map(([name, widget]) => [name, widget.value]));
      const body = JSON.stringify({ ...settings, text: written, of: this.of });
      const headers = { "Content-Type": "application/json" };
      const answer = await api.fetchApi("/diffdirector/keyframes", { method: "POST", headers, body });
      if (!answer.ok) throw new Error(answer.statusText);
      this.take(written, await answer.json());
    } catch (error) {
      this.say("wrong", `The ${this.name} could not be read: ${error.message}`);
    } finally {
      this.asking = false;
    }
    if (this.again) this.ask();
    this.again = false;
  }

  take(written, found) {
    if (this.draft != null) return this.drawDraft?.(found);
    if (written !== this.written) return (this.again = true);
    if (found.error) return this.say("wrong", found.error);
    if (found.entries.length > MOST) return this.say("unknown", `No ${this.name} for more than ${MOST} entries: edit the text`);
    this.stale = false;
    this.text = { ...found, written, letters: [...written] };
    this.selected = Math.min(this.selected, found.entries.length - 1);
    const change = this.edits.shift();
    if (change) this.writeText(change(this.text));
    if (this.edits.length) this.again = true;
    this.stale = written !== this.written;
    if (this.stale) return;
    this.say("known", "");
    if (!this.dragging) this.draw(this.text);
  }

  say(kind, text) {
    if (kind !== "known") {
      this.text = null;
      this.edits = [];
    }
    this.element.className = `diffdirector-keyframes diffdirector-${this.name} ${kind}`;
    this.status.textContent = text;
    takePlace(this.node, this.element, this.name);
    this.node.setDirtyCanvas(true, true);
  }

  // As many handles as there are to show, the same ones as before as far as they are needed.
  handles(parent, count) {
    const handles = [...parent.querySelectorAll(":scope > .handle")];
    while (handles.length > count) handles.pop().remove();
    while (handles.length < count) {
      const handle = html("div", { class: "handle", role: "slider", tabindex: 0 });
      const number = handles.length;
      handle.addEventListener("focus", () => this.onFocus(number));
      handle.addEventListener("keydown", (event) => this.onHandleKey(event, number));
      handle.addEventListener("pointerdown", (event) => this.startDrag(event, handle, number));
      parent.append(handle);
      handles.push(handle);
    }
    return handles;
  }

  // The subclass's drag(number, event) gives what to do as the pointer moves: move(event), and at the end drop().
  startDrag(event, handle, number) {
    if (event.button !== 0 || !this.text) return;
    event.preventDefault();
    handle.focus();
    handle.setPointerCapture(event.pointerId);
    handle.classList.add("moving");
    this.dragging = true;
    const { move, drop } = this.drag(event, number, handle);
    const stop = new AbortController();
    const end = (apply) => {
      stop.abort();
      handle.classList.remove("moving");
      this.dragging = false;
      this.draft = null;
      if (apply) drop();
      if (this.text) this.draw(this.text);
    };
    const listen = (type, listener) => handle.addEventListener(type, listener, { signal: stop.signal });
    listen("pointermove", (pointer) => this.text && move(pointer));
    listen("pointerup", () => end(true));
    listen("pointercancel", () => end(false));
    listen("keydown", (key) => {
      if (key.key !== "Escape") return;
      key.stopPropagation();
      end(false);
    });
  }

  // actions: key -> what it does. Others are left to the host.
  onKey(event, actions) {
    const action = actions[event.key];
    if (!action || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    action(event);
  }
}

export function button(label, text, act) {
  const element = html("button", { type: "button", "aria-label": label, title: label });
  element.textContent = text;
  element.addEventListener("click", act);
  return element;
}
